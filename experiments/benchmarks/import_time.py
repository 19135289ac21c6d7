"""Claim: ``import jaxopt_nn`` takes at most 0.3 s over ``import jax``.

Command: ``python -m experiments.benchmarks.import_time`` (about 30 s)

Each name is imported when it is first used: the rows after it say what that takes, the last one for all names.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from .common import emit

TIMED = "import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
CODE = {
    "jax": "import jax",
    "jaxopt_nn": "import jax, jaxopt_nn",
    "prune, quantize, compress": "from jaxopt_nn import prune, quantize, compress",
    "every name": "from jaxopt_nn import *",
}


def seconds(code: str) -> float:
    """Time of a statement in a fresh process."""
    out = subprocess.run([sys.executable, "-c", TIMED.format(code=code)], capture_output=True, text=True, check=True)
    return float(out.stdout)


def main() -> None:
    rounds = [[seconds(code) for code in CODE.values()] for _ in range(7)]
    plain, *ours = (statistics.median(side) for side in zip(*rounds, strict=True))
    rows = [{"import": "jax", "seconds": plain}]
    emit([*rows, *({"import": name, "seconds": s, "over jax": s - plain} for name, s in zip([*CODE][1:], ours, strict=True))])


if __name__ == "__main__":
    main()
