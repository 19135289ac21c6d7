"""Clipping against NumPy's percentiles and deviations, and its gradients by cases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.combine import chain, where
from jaxopt_nn.core.gates import every
from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import State, explain
from jaxopt_nn.methods.clip import clip, clip_percentile, clip_std, clipping
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize

W = jnp.asarray(np.random.default_rng(0).standard_normal((3, 16, 6)), jnp.float32)
STACK = ModelInfo(roles={"w": Roles((0,), (1,), (2,))})


def box_of(method, w, info=ModelInfo()):
    box = method.init({"w": w}, info).carried["w"]
    return np.asarray(box.lo), np.asarray(box.hi)


def view(method, w, info=ModelInfo()):
    return np.asarray(method.view({"w": w}, method.init({"w": w}, info))["w"])


@pytest.mark.parametrize(("info", "axes"), [(ModelInfo(), (0, 1, 2)), (STACK, (1, 2))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_percentiles_and_deviations_are_numpy_s(info, axes, dtype):
    w = (W * jnp.array([[[1.0]], [[3.0]], [[10.0]]]) + 0.2).astype(dtype)
    wide = np.asarray(w, np.float64)
    np.testing.assert_allclose(
        box_of(clip_percentile(2, 95), w, info), np.percentile(wide, [2, 95], axes, keepdims=True), rtol=1e-5
    )
    mean, std = wide.mean(axes, keepdims=True), wide.std(axes, keepdims=True)
    np.testing.assert_allclose(box_of(clip_std(1.5), w, info), [mean - 1.5 * std, mean + 1.5 * std], rtol=1e-5)


@pytest.mark.parametrize("make", [clip_percentile, clip_std])
def test_a_channel_has_its_own_box_in_each_layer(make):
    w = W * jnp.arange(1.0, 7.0).reshape(1, 1, 6) * jnp.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    method = make(granularity="channel")
    lo, hi = box_of(method, w, STACK)
    assert lo.shape == hi.shape == (3, 1, 6)
    one = box_of(method, w[1], ModelInfo(roles={"w": Roles((), (0,), (1,))}))
    np.testing.assert_allclose((lo[1], hi[1]), one, rtol=1e-6)
    assert (hi[2] > 4 * hi[1]).all() and hi[1, 0, 5] > 2 * hi[1, 0, 0]


def test_the_box_stays_while_the_weights_are_clipped():
    """Percentiles of clipped weights lie further inside: a box computed again would shrink."""
    method = clip_percentile(10, 90)
    params = {"w": W}
    state = method.init(params)
    once, _ = method.project(params, state)
    again = method.update(once, state, step=1, grads=params)
    np.testing.assert_array_equal(again.carried["w"].hi, state.carried["w"].hi)
    np.testing.assert_array_equal(method.project(once, again)[0]["w"], once["w"])
    assert box_of(clip_std(1.0), jnp.clip(W, -1, 1))[1] < box_of(clip_std(1.0), W)[1]


def test_a_box_of_one_sign_is_widened_to_zero_so_that_pruned_weights_stay_zero():
    w = {"w": jnp.abs(W[0]) + 1}
    for method in (clip_percentile(5, 95), clip_std(0.5), clip_std(0.5, granularity="channel")):
        both = chain(prune(sparsity=0.1), method)
        seen = both.view(w, both.init(w))["w"]
        assert (np.asarray(seen) == 0).sum() == round(0.1 * w["w"].size)
        assert np.max(box_of(method, w["w"])[0]) == 0.0 < np.min(box_of(method, w["w"])[1]) < float(w["w"].max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_inside_on_the_ends_and_outside(dtype):
    w = jnp.array([[-2.0, -1.0, -0.5, 0.0], [0.5, 1.0, 1.5, jnp.inf]], dtype)
    slope = lambda method: np.asarray(
        jax.grad(lambda w: jnp.sum(2 * method.view({"w": w}, method.init({"w": w}))["w"]))(w), np.float32
    )
    np.testing.assert_array_equal(slope(clip(-1, 1)), [[0, 2, 2, 2], [2, 2, 0, 0]])
    np.testing.assert_array_equal(slope(clip(-1, 1, ste="pass")), np.full((2, 4), 2))
    np.testing.assert_array_equal(view(clip(-1, 1), w)[:, [0, 3]], [[-1, 0], [0.5, 1]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("bound", [0.1, 0.3, 1.0, 1e6, 3.3e38])
def test_the_ends_are_the_outermost_numbers_of_the_dtype_inside_the_box(dtype, bound):
    """Against a search through all positive numbers of the dtype; nearest rounding may put 0.1 and 0.3 outside."""
    largest = np.array(jnp.finfo(dtype).max, dtype).view(np.uint16)
    end = max(x for x in np.arange(largest + 1, dtype=np.uint16).view(dtype).astype(np.float64) if x <= bound)
    w = jnp.asarray([[-np.inf, -1.01 * end, -end, 0], [end / 2, end, bound, np.inf]], jnp.float32).astype(dtype)
    method = clip(-bound, bound)
    state = method.init({"w": w})
    once, _ = method.project({"w": w}, state)
    np.testing.assert_array_equal(
        np.asarray(once["w"], np.float64), [[-end, -end, -end, 0], [float(w[1, 0]), end, end, end]]
    )
    np.testing.assert_array_equal(method.project(once, state)[0]["w"], once["w"])
    (before,), (after,) = clipping({"w": w}, state), clipping(once, state)
    assert (after.lo, after.hi, after.clipped) == (-end, end, 0)
    outside = np.abs(np.asarray(w, np.float64)) > end
    assert before.clipped == outside.mean()
    slope = jax.grad(lambda w: jnp.sum(method.view({"w": w}, state)["w"]))(w)
    np.testing.assert_array_equal(np.asarray(slope, np.float32), ~outside)


def test_a_box_without_a_number_of_the_dtype_leaves_the_leaf_alone():
    method, w = clip(0.1001, 0.1002), {"a": W[0], "b": W[0].astype(jnp.bfloat16)}
    assert list(jax.jit(method.init)(w).carried) == ["a"]
    (skipped,) = explain(method, w).of("skipped")
    assert skipped.path == "b" and skipped.reason == "no bfloat16 number lies in the box of clip; widen it"


def train(method, target, steps=100):
    """Gradient descent of the view towards ``target``; returns the latent and the seen weight."""
    params = {"w": jnp.full((1, 2), 3.0)}

    def loss(variables, batch, key):
        return jnp.sum((variables["w"] - target) ** 2), ({}, {})

    ts = init_train_state(params, method, optax.sgd(0.1), jax.random.key(0))
    step = jax.jit(make_step(loss, method, optax.sgd(0.1)))
    for _ in range(steps):
        ts, _ = step(ts, None)
    return float(ts.params["w"][0, 0]), float(method.view(ts.params, ts.state)["w"][0, 0])


def test_projection_straight_through_and_neither():
    """From a weight outside the box towards 0.25: projection and straight-through come in, the plain clip is stuck."""
    assert train(clip(-1, 1), 0.25) == pytest.approx((0.25, 0.25))
    assert train(clip(-1, 1, ste="pass", project=False), 0.25) == pytest.approx((0.25, 0.25))
    assert train(clip(-1, 1, project=False), 0.25) == (3.0, 1.0)
    assert train(clip(-1, 1), 5.0) == (1.0, 1.0)
    latent, seen = train(clip(-1, 1, ste="pass", project=False), 5.0)
    assert latent > 50 and seen == 1.0


def test_the_table_of_any_transform_with_a_clip_in_it():
    params = {"a": {"kernel": W[0]}, "b": {"kernel": W[1], "bias": jnp.ones(3)}}
    method = chain(
        every(2, where("**/kernel", clip_percentile(11, 81))), where("a/kernel", clip(-0.5, 0.5)), quantize(4)
    )
    rows = clipping(params, method.init(params))
    assert [r.path for r in rows] == ["a/kernel", "b/kernel", "a/kernel"]
    for row, w in zip(rows, map(np.asarray, (W[0], W[1], W[0]))):
        lo, hi = (-0.5, 0.5) if row.hi == 0.5 else np.percentile(w, [11, 81])
        assert (row.lo, row.hi, row.min, row.max) == pytest.approx((lo, hi, w.min(), w.max()))
        assert row.clipped == pytest.approx(np.mean((w < lo) | (w > hi))) and row.on_edge == 0
    lines = str(rows).splitlines()
    assert len(lines) == 4 and lines[1].startswith("a/kernel") and len({len(line) for line in lines}) == 1
    assert rows.as_json()[1]["path"] == "b/kernel"


def test_the_table_after_a_projection_and_of_nothing():
    method = clip(-1.0, 1.0)
    state = method.init({"w": W})
    share = float(jnp.mean(jnp.abs(W) > 1))
    (row,) = clipping(method.project({"w": W}, state)[0], state)
    assert (row.clipped, row.on_edge) == pytest.approx((0, share))
    assert str(clipping({"w": W}, State())) == "(nothing is clipped)"


@pytest.mark.parametrize("method", [clip(-1, 1), clip_percentile(), clip_std()])
def test_weights_that_are_nan_name_the_leaf(method):
    bad = {"w": W.at[0, 0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="w: NaN"):
        method.pack(bad, method.init(bad))
    good = method.init({"w": W})
    with pytest.raises(ValueError, match="w: NaN"):
        method.pack(bad, good)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: clip(1.0, -1.0), "lo < hi"),
        (lambda: clip(-1.0, np.inf), "finite"),
        (lambda: clip(-1.0, 1.0, ste="none"), r"clip\(ste='none'\): allowed are 'clip' and 'pass'"),
        (lambda: clip_percentile(90, 10), "low < high"),
        (lambda: clip_percentile(-1, 10), "0 <= low"),
        (lambda: clip_percentile(granularity="row"), r"clip_percentile\(granularity='row'\)"),
        (lambda: clip_std(0.0), "above 0"),
        (lambda: clip_std(np.nan), "finite"),
        (lambda: clip_std(ste="soft"), r"clip_std\(ste='soft'\)"),
    ],
)
def test_values_that_are_not_allowed(make, match):
    with pytest.raises(ValueError, match=match):
        make()
