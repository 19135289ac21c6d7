"""Modules that are built anew at the widths that a plan leaves, against the network that was cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from experiments.models.mlp import MLP
from experiments.models.resnet import ResNet
from jaxopt_nn.core.paths import map_with_path
from tests.passes.networks import network


def cut(net, x, widths):
    """The plan, the network that was cut, and its variables times the factors that the plan states."""
    pass_ = jn.cut_units(jn.scores.random(0), **widths)
    plan = pass_.plan(net, jn.ModelInfo(), x)
    small, _ = pass_.execute(net, plan)
    factors = {}
    for width in plan.widths().values():
        for path, factor in width.factors.items():
            factors[path] = factors.get(path, 1.0) * factor
    return plan, small, map_with_path(lambda path, leaf: leaf * factors.get(path, 1.0), small.variables)


def verdicts(plan):
    return {width.verdict for width in plan.widths().values()} - {"whole"}


def far(a, b):
    """How far outputs are apart, of the largest."""
    return float(np.abs(a - b).max() / np.abs(b).max())


class Normed(nn.Module):
    """A norm over hidden units."""

    width: int
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(self.norm(nn.Dense(self.width, name="up")(x))))


class Attention(nn.Module):
    """Self-attention as Flax has it, on a residual stream of a width of its own."""

    heads: int
    features: int

    @nn.compact
    def __call__(self, x):
        return x + nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.features, deterministic=True)(x)


HALF = {"share": 0.5}
LINEN = {
    "mlp": (MLP((12, 8, 3)), MLP((6, 4, 3)), HALF, (4, 5), "equal"),
    "resnet": (ResNet((4, 8), 1, 3), ResNet((2, 4), 1, 3), HALF, (2, 8, 8, 3), "equal"),
    "batch norm": (Normed(16, nn.BatchNorm(True)), Normed(4, nn.BatchNorm(True)), {"share": 0.75}, (4, 5), "equal"),
    "groups": (Normed(16, nn.GroupNorm(4)), Normed(8, nn.GroupNorm(2)), {"widths": {"**/* part 0": 2}}, (4, 5), "equal"),
    "within groups": (
        Normed(16, nn.GroupNorm(4)), Normed(8, nn.GroupNorm(4)), {"widths": {"**/* part 1": 2}}, (4, 5), "different",
    ),
    "rms": (Normed(16, nn.RMSNorm()), Normed(4, nn.RMSNorm()), {"share": 0.75}, (4, 5), "rescaled"),
    "rms without a scale": (
        Normed(16, nn.RMSNorm(use_scale=False)), Normed(4, nn.RMSNorm(use_scale=False)), {"share": 0.75}, (4, 5), "rescaled",
    ),
    "layer norm": (Normed(16, nn.LayerNorm()), Normed(4, nn.LayerNorm()), {"share": 0.75}, (4, 5), "different"),
    "layer norm in two passes": (
        Normed(16, nn.LayerNorm(use_fast_variance=False)), Normed(4, nn.LayerNorm(use_fast_variance=False)),
        {"share": 0.75}, (4, 5), "different",
    ),
    "heads": (Attention(4, 32), Attention(2, 16), {"widths": {"**/query/kernel axis 1": 2}}, (2, 5, 6), "equal"),
    "head width": (
        Attention(2, 32), Attention(2, 8),
        {"widths": {"**/query/kernel axis 2": 4, "params/MultiHeadDotProductAttention_0/value/kernel": 4}}, (2, 5, 6),
        "rescaled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEN)
def test_a_module_of_flax(name):
    whole, module, widths, shape, verdict = LINEN[name]
    net, x = network(whole, *shape)
    plan, small, variables = cut(net, x, widths)
    assert verdict in verdicts(plan) <= {verdict, "equal"}, str(plan)
    said = far(module.apply(variables, x), small(x))
    assert said > 0.02 if verdict == "different" else said < 1e-4, said
    if verdict == "rescaled":
        assert far(module.apply(small.variables, x), small(x)) > 0.02, "the factors matter"


def attention(before=lambda d: 1.0, after=lambda d: 1.0, both=lambda d: 1.0):
    """One head, with a bias on the queries; scores are scaled where a caller says."""

    def apply(v, x):
        q, k = x @ v["q"] + v["bias"][None], x @ v["k"]
        d = q.shape[-1]
        scores = jnp.einsum("td,sd->ts", q * before(d) * both(d), k * both(d)) * after(d)
        return jax.nn.softmax(jnp.where(jnp.tri(len(x), dtype=bool), scores, -1e9)) @ (x @ v["v"])

    return apply, {"q": (5, 64), "bias": (64,), "k": (5, 64), "v": (5, 5)}


def rms(v, h, path, epsilon=1e-6):
    return h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + epsilon) * v[path][None]


def stream(v, x):
    """Pre-norm blocks on a residual stream, the last norm without weights of its own but for the head's."""
    h = x @ v["in"]
    for i in (0, 1):
        h = h + jax.nn.silu(rms(v, h, f"scale{i}") @ v[f"up{i}"]) @ v[f"down{i}"]
    return (h / jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) / h.shape[-1])) @ v["head"]


def scanned(v, x):
    h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(rms(w, h, "scale") @ w["up"]) @ w["down"], None), x @ v["in"], v["layers"])
    return h @ v["head"]


def embedded(v, x):
    return v["in"][jnp.argmax(x, 1)] * v["in"].shape[1] ** 0.5


def unit(h):
    return h / jnp.linalg.norm(h, axis=-1, keepdims=True)


STREAM = {"in": (5, 32), "head": (32, 3)} | {
    name: shape for i in (0, 1) for name, shape in {f"scale{i}": (32,), f"up{i}": (32, 12), f"down{i}": (12, 32)}.items()
}
PLAIN = {
    "queries": (*attention(before=lambda d: d**-0.5), ("q",), {"q": 0.5, "bias": 0.5}),
    "scores": (*attention(after=lambda d: 1 / jnp.sqrt(d)), ("q",), {"q": 0.5, "bias": 0.5}),
    "queries and keys": (*attention(both=lambda d: d**-0.25), ("q",), {"q": 0.25, "bias": 0.25, "k": 0.25}),
    "by the width": (*attention(after=lambda d: 1 / d), ("q",), {"q": 1.0, "bias": 1.0}),
    "unscaled": (*attention(), ("q",), {}),
    "a number that is no power": (*attention(after=lambda d: 0.3), ("q",), {}),
    "residual stream": (stream, STREAM, ("in", "down0"), {"scale0": -0.5, "scale1": -0.5, "head": -0.5}),
    "scanned": (
        scanned, {"in": (5, 32), "head": (32, 3), "layers/scale": (2, 32), "layers/up": (2, 32, 8), "layers/down": (2, 8, 32)},
        ("in", "layers/down"), {"layers/scale": -0.5},
    ),
    "plus one": (
        lambda v, x: (rms({"s": 1 + v["s"]}, x @ v["in"], "s") @ v["head"]), {"in": (5, 32), "s": (32,), "head": (32, 3)},
        ("in",), {"head": -0.5},
    ),
    "embedding": (
        lambda v, x: jnp.tanh(embedded(v, x) + v["s"][None]) @ v["head"], {"in": (5, 32), "s": (32,), "head": (32, 3)},
        ("in",), {"in": -0.5},
    ),
    "embedding before a product": (
        lambda v, x: embedded(v, x) @ v["head"], {"in": (5, 32), "head": (32, 3)}, ("in",), {"head": -0.5},
    ),
    "an embedding that is the head": (
        lambda v, x: jnp.tanh(embedded(v, x) + 1) @ v["in"].T, {"in": (5, 32)}, ("in axis 1",), "`add` of a multiple is none",
    ),
    "by the fan-in": (
        lambda v, x: jax.nn.silu(x @ v["in"]) @ v["head"] / jnp.sqrt(len(v["head"])), {"in": (5, 32), "head": (32, 3)},
        ("in",), {"head": 0.5},
    ),
    "weights by the fan-in": (
        lambda v, x: jax.nn.silu(x @ v["in"]) @ (v["head"] * len(v["head"]) ** -0.5), {"in": (5, 32), "head": (32, 3)},
        ("in",), {"head": 0.5},
    ),
    "unit length times a root": (
        lambda v, x: unit(x @ v["in"]) * v["in"].shape[1] ** 0.5 @ v["head"], {"in": (5, 32), "head": (32, 3)},
        ("in",), {"head": -0.5},
    ),
    "unbiased variance": (
        lambda v, x: (lambda h: h / jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) / (h.shape[1] - 1)))(x @ v["in"]) @ v["head"],
        {"in": (5, 32), "head": (32, 3)}, ("in",), "it is one of the width less one",
    ),
    "a mean over as many places": (
        lambda v, x: jnp.tanh(jnp.repeat(x, 8, 0) @ v["in"]).mean(0, keepdims=True) @ v["head"],
        {"in": (5, 32), "head": (32, 3)}, ("in",), {},
    ),
    "mean of units": (lambda v, x: jnp.tanh(x @ v["in"]).mean(-1), {"in": (5, 32)}, ("in",), "a multiple reaches an output"),
    "softmax over units": (
        lambda v, x: jax.nn.softmax(x @ v["in"]) @ v["head"], {"in": (5, 32), "head": (32, 3)}, ("in",), "adds what units that",
    ),
    "a tied head": (
        lambda v, x: rms({"s": jnp.ones(v["in"].shape[1])}, x @ v["in"], "s") @ v["in"].T, {"in": (5, 32)}, ("in axis 1",),
        "a multiple reaches an output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_function_that_reads_its_widths_off_its_weights(name):
    """Such a function on the cut weights is the module built anew; each factor that is stated is needed."""
    apply, shapes, layers, powers = PLAIN[name]
    rng = np.random.default_rng(0)
    variables = {}
    for path, shape in shapes.items():
        *outer, last = path.split("/")
        place = variables
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = jnp.asarray(rng.standard_normal(shape) * (3 if len(shape) < 2 else 1), jnp.float32)
    x = jnp.asarray(rng.standard_normal((4, 5)), jnp.float32)
    net = jn.Network(apply, variables)
    stay = 0.25
    plan, small, rescaled = cut(net, x, {"widths": {layers[0]: stay}})
    width = plan.widths()[layers[0]]
    if isinstance(powers, str):
        assert powers in width.reason and far(apply(small.variables, x), small(x)) > 0.02
        return
    assert width.reason is None and width.factors == pytest.approx({path: stay**power for path, power in powers.items()})
    assert far(apply(rescaled, x), small(x)) < 1e-5
    for path in powers:
        others = {**width.factors, path: 1.0}
        wrong = map_with_path(lambda p, leaf, others=others: leaf * others.get(p, 1.0), small.variables)
        assert far(apply(wrong, x), small(x)) > 1e-3, path


def test_a_two_is_told_to_be_no_power_nor_one():
    """The scale of an adapter of rank 4, that is 2 for its own reasons: not equal, and no factor is stated."""
    apply = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"] * 2
    group, _ = jn.axis_groups(apply, {"a": jnp.ones((5, 4)), "b": jnp.ones((4, 3))}, jnp.ones((2, 5)))
    assert "it may be none" in group.rebuild.reason and not group.rebuild.powers


def test_it_is_written_down_and_printed():
    apply, shapes, _, _ = PLAIN["queries"]
    rng = np.random.default_rng(0)
    net = jn.Network(apply, {path: jnp.asarray(rng.standard_normal(s), jnp.float32) for path, s in shapes.items()})
    plan = jn.cut_units(share=0.75).plan(net, jn.ModelInfo(), jnp.ones((4, 5)))
    again = jn.Plan.from_json(plan.to_json())
    assert again.widths() == plan.widths() and again.widths()["q"].factors == pytest.approx({"q": 0.5, "bias": 0.5})
    assert str(plan).splitlines()[1].split()[:4] == ["q", "64", "16", "rescaled"]
    assert str(plan.widths()["q"]) == "16 of 64, rescaled: q times 0.5, bias times 0.5"
    assert plan.replace({"q": None}).widths()["q"] == (whole := type(plan.widths()["q"])(64, 64, {}, None)), whole


def _table(v):
    return jnp.cos(0.3 * jnp.arange(v["in"].shape[1]))[None]


def _over_constants(v, x):
    table = _table(v)
    return jax.lax.scan(lambda h, w: (jnp.tanh((h * table) @ w), None), x @ v["in"], v["w"])[0]


def _over_slices(v, x):
    tables = jnp.arange(1.0, 4.0)[:, None, None] * _table(v)[None]
    return jax.lax.scan(lambda h, own: (jnp.tanh((h * own[1]) @ own[0]), None), x @ v["in"], (v["w"], tables))[0]


def _over_a_carry(v, x):
    step = lambda own, w: ((jnp.tanh((own[0] * own[1]) @ w), 2 * own[1]), None)
    return jax.lax.scan(step, (x @ v["in"], _table(v)), v["w"])[0][0]


def _over_results(v, x):
    step = lambda own, w: ((jnp.tanh(own[0] @ w), own[1]), jnp.sin(own[1]))
    (h, _), tables = jax.lax.scan(step, (x @ v["in"], _table(v)), v["w"])
    return h * tables[1]


def _while(v, x):
    table = _table(v)
    return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh((h * table) @ v["w"][0]), x @ v["in"])


def _sharded(v, x):
    table, mesh = _table(v), jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    run = lambda h, w, table: jnp.tanh((h * jnp.exp(table)) @ w)
    own = jax.sharding.PartitionSpec
    run = jax.shard_map(run, mesh=mesh, in_specs=(own("d"), own(), own()), out_specs=own("d"))
    return run(x @ v["in"], v["w"][0], table)


@pytest.mark.parametrize("run", [_over_constants, _over_slices, _over_a_carry, _over_results, _while, _sharded])
def test_a_table_of_constants_within_a_body(run):
    """The module that is built anew has a table of its own, whichever way the table gets into a loop."""
    rng = np.random.default_rng(0)
    shapes = {"in": (5, 12), "w": (3, 12, 12), "head": (12, 3)}
    v = {path: jnp.asarray(rng.standard_normal(s), jnp.float32) for path, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((4, 5)), jnp.float32)
    apply = lambda v, x: run(v, x).reshape(-1, v["head"].shape[0]) @ v["head"]
    plan, small, _ = cut(jn.Network(apply, v), x, HALF)
    assert "a table of constants" in plan.widths()["in"].reason
    assert far(apply(small.variables, x), small(x)) > 0.02


def test_a_number_that_is_complex_stays_unknown():
    apply = lambda v, x: jnp.nan_to_num(jax.nn.relu(x @ v["in"]) @ v["head"] * jnp.power(jnp.float32(-8), jnp.float32(0.5)))
    variables = {"in": jnp.ones((5, 8)), "head": jnp.ones((8, 3))}
    assert [group.size for group in jn.axis_groups(apply, variables, jnp.ones((4, 5))) if group.pinned is None] == [8]
