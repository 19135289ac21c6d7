"""Combinators, on small transforms whose results can be written down."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.combine import between, by_path, chain, every, frozen, where
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.transform import LeafTraits, State, Traits, explain, identity, leafwise
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.methods.prune import magnitude, prune
from jaxopt_nn.methods.quantize import quantize

PARAMS = {
    "a": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([1.0, 2.0])},
    "b": {"kernel": jnp.eye(2)},
}


def scale(factor: float):
    """Multiplies every leaf by ``factor``; carries the number of updates."""
    return leafwise(
        lambda path, leaf, info: LeafTraits(),
        lambda path, leaf, roles: ((), jnp.zeros((), jnp.int32)),
        lambda leaf, learnt, count: leaf * factor,
        update=lambda leaf, learnt, count, step, grad: count + 1,
    )


def test_chain_composes_views():
    method = chain(scale(2.0), clip(-3.0, 3.0))
    state = method.init(PARAMS)
    np.testing.assert_array_equal(method.view(PARAMS, state)["a"]["kernel"], [[2.0, -3.0], [3.0, 1.0]])


def test_each_member_of_a_chain_sees_the_view_before_it():
    method = chain(clip(-0.75, 0.75), prune(magnitude, sparsity=0.5))
    state = method.init(PARAMS)
    # after clipping three entries tie at 0.75: the mask keeps the first two of them
    np.testing.assert_array_equal(method.view(PARAMS, state)["a"]["kernel"], [[0.75, -0.75], [0.0, 0.0]])


def test_by_path_gives_each_leaf_to_its_first_match():
    method = by_path([("a/kernel", scale(2.0)), ("**/kernel", scale(3.0))])
    seen = method.view(PARAMS, method.init(PARAMS))
    expected = {
        "a": {"kernel": PARAMS["a"]["kernel"] * 2, "bias": PARAMS["a"]["bias"]},
        "b": {"kernel": jnp.eye(2) * 3},
    }
    chex.assert_trees_all_equal(seen, expected)


def test_where_names_near_misses():
    with pytest.raises(ValueError, match=r"nearest: .*kernel"):
        where("**/kernle", identity()).init(PARAMS)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (every(3, scale(1.0)), 4),
        (every(4, scale(1.0), last=9), 4),
        (every(3, scale(1.0), last=9), 4),
        (every(1, scale(1.0), last=2), 10),
        (between(2, 5, scale(1.0)), 4),
        (frozen(scale(1.0)), 0),
        (scale(1.0), 10),
    ],
)
def test_gates_run_update_when_they_should(method, expected):
    state = method.init(PARAMS)
    update = jax.jit(lambda s, step: method.update(PARAMS, s, step=step))
    for step in range(10):
        state = update(state, step)
    assert int(state.carried["a/kernel"]) == expected


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: every(0, identity()), "at least 1"),
        (lambda: every(5, identity(), last=-1), "0 or more"),
        (lambda: between(5, 2, identity()), "start <= stop"),
        (chain, "at least one"),
        (lambda: by_path([]), "at least one"),
    ],
)
def test_combinators_refuse_nonsense(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (chain(quantize(8), clip(-1.0, 1.0)), "packed into codes"),
        (chain(quantize(8), quantize(4)), "packed into codes"),
        (chain(prune(magnitude, sparsity=0.5), clip(0.1, 1.0)), "does not keep zeros"),
        (chain(prune(magnitude, sparsity=0.5), quantize(1)), "does not keep zeros"),
    ],
)
def test_orders_that_would_lose_something_are_errors_at_init(method, match):
    with pytest.raises(ValueError, match=match):
        method.init(PARAMS)


def test_the_same_order_on_other_leaves_is_fine():
    method = chain(where("a/kernel", quantize(8)), where("b/kernel", clip(-1.0, 1.0)))
    assert method.init(PARAMS).carried[0][0]


def test_gradients_reach_each_member_at_its_own_view():
    """A member in front of a straight-through clip gets the chain's gradient with the clipped entries cut out."""
    seen = {}

    def update(params, state, *, step=0, grads=None):
        seen["grads"] = grads
        return state

    base = identity()
    listener = base._replace(
        update=update, traits=Traits(lambda path, leaf, info: LeafTraits(), True, frozenset({"grads"}))
    )
    method = chain(listener, clip(-1.5, 1.5))
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    method.update(PARAMS, method.init(PARAMS), step=0, grads=ones)
    np.testing.assert_array_equal(seen["grads"]["a"]["kernel"], [[1.0, 0.0], [0.0, 1.0]])


def test_explain_lists_every_leaf_left_alone():
    method = where("**/kernel", quantize(8))
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "n": {"kernel": jnp.ones((2, 2), jnp.int32)}}
    found = {m.path: (m.kind, m.reason) for m in explain(method, params)}
    assert found["a/bias"] == ("skipped", "matches no pattern of the recipe")
    assert found["n/kernel"][0] == "skipped" and "int32" in found["n/kernel"][1]
    assert found["a/kernel"][0] == "assumed"


def test_init_works_on_abstract_leaves():
    method = chain(clip(-1.0, 1.0), prune(magnitude, sparsity=0.5), quantize(4))
    abstract = jax.eval_shape(lambda: PARAMS)
    state = method.init(abstract)
    concrete = method.init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, jax.eval_shape(lambda: concrete))


def test_identity_changes_nothing():
    method = identity()
    state = method.init(PARAMS, ModelInfo())
    assert state == State()
    for out in (method.view(PARAMS, state), method.project(PARAMS, state), method.pack(PARAMS, state)):
        assert out is PARAMS
