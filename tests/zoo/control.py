"""Control flow, custom derivatives, nested jit and shard_map in plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.zoo.base import Parts, PyTree, entry, normal, weight

#: Models that have no reverse-mode derivative, with the reason.
FORWARD_ONLY = {"while_loop": "the number of iterations depends on the data"}


@entry
def indexed_layers() -> Parts:
    """Stacked weights of which a `fori_loop` takes one by its traced index."""
    rng = np.random.default_rng(0)
    variables = {"layers": weight(rng, 4, 32, 32), "biases": weight(rng, 4, 32, fan_in=100)}

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        def layer(i: jax.Array, x: jax.Array) -> jax.Array:
            bias = lax.dynamic_index_in_dim(variables["biases"], i)
            return jnp.tanh(x @ variables["layers"][i] + bias)

        return lax.fori_loop(0, 4, layer, x)

    return apply, variables, (normal(rng, 4, 32),)


@entry
def cond() -> Parts:
    """`lax.cond` and `lax.switch` whose branches use their own weights and one in common."""
    rng = np.random.default_rng(0)
    variables = {
        "shared": weight(rng, 32, 32),
        "then": weight(rng, 32, 32),
        "otherwise": weight(rng, 32, 32),
        "choices": [weight(rng, 32, 16) for _ in range(3)],
    }

    def apply(variables: PyTree, x: jax.Array, choice: jax.Array) -> jax.Array:
        x = lax.cond(
            x.mean() > 0,
            lambda x: jnp.tanh(x @ variables["then"]) @ variables["shared"],
            lambda x: jnp.tanh(x @ variables["shared"]) @ variables["otherwise"],
            x,
        )
        return lax.switch(choice, [lambda x, w=w: x @ w for w in variables["choices"]], x)

    return apply, variables, (normal(rng, 4, 32), jnp.int32(1))


@entry
def while_loop() -> Parts:
    """`lax.while_loop`: a weight in the condition, one closed over by the body, one carried unchanged."""
    rng = np.random.default_rng(0)
    variables = {"halt": weight(rng, 32, 16), "closed": weight(rng, 32, 32), "carried": weight(rng, 32, 32)}

    def apply(variables: PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def unsettled(state: tuple) -> jax.Array:
            count, x, _ = state
            return (count < 6) & (jnp.abs(x @ variables["halt"]).max() > 0.7)

        def body(state: tuple) -> tuple:
            count, x, carried = state
            return count + 1, 0.5 * jnp.tanh(x @ variables["closed"]) + 0.25 * x @ carried, carried

        count, x, _ = lax.while_loop(unsettled, body, (jnp.int32(0), x, variables["carried"]))
        return x, count

    return apply, variables, (normal(rng, 4, 32),)


@entry
def fori_loop() -> Parts:
    """`lax.fori_loop` with static bounds: the same weights at each of three steps."""
    rng = np.random.default_rng(0)
    variables = {"step": weight(rng, 32, 32), "input": weight(rng, 16, 32)}

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        drive = x @ variables["input"]

        def step(i: jax.Array, h: jax.Array) -> jax.Array:
            return jnp.tanh(h @ variables["step"] + drive)

        return lax.fori_loop(0, 3, step, jnp.zeros_like(drive))

    return apply, variables, (normal(rng, 4, 16),)


@entry
def carry_through() -> Parts:
    """A leaf that goes through a scan's carry unchanged, is used inside and again after."""
    rng = np.random.default_rng(0)
    variables = {"carried": weight(rng, 32, 32), "out": weight(rng, 32, 16)}

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        def step(carry: tuple, u: jax.Array) -> tuple[tuple, None]:
            w, h = carry
            return (w, jnp.tanh(h @ w + u)), None

        (w, h), _ = lax.scan(step, (variables["carried"], jnp.zeros_like(x[0])), x)
        return (h @ w) @ variables["out"]

    return apply, variables, (normal(rng, 5, 4, 32),)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """ReLU whose derivative at zero is one half."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return relu(x), dx * jnp.heaviside(x, 0.5)


@jax.custom_jvp
def tanh_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`tanh(x @ kernel)` whose derivative is written through its value."""
    return jnp.tanh(x @ kernel)


@tanh_dot.defjvp
def _tanh_dot_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = tanh_dot(x, kernel)
    return y, (1 - y**2) * (dx @ kernel + x @ dkernel)


@entry
def custom_jvp() -> Parts:
    """A `jax.custom_jvp` around a dot, beside one around an elementwise function."""
    rng = np.random.default_rng(0)
    variables = {"inside": weight(rng, 32, 32), "outside": weight(rng, 32, 16)}

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        return relu(tanh_dot(x, variables["inside"])) @ variables["outside"]

    return apply, variables, (normal(rng, 4, 32),)


@jax.custom_vjp
def clipped_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, whose incoming gradient is clipped to +-1."""
    return x @ kernel


def _clipped_dot_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return clipped_dot(x, kernel), (x, kernel)


def _clipped_dot_backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    gradient = jnp.clip(gradient, -1, 1)
    return gradient @ kernel.T, x.T @ gradient


clipped_dot.defvjp(_clipped_dot_forward, _clipped_dot_backward)


@entry
def custom_vjp() -> Parts:
    """A `jax.custom_vjp` around a dot, whose backward pass dots with the weight again."""
    rng = np.random.default_rng(0)
    variables = {"inside": weight(rng, 32, 32), "outside": weight(rng, 32, 16)}

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        return jnp.tanh(clipped_dot(x, variables["inside"])) @ variables["outside"]

    return apply, variables, (normal(rng, 4, 32),)


def mesh(name: str) -> Mesh:
    """Two devices where there are two, else one, as a mesh of one automatic axis."""
    devices = jax.devices()[:2]
    return jax.make_mesh((len(devices),), (name,), axis_types=(AxisType.Auto,), devices=devices)


@entry
def shard_map() -> Parts:
    """`jax.shard_map`: two kernels sharded over their hidden axis with a `psum`, one replicated."""
    rng = np.random.default_rng(0)
    variables = {
        "up": weight(rng, 32, 64),
        "bias": weight(rng, 64),
        "down": weight(rng, 64, 32),
        "replicated": weight(rng, 32, 16),
    }
    specs = {"up": P(None, "model"), "bias": P("model"), "down": P("model", None), "replicated": P()}

    def local(variables: PyTree, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ variables["up"] + variables["bias"][None])
        return lax.psum(hidden @ variables["down"], "model") @ variables["replicated"]

    apply = jax.shard_map(local, mesh=mesh("model"), in_specs=(specs, P()), out_specs=P())
    return apply, variables, (normal(rng, 4, 32),)


@entry
def nested_jit() -> Parts:
    """Inner `jax.jit` functions: one called twice, one with shardings and a donated activation."""
    rng = np.random.default_rng(0)
    variables = {"first": weight(rng, 32, 32), "second": weight(rng, 32, 32), "third": weight(rng, 32, 32)}
    over = mesh("data")
    replicated, rows = NamedSharding(over, P()), NamedSharding(over, P("data", None))

    @jax.jit
    def layer(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ kernel)

    @functools.partial(jax.jit, in_shardings=(replicated, rows), out_shardings=rows, donate_argnums=1)
    def sharded(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return x + layer(kernel, x)

    def apply(variables: PyTree, x: jax.Array) -> jax.Array:
        x = layer(variables["second"], layer(variables["first"], x))
        return sharded(variables["third"], x)

    return apply, variables, (normal(rng, 4, 32),)


MODELS = (
    indexed_layers,
    cond,
    while_loop,
    fori_loop,
    carry_through,
    custom_jvp,
    custom_vjp,
    shard_map,
    nested_jit,
)
