"""How many examples a compiled function takes at once: as many as fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

#: Of the memory at hand, what temporaries and results of one call may take.
SHARE = 0.5


def room() -> float:
    """Bytes that one call may take on the default device: ``SHARE`` of what is free there, of the host's memory where the
    device tells nothing (CPU); infinite where neither is known."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    free = [1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return SHARE * free[0] if free else math.inf


def call_bytes(jitted: Any, *args: Any) -> int:
    """Bytes of the temporaries and results of one call of a jitted function, as its compiler counts them.

    Nothing is run; a call on such arguments afterwards compiles nothing anew.

    Args:
      args: pytrees of arrays or ``jax.ShapeDtypeStruct``.
    """
    analysis = jitted.lower(*args).compile().memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def fitting(need: Callable[[int], float], most: int = 512) -> int:
    """``most``, or the largest power of two below it whose call fits into ``room()``; 1 where none does.

    Args:
      need: ``examples -> bytes`` of one call, taken to grow with their number; asked as rarely as possible, since it compiles.
    """
    size, free = most, room()
    while size > 1 and (bytes_ := need(size)) > free:
        size = 2 ** int(math.log2(max(1, min(size * free / bytes_, size - 1))))
    return size
