"""Claim: ``import jaxopt_nn`` takes at most 0.3 s over ``import jax``.

Command: ``python -m experiments.benchmarks.import_time`` (about 15 s)
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from .common import emit

CODE = "import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """Time of one import in a fresh process."""
    out = subprocess.run([sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=True)
    return float(out.stdout)


def main() -> None:
    rounds = [(seconds("jax"), seconds("jaxopt_nn")) for _ in range(7)]
    plain, ours = (statistics.median(side) for side in zip(*rounds, strict=True))
    emit([{"import": "jax", "seconds": plain}, {"import": "jaxopt_nn", "seconds": ours, "over jax": ours - plain}])


if __name__ == "__main__":
    main()
