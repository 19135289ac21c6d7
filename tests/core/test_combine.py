"""Combinators, on small transforms whose results can be written down."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core import combine
from jaxopt_nn.core.combine import by_path, chain, where
from jaxopt_nn.core.gates import between, every, frozen
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Leaf, ModelInfo, Roles
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import LeafTraits, State, Traits, explain, identity
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.methods.criteria.magnitude import magnitude
from jaxopt_nn.methods.prune import prune
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
        (lambda: every(0, identity()), "n=0; allowed are whole numbers of steps from 1"),
        (lambda: every(5, identity(), last=-1), "last=-1; allowed are whole numbers"),
        (lambda: between(5, 2, identity()), "stop=2; allowed are whole numbers of steps from 5"),
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
        (chain(prune(magnitude, sparsity=0.5), quantize(1, granularity="tensor")), "does not keep zeros"),
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
    for out in (method.view(PARAMS, state), method.project(PARAMS, state)[0], method.pack(PARAMS, state)):
        assert out is PARAMS


def many(n):
    """``n`` leaves, and a case for each."""
    params = {f"layer_{i}": {"kernel": jnp.full((2, 2), float(i)), "bias": jnp.ones(2)} for i in range(n)}
    return params, by_path([(f"layer_{i}/kernel", scale(i + 2.0)) for i in range(n)])


def test_by_path_walks_the_tree_as_often_with_many_cases_as_with_few(monkeypatch):
    """Walks over the whole tree and leaves handed to walks: with a case a leaf both were quadratic or worse."""
    walked = []

    def counting(fn):
        def counted(*args):
            out = fn(*args)
            walked.append(len(jax.tree.leaves(args[-1])))
            return out

        return counted

    for name in ("leaves_by_path", "map_with_path"):
        monkeypatch.setattr(combine, name, counting(getattr(combine, name)))
    for n in (4, 40):
        params, method = many(n)
        state = method.init(params)
        walked.clear()
        seen = method.view(params, state)
        assert sum(walked) <= 2 * len(jax.tree.leaves(params))
        np.testing.assert_array_equal(seen[f"layer_{n - 1}"]["kernel"], (n - 1.0) * (n + 1.0))


def test_by_path_on_a_part_of_the_leaves_that_the_info_names():
    method = by_path([("a/kernel", scale(2.0)), ("b/kernel", scale(3.0))])
    info = ModelInfo(leaves=tuple(Leaf(p, (2, 2), "float32", (), None) for p in ("a/kernel", "a/bias", "b/kernel")))
    part = {"b/kernel": jnp.eye(2)}
    state = method.init(part, info)
    np.testing.assert_array_equal(method.view(part, state)["b/kernel"], 3 * np.eye(2))
    with pytest.raises(ValueError, match="'a/kernel' matches no path of 1"):
        method.init(part)
    with pytest.raises(ValueError, match="'c/kernel' matches no path of 3"):
        where("c/kernel", scale(1.0)).init(part, info)


def test_a_case_whose_leaves_earlier_cases_took_is_no_mistake():
    method = by_path([("**/kernel", scale(2.0)), ("a/kernel", scale(3.0))])
    np.testing.assert_array_equal(method.view(PARAMS, method.init(PARAMS))["a"]["kernel"], PARAMS["a"]["kernel"] * 2)


def learnt_factor():
    """Multiplies each kernel by a learnt factor, which starts at 2."""
    return leafwise(
        lambda path, leaf, info: LeafTraits() if leaf.ndim == 2 else "is no matrix",
        lambda path, leaf, roles: (jnp.array(2.0), ()),
        lambda leaf, factor, carried: leaf * factor,
        name="factor",
    )


@pytest.mark.parametrize(
    "wrap", [frozen, lambda t: chain(frozen(t), scale(1.0)), lambda t: frozen(chain(t, scale(1.0)))]
)
def test_what_a_frozen_member_has_learnt_stays(wrap):
    """Under weight decay, which moves a parameter also where its gradient is zero."""
    method, optimizer = wrap(learnt_factor()), optax.adamw(0.1, weight_decay=0.5)
    ts = init_train_state(PARAMS, method, optimizer, jax.random.key(0))
    loss = lambda params, batch, key: (sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), ({}, {}))
    step = jax.jit(make_step(loss, method, optimizer))
    for _ in range(3):
        ts, _ = step(ts, None)
    kernel = np.asarray(ts.params["a"]["kernel"])
    assert not np.allclose(kernel, PARAMS["a"]["kernel"])  # the weights themselves are trained
    np.testing.assert_array_equal(method.view(ts.params, ts.state)["a"]["kernel"], kernel * 2)


def test_a_frozen_state_is_carried_and_never_updated():
    method = frozen(scale(2.0))
    state = method.init(PARAMS)
    assert state.learnt == ()
    chex.assert_trees_all_equal(state.carried, scale(2.0).init(PARAMS))
    chex.assert_trees_all_equal(method.update(PARAMS, state, step=1), state)


def test_explain_names_the_member_of_a_chain_that_left_a_leaf_alone():
    method = chain(identity(), prune(sparsity=0.5), where("a/*", quantize(8)))
    info = ModelInfo(roles={"a/kernel": Roles((), (0,), (1,)), "b/kernel": Roles((), (0,), (1,))})
    found = [(m.kind, m.path, m.reason) for m in explain(method, PARAMS, info).of("partial", "assumed")]
    reason = "member 2 of the chain (quantize(8)): matches no pattern of the recipe"
    assert found == [("partial", "b/kernel", reason)]
    assert [m.kind for m in explain(method, PARAMS, info) if m.path == "a/bias"] == ["skipped"]
    whole = chain(where("a/kernel", chain(prune(sparsity=0.5), quantize(8))), where("b/kernel", clip(-1.0, 1.0)))
    assert {m.reason.split(":")[0] for m in explain(whole, PARAMS, info).of("partial")} == {
        "member 0 of the chain (prune | quantize(8))", "member 1 of the chain (clip)",
    }  # fmt: skip
