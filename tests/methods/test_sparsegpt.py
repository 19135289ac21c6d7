"""SparseGPT, OBS, Wanda and RIA on leaves of every layout, against NumPy; order of their errors; what can go wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.combine import chain, where
from jaxopt_nn.core.model import Known, Roles
from jaxopt_nn.core.transform import State, explain
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.allocations.per_output import per_output
from jaxopt_nn.methods.criteria.wanda import ria, wanda
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.sparsegpt import obs, sparsegpt
from jaxopt_nn.methods.structures.blocks import blocks
from jaxopt_nn.methods.structures.n_of_m import along, n_of_m
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.tensors.base import densify
from jaxopt_nn.tensors.n_of_m import NofM
from tests.numerics.test_obs import authors, cost, layer


def f32(x):
    return jnp.asarray(x, jnp.float32)


def pruned(apply, variables, method, batches, **options):
    info = calibrate(Network(apply, variables), method, batches, **options)
    return {k: np.asarray(x, np.float32) for k, x in method.view(variables, method.init(variables, info)).items()}


def windows(x, side):
    """Rows ``[N, I * side * side]`` of a convolution's input ``[B, H, W, I]``, input channels slowest."""
    found = np.lib.stride_tricks.sliding_window_view(np.asarray(x), (side, side), axis=(1, 2))
    return found.reshape(-1, x.shape[-1] * side * side)


def convolution(x, w, groups=1):
    return lax.conv_general_dilated(
        x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def layouts(rng):
    """Leaf, what reads it, an input; how a leaf is its matrices ``[n, I, O]`` and back; the rows of each matrix."""
    draw = lambda *shape: f32(rng.standard_normal(shape))
    mixed = lambda *shape: draw(*shape) @ draw(shape[-1], shape[-1])
    x = mixed(40, 8)
    yield "dense", draw(8, 6), lambda w, x: x @ w, x, lambda w: w[None], lambda m: m[0], x[None]
    yield "transposed", draw(6, 8), lambda w, x: x @ w.T, x, lambda w: w.T[None], lambda m: m[0].T, x[None]
    yield (
        "heads out", draw(8, 2, 3), lambda w, x: jnp.einsum("bi,ihd->bhd", x, w), x,
        lambda w: w.reshape(1, 8, 6), lambda m: m[0].reshape(8, 2, 3), x[None],
    )  # fmt: skip
    yield (
        "heads in", draw(2, 4, 6), lambda w, x: jnp.tensordot(x.reshape(-1, 2, 4), w, 2), x,
        lambda w: w.reshape(1, 8, 6), lambda m: m[0].reshape(2, 4, 6), x[None],
    )  # fmt: skip
    own = mixed(3, 40, 8)
    yield (
        "experts behind", draw(8, 3, 6), lambda w, x: jnp.einsum("ebi,ieo->ebo", x, w), own,
        lambda w: w.transpose(1, 0, 2), lambda m: m.transpose(1, 0, 2), own,
    )  # fmt: skip
    image = mixed(2, 5, 5, 4)
    yield (
        "convolution", draw(3, 3, 4, 6), lambda w, x: convolution(x, w), image,
        lambda w: w.transpose(2, 0, 1, 3).reshape(1, 36, 6), lambda m: m[0].reshape(4, 3, 3, 6).transpose(1, 2, 0, 3),
        windows(image, 3)[None],
    )  # fmt: skip
    yield (
        "groups", draw(3, 3, 2, 6), lambda w, x: convolution(x, w, 2), image,
        lambda w: w.transpose(2, 0, 1, 3).reshape(18, 2, 3).transpose(1, 0, 2),
        lambda m: m.transpose(1, 0, 2).reshape(2, 3, 3, 6).transpose(1, 2, 0, 3),
        np.stack([windows(image[..., 2 * g : 2 * g + 2], 3) for g in range(2)]),
    )  # fmt: skip


NAMES = [case[0] for case in layouts(np.random.default_rng(0))]


@pytest.fixture(params=NAMES)
def case(request):
    return next(own for own in layouts(np.random.default_rng(0)) if own[0] == request.param)[1:]


def test_sparsegpt_in_every_layout(case):
    w, read, x, split, joined, rows = case
    seen = pruned(lambda v, x: read(v["w"], x), {"w": w}, sparsegpt(0.5, block=5), [x])["w"]
    own = np.asarray(split(w), np.float64)
    wanted = joined(np.stack([authors(m, r.T @ r, 0.5, None, 5, 0.01) for m, r in zip(own, np.asarray(rows, np.float64))]))
    np.testing.assert_array_equal(seen == 0, wanted == 0)
    np.testing.assert_allclose(seen, wanted, atol=5e-3)


def test_wanda_and_ria_in_every_layout(case):
    w, read, x, split, joined, rows = case
    apply = lambda v, x: read(v["w"], x)
    own, norms = np.abs(np.asarray(split(w))), np.linalg.norm(rows, axis=1)[..., None]
    score = own * norms
    rank = np.argsort(np.argsort(-score, axis=1), axis=1)
    wanted = np.where(joined(rank < own.shape[1] - round(0.3 * own.shape[1])), w, 0)
    method = prune(wanda, sparsity=0.3, allocation=per_output)
    np.testing.assert_array_equal(pruned(apply, {"w": w}, method, [x])["w"], wanted)
    score = (own / own.sum(1, keepdims=True) + own / own.sum(2, keepdims=True)) * np.sqrt(norms)
    if own.shape[0] == 1:  # the same share of each entry of a stack, groups of a convolution together
        kept = np.sort(score.ravel())[::-1][: own.size - round(0.3 * own.size)].min()
        wanted = np.where(joined(score >= kept * (1 - 1e-6)), w, 0)
        np.testing.assert_array_equal(pruned(apply, {"w": w}, prune(ria, sparsity=0.3), [x])["w"], wanted)


def test_a_pattern_in_every_layout_is_stored_as_values_and_places(case):
    """Along the axis on which ``prune`` has it: the same solver on matrices whose inputs are laid out so; true bytes."""
    w, read, x, split, _, rows = case
    info = inspect(lambda v, x: read(v["w"], x), {"w": w}, x)
    method, roles = sparsegpt(structure=n_of_m(2, 4), block=8), info.roles_of("w", w.ndim)
    axis = along(None, roles)
    if w.shape[axis] % 4:
        assert "not a multiple of 4" in str(explain(method, {"w": w}, info))
        return
    net = Network(lambda v, x: read(v["w"], x), {"w": w})
    state = method.init({"w": w}, calibrate(net, method, [x]))
    tensor, seen = method.pack({"w": w}, state)["w"], np.asarray(method.view({"w": w}, state)["w"])
    lines, kept = w.size // w.shape[axis], w.shape[axis] // 2
    assert isinstance(tensor, NofM) and tensor.nbytes == lines * (kept * 4 + -(-kept * 2 // 8))
    np.testing.assert_array_equal(tensor.densify(), seen)
    kept = np.moveaxis(np.asarray(state.carried["w"].mask), axis, -1).reshape(-1, w.shape[axis] // 4, 4)
    assert (kept.sum(-1) == 2).all()
    order = np.arange(split(w).shape[1])
    if roles.window:  # the channels of each place of the window stand together
        order = order.reshape(w.shape[axis], -1).T.ravel()
    for own, found, r in zip(np.asarray(split(w), np.float64), split(jnp.asarray(seen)), rows, strict=True):
        r = np.asarray(r, np.float64)
        gram = (r.T @ r)[order][:, order]
        np.testing.assert_allclose(np.asarray(found)[order], authors(own[order], gram, None, (2, 4), 8, 0.01), atol=5e-3)


def scanned(v, x):
    return lax.scan(jax.checkpoint(lambda c, w: (c + jnp.tanh(c @ w["up"]) @ w["down"], None)), x, v)[0]


def test_the_layers_of_a_scan_have_their_own_gram_matrices():
    rng = np.random.default_rng(0)
    v = {"up": f32(rng.standard_normal((3, 8, 16)) / 3), "down": f32(rng.standard_normal((3, 16, 8)) / 4)}
    x = f32(rng.standard_normal((64, 8)) @ rng.standard_normal((8, 8)))
    for method, solve in (
        (sparsegpt(structure=n_of_m(2, 4)), lambda w, g: authors(w, g, None, (2, 4), 8, 0.01)),
        (sparsegpt(0.5), lambda w, g: authors(w, g, 0.5, None, 128, 0.01)),
    ):
        once = pruned(scanned, v, method, [x[:32], x[32:]])
        after = pruned(scanned, v, method, [x[:32], x[32:]], sequential=True)
        plain = turn = np.asarray(x, np.float64)
        for i in range(3):
            for seen, rows, own in ((once, plain, v), (after, turn, after)):
                h = np.tanh(rows @ own["up"][i])
                for path, read in (("up", rows), ("down", h)):
                    wanted = solve(np.asarray(v[path][i], np.float64), read.T @ read)
                    np.testing.assert_allclose(seen[path][i], wanted, atol=5e-3)
            plain = plain + np.tanh(plain @ v["up"][i]) @ v["down"][i]
            turn = turn + np.tanh(turn @ after["up"][i]) @ after["down"][i]
    assert np.abs(once["down"] - after["down"]).max() > 0.05


def dense(v, x):
    return x @ v["w"]


def test_errors_of_the_layers_output_are_ordered():
    """On correlated inputs of different sizes: OBS, SparseGPT, Wanda, magnitude. Near outputs cost distant weights."""
    methods = {
        "obs": obs(0.5), "sparsegpt": sparsegpt(0.5), "wanda": prune(wanda, sparsity=0.5, allocation=per_output),
        "magnitude": prune(sparsity=0.5),
    }  # fmt: skip
    totals = dict.fromkeys(methods, 0.0)
    apart = dict.fromkeys(methods, 0.0)
    for seed in range(4):
        w, x, _ = layer(32, 24, seed)
        x = x * np.random.default_rng(seed).lognormal(0, 1, 32)
        for name, method in methods.items():
            change = pruned(dense, {"w": f32(w)}, method, [f32(x)])["w"] - w
            totals[name] += cost(change, x.T @ x) / cost(w, x.T @ x)
            apart[name] += float((change**2).sum())
    assert totals["obs"] < 0.5 * totals["sparsegpt"] and totals["sparsegpt"] < 0.8 * totals["wanda"]
    assert totals["wanda"] < 0.3 * totals["magnitude"]
    assert all(apart["magnitude"] < 0.5 * apart[name] for name in ("obs", "sparsegpt", "wanda"))


def test_a_weight_of_two_is_a_token_that_comes_twice():
    w, x, _ = layer(8, 6)
    w, x, counts = f32(w), f32(x[:30]).reshape(5, 6, 8), np.random.default_rng(0).integers(0, 3, (5, 6))
    method = sparsegpt(0.5)
    own = pruned(dense, {"w": w}, method, [x], weights=lambda x: counts)
    again = np.repeat(np.asarray(x).reshape(30, 8), counts.ravel(), 0)
    np.testing.assert_allclose(own["w"], pruned(dense, {"w": w}, method, [again])["w"], atol=1e-4)
    assert np.abs(own["w"] - pruned(dense, {"w": w}, method, [x])["w"]).max() > 0.05


def test_a_leaf_in_bfloat16_is_solved_in_float32_and_rounded_once():
    w, x, _ = layer(16, 6)
    half, x = jnp.asarray(w, jnp.bfloat16), f32(x)
    seen = pruned(lambda v, x: x @ v["w"].astype(jnp.float32), {"w": half}, sparsegpt(0.5), [x])["w"]
    wide = pruned(dense, {"w": half.astype(jnp.float32)}, sparsegpt(0.5), [x])["w"]
    np.testing.assert_array_equal(seen, np.asarray(jnp.asarray(wide).astype(jnp.bfloat16), np.float32))


def test_of_a_leaf_that_is_cut_in_slices_the_rest_stays():
    w, x, gram = layer(8, 6)
    both = f32(np.stack([w, 2 * w]))
    apply = lambda v, x: x @ v["w"][1]
    method = sparsegpt(0.5)
    seen = pruned(apply, {"w": both}, method, [f32(x)])["w"]
    np.testing.assert_array_equal(seen[0], both[0])
    np.testing.assert_allclose(seen[1], authors(2 * w, gram, 0.5, None, 128, 0.01), atol=5e-3)
    info = inspect(apply, {"w": both}, f32(x))
    note = next(m for m in explain(method, {"w": both}, info) if m.kind == "note")
    assert "reads a part" in note.reason
    with pytest.raises(ValueError, match=r"wanda: of a leaf of shape \[2, 8, 6\] the site reads a part"):
        pruned(apply, {"w": both}, prune(wanda, sparsity=0.5), [f32(x)])


def test_of_a_lookup_rare_rows_go():
    ids = jnp.asarray([0, 0, 0, 1, 1, 2, 0, 1])
    table = f32([[0.5, 0.5], [0.6, 0.6], [0.7, 0.7], [9.0, 9.0]])
    for method in (sparsegpt(0.5), obs(0.5)):
        seen = pruned(lambda v, ids: v["w"][ids], {"w": table}, method, [ids])["w"]
        np.testing.assert_array_equal(seen, np.where([[True], [True], [False], [False]], table, 0))


def test_a_weight_that_is_computed_from_a_leaf_is_named():
    w, x, _ = layer(8, 6)
    v = {"w": f32(w), "own": f32(w)}
    info = inspect(lambda v, x: x @ (2 * v["w"]) + x @ v["own"], v, f32(x))
    assert {m.path for m in explain(sparsegpt(0.5), v, info).of("note") if "is computed from it" in m.reason} == {"w"}


def test_chains_and_training():
    """Codes keep its zeros, a mask before it would be lost; training moves what is kept, and the mask stays."""
    w, x, _ = layer(64, 6)
    v, x = {"w": f32(w)}, f32(x)
    method = chain(sparsegpt(structure=n_of_m(2, 4)), quantize(4))
    info = calibrate(Network(dense, v), method, [x])
    state = method.init(v, info)
    stored = method.pack(v, state)["w"]
    np.testing.assert_array_equal(densify(stored), jax.jit(method.view)(v, state)["w"])
    off = np.asarray(stored.keep()).reshape(16, 4, 6).sum(1) != 2
    assert not off.any() and "4 bits" in stored.describe()
    with pytest.raises(ValueError, match=r"w: member 1 of the chain \(sparsegpt\) does not keep zeros"):
        chain(prune(sparsity=0.5), sparsegpt(0.5)).init(v, info)
    alone = sparsegpt(0.5)
    state = alone.init(v, calibrate(Network(dense, v), alone, [x]))
    slope = jax.grad(lambda p: jnp.sum(alone.view(p, state)["w"] ** 2) / 2)(v)["w"]
    seen = alone.view(v, state)["w"]
    np.testing.assert_allclose(slope, seen, rtol=1e-6)
    moved = alone.view({"w": v["w"] - 0.1 * slope}, state)["w"]
    np.testing.assert_allclose(moved, 0.9 * seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sparsegpt(), "pass the share of zeros"),
        (lambda: sparsegpt(0.9, structure=n_of_m(2, 4)), "makes 0.5 of zeros, and not 0.9; leave sparsity out"),
        (lambda: sparsegpt(50), r"sparsity=50\): allowed are shares of zeros, 0 to 1; for 50 % pass sparsity=0.5"),
        (lambda: sparsegpt(np.nan), "allowed are shares of zeros"),
        (lambda: sparsegpt(0.5, structure=blocks(2, 2)), "input by input.*pass structure=single_weights or n_of_m"),
        (lambda: sparsegpt(structure=n_of_m(2, 4, axis=1)), "input by input"),
        (lambda: sparsegpt(0.5, block=0), "from 1"),
        (lambda: sparsegpt(0.5, damping=-1), "0 or more"),
        (lambda: obs(None), "pass the share of zeros"),
    ],
)
def test_arguments_that_are_not_allowed(make, match):
    with pytest.raises(ValueError, match=match):
        make()
    for value in ("half", lambda step: 0.5, True):
        with pytest.raises(TypeError, match=r"pass one number, e\.g\. 0\.5: it prunes once"):
            obs(value)


def test_bad_input_is_told():
    w, x, _ = layer(6, 4)
    v, x = {"w": f32(w)}, f32(x)
    with pytest.raises(ValueError, match=r"w: sparsegpt reads the inputs.*calibrate"):
        sparsegpt(0.5).init(v)
    with pytest.raises(ValueError, match="statistic 'gram' of site w is missing"):
        sparsegpt(0.5).init(v, inspect(dense, v, x))
    with pytest.raises(ValueError, match="wanda scores by the inputs"):
        wanda(v["w"], None, Known(Roles()))
    method = sparsegpt(structure=n_of_m(2, 4))
    np.testing.assert_array_equal(pruned(dense, v, method, [x])["w"], v["w"])
    assert "w  has 6 entries along axis 0, not a multiple of 4" in str(explain(method, v, inspect(dense, v, x)))
    with pytest.raises(ValueError, match="NaN or Inf in the statistic 'gram'"):
        pruned(dense, v, sparsegpt(0.5), [x.at[3, 1].set(np.nan)])
    with pytest.raises(ValueError, match="no batch"):
        pruned(dense, v, sparsegpt(0.5), [])
    with pytest.raises(ValueError, match="w: NaN or Inf among the weights"):
        pruned(lambda v, x: x @ v["w"], {"w": v["w"].at[0, 0].set(np.inf)}, sparsegpt(0.5), [x])
    singular = x.at[:, 1].set(x[:, 0])
    for method in (sparsegpt(0.5, damping=0.0), obs(0.5, damping=0.0)):
        with pytest.raises(ValueError, match=r"w: .*singular.*damping=0.01"):
            pruned(dense, v, method, [singular])
    assert np.isfinite(pruned(dense, v, sparsegpt(0.5), [singular])["w"]).all()


def test_init_under_jit_and_state_of_where():
    w, x, _ = layer(8, 4)
    v, x = {"w": f32(w), "b": jnp.zeros(4)}, f32(x)
    method = where("w", sparsegpt(0.5))
    info = calibrate(Network(lambda v, x: x @ v["w"] + v["b"][None], v), method, [x])
    plain = method.init(v, info)
    jitted = jax.jit(lambda v: method.init(v, info))(v)
    assert isinstance(plain, State) and jax.tree.structure(plain) == jax.tree.structure(jitted)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
