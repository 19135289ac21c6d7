"""SparseGPT and OBS against least squares on every support, the authors' algorithm in NumPy and a naive surgeon: float64."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.numerics import obs


def layer(inputs, outputs, seed=0, rows=None):
    """Weights, inputs that are correlated, and their Gram matrix."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + 2 * np.eye(inputs)
    x = rng.standard_normal((rows or 4 * inputs, inputs)) @ mix
    return rng.standard_normal((inputs, outputs)), x, x.T @ x


def hessian(gram, damping):
    return gram + damping * np.mean(np.diag(gram)) * np.eye(len(gram))


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def cost(change, gram):
    return float(np.einsum("io,ij,jo->", change, gram, change))


def all_supports(n):
    return np.array(list(itertools.product([True, False], repeat=n))).T  # [n, 2^n]


def column_by_column(w, h, keep):
    """Each weight in turn: the least-squares solution beside those that are done, kept or set to zero."""
    done = np.zeros(0)
    for j, kept in enumerate(keep):
        right = h[j:] @ w - h[j:, :j] @ done  # the normal equations of the weights from j on
        done = np.append(done, np.linalg.solve(h[j:, j:], right)[0] * kept)
    return done


@pytest.mark.parametrize(("n", "block"), [(1, 128), (6, 128), (6, 4), (10, 128), (10, 3)])
def test_a_given_mask_is_least_squares_column_by_column_on_every_support(n, block):
    w, _, gram = layer(n, 1, n)
    masks = all_supports(n)
    w = np.repeat(w, masks.shape[1], 1)
    made = obs.compensated(*f32(w, gram), jnp.asarray(masks), block=block, damping=0.01)
    h = hessian(gram, 0.01)
    wanted = np.stack([column_by_column(w[:, o], h, masks[:, o]) for o in range(masks.shape[1])], 1)
    np.testing.assert_allclose(made, wanted, atol=2e-4)
    assert (np.asarray(made)[~masks] == 0).all()


def refit(w, h, keep):
    at, out = np.flatnonzero(keep), np.zeros(len(w))
    if len(at):
        out[at] = np.linalg.solve(h[np.ix_(at, at)], (h @ w)[at])
    return out


def test_refitted_is_least_squares_on_every_support():
    w, _, gram = layer(8, 1)
    masks = all_supports(8)
    w = np.repeat(w, masks.shape[1], 1)
    h = hessian(gram, 0.01)
    wanted = np.stack([refit(w[:, o], h, masks[:, o]) for o in range(masks.shape[1])], 1)
    np.testing.assert_allclose(obs.refitted(*f32(w, gram), jnp.asarray(masks)), wanted, atol=2e-4)


def test_where_all_that_goes_stands_first_sparsegpt_is_the_optimum():
    """Of the other supports it is none: what stays was fixed before later weights went."""
    w, _, gram = layer(9, 1)
    masks = all_supports(9)
    w, h = np.repeat(w, masks.shape[1], 1), hessian(gram, 0.01)
    made = np.asarray(obs.compensated(*f32(w, gram), jnp.asarray(masks)))
    best = np.stack([refit(w[:, o], h, masks[:, o]) for o in range(masks.shape[1])], 1)
    ahead = (np.diff(masks.astype(int), axis=0) >= 0).all(0)
    np.testing.assert_allclose(made[:, ahead], best[:, ahead], atol=2e-4)
    assert ahead.sum() == 10
    excess = [cost((made - w)[:, [o]], h) - cost((best - w)[:, [o]], h) for o in np.flatnonzero(~ahead)]
    assert min(excess) > -1e-3 * cost(w[:, :1], h) and max(excess) > 1e-2 * cost(w[:, :1], h)


def authors(w, gram, sparsity, pattern, block, damping):
    """Algorithm 1 as the authors' code has it (``fasterprune``), rows are outputs; the count of each block is exact."""
    w, inputs = w.T.copy(), len(gram)
    kept_of = obs.kept_by_block(inputs, len(w), sparsity or 0.0, block)
    inverse = np.linalg.inv(hessian(gram, damping))
    upper = np.linalg.cholesky(inverse).T
    for b, i in enumerate(range(0, inputs, block)):
        end = min(i + block, inputs)
        own, factor = w[:, i:end].copy(), upper[i:end, i:end]
        errors, mask = np.zeros_like(own), np.ones_like(own, bool)
        if pattern is None:
            score = (own**2 / np.diag(factor) ** 2).T.ravel()
            keep = np.argsort(-score, kind="stable")[: kept_of[b]]
            mask = np.isin(np.arange(score.size), keep).reshape(own.shape[::-1]).T
        for j in range(end - i):
            if pattern is not None and j % pattern[1] == 0:
                n, m = pattern
                score = own[:, j : j + m] ** 2 / np.diag(factor)[j : j + m] ** 2
                rank = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1)
                mask[:, j : j + m] = rank < n
            new = np.where(mask[:, j], own[:, j], 0)
            errors[:, j] = (own[:, j] - new) / factor[j, j]
            own[:, j:] -= np.outer(errors[:, j], factor[j, j:])
            own[:, j] = new
        w[:, i:end] = own
        w[:, end:] -= errors @ upper[i:end, end:]
    return w.T


CASES = [
    (24, 16, 0.5, None, 8), (24, 16, 0.5, None, 7), (24, 16, 0.7, None, 128), (13, 1, 0.4, None, 4), (1, 5, 0.4, None, 4),
    (24, 16, None, (2, 4), 8), (24, 16, None, (1, 3), 7), (20, 3, None, (2, 4), 16), (24, 16, 0.0, None, 8),
    (24, 5, 1.0, None, 8),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "outputs", "sparsity", "pattern", "block"), CASES)
def test_sparsegpt_is_the_authors_algorithm(inputs, outputs, sparsity, pattern, block):
    w, _, gram = layer(inputs, outputs, 3)
    made, mask, pivot = obs.sparsegpt(*f32(w, gram), sparsity=sparsity, pattern=pattern, block=block, damping=0.01)
    size = block if pattern is None else -(-block // pattern[1]) * pattern[1]
    wanted = authors(w, gram, sparsity, pattern, size, 0.01)
    np.testing.assert_array_equal(np.asarray(made) != 0, wanted != 0)
    np.testing.assert_array_equal(mask, wanted != 0)
    np.testing.assert_allclose(made, wanted, atol=1e-3)
    assert float(pivot) > 0


@pytest.mark.parametrize("sparsity", [0.0, 0.013, 0.37, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("block", [1, 5, 8, 100])
def test_counts_are_exact_whatever_the_block(sparsity, block):
    kept = obs.kept_by_block(19, 7, sparsity, block)
    assert kept.sum() == 133 - round(sparsity * 133) and (kept >= 0).all()
    sizes = 7 * np.diff(np.minimum(np.arange(0, 19 + block, block), 19))
    assert (np.abs(kept - (1 - sparsity) * sizes) <= 1).all() and (kept <= sizes).all()


def naive_surgeon(w, h, count):
    """Removes ``count`` weights of ``w [I, O]``, the cheapest of all first, and refits after each."""
    w, masks = w.copy(), np.ones_like(w, bool)
    target = w.copy()
    for _ in range(count):
        best = None
        for o, i in itertools.product(range(w.shape[1]), range(len(w))):
            if masks[i, o]:
                keep = masks[:, o].copy()
                keep[i] = False
                new = refit(target[:, o], h, keep)
                rise = cost((new - target[:, o])[:, None], h) - cost((w[:, o] - target[:, o])[:, None], h)
                best = min(best or (rise, i, o, new), (rise, i, o, new), key=lambda found: found[0])
        _, i, o, new = best
        masks[i, o], w[:, o] = False, new
    return w, masks


@pytest.mark.parametrize("count", [0, 1, 7, 15, 23, 24])
def test_the_surgeon_takes_the_cheapest_first(count):
    """As each removal tried by a refit says, which knows no inverse; the outputs share one budget."""
    w, _, gram = layer(8, 3, 5)
    made, mask, _ = obs.surgeon(*f32(w, gram), sparsity=count / 24, damping=0.01)
    wanted, kept = naive_surgeon(w, hessian(gram, 0.01), count)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(made, wanted, atol=5e-4)


def test_the_surgeon_among_all_supports():
    """Of ten weights it takes the best one; for five it is the optimum in half of the layers and 1.3 times it on average.

    SparseGPT, which fixes what stays before it knows what goes, comes to four times the optimum, magnitude to five.
    """
    found = []
    for seed in range(16):
        w, _, gram = layer(10, 1, seed)
        h = hessian(gram, 0.01)
        best, ours = {}, {}
        for size in (9, 5):
            keeps = [np.isin(np.arange(10), at) for at in itertools.combinations(range(10), size)]
            best[size] = min(cost((refit(w[:, 0], h, keep) - w[:, 0])[:, None], h) for keep in keeps)
            made, _, _ = obs.surgeon(*f32(w, gram), sparsity=1 - size / 10, damping=0.01)
            ours[size] = cost(made - w, h)
        assert ours[9] == pytest.approx(best[9], rel=1e-3) and ours[5] > best[5] * 0.999
        fast, _, _ = obs.sparsegpt(*f32(w, gram), sparsity=0.5, pattern=None, block=128, damping=0.01)
        plain = np.where(np.abs(w) >= np.sort(np.abs(w), 0)[5], w, 0)
        found.append(np.log([ours[5], cost(fast - w, h), cost(plain - w, h)]) - np.log(best[5]))
    surgeon, fast, plain = np.exp(np.mean(found, 0))
    assert 1 < surgeon < 1.5 < 0.5 * fast and fast < 0.95 * plain


def test_with_independent_inputs_sparsegpt_is_the_best_of_all_supports():
    w, _, _ = layer(10, 1)
    gram = np.diag(np.random.default_rng(1).uniform(0.1, 9, 10))
    made = np.asarray(obs.sparsegpt(*f32(w, gram), sparsity=0.4, pattern=None, block=128, damping=0.0)[0])
    best = min(itertools.combinations(range(10), 4), key=lambda gone: sum(w[i, 0] ** 2 * gram[i, i] for i in gone))
    np.testing.assert_array_equal(np.flatnonzero(made[:, 0] == 0), best)
    np.testing.assert_allclose(made[made != 0], w[made != 0], rtol=1e-5)
    short = obs.independent(*f32(w, np.diag(gram)), sparsity=0.4, pattern=None, damping=0.0)[0]
    np.testing.assert_allclose(short, made, rtol=1e-5)


def test_inputs_that_are_always_zero_go_first():
    w, x, _ = layer(12, 6)
    x[:, [2, 7]] = 0
    w[[2, 7]] *= 10
    made, mask, _ = obs.sparsegpt(*f32(w, x.T @ x), sparsity=0.5, pattern=None, block=128, damping=0.0)
    assert not np.asarray(mask)[[2, 7]].any() and mask.sum() == 36
    made, mask, _ = obs.sparsegpt(*f32(w, x.T @ x), sparsity=1 / 12, pattern=None, block=128, damping=0.01)
    kept = np.asarray(mask)[[2, 7]]
    assert kept.sum() == 6 and np.asarray(mask)[[i for i in range(12) if i not in (2, 7)]].all()
    np.testing.assert_allclose(np.asarray(made)[[2, 7]][kept], w[[2, 7]][kept], rtol=1e-5)
    assert np.abs(w[[2, 7]][kept]).min() > np.abs(w[[2, 7]][~kept]).max()


def test_a_layer_that_reads_zeros_only_is_pruned_by_magnitude():
    w, _, _ = layer(6, 5)
    made = np.asarray(obs.sparsegpt(*f32(w, np.zeros((6, 6))), sparsity=0.5, pattern=None, block=128, damping=0.01)[0])
    np.testing.assert_allclose(made, np.where(np.abs(w) >= np.sort(np.abs(w).ravel())[15], w, 0), rtol=1e-6)


def test_singular_gram_matrices_need_damping():
    """Fewer rows than inputs: with damping all is finite and better than magnitude; without, the pivot tells."""
    w, _, gram = layer(16, 8, rows=5)
    made, _, pivot = obs.sparsegpt(*f32(w, gram), sparsity=0.5, pattern=None, block=4, damping=0.01)
    plain = np.where(np.abs(w) >= np.sort(np.abs(w).ravel())[64], w, 0)
    assert cost(np.asarray(made, np.float64) - w, gram) < 0.5 * cost(plain - w, gram) and pivot > 1e-4
    _, _, pivot = obs.sparsegpt(*f32(w, gram), sparsity=0.5, pattern=None, block=4, damping=0.0)
    assert not pivot > 4 * 16 * np.finfo(np.float32).eps
