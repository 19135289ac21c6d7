"""Axis groups: a network without some units gives what it gives with their entries set to zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.models.lenet import LeNet5
from experiments.models.mlp import MLP
from experiments.models.resnet import ResNet
from experiments.models.vit import ViT
from jaxopt_nn.core.passes import Plan, layer_of
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.interpret.groups import axis_groups, couplings, group_names
from jaxopt_nn.interpret.network import Network, like
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.passes.cutting import execute
from tests.zoo import ZOO
from tests.zoo.base import draw

FREE = {  # models of the zoo: how many groups may be cut, and how many there are
    "resnet": (4, 5),
    "mobilenet": (4, 5),
    "vit": (9, 10),
    "gpt": (11, 12),
    "gpt_scan": (6, 7),
    "lstm": (2, 3),
    "moe": (1, 3),
    "nnx_remat": (2, 3),
    "raw_einsum": (4, 5),
    "raw_conv": (4, 5),
    "ensemble": (1, 3),
    "weight_norm": (1, 2),
    "fused_qkv": (2, 3),
    "graph": (1, 2),
    "left_operand": (1, 2),
    "custom_jvp": (1, 2),
    "custom_vjp": (1, 2),
    "nested_jit": (1, 2),
    "shard_map": (1, 2),
}


def made(module, *shape, **kwargs):
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    variables = draw(jax.eval_shape(module.init, jax.random.key(0), x))
    network = linen(module, variables, **kwargs)
    return network.apply, network.variables, (x,)


def edited(variables, members, unit, fn):
    """``fn`` on the entries of ``unit`` in ``members``."""

    def leaf(path, x):
        x = np.array(x)
        for m in members:
            if m.path == path:
                at = tuple(m.units == unit if i == m.axis else slice(None) for i in range(x.ndim))
                x[at] = fn(x[at])
        return x

    return map_with_path(leaf, variables)


def probe(apply, variables, inputs, share=0.4):
    """With units cut out, by groups and together, the network gives what it gives with their entries set to zero."""
    found = [c for c in couplings(apply, variables, *inputs) if c.group.pinned is None]
    names = group_names([c.group for c in found])
    rng = np.random.default_rng(0)
    kept = [np.sort(rng.permutation(c.group.size)[: max(1, round((1 - share) * c.group.size))]) for c in found]
    leaves = {path: tuple(x.shape) for path, x in leaves_by_path(variables).items()}
    for some in [[i] for i in range(len(found))] + [list(range(len(found)))]:
        plan = Plan("test", leaves, like(inputs), tuple(layer_of(names[i], found[i], kept[i]) for i in some))
        small, _ = execute(Network(apply, variables), plan)
        zero = variables
        for layer in plan.layers:
            for unit in np.flatnonzero(layer.off):
                zero = edited(zero, [m for m in layer.members if m.role != "divisor"], unit, np.zeros_like)
        got, wanted = (jax.tree.leaves(jax.jit(f)(v, *inputs)) for f, v in ((small.apply, small.variables), (apply, zero)))
        for a, b in zip(got, wanted, strict=True):
            assert a.shape == b.shape and np.isfinite(b).all()
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * (1e-9 + np.abs(b).max(initial=0)))


def table(group):
    return {(m.path.removeprefix("params/"), m.axis, m.role): m.units.tolist() for m in group.members}


def test_an_mlp():
    apply, variables, inputs = made(MLP((5, 4, 3)), 2, 6)
    first, second, head = axis_groups(apply, variables, *inputs)
    r = list(range(5))
    expected = {("Dense_0/kernel", 1, "producer"): r, ("Dense_0/bias", 0, "vector"): r}
    assert table(first) == expected | {("Dense_1/kernel", 0, "consumer"): r} and first.pinned is None
    assert second.size == 4 and second.pinned is None
    assert head.size == 3 and head.pinned == "reaches an output of `apply`"
    probe(apply, variables, inputs)


def test_a_flattened_convolution_repeats_its_units():
    apply, variables, inputs = made(LeNet5((3, 4), 5), 2, 28, 28, 1)
    groups = axis_groups(apply, variables, *inputs)
    assert [(g.size, g.pinned is None) for g in groups] == [(3, True), (4, True), (5, True), (10, False)]
    assert table(groups[1])["Dense_0/kernel", 0, "consumer"] == list(range(4)) * 16
    probe(apply, variables, inputs)


@pytest.mark.parametrize("unit", [0, 2])
def test_a_nan_of_a_unit_reaches_the_rows_that_the_map_says(unit):
    def apply(v, x):
        h = lax.conv_general_dilated(x, v["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h = jax.nn.relu(h + v["bias"].reshape(1, 1, 1, -1)).transpose(0, 3, 1, 2)
        return h.reshape(h.shape[0], -1) @ v["out"]

    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 2, 1, 3), "bias": (3,), "out": (12, 4)}
    variables = {k: rng.standard_normal(n).astype(np.float32) for k, n in shapes.items()}
    x = jnp.asarray(rng.standard_normal((1, 3, 3, 1)), jnp.float32)
    group = axis_groups(apply, variables, x)[0]
    units = next(m.units for m in group.members if m.role == "consumer")
    assert units.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    writers = [m for m in group.members if m.role != "consumer"]
    poisoned = edited(variables, writers, unit, lambda x: x * np.nan)
    tap = Tap(lambda site: jnp.zeros(12, bool), lambda acc, x, weight, site: acc | jnp.isnan(x).any(0), jnp.logical_or)
    _, seen = capture(apply, {"out": tap})(poisoned, x)
    np.testing.assert_array_equal(seen["out"], units == unit)


def test_a_residual_network_with_batch_norm():
    apply, variables, inputs = made(ResNet((4, 6), 1), 2, 8, 8, 3)
    groups = axis_groups(apply, variables, *inputs)
    assert [(g.size, g.pinned is None) for g in groups] == [(4, True), (4, True), (6, True), (6, True), (10, False)]
    joined = table(groups[0])
    for path in ("Conv_0/kernel", "ResidualBlock_0/Conv_1/kernel"):
        assert (path, 3, "producer") in joined
    for path in ("batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var", "BatchNorm_0/scale"):
        assert (path, 0, "vector") in joined
    for path in ("ResidualBlock_0/Conv_0/kernel", "ResidualBlock_1/Conv_0/kernel", "ResidualBlock_1/shortcut/kernel"):
        assert (path, 2, "consumer") in joined
    probe(apply, variables, inputs)


def test_a_transformer():
    apply, variables, inputs = made(ViT(4, 8, 1, 2, 12, 5), 2, 8, 8, 3)
    groups = axis_groups(apply, variables, *inputs)
    free = {(g.members[0].path.removeprefix("params/block_0/"), g.members[0].axis): g for g in groups if g.pinned is None}
    heads, width = free["attention/query/kernel", 1], free["attention/query/kernel", 2]
    values, hidden, stream = free["attention/value/kernel", 2], free["up/kernel", 1], free["params/patches/kernel", 3]
    assert [g.size for g in (heads, width, values, hidden, stream)] == [2, 4, 4, 12, 8]
    assert {(m.path.split("/")[-2], m.axis) for m in heads.members} == {
        *((n, 1) for n in ("query", "key", "value")), *((n, 0) for n in ("query", "key", "value", "out"))
    }  # fmt: skip
    assert {m.path.split("/")[-2] for m in width.members} == {"query", "key"}
    assert {m.path.split("/")[-2] for m in values.members} == {"value", "out"}
    assert len([m for m in stream.members if m.role == "producer"]) == 3
    assert [g.pinned for g in groups if g.pinned] == ["reaches an output of `apply`"]
    probe(apply, variables, inputs)


@pytest.mark.parametrize("name", FREE)
def test_the_zoo(name):
    model = ZOO[name]()
    groups = axis_groups(model.apply, model.variables, *model.inputs)
    assert (sum(g.pinned is None for g in groups), len(groups)) == FREE[name]
    probe(model.apply, model.variables, model.inputs)


A, B, C = (np.random.default_rng(i).standard_normal((6, 6)).astype(np.float32) for i in range(3))
X = jnp.asarray(np.random.default_rng(9).standard_normal((2, 6)), jnp.float32)


PINNED = {
    "reaches an output": lambda v, x: jax.nn.relu(x @ v["a"]),
    "is an axis of an input": lambda v, x: (x @ v["a"] + x) @ v["b"],
    "`reduce_max` reduces over it, and units differ there": lambda v, x: (
        x[:, :1] * (x @ v["a"] + jnp.arange(6.0).reshape(1, 6)).max(1, keepdims=True)
    ),
    "`reduce_sum` reduces over it, and units differ there": lambda v, x: (
        x[:, :1] * (jnp.cos(x @ v["a"]) * jnp.arange(6.0).reshape(1, 6)).sum(1, keepdims=True)
    ),
    "a dot sums over it, and it is not zero there": lambda v, x: jnp.cos(x @ v["a"]) @ jnp.cos(x @ v["b"]).T,
    "`argmax` reduces over it": lambda v, x: x[:, :1] * jnp.argmax(x @ v["a"], 1, keepdims=True),
    "`sort` orders it": lambda v, x: jnp.sort(x @ v["a"]) @ v["b"],
    "`top_k` orders it": lambda v, x: lax.top_k(x @ v["a"], 6)[0] @ v["b"],
    "`fft` transforms along it": lambda v, x: jnp.fft.fft(x @ v["a"]).real @ v["b"],
    "`cummax` runs along it": lambda v, x: lax.cummax(x @ v["a"], 1) @ v["b"],
    "`cumsum` runs along it, and it is not zero there": lambda v, x: jnp.cumsum(jnp.cos(x @ v["a"]), 1) @ v["b"],
    "`dynamic_slice` takes some": lambda v, x: lax.dynamic_slice(x @ v["a"], (0, x[0, 0].astype(int)), (2, 2)) @ v["b"][:2],
    "`gather` looks its entries up": lambda v, x: (x @ v["a"])[:, jnp.array([3, 1])] @ v["b"][:2],
    "`scatter-add` gathers its entries in places": lambda v, x: (
        jnp.zeros((2, 3)).at[:, jnp.array([0, 1, 2, 0, 1, 2])].add(jnp.cos(x @ v["a"])) @ v["b"][:3]
    ),
    "`scatter` gathers its entries in places": lambda v, x: (
        jnp.zeros((2, 6)).at[:, jnp.arange(6)].set(x @ v["a"]) @ v["b"]
    ),
    "`reduce_sum` reduces over it, and units differ": lambda v, x: (
        x[:, :1] * lax.cumlogsumexp(x @ v["a"], axis=0).sum(1, keepdims=True)
    ),
    "`acosh` is not finite at zero": lambda v, x: lax.acosh(x @ v["a"]) @ v["b"],
    "`cholesky` can't be followed": lambda v, x: (
        lax.linalg.cholesky((h := x @ v["a"])[:, :, None] * h[:, None] + jnp.eye(6)[None]) @ v["b"]
    ),
    "meets itself within one axis": lambda v, x: (
        ((h := x @ v["a"])[:, :, None] * h[:, None]).reshape(2, 36) @ v["w"]
    ),
    "`reshape` splits it into parts that are not its own": lambda v, x: (
        jnp.sin((h := x @ v["a"]).reshape(2, 2, 3)).sum(2) @ v["b"][:2] + jnp.sin(h.reshape(2, 3, 2)).sum(2) @ v["b"][:3]
    ),
}


@pytest.mark.parametrize("reason", PINNED)
def test_what_is_not_known_to_be_cut_is_pinned(reason):
    group = axis_groups(PINNED[reason], {"a": A, "b": B, "c": C, "w": np.ones((36, 2), np.float32)}, X)[0]
    assert group.members[0].path == "a" and group.pinned is not None
    assert reason in group.pinned


COUPLED = {
    "gated, one weight each": lambda v, x: (jax.nn.silu(x @ v["a"]) * (x @ v["b"])) @ v["c"],
    "residual, then two readers": lambda v, x: (lambda h: h @ v["c"] + jnp.sin(h + jnp.tanh(h @ v["b"])) @ v["c2"])(x @ v["a"]),
    "a scale and a shift": lambda v, x: jnp.tanh((x @ v["a"]) * v["s"].reshape(1, 6) + v["t"].reshape(1, 6)) @ v["b"],
    "read from the left": lambda v, x: v["b"].T @ jnp.exp(v["a"].T @ x.T),
    "turned around": lambda v, x: (x @ v["a"])[:, ::-1] @ v["b"],
    "added to itself turned around": lambda v, x: ((h := x @ v["a"]) + h[:, ::-1]) @ v["b"],
    "times numbers of its own": lambda v, x: (x @ v["a"] * jnp.arange(6.0).reshape(1, 6)) @ v["b"],
    "the weight of two sites": lambda v, x: (jnp.tanh(x @ v["a"]) @ v["b"]) + jnp.sin(x) @ v["a"] @ v["c"],
    "read by what is computed from a weight": lambda v, x: (x @ v["a"]) @ (v["b"] * 2),
    "times another activation": lambda v, x: ((x @ v["a"]) @ (x @ v["b"]).T) @ x,
    "in two parts": lambda v, x: jnp.sin((h := x @ v["a"])[:, :2]) @ v["b"][:2] + jnp.cos(h[:, 2:]) @ v["c"][2:],
    "joined with what is not cut": lambda v, x: jnp.concatenate([x @ v["a"], x], 1) @ jnp.concatenate([v["b"], v["c"]]),
    "padded": lambda v, x: jnp.pad(x @ v["a"], ((0, 0), (1, 1)))[:, 1:7] @ v["b"],
    "summed along": lambda v, x: jnp.cumsum(x @ v["a"], 1) @ v["b"],
    "every second": lambda v, x: (x @ v["a"])[:, ::2] @ v["b"][:3],
    "in a softmax": lambda v, x: jax.nn.softmax(x @ v["a"]) @ v["b"],
    "in a variance of two passes": lambda v, x: (
        (d := (h := x @ v["a"]) - h.mean(-1, keepdims=True)) * lax.rsqrt((d * d).mean(-1, keepdims=True) + 1e-6)
    ) @ v["b"],
    "where the largest counts": lambda v, x: x[:, :1] * jnp.tanh(x @ v["a"]).max(1, keepdims=True) + (x @ v["a"]) @ v["b"],
    "in a sum of what is not zero": lambda v, x: x * jnp.cos(x @ v["a"]).sum(1, keepdims=True) + jnp.exp(x @ v["a"]) @ v["b"],
    "in a product": lambda v, x: x * (jnp.cos(x @ v["a"]) + 2).prod(1, keepdims=True) + (x @ v["a"]) @ v["b"],
    "in a branch": lambda v, x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x @ v["a"]) @ v["b"],
    "in a scan": lambda v, x: lax.scan(lambda c, _: (jnp.tanh(c @ v["b"]), None), x @ v["a"], None, length=2)[0] @ v["c"],
    "in a loop": lambda v, x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ v["b"]), x @ v["a"]) @ v["c"],
    "in a checkpoint": lambda v, x: jax.checkpoint(lambda h: jax.nn.gelu(h @ v["a"]))(x) @ v["b"],
    "reduced over other axes": lambda v, x: jnp.sin(x.reshape(2, 6, 1) * v["s"].reshape(1, 1, 6) @ v["a"]).mean(1) @ v["b"],
    "cast on the way": lambda v, x: (x @ v["a"]).astype(jnp.bfloat16).astype(jnp.float32) @ v["b"],
    "softmax over other axes": lambda v, x: jax.nn.softmax(jnp.where(x[:, :1] > -9, x @ v["a"], -1e9), 0) @ v["b"],
    "normalised over other axes": lambda v, x: (
        (h := x @ v["a"]) * lax.rsqrt((h * h).mean(0, keepdims=True) + 1e-6)
    ) @ v["b"],
    "standardised over other axes": lambda v, x: ((h := x @ v["a"]) / (h.std(0, keepdims=True) + 1e-3)) @ v["b"],
    "divided by what is above zero": lambda v, x: (
        (h := x @ v["a"]) / jnp.maximum(abs(h) ** 1.5, 0.1) + jax.nn.soft_sign(h) / (1 + jnp.exp(-h))
    ) @ v["b"],
    "finite at zero": lambda v, x: (
        jnp.sqrt(abs(h := x @ v["a"])) + jnp.cbrt(h) + jnp.log1p(h * h) + h**3 / 2
    ) @ v["b"],
}  # fmt: skip


@pytest.mark.parametrize("what", COUPLED)
def test_what_is_coupled_is_known_whole(what):
    rng = np.random.default_rng(4)
    vectors = {k: rng.standard_normal(6).astype(np.float32) for k in ("s", "t")}
    variables = {"a": A, "b": B, "c": C, "c2": C[:, ::-1].copy(), **vectors}
    groups = axis_groups(COUPLED[what], variables, X)
    assert groups[0].pinned is None and groups[0].members[0].path == "a", groups[0]
    probe(COUPLED[what], variables, (X,))
    if what == "turned around":
        assert table(groups[0])["b", 0, "consumer"] == [5, 4, 3, 2, 1, 0]
    if what.startswith("added to itself"):
        assert groups[0].size == 3 and table(groups[0])["a", 1, "producer"] == [0, 1, 2, 2, 1, 0]


NOT_FINITE = {
    "`div`": lambda h, m: h / m,
    "`rem`": lambda h, m: lax.rem(h, m),
    "`log`": lambda h, m: h + jnp.log(m),
    "`rsqrt`": lambda h, m: h * lax.rsqrt(jnp.square(m)),
    "`integer_pow`": lambda h, m: h + m**-2,
    "`pow`": lambda h, m: h + m**-0.5,
    "`lgamma`": lambda h, m: h + lax.lgamma(m),
    "`digamma`": lambda h, m: h + lax.digamma(m),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_what_is_not_finite_at_a_zero_activation_is_pinned(name):
    """Else a mask, which makes the activation 0, makes all outputs NaN."""
    apply = lambda v, x: NOT_FINITE[name](x @ v["a"], abs(x @ v["b"])) @ v["c"]
    variables = {"a": A, "b": B, "c": C}
    group = axis_groups(apply, variables, X)[0]
    assert {m.path for m in group.members} == {"a", "b", "c"} and group.pinned.startswith(name)
    assert np.isfinite(apply(variables, X)).all()
    assert np.isnan(apply(edited(variables, group.members, 0, np.zeros_like), X)).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_convolutions_after_a_concatenation(groups):
    """Two parts of unequal width: the number of groups that are left is no product of what is left of each."""
    numbers = ("NHWC", "HWIO", "NHWC")

    def apply(v, x):
        h = jnp.tanh(jnp.concatenate([x @ v["a"], x @ v["b"]], 3))
        h = lax.conv_general_dilated(
            h, v["d"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=h.shape[3] // groups
        )
        return jnp.sin(h).mean((1, 2)) @ v["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (2, 6), "b": (2, 4), "d": (3, 3, groups, 10), "c": (10, 3)}
    variables = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    found = axis_groups(apply, variables, x := jnp.asarray(rng.standard_normal((1, 4, 4, 2)), jnp.float32))
    assert sum(g.pinned is None for g in found) >= 2
    probe(apply, variables, (x,))


@jax.custom_vjp
def scaled(x):
    return x


scaled.defvjp(lambda x: (x, x), lambda x, g: (g * lax.rsqrt((g * g).sum(-1, keepdims=True) + 1e-6),))


def test_a_pullback_that_sums_over_units_pins_them():
    """The outputs would be equal, and the gradients not."""
    apply = lambda v, x: scaled(x @ v["a"]) @ v["b"]
    group = axis_groups(apply, {"a": A, "b": B}, X)[0]
    assert "reduce_sum" in group.pinned


def test_a_rest_of_a_rest_is_not_known():
    """Units of two kinds, both in an exponential that is summed over both."""
    apply = lambda v, x: x[:, :1] * jnp.exp((x @ v["a"]).reshape(2, 2, 3) * v["s"].reshape(1, 2, 3)).sum(2).sum(1)[:, None]
    variables = {"a": A, "s": np.ones(6, np.float32)}
    free = [g.size for g in axis_groups(apply, variables, X) if g.pinned is None]
    assert free == [3]
    probe(apply, variables, (X,))


def test_random_numbers_are_not_cut_by_their_seeds():
    def apply(v, x):
        noise = jax.vmap(lambda s: jax.random.normal(jax.random.key(s.astype(jnp.int32))))(v["s"])
        return (x @ v["a"] * noise[None] * v["s"][None]) @ v["b"]

    group = axis_groups(apply, {"a": A, "b": B, "s": np.arange(6, dtype=np.float32)}, X)[0]
    assert "draws numbers by it" in group.pinned


def test_a_key_that_is_closed_over_is_no_array_of_numbers():
    key = jax.random.key(3)
    apply = lambda v, x: (jax.nn.relu(x @ v["up"]) * jax.random.normal(key, (8,))[None]) @ v["down"]
    group, _ = axis_groups(apply, {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}, jnp.ones((1, 4)))
    assert group.pinned is None and "a table of constants" in group.rebuild.reason


def test_empty_parts_of_axes_of_length_one():
    apply = lambda v, x: jnp.split((x @ v["a"]).sum(1, keepdims=True), [1], axis=1)[0] * x
    assert axis_groups(apply, {"a": A}, X)


def test_depthwise_convolutions_join_what_they_read():
    numbers = ("NHWC", "HWIO", "NHWC")

    def apply(v, x):
        h = jnp.tanh(lax.conv_general_dilated(x, v["a"], (1, 1), "SAME", dimension_numbers=numbers))
        h = lax.conv_general_dilated(h, v["d"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=3)
        return jnp.sin(h).mean((1, 2)) @ v["b"]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 3), "d": (3, 3, 1, 6), "b": (6, 4)}
    variables = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((1, 4, 4, 2)), jnp.float32)
    groups = axis_groups(apply, variables, x)
    assert groups[0].size == 3 and groups[0].pinned is None
    assert table(groups[0])["b", 0, "consumer"] == [0, 0, 1, 1, 2, 2]
    probe(apply, variables, (x,))


def test_training_mode_of_batch_norm_is_pinned_by_its_new_statistics():
    module = ResNet((4,), 1)
    _, variables, (x,) = made(module, 2, 8, 8, 3)
    train = lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])
    groups = axis_groups(train, variables, x)
    assert groups and all(g.pinned == "reaches an output of `apply`" for g in groups)


def test_abstract_variables_give_the_same_groups():
    apply, variables, (x,) = made(MLP((5, 3)), 2, 6)
    concrete = axis_groups(apply, variables, x)
    abstract = axis_groups(apply, jax.eval_shape(lambda: variables), jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert [table(g) for g in concrete] == [table(g) for g in abstract]
    assert leaves_by_path(variables)["params/Dense_0/kernel"].shape == (6, 5)
