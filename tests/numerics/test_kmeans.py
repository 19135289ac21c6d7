"""K-means: the exact one against all partitions, Lloyd's against scikit-learn's; what is defined where values are few."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.numerics import exact_kmeans, kmeans, vector_kmeans


def brute(values, mass, k, origin):
    """The least cost of all partitions of sorted values into ``k`` intervals, one of them about zero under ``origin``."""
    order = np.argsort(values)
    v, w = np.asarray(values, np.float64)[order], np.asarray(mass, np.float64)[order]
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(v) + 1), k - 1):
        own, zero = [], []
        for i, j in itertools.pairwise((0, *cuts, len(v))):
            x, m = v[i:j], w[i:j]
            own.append(np.sum(m * (x - np.sum(m * x) / m.sum()) ** 2) if i < j else 0.0)
            zero.append(np.sum(m * x**2))
        best = min(best, min(sum(own) - own[q] + zero[q] for q in range(k)) if origin else sum(own))
    return best


RUNS = jax.jit(kmeans._runs, static_argnums=2)
LLOYD = jax.jit(kmeans.lloyd, static_argnums=2)
NEAREST = jax.jit(kmeans.nearest, static_argnums=2)


def whole(centres, origin):
    return np.append(np.asarray(centres), 0.0) if origin else np.asarray(centres)


@pytest.mark.parametrize("origin", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_exact_centres_are_the_best_of_all_partitions(k, origin, rng):
    for n in range(1, 10):
        values = np.round(rng.standard_normal(n), 1).astype(np.float32)
        mass = rng.integers(1, 5, n).astype(np.float32)
        if n % 3 == 0:
            values[0] = 0.0
        centres = exact_kmeans.exact(values, mass, k=k, origin=origin)
        assert centres.shape == (k - origin,) and (np.diff(centres) >= 0).all()
        np.testing.assert_allclose(kmeans.cost(values, whole(centres, origin), mass), brute(values, mass, k, origin), atol=1e-6)


def test_the_exact_centres_far_from_zero_keep_their_digits(rng):
    values = (1000 + rng.standard_normal(64)).astype(np.float32)
    shifted = exact_kmeans.exact(values - np.float32(1000), k=4) + 1000
    np.testing.assert_allclose(exact_kmeans.exact(values, k=4), shifted, rtol=1e-7)


def test_mass_is_repetition(rng):
    values, mass = rng.standard_normal(40).astype(np.float32), rng.integers(1, 6, 40)
    repeated = np.repeat(values, mass)
    begin = jnp.asarray([-1.0, -0.2, 0.3, 1.5])
    one = LLOYD(RUNS(jnp.asarray(values), jnp.asarray(mass, jnp.float32), False), begin)
    other = LLOYD(RUNS(jnp.asarray(repeated), None, False), begin)
    np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(
        exact_kmeans.exact(values, mass, k=5), exact_kmeans.exact(repeated, k=5), rtol=1e-6
    )  # fmt: skip


def test_lloyd_is_scikit_learns(rng):
    from sklearn.cluster import KMeans

    values = rng.standard_normal(500).astype(np.float32)
    mass = rng.random(500).astype(np.float32)
    begin = np.linspace(-2, 2, 6, dtype=np.float32)
    theirs = KMeans(6, init=begin[:, None], n_init=1, max_iter=400, tol=0.0, algorithm="lloyd").fit(values[:, None], None, mass)
    ours = LLOYD(RUNS(jnp.asarray(values), jnp.asarray(mass), False), jnp.asarray(begin), False, 400)
    np.testing.assert_allclose(ours, np.sort(theirs.cluster_centers_[:, 0]), rtol=2e-5, atol=1e-6)
    labels = NEAREST(jnp.asarray(values), jnp.asarray(theirs.cluster_centers_[:, 0]))
    np.testing.assert_array_equal(labels, theirs.labels_)


@pytest.mark.parametrize("origin", [False, True])
def test_the_cost_never_rises_and_ends_near_the_best(origin, rng):
    values = rng.standard_t(3, 300).astype(np.float32)
    values[::7] = 0.0
    runs, costs = RUNS(jnp.asarray(values), None, origin), []
    begin = jnp.linspace(-4.0, 5.0, 8 - origin)
    for steps in range(12):
        centres = LLOYD(runs, begin, origin, steps)
        costs.append(kmeans.cost(values, whole(centres, origin)))
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(costs)) and costs[-1] < 0.8 * costs[0]
    best = kmeans.cost(values, whole(exact_kmeans.exact(values, k=8, origin=origin), origin))
    fit = lambda start: kmeans.fit(jnp.asarray(values), k=8, start=start, key=jax.random.key(1), origin=origin)
    found = [kmeans.cost(values, whole(fit(start), origin)) for start in kmeans.STARTS]
    assert best * (1 - 1e-6) <= min(found) < 1.2 * best


def test_sums_of_small_cells_beside_large_ones_keep_their_digits():
    """Eight values about 1000 beside 200,000: a plain float32 prefix sum would lose them."""
    rng = np.random.default_rng(0)
    values = np.r_[rng.uniform(900, 950, 200_000), rng.uniform(1e4, 1.1e4, 8)].astype(np.float32)
    centres = LLOYD(RUNS(jnp.asarray(values), None, False), jnp.asarray([900.0, 1e4]), False, 1)
    np.testing.assert_allclose(centres, [values[:-8].mean(dtype=np.float64), values[-8:].mean(dtype=np.float64)], rtol=3e-7)


STARTED = {"linear": [-4.0, -1.0, 2.0, 5.0], "density": [-3.0, -1.0, 1.0, 5.0]}


@pytest.mark.parametrize("start", STARTED)
def test_starts(start):
    values = jnp.asarray([-4.0, -3.0, -2.0, -1.0, 0.5, 1.0, 2.0, 5.0])
    begin = jax.jit(lambda x: kmeans._start(kmeans._runs(x, None, False), 4, start, None, False))(values)
    np.testing.assert_allclose(begin, STARTED[start], atol=1e-6)


def test_random_starts_are_values_and_zeros_count_for_nothing():
    values = jnp.asarray([0.0] * 90 + [1.0, 2.0, 3.0, -7.0])
    for origin in (False, True):
        for start in ("random", "kmeans++", "density"):

            def made(x, key, start=start, origin=origin):
                return kmeans._start(kmeans._runs(x, None, origin), 3, start, key, origin)

            begin = np.asarray(jax.jit(made)(values, jax.random.key(3)))
            assert set(begin.tolist()) <= ({1.0, 2.0, 3.0, -7.0} if origin else {0.0, 1.0, 2.0, 3.0, -7.0})


FEW = ([0.0], [2.5], [0.0, 0.0, 0.0, 1.0], [-1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, -2.0, 1e-30])


@pytest.mark.parametrize("start", kmeans.STARTS)
def test_no_more_different_values_than_centres_are_kept_to_the_bit(start):
    for values, origin in itertools.product(FEW, (False, True)):
        x = jnp.asarray(np.resize(values, 8), jnp.float32) / 3
        centres = kmeans.fit(x, k=6, start=start, key=jax.random.key(0), origin=origin)
        assert np.isfinite(centres).all()
        codes = NEAREST(x, centres, origin)
        full = np.append(np.float32(0), centres) if origin else np.asarray(centres)
        np.testing.assert_array_equal(full[codes], x)


def test_ties_and_zeros():
    x = jnp.asarray([-0.0, 0.0, 1.0, 2.0, 3.0, -5.0])
    np.testing.assert_array_equal(NEAREST(x, jnp.asarray([3.0, 1.0]), False), [1, 1, 1, 1, 0, 1])  # 2 lies halfway
    np.testing.assert_array_equal(NEAREST(x, jnp.asarray([0.0, 4.0, 0.0]), True), [0, 0, 0, 0, 2, 0])


def test_a_cell_without_mass_keeps_its_centre():
    runs = RUNS(jnp.asarray([0.0, 1.0, 10.0]), jnp.asarray([1.0, 1.0, 0.0]), False)
    np.testing.assert_allclose(LLOYD(runs, jnp.asarray([0.4, 8.0, 30.0])), [0.5, 8.0, 30.0])


# -- vectors -------------------------------------------------------------------------------------------------------------


def summed(tables, codes):
    return sum(np.asarray(tables[m])[np.asarray(codes)[:, m]] for m in range(len(tables)))


def test_vector_lloyd_is_scikit_learns(rng):
    from sklearn.cluster import KMeans

    rows = rng.standard_normal((300, 3)).astype(np.float32)
    mass = np.repeat(rng.random((300, 1)).astype(np.float32), 3, 1)
    begin = rows[:7].copy()
    theirs = KMeans(7, init=begin, n_init=1, max_iter=400, tol=0.0, algorithm="lloyd").fit(rows, None, mass[:, 0])
    run = jax.jit(lambda *args: vector_kmeans.lloyd(*args, iterations=400))
    ours, labels = run(*map(jnp.asarray, (rows, mass, begin)))
    np.testing.assert_allclose(ours, theirs.cluster_centers_, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, theirs.labels_)


def test_mass_of_single_entries_is_minimised(rng, monkeypatch):
    """Of each entry its own mass: by an explicit loop, more rows than a piece holds."""
    monkeypatch.setattr(vector_kmeans, "ROWS", 16)
    rows, mass = rng.standard_normal((50, 2)).astype(np.float32), rng.random((50, 2)).astype(np.float32)
    begin = rows[:4]
    centres, labels = vector_kmeans.lloyd(*map(jnp.asarray, (rows, mass, begin)), iterations=1)
    first = np.array([np.argmin([np.sum(m * (x - c) ** 2) for c in begin]) for x, m in zip(rows, mass)])
    for c in range(4):
        own = first == c
        np.testing.assert_allclose(centres[c], (mass * rows)[own].sum(0) / mass[own].sum(0), rtol=1e-5)
    for x, m, label in zip(rows, mass, labels):
        assert label == np.argmin([np.sum(m * (x - c) ** 2) for c in np.asarray(centres)])


def test_stages_add_up_and_sweeps_never_raise_the_cost(rng):
    rows = rng.standard_normal((200, 4)).astype(np.float32)
    fit = lambda **options: vector_kmeans.fit(jnp.asarray(rows), None, jax.random.key(0), k=8, **options)
    cost = lambda fitted: float(np.sum((rows - summed(*fitted)) ** 2))
    costs = [cost(fit(stages=2, sweeps=sweeps)) for sweeps in range(4)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(costs)) and costs[3] < costs[0]
    assert costs[0] < cost(fit(stages=1))
    tables, codes = fit(stages=2)
    assert tables.shape == (2, 8, 4) and codes.shape == (200, 2) and codes.dtype == jnp.uint8


def test_more_centres_than_rows_lose_nothing(rng):
    rows = rng.standard_normal((3, 2)).astype(np.float32)
    tables, codes = vector_kmeans.fit(jnp.asarray(rows), None, jax.random.key(0), k=5)
    np.testing.assert_allclose(summed(tables, codes), rows, rtol=1e-6)
    assert np.isfinite(tables).all()
