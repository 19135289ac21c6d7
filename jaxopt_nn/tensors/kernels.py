"""A convolution with a chain of factors as convolutions with one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxopt_nn.tensors import operations

if TYPE_CHECKING:
    from jaxopt_nn.tensors.low_rank import LowRank

#: The parameters of a convolution that differ from factor to factor.
Step = dict[str, Any]


def steps(tensor: LowRank, params: Mapping[str, Any]) -> Any:
    """``[(which factor, its window's parameters)]`` in the order in which they run.

    NotImplemented where they can't: groups, a stack, or input and output features that are not at the two ends of the chain.
    """
    spec = params["dimension_numbers"].rhs_spec
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1 or tensor.stacked:
        return NotImplemented
    own = [[a for a in names if isinstance(a, int)] for _, names in tensor.named]
    order = list(range(len(own)))
    if spec[1] not in own[0]:
        order.reverse()
    if spec[1] not in own[order[0]] or spec[0] not in own[order[-1]]:
        return NotImplemented
    return [(k, _window(own[k], spec[2:], params)) for k in order]


def _window(own: Sequence[int], window: Sequence[int], params: Mapping[str, Any]) -> Step:
    """Strides, padding and dilations along the axes of the window that a factor has; else those of a window of one."""
    alone = {"window_strides": 1, "padding": (0, 0), "lhs_dilation": 1, "rhs_dilation": 1}
    return {key: tuple(x if a in own else one for x, a in zip(params[key], window)) for key, one in alone.items()}


def kernel(tensor: LowRank, k: int, params: Mapping[str, Any], back: bool) -> Any:
    """Factor ``k`` as a kernel that lies as the weight does; ``back``: the last factor reads the input."""
    spec = params["dimension_numbers"].rhs_spec
    factor, names = tensor.named[k]
    reads, gives = (f"r{k}", f"r{k - 1}") if back else (f"r{k - 1}", f"r{k}")
    ends = {reads: spec[1], gives: spec[0]}
    places = [name if isinstance(name, int) else ends[str(name)] for name in names]
    order = sorted(range(len(places)), key=places.__getitem__)
    lengths = dict(zip(places, factor.shape))
    turned = operations.on(factor, "transpose", order)
    whole = [lengths.get(a, 1) for a in range(len(spec))]
    return turned if turned is NotImplemented else operations.on(turned, "reshape", whole)


def costs(tensor: LowRank, lhs: Sequence[Any], chain: Sequence[tuple[int, Step]], params: Mapping[str, Any]) -> tuple[int, int]:
    """Multiply-accumulates through the factors, and with their product, which has to be made first."""
    numbers = params["dimension_numbers"]
    image = [_open(lhs[a]) for a in numbers.lhs_spec[2:]]
    rows, lengths = _open(lhs[numbers.lhs_spec[0]]), tensor.lengths
    window = lambda own: [lengths[a] if a in own else 1 for a in numbers.rhs_spec[2:]]
    shape = tensor.shape
    dense = rows * math.prod(_places(image, window(range(len(shape))), params)) * math.prod(shape)
    through, building, names = 0, 0, tensor.named[0][1]
    for k, step in chain:
        own = tensor.named[k][1]
        image = _places(image, window(own), step)
        through += rows * math.prod(image) * math.prod(lengths[name] for name in own)
    for _, own in tensor.named[1:]:
        both = dict.fromkeys((*names, *own))
        building += math.prod(lengths[name] for name in both)
        names = tuple(name for name in both if not (name in names and name in own))
    return through, dense + building


def _open(n: Any) -> int:
    """A length that a trace leaves open counts as many."""
    return n if isinstance(n, int) else 2**31


def _places(image: Sequence[int], window: Sequence[int], step: Mapping[str, Any]) -> list[int]:
    """At how many places along each axis a window lies."""
    out = []
    for d, (n, w) in enumerate(zip(image, window, strict=True)):
        long = (n - 1) * step["lhs_dilation"][d] + 1 + sum(step["padding"][d])
        out.append(max(0, (long - (w - 1) * step["rhs_dilation"][d] - 1) // step["window_strides"][d] + 1))
    return out
