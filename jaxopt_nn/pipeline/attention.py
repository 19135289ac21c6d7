"""Tokens weighed by the attention that they get, for ``calibrate``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Site
from jaxopt_nn.core.paths import require_match
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network, network_of
from jaxopt_nn.interpret.rewrite import capture

#: By how much a row of attention may miss the sum 1: softmax in bfloat16.
TOLERANCE = 0.03


def attention_weights(network: Network, values: str | None = None) -> Callable[..., Any]:
    """How much each token counts: by the attention that it gets, over all heads and queries; 1 on average.

    The first token of a causal transformer may take a quarter of all attention, and is one row of many in a Gram matrix. An
    error of its value reaches every output, and one of a token to which nothing attends reaches none: with the weights
    ``a_s = sum_t A_ts`` the value projection's Gram matrix counts tokens so. Attention is found by its values: a product of two
    activations, one of which is nowhere negative and sums to 1 over what is contracted, as many entries as there are tokens.

    Args:
      network: in float; its attention is measured in evaluation mode, before anything is compressed.
      values: a pattern of the sites that project values, ``"**/value/kernel"``, as many as there are attentions, in the same
        order: each token counts at each of them by the attention in its own layer, and at other sites like any other. None:
        at all sites by the mean over the layers.

    Returns:
      ``tokens [B, T] -> float32 [B, T]``, or ``-> {site: [S..., B, T]}`` with ``values``; for ``calibrate(weights=)``.

    Raises:
      ValueError: when called, inputs without a token axis, no attention, ``values`` that match no site or another number.

    Example:
      >>> def apply(v, x):  # [B, T, I]
      ...     attention = jax.nn.softmax(10 * x @ x.swapaxes(1, 2))
      ...     return attention @ (x @ v["value"])
      >>> net = jn.Network(apply, {"value": jnp.eye(2)})
      >>> x = jnp.array([[[1.0, 0.0], [1.0, 0.0], [9.0, 0.0]]])  # all look at the third token
      >>> jn.attention_weights(net, "value")(x)["value"].round(1)
      Array([[0., 0., 3.]], dtype=float32)
    """
    network = network_of(network)
    capturing = capture(network.apply, lambda site: {"attention": _TAP} if _mixes(site) else {})

    @jax.jit
    def measured(variables: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
        one = lambda own: capturing(variables, *jax.tree.map(lambda x: x[None], own))[1]
        return {site: own["attention"] for site, own in jax.vmap(one)(inputs).items()}

    def weights(*inputs: Any) -> Any:
        first = jax.tree.leaves(inputs)[0]
        if first.ndim < 2:
            raise ValueError(f"attention_weights: inputs of shape {list(first.shape)} have no axis of tokens [B, T, ...]")
        layers = _received(measured(network.variables, inputs), first.shape[1])
        if values is None:
            return sum(jnp.mean(own.reshape(-1, *own.shape[-2:]), 0) for own in layers.values()) / len(layers)
        return _beside(layers, inspect(network.apply, network.variables, *inputs).sites, values)

    return weights


def _mixes(site: Site) -> bool:
    """Whether a site may mix values by attention: both operands are activations, and one axis is contracted."""
    return site.weight is None and site.kind == "dot" and len(site.params["dimension_numbers"][0][0]) == 1


def _attention() -> Tap:
    """Of each operand, sums over all but what is contracted ``[2, I]``, and by how much it fails to be an attention ``[2]``."""

    def zero(site: Site) -> Any:
        return {"received": jnp.zeros((2, site.inputs)), "off": jnp.zeros(2)}

    def add(acc: Any, operands: Any, weight: Any, site: Site) -> Any:
        contracting = site.params["dimension_numbers"][0]
        found = []
        for x, (axis,) in zip(operands, contracting, strict=True):
            wide = jnp.moveaxis(x.astype(jnp.float32), axis, -1)
            off = jnp.maximum(jnp.max(jnp.abs(jnp.sum(wide, -1) - 1)), -jnp.min(wide))
            found.append((jnp.sum(wide.reshape(-1, wide.shape[-1]), 0), off))
        received, off = map(jnp.stack, zip(*found, strict=True))
        return {"received": acc["received"] + received, "off": jnp.maximum(acc["off"], off)}

    def merge(a: Any, b: Any) -> Any:
        return {"received": a["received"] + b["received"], "off": jnp.maximum(a["off"], b["off"])}

    return Tap(zero, add, merge, of="operands")


_TAP = _attention()


def _received(found: Mapping[str, Any], tokens: int) -> dict[str, jax.Array]:
    """``{site: [S..., B, T]}`` of the sites that are attention over the tokens; 1 on average over T."""
    layers = {}
    for site, own in found.items():
        off, received = jnp.max(own["off"].reshape(-1, 2), 0), own["received"]
        if received.shape[-1] == tokens and float(jnp.min(off)) < TOLERANCE:
            each = jnp.moveaxis(received[..., jnp.argmin(off), :], 0, -2)
            layers[site] = each / jnp.mean(each, -1, keepdims=True)
    if not layers:
        looked = ", ".join(list(found)[:3]) or "none"
        raise ValueError(
            f"attention_weights: no product of two activations is an attention over {tokens} tokens; looked at: {looked}; pass "
            "your own function (*inputs) -> [B, T] as weights"
        )
    return layers


def _beside(layers: Mapping[str, jax.Array], sites: tuple[Site, ...], pattern: str) -> dict[str, jax.Array]:
    """The attention of each layer under the name of the site that projects its values."""
    projecting = {site.name: site for site in sites if site.weight is not None}
    chosen = require_match(pattern, projecting, "site")
    if len(chosen) != len(layers):
        raise ValueError(
            f"attention_weights(values={pattern!r}): {len(chosen)} sites ({', '.join(chosen[:3])}) for {len(layers)} "
            "attentions; name those that project values, one for each attention"
        )
    made = {}
    for name, own in zip(chosen, layers.values(), strict=True):
        site = projecting[name]
        slots = site.stack[: len(site.slots)]
        if math.prod(slots) != math.prod(own.shape[:-2]):
            raise ValueError(
                f"attention_weights: {name} has {math.prod(slots)} layers, the attention {math.prod(own.shape[:-2])}"
            )
        made[name] = own.reshape(*slots, *own.shape[-2:])
    return made
