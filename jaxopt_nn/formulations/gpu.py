"""GPU: int8 codes as they stand."""

from __future__ import annotations

from collections.abc import Callable

from jaxopt_nn.formulations import common
from jaxopt_nn.tensors.coded import Coded

programs = common.programs


def forms(weight: Coded, batch: int | None, activations: int, small: bool) -> dict[str, Callable[[Coded], Coded]]:
    """The forms that a weight may take, the best first."""
    return {"int8": lambda t: t.expand()}
