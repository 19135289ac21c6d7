"""Low rank on leaves of every layout against NumPy; whitened against plain; budgets; what is trained, cut, stored and run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.combine import by_path, chain
from jaxopt_nn.core.cuts import Cut, Cuts
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.report import Recorder
from jaxopt_nn.core.transform import LeafTraits, State, explain
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.factoring import Form
from jaxopt_nn.methods.low_rank import Factored, low_rank
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.tensors.base import densify, is_compressed, nbytes
from jaxopt_nn.tensors.vector_codebook import VectorCodebook
from tests.methods.test_sparsegpt import convolution, layouts, windows

RNG = np.random.default_rng(0)


def f32(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def truncated(w, r, root=None):
    """By NumPy: of ``root @ w``, scaled back."""
    root = np.eye(len(w)) if root is None else root
    u, s, vt = np.linalg.svd(root @ np.asarray(w, np.float64), full_matrices=False)
    return np.linalg.solve(root, (u[:, :r] * s[:r]) @ vt[:r])


def laws(method, variables, info=ModelInfo()):
    """What is seen and what is packed, which are the same; and a state made of abstract leaves is laid out as it is."""
    state = method.init(variables, info)
    seen, packed = jax.jit(method.view)(variables, state), method.pack(variables, state)
    for own, wanted in zip(jax.tree.leaves(densify(packed)), jax.tree.leaves(seen), strict=True):
        assert own.shape == wanted.shape and own.dtype == wanted.dtype
        size = float(jnp.abs(wanted.astype(jnp.float32)).max())
        tolerance = 2e-2 if wanted.dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(own.astype(jnp.float32), wanted.astype(jnp.float32), rtol=0, atol=tolerance * size)
    like = method.init(jax.eval_shape(lambda: variables), info)
    kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert kinds(like) == kinds(state) and jax.tree.structure(like) == jax.tree.structure(state)
    return state, seen, packed


# -- the numbers -------------------------------------------------------------------------------------------------------

NAMES = [case[0] for case in layouts(np.random.default_rng(0)) if case[0] != "groups"]


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_truncated_as_its_matrix(name):
    """Plain, whitened by the whole Gram matrix of the inputs, and by its diagonal."""
    w, read, x, split, joined, rows = next(own for own in layouts(np.random.default_rng(0)) if own[0] == name)[1:]
    apply = lambda v, x: read(v["w"], x)
    network, own = Network(apply, {"w": w}), np.asarray(split(w), np.float64)
    grams = [r.T @ r for r in np.asarray(rows, np.float64)]
    roots = {
        None: [None] * len(own),
        "inputs": [np.linalg.cholesky(g + 0.01 * np.diag(g).mean() * np.eye(len(g))).T for g in grams],
        "diagonal": [np.diag(np.sqrt(np.diag(g) + 0.01 * np.diag(g).mean())) for g in grams],
    }
    for whiten, each in roots.items():
        method = low_rank(2, whiten=whiten, damping=0.01)
        info = inspect(apply, {"w": w}, x) if whiten is None else calibrate(network, method, [x])
        _, seen, packed = laws(method, {"w": w}, info)
        wanted = joined(np.stack([truncated(m, 2, root) for m, root in zip(own, each)]))
        np.testing.assert_allclose(seen["w"], wanted, atol=5e-3 * np.abs(wanted).max())
        outputs = apply(seen, x)
        np.testing.assert_allclose(jax.jit(rewrite(apply))(packed, x), outputs, atol=1e-4 * float(jnp.abs(outputs).max()))


def test_groups_of_a_convolution_are_left_alone():
    w, read, x, *_ = next(own for own in layouts(np.random.default_rng(0)) if own[0] == "groups")[1:]
    info = inspect(lambda v, x: read(v["w"], x), {"w": w}, x)
    (message,) = explain(low_rank(1), {"w": w}, info).of("skipped")
    assert "keeps 2 groups apart" in message.reason


def correlated(n, width, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, width)) @ (rng.standard_normal((width, width)) * np.geomspace(1, 0.05, width))
    return jnp.asarray(mixed, jnp.float32)


def test_whitened_beats_plain_at_every_rank():
    """In the layer's outputs on the calibration data; in the weights it is further off."""
    w, x = f32(16, 12), correlated(200, 16)
    net = Network(lambda v, x: x @ v["w"], {"w": w})
    info = calibrate(net, low_rank(1, whiten="inputs"), [x])
    for rank in range(1, 7):
        seen = [low_rank(rank, whiten=way) for way in ("inputs", None)]
        whitened, plain = (m.view({"w": w}, m.init({"w": w}, info))["w"] for m in seen)
        assert np.square(x @ (w - whitened)).sum() < 0.9 * np.square(x @ (w - plain)).sum()
        assert np.square(w - whitened).sum() > np.square(w - plain).sum()


def test_forms_of_convolutions():
    """Spatial: the SVD of [h i, w o]. Tucker: at full ranks nothing is lost. Windows of one place: the channel form."""
    w = f32(3, 5, 4, 6)
    _, seen, packed = laws(low_rank(3, form="spatial"), {"w": w})
    wanted = truncated(np.asarray(w).transpose(0, 2, 1, 3).reshape(12, 30), 3).reshape(3, 4, 5, 6).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(seen["w"], wanted, atol=1e-4)
    assert [x.shape for x in packed["w"].factors] == [(3, 4, 3), (3, 5, 6)]
    _, seen, packed = laws(low_rank((4, 4), form="tucker"), {"w": w})
    assert [x.shape for x in packed["w"].factors] == [(4, 4), (4, 3, 5, 4), (4, 6)]
    flat = np.asarray(seen["w"]).reshape(60, 6)
    np.testing.assert_allclose(flat, truncated(np.asarray(w).reshape(60, 6), 4), atol=1e-4)  # one mode alone: its SVD
    point = {"w": f32(1, 1, 16, 12)}
    for form in ("channel", "spatial", "tucker"):
        _, seen, packed = laws(low_rank(3, form=form), point)
        np.testing.assert_allclose(seen["w"][0, 0], truncated(point["w"][0, 0], 3), atol=1e-4)
        assert len(packed["w"].factors) == 2
    x = f32(2, 7, 7, 4)
    apply = lambda v, x: convolution(x, v["w"])
    for form in ("channel", "spatial", "tucker"):
        _, seen, packed = laws(low_rank(share=0.6, form=form), {"w": w}, inspect(apply, {"w": w}, x))
        (row,) = rewrite(apply).explain(packed, x).rows
        assert len(row.runs[0].operations) == (3 if form == "tucker" else 2)
        np.testing.assert_allclose(rewrite(apply)(packed, x), apply(seen, x), atol=1e-3)
    assert windows(x, 3).shape[1] == 36


# -- how much stays ----------------------------------------------------------------------------------------------------

PAIR = {"a": f32(32, 3) @ f32(3, 24) + 0.02 * f32(32, 24), "b": f32(24, 32)}


def pair(v, x):
    return jnp.tanh(x @ v["a"]) @ v["b"]


def test_shares_are_kept_to():
    for share in (0.2, 0.5, 0.9):
        _, _, packed = laws(low_rank(share=share), PAIR)
        for path, x in packed.items():
            rank = int(share * 32 * 24 / (32 + 24))
            assert x.ranks == (rank,) and x.nbytes == 4 * rank * (32 + 24) <= share * 4 * PAIR[path].size


def test_energy_chooses_the_least_rank():
    """By NumPy's singular values; a leaf that needs more than pays stays as it is, to the bit."""
    state, seen, packed = laws(low_rank(energy=0.95), PAIR)
    energies = np.linalg.svd(PAIR["a"], compute_uv=False) ** 2
    wanted = int(np.searchsorted(np.cumsum(energies) / energies.sum(), 0.95) + 1)
    assert packed["a"].ranks == (wanted,) and wanted <= 3
    np.testing.assert_allclose(packed["a"].densify(), truncated(PAIR["a"], wanted), atol=1e-3)
    assert not is_compressed(packed["b"]) and bool((packed["b"] == PAIR["b"]).all()) and bool((seen["b"] == PAIR["b"]).all())
    (fact,) = low_rank(energy=0.95).traits.facts(PAIR, state)
    assert fact.cells == (("a", str(wanted), "24", 4 * wanted * 56, 4 * 768), ("b", "stays as it is", "24", 4 * 768, 4 * 768))
    stack = {"w": jnp.stack([PAIR["a"], PAIR["a"][::-1], f32(32, 6) @ f32(6, 24)])}
    info = ModelInfo(roles={"w": Roles((0,), (1,), (2,))})
    rank = low_rank(energy=0.95).pack(stack, low_rank(energy=0.95).init(stack, info))["w"].ranks[0]
    own = [np.linalg.svd(w, compute_uv=False) ** 2 for w in np.asarray(stack["w"])]
    assert rank == max(int(np.searchsorted(np.cumsum(e) / e.sum(), 0.95) + 1) for e in own)


@pytest.mark.parametrize("amount", [0.3, 0.7, 2500])
def test_one_budget_for_all(amount):
    """Within it, and the leaf of low rank gives most of what goes; the whole budget loses less than equal shares of it."""
    method = low_rank(nbytes=amount)
    _, seen, packed = laws(method, PAIR)
    whole = nbytes(PAIR)
    budget = amount if isinstance(amount, int) else amount * whole
    assert budget - 4 * 56 <= nbytes(packed) <= budget
    rank = {p: x.ranks[0] if is_compressed(x) else 24 for p, x in packed.items()}
    assert rank["a"] < rank["b"] or amount == 0.3
    lost = lambda seen: sum(float(np.square(PAIR[p] - seen[p]).sum() / np.square(PAIR[p]).sum()) for p in PAIR)
    even = low_rank(share=budget / whole)
    assert lost(seen) <= lost(even.view(PAIR, even.init(PAIR)))


def test_a_budget_of_multiply_accumulates():
    x = f32(1, 6, 6, 4)
    v = {"c": f32(3, 3, 4, 16), "d": f32(16, 64)}
    apply = lambda v, x: lax.conv_general_dilated(
        x, v["c"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) @ v["d"]
    info = inspect(apply, v, x)
    whole = sum(site.macs for site in info.sites)
    for form in ("channel", "spatial", "tucker"):
        method = low_rank(macs=0.6, form=form)
        _, seen, packed = laws(method, v, info)
        runs = [run for row in rewrite(apply).explain(packed, x).rows for run in row.runs]
        assert 0.4 * whole < sum(run.macs for run in runs) <= 0.6 * whole
        np.testing.assert_allclose(rewrite(apply)(packed, x), apply(seen, x), atol=1e-2)
    with pytest.raises(ValueError, match=r"^c: low_rank\(macs=\) counts what the layers do; pass info=inspect"):
        low_rank(macs=0.6).init(v)
    with pytest.raises(ValueError, match=r"low_rank\(macs=0.01\): the least ranks of the 2 leaves take"):
        low_rank(macs=0.01).init(v, info)


def test_multiples():
    method = low_rank(share=0.8, form="tucker", multiple=8)
    v = {"w": f32(3, 3, 24, 40)}
    assert all(r % 8 == 0 for r in laws(method, v)[2]["w"].ranks)
    assert low_rank(share=0.5, multiple=4).pack(PAIR, low_rank(share=0.5, multiple=4).init(PAIR))["a"].ranks == (4,)


# -- what it does not take, and edges ----------------------------------------------------------------------------------


def test_ranks_that_save_nothing_are_told():
    reasons = {m.path: m.reason for m in explain(low_rank(14), {**PAIR, "bias": jnp.ones(3)}).of("skipped")}
    assert reasons["a"] == "its factors of rank 14 take 3136 bytes, no less than its 3072"
    assert set(reasons) == {"a", "b", "bias"}
    (told, _) = explain(low_rank(100), PAIR).of("skipped")
    assert told.reason == "its rank is at most 24, and factors of rank=100 take no fewer bytes"
    (told, _) = explain(low_rank(share=0.01), PAIR).of("skipped")
    assert told.reason == "its factors of rank 1 take 224 bytes, more than share=0.01 of the 3072 that it has"
    for shape in ((1, 9), (9, 1), (1, 1), (2, 2)):
        assert [m.path for m in explain(low_rank(1), {"w": f32(*shape)}).of("skipped")] == ["w"]
        assert [m.path for m in explain(low_rank(energy=0.9), {"w": f32(*shape)}).of("skipped")] == ["w"]


@pytest.mark.parametrize("method", [low_rank(2), low_rank(energy=0.5), low_rank(nbytes=0.6), low_rank(2, factors=quantize(8))])
def test_zeros_and_constants(method):
    for value in (0.0, 3.0):
        v = {"w": jnp.full((12, 10), value)}
        _, seen, _ = laws(method, v)
        np.testing.assert_allclose(seen["w"], value, atol=0.05 if method.traits.pending and value else 1e-5)


def test_bfloat16():
    v = {"w": f32(24, 20).astype(jnp.bfloat16)}
    state, seen, packed = laws(low_rank(4), v)
    assert packed["w"].dtype == jnp.bfloat16 and packed["w"].nbytes == 2 * 4 * 44
    assert state.learnt["w"]["factors"]["left"].dtype == jnp.float32
    np.testing.assert_allclose(seen["w"].astype(jnp.float32), truncated(v["w"].astype(jnp.float32), 4), atol=0.05)


@pytest.mark.parametrize("inner", [quantize(8), quantize(4, group=4)])
def test_packed_factors_of_bfloat16_are_rounded_as_those_seen(inner):
    """To the bit: with factors that stay float32 they are 0.6 % of the largest entry apart."""
    v = {"w": f32(48, 40).astype(jnp.bfloat16)}
    method = low_rank(4, factors=inner)
    state = method.init(v)
    packed = method.pack(v, state)["w"]
    assert {x.dtype for x in packed.factors} == {jnp.dtype(jnp.bfloat16)} and all(map(is_compressed, packed.factors))
    np.testing.assert_array_equal(packed.densify().astype(np.float32), method.view(v, state)["w"].astype(np.float32))


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_a_leaf_of_64_bits_that_is_left_alone_packs_as_it_is_seen():
    v = {"w": np.random.default_rng(0).standard_normal((12, 10))}
    method = low_rank(energy=0.999999)
    state = method.init(v)
    packed = method.pack(v, state)["w"]
    assert not is_compressed(packed)
    np.testing.assert_array_equal(packed, method.view(v, state)["w"])
    np.testing.assert_array_equal(packed, v["w"].astype(np.float32))


def test_nan_is_an_error():
    v = {"w": f32(8, 8).at[1, 2].set(jnp.nan)}
    for method in (low_rank(2), low_rank(energy=0.5), low_rank(nbytes=0.5)):
        with pytest.raises(ValueError, match=r"^w: NaN or Inf among the weights"):
            method.init(v)
    method = low_rank(2)
    state = method.init({"w": f32(8, 8)})
    broken = State(jax.tree.map(lambda x: x * jnp.nan, state.learnt), state.carried)
    with pytest.raises(ValueError, match=r"^w: NaN or Inf"):
        method.pack(v, broken)


def test_statistics_are_asked_for():
    with pytest.raises(ValueError, match=r"^a: low_rank reads the inputs of the layer; pass info=calibrate\("):
        low_rank(2, whiten="inputs").init(PAIR)


def test_after_a_mask_it_is_an_error():
    with pytest.raises(ValueError, match=r"member 1 of the chain \(low_rank\) does not keep zeros, after a member that prunes"):
        chain(prune(sparsity=0.5), low_rank(2)).init(PAIR)
    with pytest.raises(ValueError, match=r"member 1 of the chain \(quantize\(4\)\) changes values that an earlier member"):
        chain(low_rank(2), quantize(4)).init(PAIR)


# -- factors -----------------------------------------------------------------------------------------------------------


def test_factors_may_be_quantized():
    method = low_rank(6, factors=by_path([("left", quantize(8)), ("right", quantize(4))]))
    state, seen, packed = laws(method, PAIR)
    left, right = packed["a"].factors
    assert (left.bits, right.bits) == (8, 4)
    bits = lambda x, form: quantize(form).pack({"x": x}, quantize(form).init({"x": x}))["x"].densify()
    made = state.learnt["a"]["factors"]
    np.testing.assert_allclose(seen["a"], bits(made["left"], 8) @ bits(made["right"], 4), atol=1e-4)
    chosen = low_rank(energy=0.95, factors=quantize(8))
    _, _, packed = laws(chosen, PAIR)
    assert packed["a"].factors[0].bits == 8 and packed["a"].ranks[0] <= 3
    slopes = jax.grad(lambda learnt: jnp.sum(method.view(PAIR, State(learnt, state.carried))["a"] ** 2))(state.learnt)
    assert all(jnp.abs(x).sum() > 0 for x in jax.tree.leaves(slopes["a"]["factors"]))


def pairs(path, x, *_):
    """Codes of pairs along the rank, each pair with a code of its own."""
    along, (n, m) = (1, x.shape) if path == "left" else (0, x.shape[::-1])
    table = (x if along else x.T).reshape(n * m // 2, 2)
    codes = jnp.arange(n * m // 2, dtype=jnp.uint8).reshape(n, m // 2)
    return VectorCodebook.from_codes((codes if along else codes.T)[..., None], table[None, None, None], along=along)


def chosen(rank, inner):
    """A method of chosen ranks, and a state by hand of factors of width 6, of which ``rank`` columns count."""
    form, own = Form((9, 20), "float32", (), ((0,), (1,))), {"left": (), "right": ()}
    learnt = {"w": {"factors": {"left": f32(9, 6), "right": f32(6, 20)}, "inside": own}}
    state = State(learnt, {"w": Factored(jnp.asarray([rank], jnp.int32), own, form)})
    return low_rank(energy=0.5, factors=inner), state


def test_factors_whose_codes_can_not_be_cut_at_the_rank_are_arrays():
    """An odd rank: no pair may be cut apart."""
    inner = leafwise(lambda *_: LeafTraits(), lambda *_: ((), ()), lambda x, *_: x, pack=pairs)
    (method, state), v = chosen(3, inner), {"w": jnp.zeros((9, 20))}
    seen, packed = method.view(v, state)["w"], method.pack(v, state)["w"]
    assert packed.ranks == (3,) and not any(map(is_compressed, packed.factors))
    np.testing.assert_allclose(packed.densify(), seen, rtol=0, atol=1e-6 * float(jnp.abs(seen).max()))


def test_nothing_beyond_the_rank_is_seen():
    """A method of the factors that makes no zeros of zeros."""
    shifted = leafwise(lambda *_: LeafTraits(keeps_zeros=False), lambda *_: ((), ()), lambda x, *_: x + 0.1)
    (method, state), v = chosen(3, shifted), {"w": jnp.zeros((9, 20))}
    left, right = (np.asarray(x) + 0.1 for x in state.learnt["w"]["factors"].values())
    np.testing.assert_allclose(method.view(v, state)["w"], left[:, :3] @ right[:3], atol=1e-5)
    np.testing.assert_allclose(method.pack(v, state)["w"].densify(), left[:, :3] @ right[:3], atol=1e-5)


def test_gradients_reach_the_factors_that_count():
    method = low_rank(energy=0.95)
    state = method.init(PAIR)
    loss = lambda v, learnt: sum(jnp.sum(x**2) for x in jax.tree.leaves(method.view(v, State(learnt, state.carried))))
    leaves, learnt = jax.grad(loss, (0, 1))(PAIR, state.learnt)
    rank = int(state.carried["a"].ranks[0])
    own = learnt["a"]["factors"]["left"]
    assert bool((jnp.abs(own[:, :rank]).sum(0) > 0).all()) and not own[:, rank:].any()
    assert not leaves["a"].any() and bool(leaves["b"].any())  # what stays as it is trains as it is
    assert not jax.tree.leaves(jax.tree.map(jnp.any, learnt["b"]["factors"]))[0]


def test_what_is_learnt_of_factors_moves():
    """A method of the factors with a state of its own."""
    gain = leafwise(
        lambda path, leaf, info: LeafTraits(),
        lambda path, leaf, known: (jnp.float32(1.0), jnp.int32(0)),
        lambda leaf, gain, count: leaf * gain,
        update=lambda leaf, gain, count, step, grad: count + 1,
    )
    method = low_rank(3, factors=gain)
    state = method.init(PAIR)
    assert int(method.update(PAIR, state, step=0).carried["a"].inside["left"]) == 1
    twice = State(jax.tree.map(lambda x: x, state.learnt), state.carried)
    twice.learnt["a"]["inside"]["left"] = jnp.float32(2.0)
    np.testing.assert_allclose(method.view(PAIR, twice)["a"], 2 * method.view(PAIR, state)["a"], rtol=1e-5)


def test_factors_that_weigh_more_than_what_was_cut_are_told():
    """The rank stays, 6 of 9 x 20; facts are of the factors that there are, whatever the method would choose now."""
    form, v = Form((9, 20), "float32", (), ((0,), (1,))), {"w": f32(9, 20)}
    factors = {"left": f32(9, 6), "right": f32(6, 20)}
    state = State({"w": {"factors": factors, "inside": ()}}, {"w": Factored(None, (), form)})
    for method, kept, weighs in ((low_rank(6), 19, False), (low_rank(6), 7, True), (low_rank(share=0.97), 7, True)):
        recorder, cut = Recorder(), Cut((9, 20), {1: np.arange(kept)})
        small = {"w": cut.leaf(v["w"])}
        new = method.traits.follows(state, Cuts({"w": cut}, small, ModelInfo(), recorder))
        bytes_of = 4 * 6 * (9 + kept)
        assert method.traits.facts(small, new)[0].cells == (("w", "6", str(min(9, kept)), bytes_of, 4 * 9 * kept),)
        assert method.pack(small, new)["w"].nbytes == bytes_of
        told = f"its factors of rank 6 take {bytes_of} bytes, no less than the {4 * 9 * kept} of the leaf once cut"
        assert [m.reason.partition(";")[0] for m in recorder.report()] == [told] * weighs
