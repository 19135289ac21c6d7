"""The derivative rules of a model's own ``custom_jvp`` and ``custom_vjp`` functions, as jaxprs on whole shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_nn.interpret import jaxprs


class Derivative(NamedTuple):
    """The rule of one equation.

    Attributes:
      inputs, outputs: positions of the operands and results that have derivatives (floats).
      tangents: of a ``custom_jvp``: ``(operands, tangents) -> tangents of the results``.
      residuals: of a ``custom_vjp``: ``operands -> residuals``.
      pullback: ``(residuals, cotangents) -> cotangents of the operands``.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tangents: jaxprs.Body | None = None
    residuals: jaxprs.Body | None = None
    pullback: jaxprs.Body | None = None


def derivative(eqn: Any) -> Derivative | None:
    """The rule of an equation; None where it has none, or can't be traced."""
    trace = {"custom_jvp_call": _forward, "custom_vjp_call": _backward}.get(eqn.primitive.name)
    if trace is None:
        return None
    inputs, outputs = (
        tuple(i for i, v in enumerate(own) if jnp.issubdtype(v.aval.dtype, jnp.inexact)) for own in (eqn.invars, eqn.outvars)
    )
    try:
        return trace(eqn, inputs, outputs)
    except Exception:  # a rule that only runs under conditions of its own: the body is differentiated instead
        return None


def _like(variables: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]


def _function(eqn: Any, operands: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int]) -> Callable[..., list[Any]]:
    """The equation as a function of its float operands, giving its float results."""

    def run(*floats: Any) -> list[Any]:
        full = list(operands)
        for i, x in zip(inputs, floats, strict=True):
            full[i] = x
        outs = jaxprs.bind(eqn, full)
        return [outs[i] for i in outputs]

    return run


def _forward(eqn: Any, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Derivative:
    def run(operands: list[Any], tangents: list[Any]) -> list[Any]:
        floats = [operands[i] for i in inputs]
        return jax.jvp(_function(eqn, operands, inputs, outputs), floats, tangents)[1]

    like = _like(eqn.invars)
    return Derivative(inputs, outputs, tangents=jaxprs.opened(jax.make_jaxpr(run)(like, [like[i] for i in inputs])))


def _backward(eqn: Any, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Derivative:
    trees = []

    def forward(operands: list[Any]) -> list[Any]:
        _, pull = jax.vjp(_function(eqn, operands, inputs, outputs), *(operands[i] for i in inputs))
        leaves, tree = jax.tree.flatten(pull)
        trees.append(tree)
        return leaves

    residuals = jax.make_jaxpr(forward)(_like(eqn.invars))
    pull = lambda leaves, cotangents: list(jax.tree.unflatten(trees[0], leaves)(cotangents))
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in residuals.out_avals]
    results = _like(eqn.outvars)
    pullback = jax.make_jaxpr(pull)(like, [results[i] for i in outputs])
    return Derivative(inputs, outputs, residuals=jaxprs.opened(residuals), pullback=jaxprs.opened(pullback))
