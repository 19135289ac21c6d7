"""Networks with derivatives of their own: what is compared is the cut network's gradient with the zeroed network's."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.corpus.base import Parts, PyTree, entry, weight, x_of
from tests.corpus.mlps import dense


@jax.custom_vjp
def sign(x: jax.Array) -> jax.Array:
    """The sign; the gradient passes straight through where `|x| <= 1`."""
    return jnp.sign(x)


sign.defvjp(lambda x: (sign(x), x), lambda x, g: (jnp.where(jnp.abs(x) <= 1, g, 0),))


@jax.custom_vjp
def rounded(x: jax.Array, step: jax.Array) -> jax.Array:
    """Rounded to whole steps; straight through, and a gradient of the step as well (Esser et al., 2020)."""
    return jnp.round(x / step) * step


def _rounded_forward(x: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple]:
    return rounded(x, step), (x, step)


def _rounded_backward(residuals: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, step = residuals
    return g, jnp.sum(g * (jnp.round(x / step) - x / step)).reshape(step.shape) * x.size**-0.5


rounded.defvjp(_rounded_forward, _rounded_backward)


@entry
def straight_through() -> Parts:
    """Activations rounded to a learnt step, straight through; widths of its own, a residual."""
    rng = np.random.default_rng(0)
    params = {"layers": dense(rng, 10, 22, 18, 14, 5), "inner": weight(rng, 14, 14), "steps": jnp.asarray([0.1, 0.07, 0.05])}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        *hidden, last = params["layers"]
        for i, layer in enumerate(hidden):
            x = rounded(jax.nn.relu(x @ layer["w"] + layer["b"]), params["steps"][i])
        x = x + rounded(jnp.tanh(x @ params["inner"]), params["steps"][2])
        return x @ last["w"] + last["b"]

    return apply, params, (x_of(3, 10),)


@entry
def binary_weights() -> Parts:
    """Weights of one bit, straight through, scaled by the mean magnitude of each column (Rastegari et al., 2016)."""
    rng = np.random.default_rng(0)
    params = [weight(rng, i, o) for i, o in ((10, 22), (22, 18), (18, 5))]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for i, kernel in enumerate(params):
            scale = jnp.abs(kernel).mean(axis=0)
            x = (x if i == 0 else jnp.tanh(x)) @ (sign(kernel) * lax.stop_gradient(scale))
        return x

    return apply, params, (x_of(3, 10),)


@jax.custom_vjp
def reversed_gradient(x: jax.Array) -> jax.Array:
    """The same; its gradient points the other way (Ganin et al., 2016)."""
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-0.3 * g,))


@entry
def adversarial_heads() -> Parts:
    """A body and two heads, into one of which no gradient goes as it is."""
    rng = np.random.default_rng(0)
    params = {"body": dense(rng, 10, 22, 14), "label": dense(rng, 14, 18, 5), "domain": dense(rng, 14, 11, 2)}

    def apply(params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        def run(layers: PyTree, x: jax.Array) -> jax.Array:
            first, second = layers
            return jax.nn.gelu(x @ first["w"] + first["b"]) @ second["w"] + second["b"]

        features = run(params["body"], x)
        return {"label": run(params["label"], features), "domain": run(params["domain"], reversed_gradient(features))}

    return apply, params, (x_of(3, 10),)


@jax.custom_vjp
def clipped(x: jax.Array) -> jax.Array:
    """The same; of its gradient no row is longer than one, so that units share what they get."""
    return x


clipped.defvjp(
    lambda x: (x, None), lambda _, g: (g * lax.rsqrt(jnp.maximum(jnp.sum(g * g, axis=-1, keepdims=True), 1.0)),)
)


@entry
def clipped_gradients() -> Parts:
    """Rows of a gradient are scaled by their norm over units, in one layer of three."""
    rng = np.random.default_rng(0)
    params = [weight(rng, i, o) for i, o in ((10, 22), (22, 18), (18, 14), (14, 5))]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        first, second, third, last = params
        return jax.nn.relu(clipped(jax.nn.relu(jnp.tanh(x @ first) @ second)) @ third) @ last

    return apply, params, (x_of(3, 10),)


@entry
def quantized_codes() -> Parts:
    """VQ-VAE (van den Oord et al., 2017): the nearest of 11 learnt codes, straight through by `stop_gradient`; decoded."""
    rng = np.random.default_rng(0)
    params = {"encoder": dense(rng, 10, 22, 14), "codes": weight(rng, 11, 14, fan_in=1), "decoder": dense(rng, 14, 18, 10)}

    def apply(params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        first, second = params["encoder"]
        z = jax.nn.relu(x @ first["w"] + first["b"]) @ second["w"] + second["b"]
        distance = jnp.sum((z[:, None] - params["codes"]) ** 2, axis=-1)
        nearest = params["codes"][jnp.argmin(distance, axis=-1)]
        commitment = jnp.mean((lax.stop_gradient(nearest) - z) ** 2)
        first, second = params["decoder"]
        y = jax.nn.relu((z + lax.stop_gradient(nearest - z)) @ first["w"] + first["b"]) @ second["w"] + second["b"]
        return {"y": y, "commitment": commitment}

    return apply, params, (x_of(3, 10),)


MODELS = (
    straight_through, binary_weights, adversarial_heads, clipped_gradients, quantized_codes
)  # fmt: skip
