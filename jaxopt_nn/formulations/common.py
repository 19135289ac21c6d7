"""The programs that every backend has, for forms without a layout of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from jaxopt_nn.formulations import integer, weight_only
from jaxopt_nn.formulations.labels import Call, Labels, Program
from jaxopt_nn.tensors.binary import Binary
from jaxopt_nn.tensors.coded import Coded
from jaxopt_nn.tensors.decoded import Decoded


def programs(weight: Coded, names: Labels, call: Call, rows: int) -> Iterator[Program]:
    """The programs of the asked arithmetic, the best first.

    Partial sums of groups are rows times groups numbers: where that is more than the weight has entries (more rows than
    entries in a group), weight-only programs scale the weight instead, as the dense program would.
    """
    if call.activations <= 8:
        if weight.integral:
            yield Program("integer, in one dot", integer.direct)
        yield Program("float on rounded activations", integer.decoded)
        return
    if not weight.integral:
        floats = jnp.issubdtype(weight.codes.dtype, jnp.floating)
        yield Program("float, decoded" if floats else "float, looked up", weight_only.direct)
        return
    lengths = [n // names.groups.get("g" + k[1:], 1) for k, n in zip(names.weight, weight.shape) if k[0] == "k"]
    one, other = Program("float, in one dot", weight_only.direct), Program("float, scaled weight", weight_only.scaled)
    yield from (other, one) if names.groups and rows > math.prod(lengths) else (one, other)


def centred(weight: Coded) -> Coded:
    """Unpacked; unsigned codes of 8 bits less 128, as their zero points, so that they are int8 once and not at each run."""
    wide = weight.expand()
    whole = wide.zero is None or jnp.issubdtype(wide.zero.dtype, jnp.integer)
    if not wide.integral or wide.signed or wide.bits < 8 or not whole:
        return wide
    lower = lambda x: (x.astype(jnp.int16) - 128).astype(jnp.int8)
    zero = jnp.full(wide.scale.shape, -128, jnp.int8) if wide.zero is None else lower(wide.zero)
    return dataclasses.replace(wide, codes=lower(wide.codes), zero=zero, signed=True)


def decoded(platform: str, weight: Coded, order: Sequence[int] | None = None) -> Coded:
    """The values, as float32 (or the weight's own narrower dtype), with their axes as they are, or in ``order``.

    Of signs the signs, whose scale the output is multiplied with: so a rule that needs them still has them.
    """
    order = range(weight.ndim) if order is None else order
    if isinstance(weight, Binary):
        return weight.in_entries(weight.dtype if weight.dtype.itemsize < 4 else jnp.float32).laid(order)
    return Decoded.of(weight, order, platform)


def over_float(program: str, rows: int) -> float | None:
    """Time over the float product's: not measured."""
    return None


def grouped_axis(weight: Coded) -> int | None:
    """The one axis of a matrix, or of a stack of them, along which scales come in groups."""
    grouped = [a for a, (d, n) in enumerate(zip(weight.groups, weight.shape)) if 1 < d < n]
    return grouped[0] if len(grouped) == 1 and weight.ndim in (2, 3) else None
