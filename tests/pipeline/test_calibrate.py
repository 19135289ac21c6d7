"""Calibration against the same statistics computed by NumPy, layer by layer by hand, on several devices, and interrupted."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.combine import by_path, chain, where
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Known
from jaxopt_nn.core.transform import LeafTraits, explain, why_not_matrix
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.methods import taps
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.passes.masking import prune_neurons
from jaxopt_nn.passes.plans import dead_units
from jaxopt_nn.pipeline.calibrate import calibrate
from tests.interpret.test_matrix import keep
from tests.zoo import ZOO


def _takes(path, leaf, info):
    reason = why_not_matrix(path, leaf, info)
    return LeafTraits() if reason is None else reason


def seeing(**wanted):
    """A method that changes nothing and keeps what it saw."""
    return leafwise(
        _takes, lambda path, leaf, known: ((), known.stats), lambda leaf, learnt, carried: leaf,
        taps=lambda site: wanted, name="seeing",
    )  # fmt: skip


def wanda(weight, grad, known: Known):
    """Sun et al. 2024, eq. 1: ``|w_ij| ||x_i||``."""
    norms = jnp.sqrt(jnp.diagonal(known.stats["gram"], axis1=-2, axis2=-1))
    return known.matrix.put(weight, jnp.abs(known.matrix(weight)) * norms[..., None])


wanda.taps = lambda site: {"gram": taps.gram()} if site.kind != "gather" else {}


def rounding():
    """Rounds a leaf by a step that depends on the Gram matrix that its inputs have: a stand-in for GPTQ."""

    def init(path, leaf, known):
        gram = known.stats["gram"]
        steps = 0.05 + 0.02 * jnp.sqrt(jnp.trace(gram, axis1=-2, axis2=-1) / gram.shape[-1])
        m = known.matrix(leaf)
        return (), known.matrix.put(leaf, jnp.round(m / steps[..., None, None]) * steps[..., None, None])

    return leafwise(_takes, init, lambda leaf, learnt, carried: carried, taps=wanda.taps, name="rounding")


# -- against NumPy -----------------------------------------------------------------------------------------------------


def mlp(v, x):
    h = jnp.tanh(x @ v["a"])
    return jnp.tanh(h @ v["b"]) @ v["c"]


def scanned(v, x):
    def layer(c, w):
        h = jnp.tanh(c @ w["up"])
        return c + h @ w["down"], None

    return lax.scan(jax.checkpoint(layer), x, v)[0]


def mlp_case(rng):
    v = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) / 3 for k, s in
         {"a": (8, 12), "b": (12, 10), "c": (10, 4)}.items()}  # fmt: skip
    return mlp, v, [jnp.asarray(rng.standard_normal((16, 8)), jnp.float32) for _ in range(4)]


def scan_case(rng):
    v = {"up": jnp.asarray(rng.standard_normal((3, 8, 16)), jnp.float32) / 3,
         "down": jnp.asarray(rng.standard_normal((3, 16, 8)), jnp.float32) / 4}  # fmt: skip
    return scanned, v, [jnp.asarray(rng.standard_normal((16, 8)), jnp.float32) for _ in range(3)]


EVERY = {"gram": taps.gram(), "moments": taps.moments(), "activity": taps.activity(), "minmax": taps.minmax(),
         "abs_max": taps.abs_max(), "histogram": taps.histogram(-2.0, 2.0, 16)}  # fmt: skip


def numpy_statistics(x):
    """All of ``EVERY`` for rows ``[N, I]``, in float64."""
    x = np.asarray(x, np.float64)
    mean = x.mean(0)
    bins = np.clip(np.floor((x.astype(np.float32) + np.float32(2)) * np.float32(4)), 0, 15).astype(int)
    return {
        "gram": x.T @ x,
        "moments": {"weight": len(x), "mean": mean, "m2": ((x - mean) ** 2).sum(0)},
        "activity": {"largest": np.abs(x).max(0), "total": np.abs(x).sum(0), "weight": len(x)},
        "minmax": np.array([x.min(), x.max()]),
        "abs_max": np.abs(x).max(0),
        "histogram": np.bincount(bins.reshape(-1), minlength=16),
    }


def near(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(float(np.abs(b).max(initial=0)), 1e-6)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def test_statistics_of_a_chain_of_dots(rng):
    apply, v, batches = mlp_case(rng)
    info = calibrate(Network(apply, v), seeing(**EVERY), batches)
    x = np.concatenate(batches)
    h = np.tanh(x @ v["a"])
    for site, rows in {"a": x, "b": h, "c": np.tanh(h @ v["b"])}.items():
        near({t: info.stats[(), site, t] for t in EVERY}, numpy_statistics(rows))


def test_statistics_of_a_scan_are_kept_by_layer(rng):
    apply, v, batches = scan_case(rng)
    info = calibrate(Network(apply, v), seeing(**EVERY), batches)
    x = np.concatenate(batches)
    for layer in range(3):
        h = np.tanh(x @ np.asarray(v["up"][layer]))
        for site, rows in {"up": x, "down": h}.items():
            own = jax.tree.map(lambda s, layer=layer: s[layer], {t: info.stats[(), site, t] for t in EVERY})
            near(own, numpy_statistics(rows))
        x = x + h @ np.asarray(v["down"][layer])


def test_statistics_of_experts_tied_weights_and_grouped_heads(rng):
    tokens = jnp.asarray(rng.integers(10, size=(2, 6)))
    v = {
        "table": jnp.asarray(rng.standard_normal((10, 8)), jnp.float32),
        "experts": jnp.asarray(rng.standard_normal((3, 8, 8)), jnp.float32) / 3,
        "keys": jnp.asarray(rng.standard_normal((8, 2, 4)), jnp.float32) / 3,  # two heads serve four
        "queries": jnp.asarray(rng.standard_normal((8, 4, 4)), jnp.float32) / 3,
    }

    def apply(v, ids):
        x = v["table"][ids]
        x = jnp.einsum("bti,eio->beto", x, v["experts"]).sum(1)
        k, q = jnp.einsum("bti,ihd->bthd", x, v["keys"]), jnp.einsum("bti,ihd->bthd", x, v["queries"])
        scores = jnp.einsum("bthd,bshd->bhts", q, jnp.repeat(k, 2, axis=2))
        return x @ v["table"].T, scores

    info = calibrate(Network(apply, v), seeing(gram=taps.gram()), [tokens])
    ids = np.asarray(tokens).reshape(-1)
    x = np.asarray(v["table"], np.float64)[ids]
    np.testing.assert_array_equal(info.stats[(), "table", "gram"], np.bincount(ids, minlength=10))
    own = info.stats[(), "experts", "gram"]
    assert own.shape == (3, 8, 8) or own.shape == (8, 8)
    near(own, np.broadcast_to(x.T @ x, own.shape))
    y = np.einsum("ni,eio->no", x, np.asarray(v["experts"], np.float64))
    near([info.stats[(), s, "gram"] for s in ("keys", "queries", "table#1")], [y.T @ y] * 3)
    assert info.stats[(), "keys", "gram"] is info.stats[(), "queries", "gram"]  # one activation, one statistic


def test_statistics_of_grouped_convolutions(rng):
    v = jnp.asarray(rng.standard_normal((3, 3, 2, 6)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 5, 5, 4)), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    apply = lambda v, x: lax.conv_general_dilated(
        x, v, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=2
    )
    info = calibrate(Network(apply, v), seeing(gram=taps.gram(), moments=taps.moments()), [x])
    for group in range(2):
        own = np.asarray(x)[..., 2 * group : 2 * group + 2]
        windows = np.lib.stride_tricks.sliding_window_view(own, (3, 3), axis=(1, 2))  # [B, h, w, I, 3, 3]
        rows = windows.reshape(-1, 18)
        near(info.stats[(), "", "gram"][group], rows.T @ rows)
        near(info.stats[(), "", "moments"]["mean"][group], rows.mean(0))


# -- members, passes, order --------------------------------------------------------------------------------------------


def test_each_member_sees_the_view_of_those_before_it(rng):
    apply, v, batches = mlp_case(rng)
    pruning = prune(wanda, sparsity=0.5)
    method = chain(pruning, where("b", rounding()))
    said = []
    info = calibrate(Network(apply, v), method, batches, say=said.append)
    assert method.traits.passes == 2 and "2 passes" in said[0]
    first = calibrate(Network(apply, v), pruning, batches)
    near({s: info.stats[(0,), s, "gram"] for s in "abc"}, {s: first.stats[(), s, "gram"] for s in "abc"}, 1e-6)
    pruned = pruning.view(v, pruning.init(v, first))
    x = np.concatenate(batches)
    h = np.tanh(x @ pruned["a"])
    near(info.stats[(1, 0), "b", "gram"], h.T @ h)
    seen = method.view(v, method.init(v, info))
    np.testing.assert_array_equal(np.asarray(seen["a"]) == 0, np.asarray(pruned["a"]) == 0)


def test_wanda_keeps_what_its_formula_says(rng):
    apply, v, batches = scan_case(rng)
    method = prune(wanda, sparsity=0.5)
    seen = method.view(v, method.init(v, calibrate(Network(apply, v), method, batches)))
    x = np.concatenate(batches)
    for layer in range(3):
        score = np.abs(v["up"][layer]) * np.sqrt((x**2).sum(0))[:, None]
        kept = np.asarray(seen["up"][layer]) != 0
        assert kept.sum() == score.size // 2 and score[kept].min() >= score[~kept].max()
        x = x + np.tanh(x @ np.asarray(v["up"][layer])) @ np.asarray(v["down"][layer])
    assert (np.asarray(seen["up"]) != np.asarray(prune(sparsity=0.5).view(v, prune(sparsity=0.5).init(v))["up"])).any()


def test_leaves_that_no_statistic_can_be_laid_beside_are_left_alone_and_named(rng):
    """A weight that is summed up before use, a PRNG key; and batches of two sizes, with a weight spread over each."""
    v = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in {"a": (8, 6), "b": (6, 4), "q": (5, 4)}.items()}
    v["key"] = jax.random.key(0)

    def apply(v, x):
        spread = jnp.broadcast_to(jnp.cumsum(v["q"], 0), (len(x), 5, 4))
        return jnp.einsum("bo,bio->bi", x @ v["a"] @ v["b"], spread)

    info = calibrate(Network(apply, v), (method := prune(wanda, sparsity=0.5)), [jnp.ones((n, 8)) for n in (4, 3)])
    seen = method.view(v, method.init(v, info))
    assert [float((seen[k] == 0).mean()) for k in ("a", "b", "q")] == [0.5, 0.5, 0.0]
    reasons = {m.path: m.reason for m in explain(method, v, info)}
    assert "`cumsum`" in reasons["q"] and "key" in reasons["key"] and set(reasons) == {"q", "key"}


def test_members_beside_each_other_keep_their_own_statistics(rng):
    _, v, batches = mlp_case(rng)
    v = {**v, "a": v["a"].at[:, :6].set(0)}
    relu = lambda v, x: jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"]) @ v["c"]
    method = chain(prune_neurons(share=0.25), prune_neurons(share=0.75))
    info = calibrate(Network(relu, v), method, batches)
    seen = method.view(v, method.init(v, info))
    first = prune_neurons(share=0.25)
    once = first.view(v, first.init(v, calibrate(Network(relu, v), first, batches)))
    gone = lambda view: int((~np.asarray(view["b"]).any(0)).sum())
    assert (gone(once), gone(seen)) == (2, 7), "of the 12 and 10 units of both layers together, to the nearest one"


def test_neurons_by_path_and_without_statistics(rng):
    _, v, batches = mlp_case(rng)
    relu = lambda v, x: jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"]) @ v["c"]
    method = by_path([("c", quantize(8)), ("*", prune_neurons(share=0.5))])
    with pytest.raises(ValueError, match="the units of b also lie in c"):
        method.init(v, calibrate(Network(relu, v), method, batches))
    method = chain(where("*", prune_neurons(share=0.5)), where("c", quantize(8)))
    info = calibrate(Network(relu, v), method, batches)
    seen = method.view(v, method.init(v, info))
    assert (np.asarray(seen["a"]).any(0)).sum() == 6 and (np.asarray(seen["c"]).any(1)).sum() == 5
    with pytest.raises(ValueError, match="calibrate"):
        method.init(v, inspect(relu, v, batches[0]))
    units = dead_units(relu, v, jnp.concatenate(batches))
    assert set(units.masks) <= set(v)


def test_sequential_is_what_one_does_by_hand(rng):
    apply, v, batches = mlp_case(rng)
    method = rounding()
    info = calibrate(Network(apply, v), method, batches, sequential=True)
    now, x = dict(v), np.concatenate(batches)
    for path in "abc":
        near(info.stats[(), path, "gram"], x.T @ x, 2e-5)
        own = calibrate(Network(apply, now), where(path, method), batches)
        now[path] = where(path, method).view(now, where(path, method).init(now, own))[path]
        x = np.tanh(x @ np.asarray(now[path]))
    near(method.view(v, method.init(v, info)), now)
    together = calibrate(Network(apply, v), method, batches)
    assert np.abs(together.stats[(), "c", "gram"] - info.stats[(), "c", "gram"]).max() > 1e-2


def test_sequential_in_a_scan_takes_the_layers_in_turn(rng):
    apply, v, batches = scan_case(rng)
    method = rounding()
    info = calibrate(Network(apply, v), method, batches, sequential=True)
    new = {k: np.asarray(x) for k, x in method.view(v, method.init(v, info)).items()}
    x = np.concatenate(batches)
    for layer in range(3):
        near(info.stats[(), "up", "gram"][layer], x.T @ x, 2e-5)
        h = np.tanh(x @ new["up"][layer])
        near(info.stats[(), "down", "gram"][layer], h.T @ h, 2e-5)
        x = x + h @ new["down"][layer]


def test_sequential_refuses_what_weighs_leaves_against_each_other(rng):
    apply, v, batches = mlp_case(rng)
    with pytest.raises(ValueError, match="sequential"):
        calibrate(Network(apply, v), prune(wanda, sparsity=0.5, allocation=global_budget), batches, sequential=True)


# -- what can go wrong -------------------------------------------------------------------------------------------------


def test_bad_input_is_told(rng):
    apply, v, batches = mlp_case(rng)
    method = seeing(gram=taps.gram())
    with pytest.raises(ValueError, match="no batch"):
        calibrate(Network(apply, v), method, [])
    with pytest.raises(ValueError, match="once only"):
        calibrate(Network(apply, v), method, iter(batches))
    with pytest.raises(ValueError, match=r"a: NaN or Inf.*gram"):
        calibrate(Network(apply, v), method, [batches[0], batches[1].at[0, 0].set(jnp.nan)])
    with pytest.raises(ValueError, match=r"weights of shape \(3,\)"):
        calibrate(Network(apply, v), method, batches, weights=lambda x: np.ones(3))
    with pytest.raises(ValueError, match="compressed"):
        calibrate(Network(apply, quantize(4).pack(v, quantize(4).init(v))), method, batches)
    with pytest.raises(ValueError, match=r"a: has 8 inputs.*block=5"):
        calibrate(Network(apply, v), seeing(gram=taps.gram(5)), batches)
    with pytest.raises(ValueError, match="is missing; pass info=calibrate"):
        rounding().init(v, inspect(apply, v, batches[0]))


def test_a_later_pass_that_ends_early_is_told(rng):
    apply, v, batches = mlp_case(rng)
    calls = []

    def shrinking():
        calls.append(1)
        return iter(batches[: 4 if len(calls) <= 2 else 2])

    with pytest.raises(ValueError, match="gone over again"):
        calibrate(Network(apply, v), chain(prune(wanda, sparsity=0.5), rounding()), shrinking)


def test_a_method_that_needs_nothing_costs_no_pass(rng):
    apply, v, batches = mlp_case(rng)
    info = calibrate(Network(apply, v), quantize(4), batches)
    assert info.stats == {} and info.roles == inspect(apply, v, batches[0]).roles


def test_the_accumulators_are_donated(rng):
    """The compiled step holds the statistics once, beside the batch and what the model needs."""
    apply, v, batches = mlp_case(rng)
    capturing = capture(apply, taps.gram())
    totals = capturing.zeros(v, batches[0])
    step = jax.jit(capturing.accumulate, donate_argnums=0).lower(totals, v, batches[0]).compile()
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves(totals))


# -- the zoo -----------------------------------------------------------------------------------------------------------

#: A convolution, a scan, experts, tied weights with grouped heads, and layers taken by a traced index.
FIVE = ("lenet5", "gpt_scan", "moe", "gpt", "indexed_layers")


@pytest.mark.parametrize("name", FIVE)
def test_the_zoo_against_numpy(name):
    """Rows of each site as ``tests/interpret/test_matrix.py`` proves them, and their statistics by NumPy in float64."""
    m = ZOO[name]()
    wanted = {"gram": taps.gram(), "moments": taps.moments(), "activity": taps.activity()}
    info = calibrate(Network(m.apply, m.variables), seeing(**wanted), [m.inputs])
    _, rows = capture(m.apply, keep("input"))(m.variables, *m.inputs)
    sites = [s for s in info.sites if ((), s.name, "gram") in info.stats]
    assert sites
    for site in sites:
        entries = rows[site.name].reshape((-1, *rows[site.name].shape[len(site.stack) :]))
        ours = {t: info.stats[(), site.name, t] for t in wanted}
        for i, x in enumerate(np.asarray(entries, np.float64)):
            own = jax.tree.map(lambda s, i=i, site=site: s.reshape((-1, *s.shape[len(site.stack) :]))[i], ours)
            if site.kind == "gather":
                np.testing.assert_array_equal(own["gram"], np.bincount(x.astype(int).reshape(-1), minlength=site.inputs))
                continue
            theirs = numpy_statistics(x.reshape(-1, x.shape[-1]))
            near(own, {t: theirs[t] for t in wanted}, 1e-5)
