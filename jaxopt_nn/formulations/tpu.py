"""TPU: native codes of 4 and 2 bits, which it stores and reads packed; int8 for other widths."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxopt_nn.formulations import common
from jaxopt_nn.formulations.labels import Form
from jaxopt_nn.tensors.coded import Coded

_NATIVE = {(4, True): jnp.int4, (4, False): jnp.uint4, (2, True): jnp.int2, (2, False): jnp.uint2}

programs = common.programs
over_float = common.over_float


def forms(weight: Coded, small: bool) -> dict[str, Form]:
    """The forms that a weight may take, the best first."""
    return {"native": native}


def native(weight: Coded) -> Coded:
    wide = common.centred(weight)
    kind = _NATIVE.get((wide.bits, wide.signed), wide.codes.dtype)
    return dataclasses.replace(wide, codes=wide.codes.astype(kind))
