"""Binary and ternary weights against explicit loops over the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.transform import State

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((24, 5)) * [[0.02, 0.3, 1.0, 1.5, 4.0]]).astype(np.float32)
W[3, 2], W[4, 2] = 0.0, -0.0
SLOPES = RNG.standard_normal(W.shape).astype(np.float32)
SIGNS = np.where(W >= 0, 1.0, -1.0).astype(np.float32)


def started(method, w=W, info=ModelInfo()):
    params = {"w": jnp.asarray(w)}
    return params, method.init(params, info)


def view(method, w=W, info=ModelInfo()):
    params, state = started(method, w, info)
    return np.asarray(method.view(params, state)["w"])


def gradients(method, w=W):
    """At the latent weights and the learnt state, of a loss whose gradient at the view is ``SLOPES``."""
    params, state = started(method, w)
    loss = lambda p, learnt: jnp.sum(method.view(p, State(learnt, state.carried))["w"] * SLOPES)
    latent, learnt = jax.grad(loss, (0, 1))(params, state.learnt)
    return np.asarray(latent["w"]), learnt["w"]


# -- binary ----------------------------------------------------------------------------------------------------------------


def test_the_scale_is_the_best_of_all():
    """Rastegari et al. 2016, eqs. 4 to 6: no other pair of a scale and signs is nearer."""
    seen = view(jn.binarize())
    np.testing.assert_allclose(seen, SIGNS * np.abs(W).mean(0), rtol=1e-6)
    error = np.square(seen - W).sum(0)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (np.square(factor * seen - W).sum(0) > error).all()
    for i in (0, 1, 7):
        other = seen.copy()
        other[i] *= -1
        assert (np.square(other - W).sum(0) >= error).all()


@pytest.mark.parametrize(
    "scale, expected", [("layer", np.abs(W).mean()), (None, 1.0), (0.25, 0.25), ("channel", np.abs(W).mean(0))]
)
def test_scales(scale, expected):
    np.testing.assert_allclose(view(jn.binarize(scale)), SIGNS * expected, rtol=1e-6)


def test_layers_of_a_stack_have_their_own():
    info = ModelInfo(roles={"w": Roles((0,), (1,), (2,))})
    stack = np.stack([W, 3 * W])
    for scale in ("channel", "layer"):
        np.testing.assert_allclose(view(jn.binarize(scale), stack, info)[1], view(jn.binarize(scale), 3 * W), rtol=1e-6)


def test_straight_through_where_the_latent_weight_is_inside():
    for scale in ("channel", None):
        latent, _ = gradients(jn.binarize(scale))
        np.testing.assert_array_equal(latent, np.where(np.abs(W) <= 1, SLOPES, 0))
    assert gradients(jn.binarize(None), np.clip(W, -1, 1))[0].all(), "at the ends too, or none could come back"


@pytest.mark.parametrize("scale", ["channel", "layer"])
def test_the_gradient_of_equation_12(scale):
    alpha = np.abs(W).mean(0 if scale == "channel" else None)
    n = 24 if scale == "channel" else W.size
    expected = np.zeros_like(W)
    for i, j in np.ndindex(W.shape):
        own = alpha[j] if scale == "channel" else alpha
        expected[i, j] = SLOPES[i, j] * (1 / n + own * (abs(W[i, j]) <= 1))
    np.testing.assert_allclose(gradients(jn.binarize(scale, "scaled"))[0], expected, rtol=1e-5)


def test_projection_clips_the_latent_weights():
    method = jn.binarize()
    params, state = started(method)
    made, learnt = method.project(params, state)
    np.testing.assert_array_equal(made["w"], np.clip(W, -1, 1))
    assert learnt == state.learnt


def test_stochastic_signs_have_the_clipped_weight_as_their_mean():
    """Courbariaux et al. 2015, eqs. 2 and 3."""
    method = jn.binarize(None, rounding="stochastic", key=0)
    params, state = started(method)
    total, many = 0.0, 2000
    update, seen = jax.jit(method.update), jax.jit(method.view)
    for step in range(many):
        state = update(params, state, step=step)
        total = total + np.asarray(seen(params, state)["w"])
    clipped = np.clip(W, -1, 1)
    deviation = np.sqrt((1 - clipped**2) / many)
    assert (np.abs(total / many - clipped) <= 4.5 * deviation + 1e-6).all()
    again = method.pack(params, state)["w"]
    np.testing.assert_array_equal(again.densify(), seen(params, state)["w"])


def test_what_is_stored_is_a_bit_a_weight_and_the_scales():
    params = {"w": jnp.asarray(W), "scalars": jnp.ones((1, 2)), "bias": jnp.ones(4)}
    method = jn.binarize()
    stored = method.pack(params, method.init(params))
    assert isinstance(stored["w"], jn.Binary) and stored["w"].nbytes == 3 * 5 + 4 * 5
    said = {m.path: m.reason for m in jn.explain(method, params).of("skipped")}
    assert "no less than the 8 that it has" in said["scalars"] and "bias" in said
    half = method.pack({"w": params["w"].astype(jnp.bfloat16)}, method.init({"w": params["w"].astype(jnp.bfloat16)}))["w"]
    assert half.dtype == jnp.bfloat16 and half.nbytes == 35


@pytest.mark.parametrize("method", [jn.binarize(), jn.binarize("layer"), jn.ternarize(), jn.ternarize("ttq")])
def test_edges(method):
    for w in (np.zeros((16, 4)), np.full((16, 4), -0.5), np.full((16, 4), 1e-30), np.ones((1, 64))):
        params, state = started(method, w.astype(np.float32))
        seen = np.asarray(jax.jit(method.view)(params, state)["w"])
        np.testing.assert_array_equal(jn.densify(method.pack(params, state))["w"], seen)
        np.testing.assert_allclose(seen, w, rtol=1e-6)
    bad, state = {"w": jnp.asarray(W).at[0, 0].set(jnp.nan)}, started(method)[1]
    with pytest.raises(ValueError, match="w: NaN or Inf among the weights"):
        method.pack(bad, state)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: jn.ternarize(["twn"]), r"ternarize\(kind=a list\): allowed are 'twn' and 'ttq'"),
        (lambda: jn.ternarize(scale=["layer"]), r"ternarize\(scale=a list\): allowed are 'channel' and 'layer'"),
        (lambda: jn.ternarize(threshold=np.ones(3)), r"ternarize\('twn', threshold=an array float64\[3\]\): over the mean"),
        (lambda: jn.binarize(["layer"]), r"binarize\(scale=a list\): allowed are 'channel', 'layer', a number above 0"),
        (lambda: jn.binarize(gradient=["clip"]), r"binarize\(gradient=a list\): allowed are 'clip' and 'scaled'"),
        (lambda: jn.binarize(rounding=np.ones(3)), r"binarize\(rounding=an array float64\[3\]\): allowed are 'nearest' and"),
    ],
)
def test_wrong_arguments_are_errors(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_nothing_pruned_comes_back_as_a_sign():
    with pytest.raises(ValueError, match="does not keep zeros"):
        jn.chain(jn.prune(sparsity=0.5), jn.binarize()).init({"w": jnp.asarray(W)})


# -- ternary ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_twn_by_loops(scale):
    expected = np.zeros_like(W)
    columns = [slice(j, j + 1) for j in range(5)] if scale == "channel" else [slice(0, 5)]
    for part in columns:
        limit = 0.7 * np.abs(W[:, part]).mean()
        kept = [abs(x) for x in W[:, part].ravel() if abs(x) > limit]
        alpha = sum(kept) / len(kept)
        expected[:, part] = np.where(np.abs(W[:, part]) > limit, SIGNS[:, part] * alpha, 0)
    method = jn.ternarize(scale=scale)
    np.testing.assert_allclose(view(method), expected, rtol=1e-5)
    np.testing.assert_array_equal(gradients(method)[0], SLOPES)
    params, state = started(method)
    stored = method.pack(params, state)["w"]
    assert isinstance(stored, jn.QTensor) and stored.bits == 2 and stored.nbytes == 6 * 5 + 4 * (5 if scale == "channel" else 1)


def test_twns_threshold_is_near_the_best_for_normal_weights():
    """Li and Liu 2016: the best is 0.6 standard deviations of a normal density, about 0.75 of its mean magnitude."""
    w = RNG.standard_normal((4000, 1)).astype(np.float32)
    errors = {t: np.square(view(jn.ternarize(threshold=t), w) - w).sum() for t in (0.0, 0.4, 0.7, 1.2, 2.0)}
    assert min(errors, key=errors.get) == 0.7


def test_ttqs_gradients_by_loops():
    """Zhu et al. 2017, eqs. 7 and 8."""
    limit = 0.05 * np.abs(W).max()
    up, down = W > limit, W < -limit
    method = jn.ternarize("ttq")
    params, state = started(method)
    np.testing.assert_allclose(np.ravel(state.learnt["w"]), [W[up].mean(), -W[down].mean()], rtol=1e-5)
    state = State({"w": jnp.full_like(state.learnt["w"], 0.0) + jnp.array([0.75, 1.25]).reshape(1, 1, 2)}, state.carried)
    seen = method.view(params, state)["w"]
    np.testing.assert_array_equal(seen, np.where(up, 0.75, np.where(down, -1.25, 0)).astype(np.float32))
    loss = lambda p, learnt: jnp.sum(method.view(p, State(learnt, state.carried))["w"] * SLOPES)
    latent, learnt = jax.grad(loss, (0, 1))(params, state.learnt)
    expected, sums = np.zeros_like(W), [0.0, 0.0]
    for i, j in np.ndindex(W.shape):
        expected[i, j] = SLOPES[i, j] * (0.75 if up[i, j] else 1.25 if down[i, j] else 1.0)
        sums[0] += SLOPES[i, j] if up[i, j] else 0.0
        sums[1] -= SLOPES[i, j] if down[i, j] else 0.0
    np.testing.assert_allclose(latent["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(learnt["w"]), sums, rtol=1e-5)
    stored = method.pack(params, state)["w"]
    assert isinstance(stored, jn.Codebook) and stored.origin and stored.bits == 2 and stored.nbytes == 6 * 5 + 8


@pytest.mark.parametrize("kind", ["twn", "ttq"])
def test_what_is_pruned_stays_zero_and_a_mask_packs_around(kind):
    method = jn.chain(jn.prune(sparsity=0.5), jn.ternarize(kind))
    params, state = started(method)
    seen, stored = method.view(params, state)["w"], method.pack(params, state)["w"]
    assert isinstance(stored, jn.Masked) and stored.frame is not None and stored.frame.bits == 2
    np.testing.assert_array_equal(stored.densify(), seen)
    assert (np.asarray(seen)[np.abs(W) < np.median(np.abs(W))] == 0).all()


@pytest.mark.exact
@pytest.mark.parametrize(
    "method", [jn.ternarize(), jn.chain(jn.prune(sparsity=0.5), jn.ternarize()), jn.binarize(scale="layer"), jn.quantize(1)]
)
def test_kernels_have_equal_scales_in_view_and_pack(method):
    """Two compiled programs: the last bits of a sum are those of its order."""
    rng = np.random.default_rng(1)
    kernels = [{"conv": jnp.asarray(rng.standard_normal((3, 3, 16, 24)), jnp.float32)} for _ in range(10)]
    state, jitted = method.init(kernels[0]), jax.jit(method.view)
    for v in kernels:
        stored = jn.densify(method.pack(v, state))
        for seen in (method.view(v, state), jitted(v, state)):
            jax.tree.map(np.testing.assert_array_equal, seen, stored)


@pytest.mark.parametrize("method", [jn.binarize(), jn.ternarize(), jn.ternarize("ttq")], ids=["binary", "twn", "ttq"])
def test_it_trains(method):
    """A regression towards a network of the same kind: training beats what the start packs to."""
    target = view(method, RNG.standard_normal((16, 4)).astype(np.float32))
    x = RNG.standard_normal((128, 16)).astype(np.float32)
    params = {"w": jnp.asarray(RNG.standard_normal((16, 4)) * 0.5, jnp.float32)}
    state = method.init(params)
    error = lambda p, learnt: jnp.mean(jnp.square(x @ method.view(p, State(learnt, state.carried))["w"] - x @ target))

    @jax.jit
    def step(p, learnt):
        slopes, own = jax.grad(error, (0, 1))(p, learnt)
        p = jax.tree.map(lambda a, g: a - 0.1 * g, p, slopes)
        learnt = jax.tree.map(lambda a, g: a - 0.01 * g, learnt, own)
        return method.project(p, State(learnt, state.carried))

    before, learnt = error(params, state.learnt), state.learnt
    for _ in range(100):
        params, learnt = step(params, learnt)
    assert error(params, learnt) < 0.5 * before


def test_a_config_names_them():
    from jaxopt_nn.pipeline import registry

    assert registry.transform("binarize", gradient="scaled").traits.name == "binarize"
    assert registry.transform("binarize", rounding="stochastic", key=jax.random.key(0)).traits.name == "binarize"
    assert registry.transform("ternarize", kind="ttq").traits.name == "ternarize(ttq)"
