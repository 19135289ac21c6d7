"""What a traced model ends in: probabilities where a loss takes logits."""

from __future__ import annotations

from typing import Any

from jaxopt_nn.interpret import jaxprs

#: Operations that move entries or cast them.
MOVES = frozenset("reshape squeeze transpose convert_element_type copy broadcast_in_dim".split())


def probabilities(jaxpr: Any) -> str | None:
    """``"softmax"`` or ``"sigmoid"`` where the only output of an open jaxpr is one's result, else None."""
    if len(jaxpr.outvars) != 1 or (found := _producer(jaxpr, jaxpr.outvars[0])) is None:
        return None
    eqn, body = found
    if eqn.primitive.name == "logistic":
        return "sigmoid"
    above = _producer(body, eqn.invars[0]) if eqn.primitive.name == "div" else None
    return "softmax" if above is not None and above[0].primitive.name == "exp" else None


def _producer(jaxpr: Any, var: Any) -> tuple[Any, Any] | None:
    """The equation that computes a variable, past moves and into bodies, and the jaxpr that it is in; None for an input."""
    eqn = next((eqn for eqn in jaxpr.eqns if var in eqn.outvars), None)
    if eqn is None:
        return None
    if eqn.primitive.name in MOVES:
        return _producer(jaxpr, eqn.invars[0])
    if eqn.primitive.name in jaxprs.DIRECT:
        (body,) = jaxprs.bodies(eqn) or ()
        return _producer(body.jaxpr, body.jaxpr.outvars[eqn.outvars.index(var)])
    return eqn, jaxpr
