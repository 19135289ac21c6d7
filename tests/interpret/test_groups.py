"""Axis groups against numerical probing: what a unit's entries reach, and what no longer depends on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from experiments.models.lenet import LeNet5
from experiments.models.mlp import MLP
from experiments.models.resnet import ResNet
from experiments.models.vit import ViT
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.interpret.groups import axis_groups, couplings
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.interpret.units import classes
from tests.zoo import ZOO
from tests.zoo.base import draw

FREE = {  # models of the zoo with groups that may be cut, and how many of all
    "vit": (4, 12),
    "gpt": (2, 10),
    "nnx_mlp": (2, 3),
    "nnx_remat": (2, 3),
    "raw_einsum": (3, 5),
    "raw_conv": (2, 4),
    "ensemble": (1, 3),
    "tuple_list": (2, 3),
    "left_operand": (1, 2),
    "custom_jvp": (1, 2),
    "custom_vjp": (1, 2),
    "nested_jit": (1, 2),
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


def probe(apply, variables, inputs, groups, units=3):
    """Each free group: outputs don't depend on a unit whose consumers are zero, and do with any consumer left out.

    Zero is among the values that the unit's other entries take: it is what a mask makes of them.
    """
    outputs = jax.jit(lambda v: jax.tree.leaves(apply(v, *inputs)))
    differ = lambda a, b: any(not np.array_equal(x, y) for x, y in zip(outputs(a), outputs(b), strict=True))
    other = lambda x: 2 * x + 0.3
    for group in groups:
        if group.pinned is not None:
            continue
        consumers = [m for m in group.members if m.role == "consumer"]
        rest = [m for m in group.members if m.role != "consumer"]
        needed = {m: False for m in consumers}
        for unit in np.unique(np.linspace(0, group.size - 1, units).astype(int)):
            closed = edited(variables, consumers, unit, np.zeros_like)
            for fn in (other, np.zeros_like):
                assert not differ(closed, edited(closed, rest, unit, fn)), group.members
            for m in consumers:
                leaky = edited(variables, [c for c in consumers if c is not m], unit, np.zeros_like)
                needed[m] |= differ(leaky, edited(leaky, rest, unit, other))
        assert all(needed.values()), group.members


def table(group):
    return {(m.path.removeprefix("params/"), m.axis, m.role): m.units.tolist() for m in group.members}


def test_an_mlp():
    apply, variables, inputs = made(MLP((5, 4, 3)), 2, 6)
    first, second, head = groups = axis_groups(apply, variables, *inputs)
    r = list(range(5))
    expected = {("Dense_0/kernel", 1, "producer"): r, ("Dense_0/bias", 0, "vector"): r}
    assert table(first) == expected | {("Dense_1/kernel", 0, "consumer"): r} and first.pinned is None
    assert second.size == 4 and second.pinned is None
    assert head.size == 3 and head.pinned == "reaches an output of `apply`"
    probe(apply, variables, inputs, groups)


def test_a_flattened_convolution_repeats_its_units():
    apply, variables, inputs = made(LeNet5((3, 4), 5), 2, 28, 28, 1)
    groups = axis_groups(apply, variables, *inputs)
    assert [(g.size, g.pinned is None) for g in groups] == [(3, True), (4, True), (5, True), (10, False)]
    assert table(groups[1])["Dense_0/kernel", 0, "consumer"] == list(range(4)) * 16
    probe(apply, variables, inputs, groups)


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
    probe(apply, variables, inputs, groups)
    found = couplings(apply, variables, *inputs)
    assert found[1].divisors == {"batch_stats/ResidualBlock_0/BatchNorm_0/var"}


def test_heads_and_hidden_layers_of_a_transformer():
    apply, variables, inputs = made(ViT(4, 8, 1, 2, 12, 5), 2, 8, 8, 3)
    groups = axis_groups(apply, variables, *inputs)
    free = {g.members[0].path: g for g in groups if g.pinned is None}
    heads, hidden = free["params/block_0/attention/query/kernel"], free["params/block_0/up/kernel"]
    assert len(free) == 2 and heads.size == 2 and hidden.size == 12
    assert {(m.path.split("/")[-2], m.axis) for m in heads.members} == {
        *((n, 1) for n in ("query", "key", "value")), *((n, 0) for n in ("query", "key", "value", "out"))
    }  # fmt: skip
    stream = next(g for g in groups if g.size == 8)
    assert "reduce_sum" in stream.pinned and len([m for m in stream.members if m.role == "producer"]) == 3
    probe(apply, variables, inputs, groups)


@pytest.mark.parametrize("name", FREE)
def test_the_zoo(name):
    model = ZOO[name]()
    groups = axis_groups(model.apply, model.variables, *model.inputs)
    assert (sum(g.pinned is None for g in groups), len(groups)) == FREE[name]
    probe(model.apply, model.variables, model.inputs, groups, units=2)


A, B, C = (np.random.default_rng(i).standard_normal((6, 6)).astype(np.float32) for i in range(3))
X = jnp.asarray(np.random.default_rng(9).standard_normal((2, 6)), jnp.float32)


def scanned(v, x):
    return lax.scan(lambda c, _: (jnp.tanh(c @ v["b"]), None), x @ v["a"], None, length=2)[0].sum()


PINNED = {
    "reaches an output": lambda v, x: jax.nn.relu(x @ v["a"]),
    "`scan` can't be followed": scanned,
    "`cond` can't be followed": lambda v, x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x @ v["a"]) @ v["b"],
    "`reduce_max` works along it": lambda v, x: jax.nn.softmax(x @ v["a"]) @ v["b"],
    "`reduce_sum` works along it": lambda v, x: ((h := x @ v["a"]) - h.mean(-1, keepdims=True)) @ v["b"],
    "is multiplied with another activation": lambda v, x: (x @ v["a"]) @ (x @ v["b"]).T,
    "a is the weight of 2 sites": lambda v, x: (jnp.tanh(x @ v["a"]) @ v["b"]) + jnp.sin(x) @ v["a"] @ v["c"],
    "is multiplied with what is computed from b": lambda v, x: (x @ v["a"]) @ (v["b"] * 2),
    "`sort` can't be followed": lambda v, x: jnp.sort(x @ v["a"]) @ v["b"],
    "`acosh` can't be followed": lambda v, x: lax.acosh(1 + jnp.exp(x @ v["a"])) @ v["b"],
    "`add` combines it with a value of other origin": lambda v, x: (x @ v["a"] + x) @ v["b"],
    "`mul` combines it with a value of other origin": lambda v, x: (
        (x @ v["a"] * jnp.arange(6.0).reshape(1, 6)) @ v["b"]
    ),
    "`reshape` splits its units": lambda v, x: jnp.sin((x @ v["a"]).reshape(2, 2, 3)).reshape(2, 6) @ v["b"],
    "`slice` works along it": lambda v, x: (x @ v["a"])[:, :3] @ v["b"][:3],
    "`concatenate` works along it": lambda v, x: (
        jnp.concatenate([x @ v["a"], x], 1) @ jnp.concatenate([v["b"], v["c"]])
    ),
    "`cumsum` works along it": lambda v, x: jnp.cumsum(x @ v["a"], 1) @ v["b"],
    "`pad` works along it": lambda v, x: jnp.pad(x @ v["a"], ((0, 0), (1, 1)))[:, 1:7] @ v["b"],
}


@pytest.mark.parametrize("reason", PINNED)
def test_what_is_not_known_to_be_cut_is_pinned(reason):
    group = axis_groups(PINNED[reason], {"a": A, "b": B, "c": C}, X)[0]
    assert group.members[0].path == "a" and group.pinned is not None
    assert reason in group.pinned


COUPLED = {
    "gated, one weight each": lambda v, x: (jax.nn.silu(x @ v["a"]) * (x @ v["b"])) @ v["c"],
    "residual, then two readers": lambda v, x: (lambda h: h @ v["c"] + jnp.sin(h + jnp.tanh(h @ v["b"])) @ v["c2"])(x @ v["a"]),
    "a scale and a shift": lambda v, x: jnp.tanh((x @ v["a"]) * v["s"].reshape(1, 6) + v["t"].reshape(1, 6)) @ v["b"],
    "read from the left": lambda v, x: v["b"].T @ jnp.exp(v["a"].T @ x.T),
    "turned around": lambda v, x: (x @ v["a"])[:, ::-1] @ v["b"],
    "added to itself turned around": lambda v, x: ((h := x @ v["a"]) + h[:, ::-1]) @ v["b"],
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
    assert groups[0].pinned is None and groups[0].members[0].path == "a"
    probe(COUPLED[what], variables, (X,), groups)
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
    probe(apply, variables, (x,), groups)


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


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14))
def test_classes_are_the_connected_components(n, pairs):
    pairs = [(a % n, b % n) for a, b in pairs]
    label = list(range(n))
    for _ in range(n):  # spread the smallest label until nothing changes
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    found = classes(n, [(np.array([a]), np.array([b])) for a, b in pairs])
    assert found.tolist() == label
