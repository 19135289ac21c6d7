"""Operations along some axes: reductions, running sums, sorts, windows, transforms."""

from __future__ import annotations

from collections.abc import Sequence

from jaxopt_nn.interpret import primitives
from jaxopt_nn.interpret.flow import dims
from jaxopt_nn.interpret.flow.dims import Axes
from jaxopt_nn.interpret.flow.entry import (
    NOWHERE,
    Call,
    Entry,
    Notes,
    Zero,
    all_but,
    joined,
    moved,
    must_be_zero,
    never,
)
from jaxopt_nn.interpret.flow.rest import COMPLETE, place


def _reduced_axes(call: Call) -> tuple[int, ...]:
    return tuple(call.eqn.params["axes"])


def _reduce(call: Call) -> list[Axes]:
    gone = _reduced_axes(call)
    return [tuple(a for i, a in enumerate(call.ins[0]) if i not in gone)] * len(call.eqn.outvars)


def _reduce_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """What is summed must be zero in cut units, or the same in all of them; of several such atoms one."""
    completed = zeros[0].everywhere or call.name not in COMPLETE
    for i in _reduced_axes(call):
        for a in dict.fromkeys(dims.atoms(call.ins[0][i])):
            if a.cut is not None or zeros[0].everywhere or (call.name == "reduce_sum" and zeros[0].at(a)):
                continue  # places of an image, say, are never cut
            known = place(call.ins[0], a) == i and (zeros[0].at(a) or a in zeros[0].same)
            if known and not completed:
                completed = True
                notes.completes(a)
            else:
                notes.pin(a, f"`{call.name}` reduces over it, and units differ there")
    return moved(call, zeros, notes)


def _arg_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    for i in _reduced_axes(call):
        notes.pin(call.ins[0][i], f"`{call.name}` reduces over it")
    return [NOWHERE] * len(call.outs)


def _keep_axes(call: Call) -> list[Axes]:
    return [call.ins[0]] * len(call.eqn.outvars)


def _cumulative_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    axis = call.ins[0][call.eqn.params["axis"]]
    reason = f"`{call.name}` runs along it"
    if call.name == "cumsum":
        must_be_zero(axis, zeros, notes, f"{reason}, and it is not zero there")
    else:
        notes.pin(axis, reason)
    if call.name == "cumlogsumexp":  # of zeros log 1, log 2, ...
        return [NOWHERE]
    (out,) = moved(call, zeros, notes)
    return [out if out.everywhere else Zero(atoms=out.atoms.difference(dims.atoms(axis)))]


def _window_zeros(call: Call, zeros: Sequence[Zero], notes: Notes) -> list[Zero]:
    """A window that lies in the padding gives the smallest or the largest number in place of zero."""
    params = call.eqn.params
    spans = [(n - 1) * d + 1 for n, d in zip(params["window_dimensions"], params["window_dilation"], strict=True)]
    outside = any(max(pads) >= span > 0 and max(pads) for pads, span in zip(params["padding"], spans, strict=True))
    return [NOWHERE] if outside and call.name != "reduce_window_sum" else moved(call, zeros, notes)


def _sort(call: Call) -> list[Axes]:
    at, ndim = call.eqn.params["dimension"], len(call.ins[0])
    axes = tuple(joined([own[i] for own in call.ins], call.name) for i in range(ndim))
    dims.pin(axes[at], "`sort` orders it")
    return [axes] * len(call.eqn.outvars)


def _windowed(call: Call) -> list[Axes]:
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    steps = zip(*(call.eqn.params[name] for name in names), strict=True)
    kept = [set(n) == {1} and tuple(p) == (0, 0) for n, p in zip(steps, call.eqn.params["padding"], strict=True)]
    return all_but(call, [i for i, same in enumerate(kept) if not same], f"`{call.name}` slides over it")


def _fft(call: Call) -> list[Axes]:
    n, ndim = len(call.eqn.params["fft_lengths"]), len(call.ins[0])
    return all_but(call, range(ndim - n, ndim), "`fft` transforms along it")


def _top_k(call: Call) -> list[Axes]:
    at = call.eqn.params.get("axis", len(call.ins[0]) - 1)
    return all_but(call, [at], "`top_k` orders it")


ALONG: dict[str, Entry] = {
    **dict.fromkeys(primitives.REDUCTIONS, Entry(_reduce, _reduce_zeros)),
    **dict.fromkeys(("argmax", "argmin"), Entry(_reduce, _arg_zeros)),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum".split(), Entry(_keep_axes, _cumulative_zeros)),
    "sort": Entry(_sort, never),
    **dict.fromkeys("reduce_window_max reduce_window_min reduce_window_sum".split(), Entry(_windowed, _window_zeros)),
    "fft": Entry(_fft, moved),
    "top_k": Entry(_top_k, never),
}
