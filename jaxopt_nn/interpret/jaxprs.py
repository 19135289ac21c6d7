"""Reading equations: the one place that knows how jaxprs differ between JAX generations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

#: Higher-order primitives whose operands are their body's, one to one.
DIRECT = frozenset(
    "jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call custom_vmap_call composite "
    "shard_map".split()
)
#: Parameters that hold such a body; which one differs by primitive, and between versions of JAX.
BODIES = ("jaxpr", "call_jaxpr", "call")
LOOPS = ("scan", "while", "cond")
CUSTOM_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call")
SITE_PRIMITIVES = {"dot_general": "dot", "conv_general_dilated": "conv", "gather": "gather"}


class Body(NamedTuple):
    """An inner jaxpr, open, with its constants."""

    jaxpr: Any
    consts: Sequence[Any]


def opened(jaxpr: Any) -> Body:
    """Open form of a jaxpr that may be closed (JAX 0.12 has one type for both)."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        return Body(jaxpr.jaxpr, jaxpr.consts)
    return Body(jaxpr, ())


def bodies(eqn: Any) -> tuple[Body, ...] | None:
    """The inner jaxprs of a higher-order equation that can be entered, in a fixed order; None for any other equation.

    ``while`` gives (condition, body); ``cond`` its branches.
    """
    name, params = eqn.primitive.name, eqn.params
    if name in DIRECT:
        return (opened(next(params[key] for key in BODIES if key in params)),)
    if name == "scan":
        return (opened(params["jaxpr"]),)
    if name == "while":
        return opened(params["cond_jaxpr"]), opened(params["body_jaxpr"])
    if name == "cond":
        return tuple(opened(branch) for branch in params["branches"])
    return None


def scan_counts(eqn: Any) -> tuple[int, int]:
    """(number of constants, number of carried values) of a ``scan`` equation."""
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    if "ft_in" in params:
        consts, carry, _ = (len(group) for group in params["ft_in"].unpack())
        return consts, carry
    raise TypeError(f"scan has parameters {sorted(params)}; neither num_consts nor ft_in is among them")


def has_site(jaxpr: Any, primitives: Sequence[str] = ("dot_general", "conv_general_dilated")) -> bool:
    """Whether a dot or a convolution lies anywhere inside an (open or closed) jaxpr; or another of ``primitives``."""
    for eqn in opened(jaxpr).jaxpr.eqns:
        if eqn.primitive.name in primitives:
            return True
        if any(has_site(inner, primitives) for inner in core.jaxprs_in_params(eqn.params)):
            return True
    return False


def hidden_site(eqn: Any) -> bool:
    """Whether an equation that can't be entered holds a dot or a convolution."""
    return any(has_site(inner) for inner in core.jaxprs_in_params(eqn.params))


def is_literal(var: Any) -> bool:
    return isinstance(var, core.Literal)


def is_tracer(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The equation itself, on arrays."""
    out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def reshape_order(eqn: Any) -> tuple[int, ...]:
    """The order in which a ``reshape`` reads the axes of its operand."""
    return tuple(eqn.params["dimensions"] or range(eqn.invars[0].aval.ndim))


def taken_index(eqn: Any, operands: Sequence[Any]) -> Any:
    """Which entry of an axis a ``dynamic_slice`` or a ``gather`` of a single slice takes, int32, within bounds."""
    shape = eqn.invars[0].aval.shape
    (axis,) = (a for a, n in enumerate(eqn.params["slice_sizes"]) if n != shape[a])
    if eqn.primitive.name == "gather":
        start = operands[1].reshape(-1)[list(eqn.params["dimension_numbers"].start_index_map).index(axis)]
    else:
        start = operands[1 + axis]
    return jnp.clip(start, 0, shape[axis] - 1).astype(jnp.int32)


@contextlib.contextmanager
def context_of(eqn: Any) -> Iterator[None]:
    """The context in which an equation was traced, and its name stack."""
    name = str(eqn.source_info.name_stack)
    with eqn.ctx.manager, jax.named_scope(name) if name else contextlib.nullcontext():
        yield


#: They look at a value, or at a part of it, and compute nothing.
LOOKS = frozenset("broadcast_in_dim dynamic_slice gather reshape rev slice split squeeze transpose".split())


def live(jaxpr: Any) -> list[tuple[int, Any]]:
    """The equations with their places, without those that look at what nothing uses, as ``x[..., 0].size`` leaves them."""
    needed = {v for v in jaxpr.outvars if not is_literal(v)}
    found = []
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if eqn.primitive.name not in LOOKS or not needed.isdisjoint(eqn.outvars):
            needed.update(v for v in eqn.invars if not is_literal(v))
            found.append((i, eqn))
    return found[::-1]


def last_uses(jaxpr: Any) -> list[list[Any]]:
    """For each equation, the variables that no later equation reads: they can be dropped after it."""
    seen = {v for v in jaxpr.outvars if not is_literal(v)}
    drops: list[list[Any]] = []
    for eqn in reversed(jaxpr.eqns):
        names = [v for v in (*eqn.invars, *eqn.outvars) if not is_literal(v)]
        fresh = [v for v in dict.fromkeys(names) if v not in seen]
        seen.update(fresh)
        drops.append(fresh)
    return drops[::-1]


def trace(fun: Callable[..., Sequence[Any]], operands: Sequence[Any]) -> tuple[Any, list[Any]]:
    """``fun`` (flat arrays to flat arrays) as a closed jaxpr without constants, and those constants.

    The jaxpr takes ``(*constants, *operands)``; a tracer that ``fun`` closes over becomes a constant.
    """
    closed = jax.make_jaxpr(fun)(*operands)
    consts = list(closed.consts)
    if not consts:
        return closed, []
    inner = opened(closed)
    plain = jax.make_jaxpr(lambda *args: jax.core.eval_jaxpr(inner.jaxpr, args[: len(consts)], *args[len(consts) :]))
    return plain(*consts, *operands), consts


def same_form(old: Any, new: Any) -> Any:
    """``new`` (closed) in the form, open or closed, that the parameter ``old`` has."""
    return new if isinstance(old, core.ClosedJaxpr) else new.jaxpr


def unspecified_sharding() -> Any:
    """The value that ``jit`` carries for an operand whose sharding nobody fixed."""
    return jax.make_jaxpr(jax.jit(lambda x: x))(0.0).eqns[0].params["in_shardings"][0]
