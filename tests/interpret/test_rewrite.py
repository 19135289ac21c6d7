"""Rules, caching and compressed operands, on functions small enough to know the answer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.rule import Rule, identity_rule
from jaxopt_nn.core.transform import State
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.criteria.magnitude import magnitude
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.base import is_compressed

X = jax.random.normal(jax.random.key(0), (4, 8))
IDS = jnp.array([7, 0, -1, 3])
W = {"a": jax.random.normal(jax.random.key(1), (8, 8)), "b": jax.random.normal(jax.random.key(2), (8, 8))}
DOUBLE = Rule(lambda site, state, lhs, rhs: 2 * site.run(lhs, rhs), name="double")


def mlp(v, x):
    return jnp.tanh(x @ v["a"]) @ v["b"]


def packed(v, bits=8):
    method = quantize(bits)
    return method.pack(v, method.init(v))


def viewed(v, bits=8):
    method = quantize(bits)
    return method.view(v, method.init(v))


def test_the_first_matching_rule_wins():
    out = rewrite(mlp, [("b", DOUBLE), ("**", identity_rule())])(W, X)
    np.testing.assert_allclose(out, 2 * mlp(W, X), rtol=1e-6)
    out = rewrite(mlp, {"a": DOUBLE})(W, X)
    np.testing.assert_allclose(out, jnp.tanh(2 * (X @ W["a"])) @ W["b"], rtol=1e-5)


def test_a_pattern_without_a_site_names_the_nearest():
    with pytest.raises(ValueError, match="matches no site"):
        rewrite(mlp, [("**/c", DOUBLE)])(W, X)


def test_rules_must_be_rules():
    with pytest.raises(TypeError, match="what stands for 'a' is 3; pass a Rule"):
        rewrite(mlp, [("a", 3)])


def test_a_rule_that_returns_another_shape_is_named():
    with pytest.raises(ValueError, match="a: rule bad returned"):
        rewrite(mlp, [("a", Rule(lambda site, state, lhs, rhs: lhs[:2], name="bad"))])(W, X)


def test_a_rule_that_declines_is_reported():
    declines = Rule(lambda site, state, lhs, rhs: NotImplemented, name="shy")
    new = rewrite(mlp, declines)
    np.testing.assert_array_equal(new(W, X), jax.jit(mlp)(W, X))
    assert {m.path for m in new.explain(W, X).of("float")} == {"a", "b"}


def test_activation_sites_are_reported_when_a_rule_takes_weights_only():
    def apply(v, x):
        h = x @ v["a"]
        return h @ h.T

    report = rewrite(apply, arithmetic("w8a8")).explain(packed(W), X)
    assert [run.site for run in report.activations] == ["@#0"] and not report.of("float")
    assert report.summaries() == [
        "1 dot of activations: float32 x float32; no operand is a weight, and rule w8a8 takes weights only"
    ]


def test_rule_states_come_in_by_site_and_by_layer():
    shift = Rule(
        lambda site, state, lhs, rhs: site.run(lhs, rhs) + state.carried,
        init=lambda site, stats: State((), jnp.zeros(())),
        name="shift",
    )
    stack = jnp.stack([W["a"], W["b"]])
    apply = lambda v, x: lax.scan(lambda c, m: (jnp.tanh(c @ m), None), x, v)[0]
    new = rewrite(apply, shift)
    assert new.init(stack, X)[""].carried.shape == (2,)
    out = new(stack, X, states={"": State((), jnp.array([1.0, -2.0]))})
    expected = jnp.tanh(jnp.tanh(X @ W["a"] + 1.0) @ W["b"] - 2.0)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_called_eagerly_twice_it_traces_once():
    counted = chex.assert_max_traces(mlp, n=1)
    chex.clear_trace_counter()
    new = rewrite(lambda v, x: counted(v, x), DOUBLE)
    a = new(W, X)
    b = new(jax.tree.map(lambda x: x + 1, W), X)
    assert not np.allclose(a, b)


def test_it_works_under_a_warm_cache_and_transformations():
    inner = jax.jit(lambda a, b: a @ b)
    apply = lambda v, x: inner(jnp.tanh(inner(x, v["a"])), v["b"])
    apply(W, X)
    new = rewrite(apply, identity_rule())
    np.testing.assert_array_equal(jax.jit(new)(W, X), jax.jit(apply)(W, X))
    chex.assert_trees_all_equal(
        jax.jit(jax.grad(lambda v: new(v, X).sum()))(W), jax.jit(jax.grad(lambda v: apply(v, X).sum()))(W)
    )
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), W)
    mapped = jax.jit(jax.vmap(new, in_axes=(0, None)))(stack, X)
    np.testing.assert_allclose(mapped, jax.vmap(apply, in_axes=(0, None))(stack, X), rtol=1e-5)


def test_a_function_that_closes_over_a_tracer_does_not_leak():
    def outer(s):
        return rewrite(lambda v, x: mlp(v, x) * s, DOUBLE)(W, X).sum()

    with jax.checking_leaks():
        g = jax.grad(outer)(1.0)
    np.testing.assert_allclose(g, rewrite(mlp, DOUBLE)(W, X).sum(), rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_weight_only_equals_the_view(bits):
    out = rewrite(mlp)(packed(W, bits), X)
    np.testing.assert_allclose(out, mlp(viewed(W, bits), X), rtol=2e-5, atol=2e-5)
    assert not rewrite(mlp).explain(prepare(packed(W, bits)), X)


def test_integer_arithmetic_by_hand():
    """W8A8 on one dot: integer sums of rounded rows times rounded columns."""
    w = np.asarray(W["a"])
    x = np.asarray(X)
    s_w = np.abs(w).max(0, keepdims=True) / np.float32(127)
    s_x = np.abs(x).max(1, keepdims=True) / np.float32(127)
    expected = (np.rint(x / s_x).astype(np.int64) @ np.rint(w / s_w).astype(np.int64)) * s_x * s_w
    out = rewrite(lambda v, x: x @ v, arithmetic("w8a8"))(packed({"": W["a"]})[""], X)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(out, X @ W["a"], rtol=1e-4)
    text = str(jax.make_jaxpr(rewrite(lambda v, x: x @ v, arithmetic("w8a8")))(packed({"": W["a"]})[""], X))
    assert "preferred_element_type=int32" in text


def test_a_leaf_that_reaches_an_output_untouched_comes_back_as_itself():
    stored = packed(W)
    _, leaf = rewrite(lambda v, x: (mlp(v, x), v["a"]))(stored, X)
    assert jax.tree.structure(leaf) == jax.tree.structure(stored["a"])


def test_an_elementwise_use_is_densified_and_named():
    new = rewrite(lambda v, x: x @ (v["a"] * 2) + x @ v["b"])
    report = new.explain(prepare(packed(W)), X)
    assert len(report) == 1 and "`mul` reads it as a float array" in report.messages[0].reason
    np.testing.assert_allclose(new(packed(W), X), X @ (viewed(W)["a"] * 2) + X @ viewed(W)["b"], rtol=2e-5, atol=1e-5)


def test_a_custom_derivative_with_a_site_inside_is_reported():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    new = rewrite(lambda v, x: product(x, v["a"]), DOUBLE)
    assert [m.kind for m in new.explain(W, X)] == ["derivative"]
    plain = rewrite(lambda v, x: product(x, v["a"]))
    assert "custom_vjp_call" in str(jax.make_jaxpr(plain)(W, X)) and not plain.explain(W, X)


def test_what_has_its_own_batching_or_lowering_is_entered():
    product = lambda x, w: x @ w
    batched = jax.custom_batching.custom_vmap(product)
    batched.def_vmap(lambda size, axes, x, w: (jnp.matmul(x, w), True))
    for call in (batched, jax.lax.composite(product, "my.product")):
        apply = lambda v, x, call=call: call(x, v["a"])
        np.testing.assert_allclose(rewrite(apply, DOUBLE)(W, X), 2 * X @ W["a"], rtol=1e-5)
        np.testing.assert_allclose(rewrite(apply)(packed(W), X), X @ viewed(W)["a"], rtol=2e-5, atol=1e-5)
        assert str(jax.make_jaxpr(rewrite(apply))(W, X)) == str(jax.make_jaxpr(apply)(W, X))


def test_errors_of_the_model_itself_come_through():
    with pytest.raises(ValueError, match=r"apply fails on inputs .*: TypeError: dot_general") as caught:
        rewrite(mlp)(W, X[:, :3])
    assert isinstance(caught.value.__cause__, TypeError)


MESH = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
PLACES = {
    "inner jit with shardings and donation": lambda v, x: jax.jit(
        lambda w, x: jnp.tanh(x @ w),
        in_shardings=(jax.NamedSharding(MESH, jax.P(None, "x")), jax.NamedSharding(MESH, jax.P())),
        donate_argnums=1,
    )(v["a"], x),
    "a leaf handed through an inner jit": lambda v, x: x @ jax.jit(lambda w: w)(v["a"]),
    "layout inside an inner jit": lambda v, x: x @ jax.jit(lambda w: w.T)(v["a"]),
    "carried by a loop, untouched": lambda v, x: lax.fori_loop(
        0, 3, lambda i, c: (c[0], jnp.tanh(c[1] @ c[0])), (v["a"], x)
    )[1],
    "carried by a while, untouched": lambda v, x: lax.while_loop(
        lambda c: c[2] < 3, lambda c: (c[0], jnp.tanh(c[1] @ c[0]), c[2] + 1), (v["a"], x, 0)
    )[1],
    "a branch": lambda v, x: lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x @ w.T, v["a"]),
    "remat": lambda v, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(v["a"], x),
    "a sharded shard_map": lambda v, x: jax.shard_map(
        lambda x, w: x @ w, mesh=MESH, in_specs=(jax.P(), jax.P(None, "x")), out_specs=jax.P(None, "x")
    )(x, v["a"]),
    "a sharding constraint": lambda v, x: (
        x @ lax.with_sharding_constraint(v["a"], jax.NamedSharding(MESH, jax.P(None, "x")))
    ),
    "a stopped gradient": lambda v, x: x @ lax.stop_gradient(v["a"]),
    "a barrier": lambda v, x: x @ lax.optimization_barrier(v["a"]),
    "split and squeezed": lambda v, x: x @ jnp.split(v["a"].reshape(8, 2, 4), 2, axis=1)[1].squeeze(1),
    "turned around": lambda v, x: x @ lax.rev(v["a"], (0, 1)),
    "lookups of slices": lambda v, x: (
        jax.vmap(lambda i: lax.dynamic_index_in_dim(v["a"], i, 0, keepdims=False))(IDS) + x * 0
    ),
    "lookups of columns": lambda v, x: jax.vmap(lambda i: v["a"][:, i])(IDS) + x * 0,
    "lookups in two maps": lambda v, x: jax.vmap(jax.vmap(lambda i: v["a"][i]))(IDS[:, None])[:, 0] + x * 0,
    "lookups of a unit": lambda v, x: jax.vmap(lambda i: lax.dynamic_slice(v["a"], (i, 0), (1, 8)))(IDS)[:, 0] + x * 0,
    "lookups out of range": lambda v, x: v["a"].at[jnp.array([-20, 3, 30])].get(mode="fill") + x[:3] * 0,
}


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("place", PLACES)
def test_packed_weights_go_anywhere_and_stay_packed(place, bits):
    apply = PLACES[place]
    new = rewrite(apply)
    ours = jax.jit(new)(packed(W, bits), X)
    np.testing.assert_allclose(ours, jax.jit(apply)(viewed(W, bits), X), rtol=2e-5, atol=2e-5)
    assert not new.explain(prepare(packed(W, bits)), X)
    if "lookups" not in place:
        w8a8 = rewrite(apply, arithmetic("w8a8"))
        assert not w8a8.explain(prepare(packed(W, bits)), X) and np.isfinite(w8a8(packed(W, bits), X)).all()


def test_gradients_of_activations_flow_through_integer_weights():
    slope = jax.grad(lambda x: rewrite(mlp)(packed(W), x).sum())(X)
    np.testing.assert_allclose(slope, jax.grad(lambda x: mlp(viewed(W), x).sum())(X), rtol=1e-4, atol=1e-5)


def test_a_product_of_two_packed_weights_is_densified_and_named():
    apply = lambda v, x: x @ (v["a"] @ v["b"])
    for rule in ((), arithmetic("w8a8")):
        new = rewrite(apply, rule)
        expected = X @ (viewed(W)["a"] @ viewed(W)["b"])
        np.testing.assert_allclose(new(packed(W), X), expected, rtol=1e-4, atol=1e-4)
        assert {m.path for m in new.explain(packed(W), X).of("densified")} == {"a", "b"}


def _layers(x, ws):
    return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0]


@pytest.mark.parametrize(
    "method", [quantize(4), chain(prune(magnitude, sparsity=0.5), quantize(4))], ids=["codes", "masked"]
)
@pytest.mark.parametrize(
    ("apply", "shape"),
    [
        (lambda w, x: lax.scan(lambda c, ws: (_layers(c, ws), None), x, w.swapaxes(0, 1))[0], (3, 2, 8, 8)),
        (lambda w, x: lax.scan(lambda c, ws: (_layers(c, ws), None), x, w.swapaxes(0, 1))[0], (2, 2, 8, 8)),
        (lambda w, x: jax.vmap(lambda ws: _layers(x, ws))(w), (3, 3, 8, 8)),  # an ensemble of deep networks
        (lambda w, x: _layers(x, jnp.moveaxis(w, 1, 0)), (8, 3, 8)),
        (lambda w, x: _layers(x, jnp.moveaxis(w, 2, 0)), (8, 8, 8)),
        (lambda w, x: lax.scan(lambda c, t: (c + jnp.outer(*t[::-1]), None), x @ w, (w, x.T))[0], (8, 5)),  # its rows
    ],
    ids=["two stacks", "equal stacks", "vmap", "axis 1", "axis 2", "rows"],
)
def test_a_scan_slices_packed_weights_whose_axes_were_moved(method, apply, shape):
    w = jax.random.normal(jax.random.key(4), shape) / 3
    state = method.init(w, inspect(apply, w, X))
    stored = method.pack(w, state)
    assert is_compressed(stored)
    expected = apply(method.view(w, state), X)
    for run in (rewrite(apply), jax.jit(rewrite(apply))):  # prepared, and as it is stored
        np.testing.assert_allclose(run(stored, X), expected, rtol=1e-4, atol=1e-4)
