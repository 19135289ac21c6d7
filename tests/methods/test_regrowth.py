"""RigL and SET against the authors' procedure in NumPy; what returns starts from zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.gates import every
from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.methods.allocations.erk import erk
from jaxopt_nn.methods.criteria.random import random_scores
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.regrowth import rigl, sparse_evolution
from jaxopt_nn.methods.structures.blocks import blocks

RNG = np.random.default_rng(2)


def draw(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def reference_rigl(weight, grad, mask, share):
    """``generic_mask_update`` of google-research/rigl: keep the largest of what is on, then the steepest of all the rest."""
    w, g, on = (np.asarray(x).ravel() for x in (weight, grad, mask))
    count = int(on.sum())
    drop = int(np.float32(np.round(np.float32(share) * count)))
    order = np.argsort(-np.where(on, np.abs(w), -1), kind="stable")
    stay = np.zeros(on.size, bool)
    stay[order[: count - drop]] = True
    rest = np.argsort(-np.where(stay, -1, np.abs(g)), kind="stable")
    stay[rest[:drop]] = True
    return stay.reshape(np.shape(mask))


def test_rigl_is_the_authors_procedure():
    method = prune(sparsity=0.7, allocation=erk, regrow=rigl(end=10, share=0.4, start=random_scores(1)))
    params = {"a": draw(12, 9), "b": draw(9, 4)}
    state = method.init(params)
    update = jax.jit(lambda p, s, t, g: method.update(p, s, step=t, grads=g))
    counts = {p: int(own.mask.sum()) for p, own in state.carried.items()}
    assert sum(counts.values()) == 144 - round(0.7 * 144)
    moved = 0
    for step in range(12):
        params, grads = jax.tree.map(lambda x: draw(*x.shape), (params, params))
        share = 0.2 * (1 + np.cos(np.pi * min(step, 10) / 10))
        expected = {p: reference_rigl(params[p], grads[p], own.mask, share) for p, own in state.carried.items()}
        new = update(params, state, step, grads)
        for path, own in new.carried.items():
            np.testing.assert_array_equal(own.mask, expected[path])
            assert int(own.mask.sum()) == counts[path]
        moved += step >= 10 and any((new.carried[p].mask != state.carried[p].mask).any() for p in counts)
        state = new
    assert not moved, "from the end on masks stay"


def test_layers_of_a_stack_exchange_by_themselves():
    w, g = draw(5, 3, 4), draw(5, 3, 4)
    info = ModelInfo(roles={"w": Roles((1,), (0,), (2,))})
    method = prune(sparsity=0.5, regrow=rigl(end=4, share=0.5))
    state = method.init({"w": w}, info)
    new = method.update({"w": w}, state, step=0, grads={"w": g}).carried["w"].mask
    for i in range(3):
        expected = reference_rigl(w[:, i], g[:, i], state.carried["w"].mask[:, i], 0.5)
        np.testing.assert_array_equal(new[:, i], expected)


def test_what_returns_starts_from_zero():
    """A weight that was masked had a latent value; it comes back as zero, and what was dropped and kept at once keeps its."""
    target = draw(6, 6)
    energy = lambda v, batch, key: (jnp.sum(jnp.square(v["w"] - target)), ({}, {}))
    method, optimizer = every(2, prune(sparsity=0.5, regrow=rigl(end=100, share=0.5))), optax.sgd(0.05)
    ts = init_train_state({"w": draw(6, 6)}, method, optimizer, jax.random.key(0))
    step = jax.jit(make_step(energy, method, optimizer))
    returned = 0
    for _ in range(6):
        old = np.asarray(ts.carried["w"].mask)
        ts, _ = step(ts, None)
        grown = np.asarray(ts.carried["w"].mask) & ~old
        np.testing.assert_array_equal(np.asarray(method.view(ts.params, ts.state)["w"])[grown], 0)
        returned += grown.sum()
    assert returned > 3


def test_set_returns_anywhere_anew_at_each_step():
    params = {"w": draw(20, 20)}
    method = prune(sparsity=0.8, regrow=sparse_evolution(5, share=0.25))
    state = method.init(params)
    kept = np.asarray(state.carried["w"].mask)
    grown = []
    for step in (0, 1):
        new = np.asarray(method.update(params, state, step=step).carried["w"].mask)
        assert new.sum() == 80 and (new & kept).sum() >= 60
        smallest = np.sort(np.abs(params["w"])[kept])[20]
        assert new[kept & (np.abs(params["w"]) >= smallest)].all(), "the largest stay"
        grown.append(new & ~kept)
    assert (grown[0] != grown[1]).any()
    ending = prune(sparsity=0.8, regrow=sparse_evolution(5, end=2))
    moved = [(np.asarray(ending.update(params, state, step=t).carried["w"].mask) != kept).any() for t in (1, 2)]
    assert moved == [True, False]
    again = np.asarray(method.update(params, state, step=0).carried["w"].mask)
    np.testing.assert_array_equal(again & ~kept, grown[0])


def test_blocks_return_whole():
    params, grads = {"w": draw(8, 8)}, {"w": draw(8, 8)}
    method = prune(structure=blocks(2, 4), sparsity=0.5, regrow=rigl(end=4, share=0.5))
    state = method.update(params, method.init(params), step=0, grads=grads)
    tile = lambda x: np.abs(np.asarray(x)).reshape(4, 2, 2, 4).mean((1, 3))
    before = np.asarray(method.init(params).carried["w"].mask)
    np.testing.assert_array_equal(state.carried["w"].mask, reference_rigl(tile(params["w"]), tile(grads["w"]), before, 0.5))


def test_bad_values():
    with pytest.raises(ValueError, match=r"rigl\(share=1.5"):
        rigl(end=3, share=1.5)
    with pytest.raises(ValueError, match=r"rigl\(end=0"):
        rigl(end=0)
    with pytest.raises(ValueError, match=r"sparse_evolution\(share=-1"):
        sparse_evolution(0, share=-1)
    params = {"w": draw(4, 4)}
    method = prune(sparsity=0.5, regrow=rigl(end=3))
    with pytest.raises(ValueError, match="rigl needs gradients"):
        method.update(params, method.init(params), step=0)
