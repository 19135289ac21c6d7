"""The training step against steps written out by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.train import averaged, averaging, init_train_state, make_step
from jaxopt_nn.core.transform import LeafTraits, State, Traits, identity, keep_both
from jaxopt_nn.methods.clip import clip
from jaxopt_nn.methods.criteria.magnitude import magnitude
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize

X = jnp.array([[1.0, 2.0], [0.5, -1.0]])
Y = jnp.array([[1.0], [0.0]])
STILL = {"batch_stats/mean"}
PARAMS = {"params": {"kernel": jnp.array([[0.9], [-0.2]])}, "batch_stats": {"mean": jnp.zeros(2)}}


def loss(variables, batch, key):
    x, y = batch
    error = x @ variables["params"]["kernel"] - y
    return jnp.mean(error**2), ({"noise": jax.random.normal(key)}, {"batch_stats/mean": x.mean(0)})


def gradient(w, x=X, y=Y):
    return 2 * x.T @ (x @ w - y) / y.size


def run(method, steps=1, rate=0.1):
    optimizer = optax.sgd(rate)
    state = init_train_state(PARAMS, method, optimizer, jax.random.key(0), still=STILL)
    step = jax.jit(make_step(loss, method, optimizer, still=STILL))
    for _ in range(steps):
        state, metrics = step(state, (X, Y))
    return state, metrics


def test_plain_step_is_gradient_descent():
    state, metrics = run(identity())
    w = PARAMS["params"]["kernel"]
    np.testing.assert_allclose(state.params["params"]["kernel"], w - 0.1 * gradient(w), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], jnp.mean((X @ w - Y) ** 2), rtol=1e-6)
    assert int(state.step) == 1


def test_untrained_variables_are_replaced_by_what_the_forward_pass_returns():
    state, _ = run(identity())
    np.testing.assert_array_equal(state.params["batch_stats"]["mean"], X.mean(0))


def test_projection_leaves_no_weight_outside_the_box():
    state, _ = run(clip(-0.3, 0.3), rate=5.0, steps=3)
    assert float(jnp.abs(state.params["params"]["kernel"]).max()) <= np.float32(0.3)


def test_straight_through_gradient_is_taken_at_the_rounded_weights():
    method = quantize(2)
    state, _ = run(method)
    w = PARAMS["params"]["kernel"]
    seen = method.view(PARAMS, method.init(PARAMS))["params"]["kernel"]
    assert not np.allclose(seen, w)
    np.testing.assert_allclose(state.params["params"]["kernel"], w - 0.1 * gradient(seen), rtol=1e-6)


def test_pruned_weights_get_no_gradient_and_updates_get_the_dense_one():
    seen = []
    masked = prune(magnitude, sparsity=0.5)

    def update(params, state, *, step=0, grads=None):
        jax.debug.callback(lambda g: seen.append(np.asarray(g)), grads["params"]["kernel"])
        return state

    spying = masked._replace(update=update, traits=Traits(masked.traits.takes, True, frozenset({"grads"})))
    state, _ = run(spying)
    jax.effects_barrier()
    w = PARAMS["params"]["kernel"]
    at_view = gradient(jnp.array([[0.9], [0.0]]))
    np.testing.assert_allclose(seen[0], at_view, rtol=1e-6)
    assert abs(at_view[1, 0]) > 0.1
    np.testing.assert_array_equal(state.params["params"]["kernel"][1], w[1])


def test_learnt_state_is_trained_by_the_optimizer():
    """A learnt factor on the kernel descends its own gradient."""

    def view(params, state):
        return {**params, "params": {"kernel": params["params"]["kernel"] * state.learnt["factor"]}}

    base = identity()
    method = base._replace(
        init=lambda params, info=None: State({"factor": jnp.array(2.0)}, ()),
        view=view,
        traits=Traits(lambda path, leaf, info: LeafTraits()),
    )
    state, _ = run(method)
    w = PARAMS["params"]["kernel"]
    np.testing.assert_allclose(state.learnt["factor"], 2.0 - 0.1 * jnp.sum(gradient(2 * w) * w), rtol=1e-6)


@pytest.mark.parametrize("average", [False, True])
def test_a_projection_keeps_learnt_steps_positive(average):
    """By hand: both weights lie outside 2 steps; so high a rate would take the learnt step below zero at once."""
    method = leafwise(
        lambda path, leaf, info: LeafTraits() if path == "params/kernel" else "is no kernel",
        lambda path, leaf, known: (jnp.float32(0.05), ()),
        lambda leaf, step, _: jnp.clip(leaf, -2 * step, 2 * step),
        project=lambda leaf, step, _: (leaf, jnp.maximum(step, 2.0**-7)),
    )
    rate = 50.0
    free = method._replace(project=keep_both)
    optimizer = averaging(optax.sgd(rate), 0.5) if average else optax.sgd(rate)

    def stepped(method):
        ts = init_train_state(PARAMS, method, optimizer, jax.random.key(0), still=STILL)
        ts, _ = jax.jit(make_step(loss, method, optimizer, still=STILL))(ts, (X, Y))
        return averaged(ts, method, still=STILL) if average else ts

    at = gradient(jnp.array([[0.1], [-0.1]]))
    by_hand = 0.05 - rate * float(2 * at[0, 0] - 2 * at[1, 0])
    by_hand = 0.1 * 0.05 + 0.9 * by_hand if average else by_hand
    assert by_hand < -1
    np.testing.assert_allclose(stepped(free).learnt["params/kernel"], by_hand, rtol=1e-5)
    assert float(stepped(method).learnt["params/kernel"]) == 2.0**-7


def test_the_step_compiles_once_and_donates():
    chex.clear_trace_counter()
    method, optimizer = quantize(4), optax.adam(1e-2)
    state = init_train_state(jax.tree.map(jnp.copy, PARAMS), method, optimizer, jax.random.key(0), still=STILL)
    step = jax.jit(chex.assert_max_traces(make_step(loss, method, optimizer, still=STILL), n=1), donate_argnums=0)
    before = state.params["params"]["kernel"]
    for _ in range(3):
        state, _ = step(state, (X, Y))
    assert before.is_deleted()


def test_two_runs_of_one_key_are_equal():
    (a, m), (b, n) = run(quantize(4), 3), run(quantize(4), 3)
    chex.assert_trees_all_equal(a.params, b.params)
    assert m["noise"] == n["noise"]


def test_schedules_reach_their_target_under_jit():
    method = prune(magnitude, sparsity=optax.linear_schedule(0.0, 0.5, 4))
    state, _ = run(method, steps=5)
    assert int(state.carried["params/kernel"].mask.sum()) == 1


@pytest.mark.parametrize("sparsity", [-0.1, 1.5])
def test_sparsity_is_a_share(sparsity):
    with pytest.raises(ValueError, match="share of zeros"):
        prune(magnitude, sparsity=sparsity)
