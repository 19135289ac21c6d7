"""Calibration over batches: split, weighed, on many devices, interrupted; and which rows of a task's data it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.combine import chain
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods import taps
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.pipeline.calibrate import calibrate, calibration_inputs
from jaxopt_nn.pipeline.checkpoints import Checkpoints
from jaxopt_nn.pipeline.numbers import regression
from tests.pipeline.test_calibrate import (
    EVERY,
    mlp_case,
    near,
    rounding,
    scan_case,
    seeing,
    wanda,
)


def test_rows_that_fill_up_a_short_batch_are_not_seen(rng):
    """Three rows a batch, two in the last: as all eight at once."""
    x, y = rng.standard_normal((8, 4)).astype(np.float32), np.zeros((8, 2), np.float32)
    loader = [(x[i : i + 3], y[i : i + 3]) for i in (0, 3, 6)]
    network = Network(lambda v, x: x @ v["w"], {"w": jnp.ones((4, 2))})
    method = seeing(gram=taps.gram(), moments=taps.moments())
    split = calibrate(network, method, calibration_inputs(network, regression(train=loader, test=loader)))
    whole = calibrate(network, method, [x])
    for key, value in whole.stats.items():
        near(split.stats[key], value)
    assert float(split.stats[(), "w", "moments"]["weight"]) == 8


@pytest.mark.parametrize("case", [mlp_case, scan_case])
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_eight_devices_equal_one(rng, case, kind):
    apply, v, batches = case(rng)
    method = seeing(**EVERY)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    one, eight = calibrate(Network(apply, v), method, batches), calibrate(Network(apply, v), method, batches, mesh=mesh)
    for key, stat in one.stats.items():
        near(eight.stats[key], stat, 1e-6)


@pytest.mark.parametrize("case", [mlp_case, scan_case])
def test_any_split_of_the_batches_gives_the_same(rng, case):
    apply, v, batches = case(rng)
    whole = np.concatenate(batches)
    one = calibrate(Network(apply, v), seeing(**EVERY), [whole])
    for cuts in ([16], [5, 11, 12, 40]):
        other = calibrate(Network(apply, v), seeing(**EVERY), np.split(whole, cuts))
        for key, stat in one.stats.items():
            near(other.stats[key], stat, 1e-6)


def test_weights_of_tokens_reach_the_sites(rng):
    v = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in
         {"a": (4, 4, 2), "b": (8, 3), "pooled": (3, 2)}.items()}  # fmt: skip
    x = jnp.asarray(rng.standard_normal((2, 5, 4)), jnp.float32)
    w = jnp.asarray(rng.random((2, 5)), jnp.float32).at[0, 3].set(0.0)

    def apply(v, x):
        h = jax.nn.softmax(jnp.einsum("bti,ihd->bthd", x, v["a"]), axis=-1)
        y = h.swapaxes(0, 1).reshape(5, 2, 8) @ v["b"]
        return y.mean(0) @ v["pooled"]

    info = calibrate(Network(apply, v), seeing(**EVERY), [x, x], weights=lambda x: w)
    rows, each = np.asarray(x).reshape(-1, 4), np.asarray(w).reshape(-1)
    near(info.stats[(), "a", "gram"], 2 * np.einsum("n,ni,nj->ij", each, rows, rows))
    near(info.stats[(), "a", "moments"]["mean"], np.average(rows, 0, each))
    h = np.asarray(jax.nn.softmax(np.einsum("bti,ihd->bthd", x, v["a"]), axis=-1)).reshape(-1, 8)
    near(info.stats[(), "b", "gram"], 2 * np.einsum("n,ni,nj->ij", each, h, h))
    y = (h @ np.asarray(v["b"])).reshape(2, 5, 3).mean(1)
    near(info.stats[(), "pooled", "gram"], 2 * y.T @ y)
    assert [m.path for m in info.report if "unweighted" in m.reason] == ["pooled"]


def test_a_shift_of_the_tokens_is_not_followed(rng):
    """Token shift by one padding, which keeps the length: row t holds token t - 1."""
    x, w = jnp.asarray(rng.standard_normal((2, 5, 4)), jnp.float32), jnp.asarray(rng.random((2, 5)), jnp.float32)
    apply = lambda v, x: lax.pad(x, 0.0, ((0, 0, 0), (1, -1, 0), (0, 0, 0))) @ v["a"]
    info = calibrate(Network(apply, {"a": jnp.ones((4, 3))}), seeing(**EVERY), [x], weights=lambda x: w)
    rows = np.asarray(x)[:, :-1].reshape(-1, 4)
    near(info.stats[(), "a", "gram"], rows.T @ rows)
    assert [m.path for m in info.report if "unweighted" in m.reason] == ["a"]


def test_all_sites_that_share_an_unweighted_statistic_are_named(rng):
    v = {k: jnp.asarray(rng.standard_normal((4, 3)), jnp.float32) for k in ("a", "b")}
    x = jnp.asarray(rng.standard_normal((6, 4)), jnp.float32)

    def apply(v, x):
        h = jnp.sort(x, 0)
        return h @ v["a"] + h @ v["b"]

    info = calibrate(Network(apply, v), seeing(**EVERY), [x], weights=lambda x: jnp.arange(6.0))
    near(info.stats[(), "b", "gram"], np.sort(x, 0).T @ np.sort(x, 0))
    assert sorted(m.path for m in info.report if "unweighted" in m.reason) == ["a", "b"]


def test_a_row_of_weight_zero_is_not_seen(rng):
    apply, v, batches = mlp_case(rng)
    x = batches[0]
    spoilt = x.at[3].set(jnp.nan)
    weights = lambda x: jnp.ones(16).at[3].set(0.0)
    ours = calibrate(Network(apply, v), seeing(**EVERY), [spoilt], weights=weights)
    theirs = calibrate(Network(apply, v), seeing(**EVERY), [jnp.delete(x, 3, axis=0)])
    for key, stat in theirs.stats.items():
        near(ours.stats[key], stat, 1e-6)


def test_interrupted_and_resumed_it_gives_the_same_bits(rng, tmp_path):
    apply, v, batches = scan_case(rng)
    method = chain(prune(wanda, sparsity=0.5), rounding())
    whole = calibrate(Network(apply, v), method, batches)
    place = lambda name: Checkpoints(tmp_path / name, seconds=0)

    for stop in (2, 1, 4, 2, 9):  # every stretch is cut off after so many batches

        class Cut(Exception):
            pass

        left = [stop]

        def stream(left=left, Cut=Cut):
            for batch in batches:
                if left[0] == 0:
                    raise Cut
                left[0] -= 1
                yield batch

        try:
            info = calibrate(Network(apply, v), method, stream, checkpoints=place)
            break
        except Cut:
            continue
    else:
        info = calibrate(Network(apply, v), method, lambda: iter(batches), checkpoints=place)
    assert info.stats.keys() == whole.stats.keys()
    for key, stat in whole.stats.items():
        for a, b in zip(jax.tree.leaves(info.stats[key]), jax.tree.leaves(stat), strict=True):
            np.testing.assert_array_equal(a, b)
