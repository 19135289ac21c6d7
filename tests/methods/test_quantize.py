"""Quantization against NumPy, and against what plain rounding of other ranges would give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.transform import explain
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.base import densify

W = jax.random.normal(jax.random.key(0), (16, 6)) * jnp.array([[1.0, 3.0, 0.01, 1.0, 2.0, 5.0]])


def view(method, w, info=ModelInfo()):
    return np.asarray(method.view({"w": w}, method.init({"w": w}, info))["w"])


@given(st.integers(2, 8), st.booleans(), st.sampled_from([-1, 4, 8]), st.integers(0, 2**31))
def test_symmetric_steps_are_max_over_qmax(bits, tensor, group, seed):
    w = np.random.default_rng(seed).standard_normal((16, 3)).astype(np.float32)
    qmax = 2 ** (bits - 1) - 1
    if tensor:
        method, amax = quantize(bits, granularity="tensor"), np.abs(w).max()
    else:
        method = quantize(bits, group=group)
        parts = w.reshape(1 if group == -1 else 16 // group, -1, 3)
        amax = np.broadcast_to(np.abs(parts).max(1, keepdims=True), parts.shape).reshape(w.shape)
    step = amax.astype(np.float64) / qmax
    out = view(method, jnp.asarray(w))
    codes = out / step
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
    assert (np.abs(out - w) <= step / 2 * (1 + 1e-5)).all()
    assert np.abs(np.rint(codes)).max() == qmax


@pytest.mark.parametrize("bits", range(1, 9))
def test_affine_holds_zero_and_both_ends(bits):
    w = jnp.array([[-1.0, 0.5], [3.0, 0.0], [0.0, 2.0]])
    out = view(quantize(bits, signed=False, symmetric=False, ste="clip"), w)
    assert (out[np.asarray(w) == 0] == 0).all()
    assert (
        np.abs(out - w) <= 0.51 * np.array([4.0, 2.0]) / (2**bits - 1) + 0.5 * np.array([4.0, 2.0]) / (2**bits - 1)
    ).all()
    assert all(len(np.unique(out[:, i])) <= 2**bits for i in range(2))


def test_one_bit_is_plus_minus_the_mean_magnitude():
    np.testing.assert_allclose(
        view(quantize(1), W), np.where(W > 0, 1, -1) * np.abs(W).mean(0, keepdims=True), rtol=1e-6
    )


def test_stack_axes_have_their_own_steps():
    w = jnp.stack([W, 100 * W])
    info = ModelInfo(roles={"w": Roles((0,), (1,), (2,))})
    np.testing.assert_array_equal(view(quantize(4), w, info)[0], view(quantize(4), W))
    assumed = view(quantize(4), w)
    assert not np.array_equal(assumed[0], view(quantize(4), W))


@pytest.mark.parametrize("bits", [2, 3, 6, 8])
def test_the_weight_that_sets_the_step_gets_its_gradient(bits):
    """The range is not differentiated, and is as wide as the weights: nothing is cut, whatever the last bit of ``w / s``."""
    w = jax.random.normal(jax.random.key(bits), (16, 512))
    method = quantize(bits)
    state = method.init({"w": w})
    slope = jax.grad(lambda x: jnp.sum(method.view({"w": x}, state)["w"] * w))(w)
    np.testing.assert_array_equal(slope, w)


@pytest.mark.parametrize("bits", [3, 8])
def test_a_rounded_zero_point_cuts_no_gradient(bits):
    """It moves the range by up to half a code, which the rounding of the weight itself takes back, but for ties."""
    w = jax.random.normal(jax.random.key(bits), (16, 512)) + 0.5
    method = quantize(bits, symmetric=False)
    state = method.init({"w": w})
    slope = jax.grad(lambda x: jnp.sum(method.view({"w": x}, state)["w"]))(w)
    np.testing.assert_array_equal(slope, np.ones_like(w))


def test_zero_and_constant_channels_are_exact():
    w = jnp.zeros((4, 3)).at[:, 1].set(-2.5)
    for bits in (2, 4, 8):
        np.testing.assert_array_equal(view(quantize(bits), w), w)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: quantize(0), "1 to 8"),
        (lambda: quantize(9), "1 to 8"),
        (lambda: quantize(4.0), "1 to 8"),
        (lambda: quantize(True), "1 to 8"),
        (lambda: quantize(4, group=0), "allowed are whole numbers from 1"),
        (lambda: quantize(4, group=8, granularity="tensor"), "allowed are whole numbers from 1"),
        (lambda: quantize(4, signed="no"), r"quantize\(signed='no'\): allowed are True and False"),
        (lambda: quantize(4, symmetric=1), r"quantize\(symmetric=1\): allowed are True and False"),
        (lambda: quantize(4, granularity=["tensor"]), "granularity=a list"),
        (lambda: quantize(4, granularity="row"), "'channel' and 'tensor'"),
        (lambda: quantize(4, ste="soft"), "'clip', 'pass' and 'none'"),
        (lambda: quantize(4, rounding="up"), "'nearest' and 'stochastic'"),
        (lambda: quantize(4, rounding="stochastic"), "needs a key"),
        (lambda: quantize(4, key=jax.random.key(0)), "no other rounding has one"),
    ],
)
def test_values_that_are_not_allowed(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_group_that_does_not_divide_names_the_leaf_and_the_way_out():
    with pytest.raises(ValueError, match="w: axis 0 has 16 entries, not a multiple of group=5; pass group=-1"):
        quantize(4, group=5).init({"w": W})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", [quantize(8), quantize(1), quantize(4, symmetric=False), quantize(4, group=4)])
def test_weights_that_are_not_finite_name_the_leaf(bad, method):
    w = W.at[3, 2].set(bad)
    with pytest.raises(ValueError, match="w: NaN or Inf"):
        method.pack({"w": w}, method.init({"w": w}))


@pytest.mark.exact
def test_a_saturated_range_packs_to_the_bit():
    """Range over the whole tensor, then weights that grew since: codes clip, and the law holds."""
    method = quantize(3, granularity="tensor")
    state = method.init({"w": W})
    for w in (W, 7 * W, W * 1e-6, W + 1):
        np.testing.assert_array_equal(
            densify(method.pack({"w": w}, state))["w"], jax.jit(method.view)({"w": w}, state)["w"]
        )


@pytest.mark.parametrize(
    ("bits", "signed", "lowest", "highest"),
    [(8, True, -128, 127), (8, False, 0, 255), (6, True, -32, 31), (5, False, 0, 31), (1, False, 0, 1)],
)
def test_the_ranges_of_the_field_are_used_to_their_ends(bits, signed, lowest, highest):
    w = jnp.linspace(-1.0, 2.0, 600).reshape(300, 2)
    method = quantize(bits, signed=signed, symmetric=False)
    codes = np.asarray(method.pack({"w": w}, method.init({"w": w}))["w"].elementwise())
    assert (codes.min(), codes.max()) == (lowest, highest)


def stochastic(bits, seed=0, **other):
    return quantize(bits, rounding="stochastic", key=jax.random.key(seed), **other)


FORMS = [{"bits": 2}, {"bits": 8}, {"bits": 1}, {"bits": 3, "symmetric": False}, {"bits": 4, "group": 4}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_expectation_over_keys_is_the_weight(form):
    """Hoeffding: a mean of n values within one step is off by more than ``step sqrt(20 / n)`` once in 1e17."""
    n, w = 400, np.asarray(W[:, :3])
    params, method = {"w": jnp.asarray(w)}, stochastic(**form)
    state = method.init(params)
    draw = jax.jit(lambda s, step: (method.view(params, s)["w"], method.update(params, s, step=step)))
    draws = []
    for i in range(n):
        seen, state = draw(state, i)
        draws.append(np.asarray(seen, np.float64))
    step = np.asarray(method.pack(params, state)["w"].scale)
    step = np.repeat(step, 16 // len(step), 0)
    # outside the codes' range the clip decides: one bit holds [-mean, mean], an integer zero point moves an end
    held = (w >= np.min(draws, (0, 1))) & (w <= np.max(draws, (0, 1)))
    assert held.mean() > (0.4 if form["bits"] == 1 else 0.9)
    assert (np.abs(draws - w) <= step * (1 + 1e-5))[:, held].all()
    bound = step * np.sqrt(20 / n)
    assert (np.abs(np.mean(draws, 0) - w) <= bound)[held].all()
    assert (np.abs(view(quantize(**form), params["w"]) - w) > bound)[held].any(), "plain rounding would pass"


def test_a_draw_belongs_to_key_path_and_step():
    params = {"a": W, "b": W}
    method = stochastic(2)
    state = method.init(params)
    first = method.view(params, state)
    assert not np.array_equal(first["a"], first["b"])
    assert np.array_equal(first["a"], method.view(params, stochastic(2).init(params))["a"])
    assert np.array_equal(
        first["a"], method.view({"a": W}, quantize(2, rounding="stochastic", key=0).init({"a": W}))["a"]
    )
    for other in (stochastic(2, seed=1).init(params), method.update(params, state, step=0)):
        assert not np.array_equal(first["a"], method.view(params, other)["a"])
    stepped = [method.update(params, state, step=t).carried["a"].key_data for t in (0, 1)]
    assert not np.array_equal(*stepped)


@pytest.mark.exact
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_random_codes_pack_to_the_bit_on_moved_and_saturated_weights(bits):
    method = stochastic(bits, granularity="tensor")
    state = method.init({"w": W})
    for w in (W, 7 * W, W + 1, W.astype(jnp.bfloat16)):
        seen = jax.jit(method.view)({"w": w}, state)["w"]
        np.testing.assert_array_equal(densify(method.pack({"w": w}, state))["w"], seen)


def slopes(method, w=W):
    state = method.init({"w": w})
    return np.asarray(jax.jit(jax.grad(lambda w: jnp.sum(method.view({"w": w}, state)["w"] * W)))(w))


def test_derivatives_of_rounding():
    """One bit rounds to {-mean, mean} without a cut up to twice the mean: weights further out are outside the range."""
    inside = np.abs(W) <= 2 * np.abs(W).mean(0, keepdims=True)
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(slopes(quantize(1)), np.where(inside, W, 0))
    np.testing.assert_array_equal(slopes(quantize(1, ste="pass")), W)
    np.testing.assert_array_equal(slopes(quantize(1, ste="none")), np.zeros_like(W))
    np.testing.assert_array_equal(slopes(stochastic(1)), np.where(inside, W, 0))
    np.testing.assert_array_equal(slopes(stochastic(4, ste="none")), np.zeros_like(W))


def test_hard_rounding_is_the_true_derivative():
    """A finite difference of the view between two jumps: nothing moves."""
    method = quantize(3, ste="none")
    state = method.init({"w": W})
    f = lambda w: jnp.sum(method.view({"w": w}, state)["w"] * W)
    eps = jnp.zeros_like(W).at[2, 3].set(1e-4)
    assert float(f(W + eps) - f(W - eps)) == 0.0 and slopes(method)[2, 3] == 0.0


SMALL = jnp.asarray(np.random.default_rng(7).standard_normal((6, 8)), jnp.float32)


@pytest.mark.parametrize(
    "method", [quantize(8), prune(sparsity=0.5), clip(-1.0, 1.0)], ids=["quantize", "prune", "clip"]
)
def test_a_leaf_that_no_site_contracts_is_left_alone(method):
    """A dot need not contract: ``einsum("bi,i->bi")`` scales each entry, and one scale a code would be larger than the leaf."""

    params = {"gain": SMALL[:2, :6], "row": SMALL[0, :6], "w": SMALL}
    apply = lambda p, x: (
        jnp.einsum("bti,ti->bti", x, p["gain"]).sum(1) * jnp.einsum("bi,i->bi", x[:, 0], p["row"]) @ p["w"]
    )
    x = jax.ShapeDtypeStruct((4, 2, 6), jnp.float32)
    info = inspect(apply, params, x)
    said = explain(method, params, info).of("skipped")
    assert [m.path for m in said] == ["gain", "row"]
    assert all("no site contracts it" in m.reason for m in said)
    assert list(method.init(params, info).carried) == ["w"]


def test_what_packing_saves_is_said_before_packing():
    """Bytes as predicted are bytes as packed; a leaf that would not get smaller is left alone."""
    forms = [
        dict(bits=8), dict(bits=4), dict(bits=3), dict(bits=1), dict(bits=4, group=2), dict(bits=5, signed=False),
        dict(bits=8, symmetric=False, signed=False), dict(bits=2, granularity="tensor"),
    ]  # fmt: skip
    for shape in [(6, 8), (4, 7), (2, 5)]:
        leaf = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
        for form in forms:
            method = quantize(**form)
            state = method.init({"w": leaf})
            if not state.carried:
                assert "no less than" in method.traits.takes("w", leaf, ModelInfo())
                continue
            packed = method.pack({"w": leaf}, state)["w"]
            assert sum(state.carried["w"].form.nbytes(shape)) == packed.nbytes < leaf.nbytes, (shape, form)
    two = quantize(8).traits.takes("w", jnp.ones((2, 5)), ModelInfo())
    assert two.notes == ("keeps 75% of its bytes: its scales take as much as its codes, or more",)
    assert quantize(8).traits.takes("w", jnp.ones((16, 5)), ModelInfo()).notes == ()
    assert isinstance(quantize(8).traits.takes("w", jnp.ones((2, 5), jnp.bfloat16), ModelInfo()), str)
