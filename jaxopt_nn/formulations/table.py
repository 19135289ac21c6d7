"""Which program runs a dot, and which form a weight is prepared in: one table, by backend."""

from __future__ import annotations

from typing import Any

import jax

from jaxopt_nn.formulations import cpu, gpu, labels, tpu
from jaxopt_nn.formulations.labels import Call, Program
from jaxopt_nn.tensors.coded import Coded

#: Each has ``programs(weight, names, call, rows)`` and ``forms(weight, batch, activations, small)``, the best first.
PLATFORMS: dict[str, Any] = {"cpu": cpu, "gpu": gpu, "tpu": tpu}


def candidates(weight: Coded, other: Any, call: Call) -> list[Program]:
    """The programs that can run a weight as it lies, all of the asked arithmetic, the best first."""
    backend = PLATFORMS[weight.platform or jax.default_backend()]
    names = labels.of(call, weight, other)
    return list(backend.programs(weight, names, call, labels.rows(names, other)))


def choose(weight: Coded, other: Any, call: Call) -> Program:
    """The best of ``candidates``."""
    return candidates(weight, other, call)[0]
