"""What every benchmark prints: JSON lines, a table, the machine."""

from __future__ import annotations

import json
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax


def machine() -> str:
    """The CPU model, the number of devices and the versions, in one line."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    cores = sum(line.startswith("processor") for line in lines)
    return f"{model}, {cores} cores; Python {platform.python_version()}, JAX {jax.__version__}, {jax.default_backend()}"


def emit(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Prints each row as a JSON line, then all as a Markdown table, whose lines it returns, then the machine."""
    for row in rows:
        print(json.dumps(row), flush=True)
    print()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [columns, *([_cell(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in table]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print("\n".join(lines), machine(), sep="\n\n")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
