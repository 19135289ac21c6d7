"""What configs build: sizes in closed form, one initializer for all seeds, every kernel found, BatchNorm that trains."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_nn as jn
from experiments.models import build as builders
from experiments.models import cifar, digits, fashion, mlp, mlp_nnx, text
from jaxopt_nn.core.paths import leaves_by_path, map_with_path


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def dense(*sizes):
    """Weights and biases of a perceptron."""
    return sum((i + 1) * o for i, o in itertools.pairwise(sizes))


def resnet_size(inputs, channels, blocks, side=3):
    """Convolutions, two vectors a norm, projections where channels change, the head; and two statistics a norm."""
    first, norms = side * side * inputs * channels[0], channels[0]
    total = first + dense(channels[-1], 10)
    for before, after in zip((channels[0], *channels), channels, strict=False):
        total += 9 * before * after + 9 * after * after + (blocks - 1) * 18 * after * after
        total += before * after if before != after else 0
        norms += 2 * blocks * after + (after if before != after else 0)
    return total + 2 * norms, 2 * norms


def vit_size(patch, width, layers, hidden):
    block = 4 * dense(width, width) + dense(width, hidden, width) + 4 * width
    tokens = 1 + (28 // patch) ** 2
    return dense(patch * patch, width) + width + tokens * width + layers * block + 2 * width + dense(width, 10)


def gpt_size(vocabulary, width, layers, heads, kv_heads, hidden):
    block = 2 * width * width + 2 * width * (width // heads) * kv_heads + 3 * width * hidden + 2 * width
    return vocabulary * width + layers * block + width


def abstract(build, **sizes):
    """Shapes of a builder's variables; nothing is compiled."""
    return jax.eval_shape(lambda: build(**sizes).variables)


DEFAULTS = {
    fashion.lenet300: dense(784, 300, 100, 10),
    fashion.lenet300_nnx: dense(784, 300, 100, 10),
    fashion.lenet5: 26 * 20 + (25 * 20 + 1) * 50 + dense(800, 500, 10),
    fashion.xnor_lenet5: 26 * 20 + (25 * 20 + 1) * 50 + dense(800, 500, 10) + 2 * (20 + 50 + 500),
    fashion.resnet: resnet_size(1, (16, 32, 64), 1)[0],
    fashion.vit: vit_size(4, 64, 4, 128),
    cifar.resnet20: resnet_size(3, (16, 32, 64), 3)[0],
    text.gpt: gpt_size(256, 128, 4, 4, 2, 384),
    digits.build: dense(64, 300, 100, 10),
    digits.mlp: dense(64, 300, 100, 10),
    digits.lenet300_nnx: dense(64, 300, 100, 10),
    digits.teacher: dense(64, 300, 100, 10),
    digits.student: dense(64, 16, 10),
}
STATED = {266_610, 431_080, 432_220, 77_754, 139_018, 272_474, 820_352, 50_610, 1_210}

# Small, for speed; lists as a config in JSON gives them.
SMALL = {
    "lenet300": (fashion.lenet300, {"hidden": [8, 6]}, (3, 28, 28, 1), dense(784, 8, 6, 10)),
    "lenet300_nnx": (fashion.lenet300_nnx, {"hidden": [8, 6]}, (3, 28, 28, 1), dense(784, 8, 6, 10)),
    "lenet5": (fashion.lenet5, {"channels": [2, 3], "hidden": 5}, (3, 28, 28, 1), 26 * 2 + 51 * 3 + dense(48, 5, 10)),
    "xnor_lenet5": (
        fashion.xnor_lenet5, {"channels": [2, 3], "hidden": 5}, (3, 28, 28, 1), 26 * 2 + 51 * 3 + dense(48, 5, 10) + 20,
    ),
    "resnet": (fashion.resnet, {"channels": [4, 6]}, (3, 28, 28, 1), resnet_size(1, (4, 6), 1)[0]),
    "resnet_stride": (
        fashion.resnet, {"channels": [4, 6], "stride": 4}, (3, 28, 28, 1), resnet_size(1, (4, 6), 1, side=4)[0],
    ),
    "vit": (
        fashion.vit, {"patch": 14, "width": 8, "layers": 1, "heads": 2, "hidden": 12}, (3, 28, 28, 1), vit_size(14, 8, 1, 12),
    ),
    "resnet20": (cifar.resnet20, {"channels": [4, 6], "blocks": 1}, (3, 32, 32, 3), resnet_size(3, (4, 6), 1)[0]),
    "gpt": (
        text.gpt, {"vocabulary": 16, "width": 8, "layers": 3, "heads": 2, "kv_heads": 1, "hidden": 12}, (3, 7),
        gpt_size(16, 8, 3, 2, 1, 12),
    ),
    "digits": (digits.mlp, {"hidden": [8]}, (3, 8, 8, 1), dense(64, 8, 10)),
    "digits_nnx": (digits.lenet300_nnx, {"hidden": [8]}, (3, 8, 8, 1), dense(64, 8, 10)),
    "student": (digits.student, {"hidden": [4]}, (3, 8, 8, 1), dense(64, 4, 10)),
}  # fmt: skip


@functools.cache
def small(name, seed=0):
    build, sizes, _, _ = SMALL[name]
    return build(seed=seed, **sizes)


def inputs(shape):
    rng = np.random.default_rng(0)
    if len(shape) == 2:
        return jnp.asarray(rng.integers(16, size=shape), jnp.int32)
    return jnp.asarray(rng.random(shape), jnp.float32)


def test_default_sizes_are_those_of_the_docstrings():
    sizes = {build: count(shapes.get("params", shapes)) for build in DEFAULTS for shapes in [abstract(build)]}
    assert sizes == DEFAULTS
    assert set(sizes.values()) == STATED
    for build, size in sizes.items():
        if build not in (digits.mlp, digits.lenet300_nnx, fashion.lenet300_nnx):
            assert f"{size:,}" in build.__doc__, build
    assert 10 * sizes[digits.student] <= sizes[digits.teacher]
    assert count(abstract(fashion.resnet)["batch_stats"]) == resnet_size(1, (16, 32, 64), 1)[1] == 672


@pytest.mark.parametrize("name", SMALL)
def test_a_builder_gives_a_network_of_its_sizes_and_seed(name):
    build, sizes, shape, size = SMALL[name]
    network = small(name)
    apply, variables = network.apply, network.variables
    assert bool(network.still) == ("resnet" in name or "xnor" in name)
    assert count(variables.get("params", variables)) == size
    logits = jax.eval_shape(apply, variables, inputs(shape))
    assert logits.shape == ((3, 7, 16) if name == "gpt" else (3, 10)) and logits.dtype == jnp.float32

    again, other = build(seed=0, **sizes).variables, small(name, seed=1).variables
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    assert jax.tree.structure(variables) == jax.tree.structure(other)
    kernels = {path for path in leaves_by_path(variables) if path.endswith(("kernel", "embedding", "positions"))}
    left, right = leaves_by_path(variables), leaves_by_path(other)
    assert kernels and not any(np.array_equal(left[path], right[path]) for path in kernels)


@pytest.mark.parametrize("name", SMALL)
def test_every_kernel_has_a_site(name):
    _, _, shape, _ = SMALL[name]
    apply, variables = small(name).apply, small(name).variables
    info = jn.inspect(apply, variables, inputs(shape))
    kernels = {leaf.path: leaf for leaf in info.leaves if leaf.path.endswith(("kernel", "embedding"))}
    assert set(kernels) == {path for path in leaves_by_path(variables) if path.endswith(("kernel", "embedding"))}
    assert kernels and all(leaf.sites for leaf in kernels.values())
    if name == "gpt":
        assert kernels["params/blocks/gate/kernel"].shape == (3, 8, 12)
        assert info.roles["params/blocks/gate/kernel"] == jn.Roles((0,), (1,), (2,))


def test_equal_networks_share_one_compiled_initializer():
    for name in ("lenet300", "digits_nnx"):
        small(name), small(name, seed=1)
    shared = builders._initializer(mlp.MLP((8, 6, 10)))
    assert shared is builders._initializer(mlp.MLP((8, 6, 10)))
    assert shared.__wrapped__._cache_size() == 1
    assert builders._nnx_parts(mlp_nnx.MLP, (64, 8, 10))[1].__wrapped__._cache_size() == 1


def test_the_twin_has_nnx_names_and_computes_the_same():
    apply, twin, variables = small("lenet300").apply, small("lenet300_nnx").apply, small("lenet300_nnx").variables
    assert sorted(leaves_by_path(variables)) == [f"layers/{i}/{leaf}" for i in range(3) for leaf in ("bias", "kernel")]
    x = inputs((3, 28, 28, 1))
    ours = apply({"params": {f"Dense_{i}": variables["layers"][i] for i in range(3)}}, x)
    np.testing.assert_allclose(twin(variables, x), ours, rtol=1e-5, atol=1e-6)


def test_the_scanned_language_model_sees_no_later_byte():
    apply, variables = small("gpt").apply, small("gpt").variables
    x = inputs((3, 7))
    y = jax.jit(apply)(variables, x)
    changed = jax.jit(apply)(variables, x.at[:, 5].set((x[:, 5] + 1) % 16))
    np.testing.assert_allclose(y[:, :5], changed[:, :5], rtol=1e-5, atol=1e-6)
    assert np.abs(y[:, 5:] - changed[:, 5:]).max() > 1e-3


def test_batch_norm_trains_and_moves_its_statistics():
    network = small("resnet")
    apply, variables = network.apply, network.variables
    train_apply = lambda v, x, key: network.trained(v, x, key=key)
    x = inputs((8, 8, 8, 1))  # any height and width will do
    y = jnp.arange(8)
    optimizer = optax.adam(1e-2)

    def loss(params, stats):
        logits, new = train_apply({"params": params, "batch_stats": stats}, x, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

    @functools.partial(jax.jit)
    def step(params, stats, state):
        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params, stats)
        updates, state = optimizer.update(grads, state)
        moved = map_with_path(lambda path, x: new[f"batch_stats/{path}"], stats)
        return value, optax.apply_updates(params, updates), moved, state

    params, stats, state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    losses = []
    for _ in range(10):
        value, params, stats, state = step(params, stats, state)
        losses.append(float(value))
    assert losses[-1] < 0.85 * losses[0]
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))

    # the first norm's mean, one step of momentum 0.9 from zero, is a tenth of the batch's mean
    _, new = jax.jit(train_apply)(variables, x, jax.random.key(0))
    assert set(new) == network.still
    convolved = jax.lax.conv_general_dilated(
        x, variables["params"]["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = 0.1 * convolved.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(new["batch_stats/BatchNorm_0/mean"], expected, rtol=1e-4, atol=1e-6)

    # in evaluation each image is on its own
    run = jax.jit(apply)
    np.testing.assert_allclose(run(variables, x)[:1], run(variables, x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "build, sizes, message",
    [
        (fashion.vit, {"patch": 5}, "divisors of 28"),
        (fashion.vit, {"width": 10, "heads": 4}, "multiple of heads"),
        (text.gpt, {"width": 12, "heads": 4}, "multiple of 2 x heads"),
        (text.gpt, {"heads": 4, "kv_heads": 3}, "multiple of kv_heads"),
    ],
)
def test_sizes_that_do_not_divide(build, sizes, message):
    with pytest.raises(ValueError, match=message):
        build(**sizes)
