"""TPU: native codes of 4 and 2 bits, which it stores and reads packed; int8 for other widths.

What was found, by the compiler's estimates for v5e (``experiments/benchmarks/tpu_formulations.py``):

* A product of fewer than 8 rows misses the matrix unit: 2.4 (bfloat16) to 15 times (4 bits) the cycles of 8 rows, so rows are
  padded.
* Groups: codes as [groups, entries, out]. Few rows: one dot with the groups as batch. From ``FEW`` rows on the partial sums
  cost more than the weight, which is scaled inside of the dot, on its way to the matrix unit. Written as [in, out] and split in
  the program, the scales are spread out in memory first: 17 times the cycles.
* A product that the compiler joins with the attention's layout has its codes laid out anew: activations are matrices. Split
  into groups as [rows, groups, entries] they are spread out in memory for each product: they are turned before they are
  split, as [groups, entries, rows], which takes .79 and not .90 of bfloat16's cycles at width 2048.
* A product of more outputs than inputs is read by one of fewer, which the compiler would join it with and compute anew for
  each block: three times the cycles. A barrier stands between its sum and its scale, which the next product takes in for
  nothing. Behind any other product a barrier makes the scale an instruction of its own: W4 takes .60 of bfloat16's cycles at
  width 2048 with all of them, .56 with these alone.
* A weight of 64 MB or more is fetched into memory on chip as a whole, long before its use, and nothing else fits beside it: all
  other products wait for HBM then. In blocks of 16 MB the 8-bit network of width 2048 takes .66 of bfloat16's cycles, not 1.17.
* An array whose last axis is no multiple of 128 lies with another axis last, so a lookup lays the whole table out anew, 8 times
  the cycles of the lookup as a product with rows of zeros and a one, which is exact. Read as a whole, a large table stays on
  chip from the lookup to the head, and layers are not fetched ahead: .97 of bfloat16's cycles in blocks, not 1.02 (8 bits,
  width 576).
* Values of a table are picked by comparisons, inside of the dot: 4 of them take .47 of bfloat16's cycles, 16 take 1.22 (8 rows,
  MLP 4096 x 16384 x 4096), read at 2 and 4 bits. More would be gathered one by one, and are held as floats.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxopt_nn.formulations import common, labels, weight_only
from jaxopt_nn.formulations.labels import Call, Form, Labels, Program
from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.coded import Coded

_NATIVE = {(4, True): jnp.int4, (4, False): jnp.uint4, (2, True): jnp.int2, (2, False): jnp.uint2}

#: Rows of one tile of the matrix unit's operand.
ROWS = 8
#: Rows up to which the partial sums of groups cost less than scaling the weight.
FEW = 8
#: Entries of a group that fill whole tiles of 4-bit codes; smaller groups would be padded in memory.
GROUP = 32
#: Lanes: what lies last in memory comes in multiples of them.
LANES = 128
#: Entries of a float32 result that stays on chip, where a barrier costs little.
ON_CHIP = 2**21
#: Bytes of codes from which a weight fetched as a whole leaves too little memory on chip for all others (half of 128 MB), and
#: bytes of the blocks that it is read in then; a lookup reads any table in them.
WHOLE, BLOCK = 2**26, 2**24
#: Rows up to which a product with ones looks up faster than the table is laid out anew.
LOOKUPS = 512


def programs(weight: Coded, names: Labels, call: Call, rows: int) -> Iterator[Program]:
    """The programs of the asked arithmetic, the best first."""
    found = list(common.programs(weight, names, call, rows))
    if names.groups and rows > FEW:
        found.sort(key=lambda program: program.name != "float, scaled weight")
    outputs, inputs = names.size(weight, "w"), names.size(weight, "k")
    for name, run in found:
        turned = run is weight_only.scaled
        if run is weight_only.direct and outputs > inputs and rows * outputs <= ON_CHIP:
            run = functools.partial(run, apart=True)
        yield Program(f"{name}, rows padded" if rows < ROWS else name, functools.partial(_by_rows, run, turned))


over_float = common.over_float


def forms(weight: Coded, small: bool, activations: int = 16) -> dict[str, Form]:
    """The forms that a weight may take, the best first."""
    if weight.costly or jnp.issubdtype(weight.codes.dtype, jnp.floating):
        return {"decoded": functools.partial(common.decoded, "tpu")}
    plain: dict[str, Form] = {"native": native}
    axis = common.grouped_axis(weight)
    whole = weight.scaled and axis is not None and weight.shape[axis] // weight.groups[axis] % GROUP == 0
    return {"native, by groups": by_groups, **plain} if whole else plain


def native(weight: Coded) -> Coded:
    """Codes of their own width, as they stand."""
    return _narrow(common.centred(weight))


def by_groups(weight: Coded) -> Coded:
    """Native codes as [groups, entries of a group, out], behind what may be a stack."""
    axis = common.grouped_axis(weight)
    if axis is None:
        raise ValueError(f"no axis of {weight.shape} has groups")
    stack = [0] if weight.ndim > 2 and axis > 0 and weight.scale.shape[0] == weight.shape[0] else []
    order = [*stack, axis, axis, *(a for a in range(weight.ndim) if a not in (*stack, axis))]
    return _narrow(common.centred(weight).laid(order, weight.scale.shape[axis]))


def _narrow(weight: Coded) -> Coded:
    if not jnp.issubdtype(weight.codes.dtype, jnp.integer):  # values: their bits are those of the codes before
        return weight
    kind = _NATIVE.get((weight.bits, weight.signed), weight.codes.dtype)
    return dataclasses.replace(weight, codes=weight.codes.astype(kind))


def _by_rows(run: Any, turned: bool, weight: Coded, other: Array, call: Call) -> Array:
    """The program on a matrix of activations for each batch entry, with zeros for further rows up to ``ROWS``.

    ``turned``: as [inputs, rows].
    """
    names = labels.of(call, weight, other)
    side, (contracted, batch) = 1 - call.side, call.dims
    free = [a for a, name in enumerate(names.other) if name[0] == "x"]
    sizes = [other.shape[a] for a in free]
    rows = math.prod(sizes)
    further = 0 if rows == 0 else jax.core.max_dim(ROWS - rows, 0)  # of an open number too: none, once it is known to be large
    head, tail = [other.shape[a] for a in batch[side]], [other.shape[a] for a in contracted[side]]
    x = other.transpose((*batch[side], *free, *contracted[side])).reshape(*head, rows, *tail)
    if further != 0:
        x = jnp.pad(x, [(0, further if a == len(head) else 0) for a in range(x.ndim)])
    x = jnp.moveaxis(x, len(head), -1) if turned else x
    places = (tuple(len(head) + (not turned) + i for i in range(len(tail))), tuple(range(len(head))))
    dims = tuple((own, new) if side else (new, own) for new, own in zip(places, (p[call.side] for p in call.dims)))
    call = dataclasses.replace(call, dims=dims)
    out = _in_blocks(run, weight, x, call, labels.of(call, weight, x))
    at = len(head) if call.side else out.ndim - 1
    out = lax.slice_in_dim(out, 0, rows, axis=at) if further != 0 else out
    return out.reshape(*out.shape[:at], *sizes, *out.shape[at + 1 :])


def _in_blocks(run: Any, weight: Coded, other: Array, call: Call, names: Labels) -> Array:
    """The program on blocks of the weight's longest output axis, ``BLOCK`` bytes each, joined; whole where it is small."""
    free = [a for a, name in enumerate(names.weight) if name[0] == "w"]
    stored = weight.codes.size * weight.bits // 8
    if stored < WHOLE or not free:
        return run(weight, other, call)
    axis = max(free, key=lambda a: weight.shape[a])
    size = weight.shape[axis]
    step = -(-size * BLOCK // (stored * LANES)) * LANES
    whole = [(0, n) for n in weight.shape]
    blocks = [weight.slice(*zip(*(*whole[:axis], (i, min(i + step, size)), *whole[axis + 1 :]))) for i in range(0, size, step)]
    if any(block is NotImplemented for block in blocks):
        return run(weight, other, call)
    return jnp.concatenate([run(block, other, call) for block in blocks], names.out.index(names.weight[axis]))


def take(weight: Coded, indices: Any, axis: int) -> Coded:
    """``weight.take``, to the bit; codes whose table would be laid out anew are looked up by a product.

    Args:
      indices: integers of any shape, clipped to the axis. axis: of the weight, at least 0.
    """
    indices = layout.wide_indices(indices)
    place, split = weight.physical.index(axis), weight.split_axis == axis
    as_it_lies = place == 0 and weight.codes.shape[-1] % LANES == 0
    floats = not jnp.issubdtype(weight.codes.dtype, jnp.integer)
    if as_it_lies or split or floats or not 1 < labels.counted(indices.size) <= LOOKUPS:
        return weight.take(indices, axis)
    return _looked_up(weight, indices, axis)


@functools.partial(jax.jit, static_argnums=2)
def _looked_up(weight: Coded, indices: Array, axis: int) -> Coded:
    place, size = weight.physical.index(axis), weight.shape[axis]
    step = -(-size * BLOCK * 8 // (weight.codes.size * weight.bits))
    found, kind = jnp.clip(indices, 0, size - 1)[..., None], jnp.bfloat16  # codes are exact in it

    def block(first: int) -> Array:
        codes = lax.slice_in_dim(weight.codes, first, min(first + step, size), axis=place)
        entries = first + lax.broadcasted_iota(indices.dtype, (*indices.shape, codes.shape[place]), indices.ndim)
        dims = (((indices.ndim,), (place,)), ((), ()))
        ones = (found == entries).astype(kind)
        return lax.dot_general(ones, codes.astype(kind), dims, preferred_element_type=jnp.float32)

    rows = functools.reduce(jnp.add, map(block, range(0, size, step)))
    rows = jnp.moveaxis(rows, range(indices.ndim), range(place, place + indices.ndim))
    taken = weight.take(indices, axis)  # its codes are not read, so none are gathered
    return dataclasses.replace(taken, codes=rows.astype(taken.codes.dtype))
