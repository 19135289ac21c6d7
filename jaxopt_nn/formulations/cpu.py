"""CPU: layouts and programs by measurement, on XLA's own dots.

What was found (chains of 4096 x 4096 layers, time over float32 as [in, out]; ``experiments/benchmarks/formulations.py``):

* Codes as [out, in]. A single row misses the fast path for int8 and bfloat16; two rows don't.
* Weight-only, more than a few rows: blocks of 256 outputs, decoded in the cache, in float32; in bfloat16 only where the CPU
  multiplies it (AVX512-BF16, AMX), elsewhere it takes twice as long.
* Weight-only, a single row: float32 in blocks takes float's time (1.05). Activations of 16 bits as two rows of int8 take less
  (0.6 to 0.9), since two rows cost what one does.
* Groups: codes as [groups, out, entries], one group after the other; one dot with the groups as batch is 1.5 to 2 times
  slower from 32 rows on.
* From 128 rows on float32 is bound by arithmetic: without VNNI or AMX codes gain nothing there (0.9 to 1.1).
* A network whose float weights fit a cache gains nothing from codes, and convolutions on codes are 1.2 to 1.9 times slower:
  both hold the decoded floats.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

from jaxopt_nn.formulations import common, integer, weight_only
from jaxopt_nn.formulations.labels import Call, Form, Labels, Program
from jaxopt_nn.tensors import layout
from jaxopt_nn.tensors.binary import Binary
from jaxopt_nn.tensors.coded import Coded

#: Time over float32's at so many rows, as measured on 4096 x 4096 (AMD EPYC with AVX2 alone, two cores); bfloat16 on a CPU
#: with AMX.
MEASURED = {
    "integer, in one dot": {1: 0.63, 8: 0.31, 32: 0.42, 256: 0.92},
    "integer, groups in turn": {1: 1.0, 8: 0.4, 32: 0.5, 256: 1.1},
    "integer, 16-bit activations as two rows": {1: 0.98, 8: 0.44, 32: 0.73, 256: 1.5},
    "bfloat16, in blocks": {1: 1.5, 8: 1.0, 32: 0.8, 256: 0.5},
    "bfloat16, groups in turn": {1: 1.5, 8: 1.0, 32: 0.8, 256: 0.5},
    "float32, in blocks": {1: 1.05, 8: 0.35, 32: 0.46, 256: 1.08},
    "float32, groups in turn": {1: 1.05, 8: 0.61, 32: 0.68, 256: 1.13},
    "float, in one dot": {1: 10.0, 8: 2.6, 32: 1.5, 256: 1.3},
    "float, scaled weight": {1: 10.0, 8: 2.6, 32: 1.5, 256: 1.3},
    "float, decoded": {1: 0.74, 8: 0.39, 32: 0.45, 256: 0.93},
    "float on rounded activations": {1: 0.85, 8: 0.45, 32: 0.5, 256: 1.0},
    "integer convolution": {1: 1.2, 1024: 1.9},
    "float convolution": {1: 1.27, 32: 1.0},
}

#: Entries below which a whole network is held decoded: 8 MB of float32.
SMALL = 2**21
#: Entries of a weight from which it is worth decoding in blocks.
LARGE = 2**18


def programs(weight: Coded, names: Labels, call: Call, rows: int) -> Iterator[Program]:
    """The programs of the asked arithmetic, the best first."""
    in_turn = names.in_turn(weight)
    if weight.integral and call.activations <= 8 and in_turn:
        yield Program("integer, groups in turn", integer.turns)
    if weight.integral and call.activations == 16 and rows <= (16 if "vnni" in features() else 2):
        yield Program("integer, 16-bit activations as two rows", integer.halves)
    if weight.integral and call.activations > 8:
        # With its scales in the weight, a block would be rounded too: bfloat16 multiplies codes only.
        narrow = call.activations == 16 and "bf16" in features()
        if in_turn:
            if narrow:
                yield _named("bfloat16, groups in turn", weight_only.turns, kind="bfloat16")
            yield _named("float32, groups in turn", weight_only.turns)
        elif _blocked(weight, names):
            if narrow and not names.groups:
                yield _named("bfloat16, in blocks", weight_only.blocks, kind="bfloat16")
            yield _named("float32, in blocks", weight_only.blocks)
    yield from common.programs(weight, names, call, rows)


def _blocked(weight: Coded, names: Labels) -> bool:
    """Whether the codes are many, and lie by outputs."""
    by_outputs = names.weight[weight.physical[0]][0] == "w" and weight.split_axis is None
    return by_outputs and weight.size >= LARGE and weight.codes.shape[0] >= 2 * weight_only.BLOCK


def over_float(program: str, rows: int) -> float | None:
    """Time over the float product's, by the nearest measurement of no more rows."""
    found = MEASURED.get(program, {})
    known = [n for n in found if n <= max(rows, 1)]
    return found[max(known)] if known else None


def _named(name: str, program: Callable, **options: str) -> Program:
    return Program(name, functools.partial(program, **options))


@functools.cache
def features() -> frozenset[str]:
    """What this CPU multiplies by itself: "vnni" (int8), "bf16"; empty where the system doesn't tell."""
    info = pathlib.Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    known = {"vnni": {"avx512_vnni", "avx_vnni", "amx_int8"}, "bf16": {"avx512_bf16", "amx_bf16"}}
    return frozenset(name for name, any_of in known.items() if flags & any_of)


def forms(weight: Coded, small: bool, activations: int = 16) -> dict[str, Form]:
    """The forms that a weight may take, the best first; ``small``: the whole network fits a cache."""
    if not weight.integral:
        return {"decoded": decoded}
    if isinstance(weight, Binary) and activations == 1:
        return {"words": words}
    codes: dict[str, Form] = {"by outputs": by_outputs}
    if common.grouped_axis(weight) is not None:
        codes = {"by groups": by_groups, **codes}
    floats: dict[str, Form] = {"decoded": decoded}
    return floats | codes if small or weight.ndim > 3 else codes | floats


def better_decoded(weight: Coded, batch: int, activations: int) -> bool:
    """Whether every program on codes is slower than float at so many rows: float32 ones at one or two, and at many all but
    the integer dot without groups, unless the CPU multiplies narrow numbers by itself."""
    if batch <= 2:
        return activations == 32
    return batch >= 128 and not features() and (activations > 8 or common.grouped_axis(weight) is not None)


def by_outputs(weight: Coded) -> Coded:
    """int8 codes, the axes that share a scale last: [out, in] of a matrix with a scale for each output."""
    return common.centred(weight).laid(output_order(weight))


def by_groups(weight: Coded) -> Coded:
    """int8 codes as [groups, out, entries of a group], behind what may be a stack."""
    axis = common.grouped_axis(weight)
    if axis is None:
        raise ValueError(f"no axis of {weight.shape} has groups")
    order = [a for a in output_order(weight) if a != axis]
    lead = order[:1] if weight.ndim > 2 and order[0] == 0 and weight.scale.shape[0] == weight.shape[0] else []
    return common.centred(weight).laid([*lead, axis, *order[len(lead) :], axis], weight.scale.shape[axis])


def decoded(weight: Coded) -> Coded:
    """The values, as float32 (or the weight's own narrower dtype)."""
    return common.decoded("cpu", weight, output_order(weight) if weight.ndim < 4 else None)


def words(weight: Coded) -> Coded:
    """Signs as words along what is contracted, and what is free behind it: one word of all outputs after the other."""
    if not isinstance(weight, Binary):
        raise ValueError(f"{weight.format}: only signs lie as words")
    axis = _contracted(weight)
    packed = weight.words(axis)
    order = [*(a for a in (axis,) if weight.ndim == 2), *(a for a in range(weight.ndim) if weight.ndim > 2 or a != axis)]
    return dataclasses.replace(packed, codes=packed.codes.transpose(order), order=layout.trimmed(order, weight.ndim))


def _contracted(weight: Coded) -> int:
    """The axis of the inputs, as matrices [I, O] or [O, I] and kernels [..., I, O] or [O, I, ...] have it, by the scales."""
    shared = [a for a, (d, n) in enumerate(zip(weight.groups, weight.shape)) if d < n or n == 1]
    last = weight.ndim - 1
    if last in shared and len(shared) < weight.ndim and weight.groups[last] < weight.shape[last]:
        return shared[0]
    return max(last - 1, 0)


def output_order(weight: Coded) -> list[int]:
    """The axes with a scale for each entry first (stacks, outputs), then those that share one."""
    if weight.ndim not in (2, 3):
        return list(range(weight.ndim))
    channels = [a for a, n in enumerate(weight.shape) if weight.groups[a] == n]
    if not {weight.ndim - 2, weight.ndim - 1} & set(channels):
        channels.append(weight.ndim - 1)
    return [*channels, *(a for a in range(weight.ndim) if a not in channels)]
