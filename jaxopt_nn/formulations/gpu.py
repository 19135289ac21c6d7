"""GPU: int8 codes as they stand; of a table that is too long for comparisons the floats."""

from __future__ import annotations

from functools import partial

from jaxopt_nn.formulations import common
from jaxopt_nn.formulations.labels import Form
from jaxopt_nn.tensors.coded import Coded

programs = common.programs
over_float = common.over_float


def forms(weight: Coded, small: bool, activations: int = 16) -> dict[str, Form]:
    """The forms that a weight may take, the best first."""
    return {"decoded": partial(common.decoded, "gpu")} if weight.costly else {"int8": common.centred}
