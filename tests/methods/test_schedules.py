"""Schedules against their formulas, at every step, and exactly at both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_nn.core.gates import every
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.schedules import cubic, staircase


@pytest.mark.exact
@pytest.mark.parametrize(
    ("final", "end", "begin", "initial"), [(0.9, 40, 0, 0.0), (0.95, 37, 5, 0.3), (1.0, 3, 3, 0.5)]
)
def test_cubic_is_the_formula(final, end, begin, initial):
    found = jax.jit(jax.vmap(cubic(final, end, begin, initial)))(np.arange(end + 10))
    assert found.dtype == jnp.float32
    for t, value in enumerate(np.asarray(found)):
        if t >= end:
            assert value == np.float32(final)
        elif t <= begin:
            assert value == np.float32(initial)
        else:
            expected = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** 3
            assert value == pytest.approx(expected, rel=1e-6, abs=2e-7)  # the difference of two float32 near 1
    assert float(cubic(final, end, begin, initial)(end)) == np.float32(final)


@settings(max_examples=15)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 7), st.integers(0, 50))
def test_rounds_remove_the_same_share_each_time(a, b, rounds, end):
    initial, final = min(a, b), max(a, b)
    levels = np.asarray(jax.vmap(staircase(final, rounds, end, initial))(np.arange(60)))
    assert (np.diff(levels) >= 0).all() and levels[-1] == np.float32(final)
    for t, level in enumerate(levels):
        i = max(i for i in range(rounds) if t * rounds >= i * end)
        assert i + 1 < rounds or level == np.float32(final)
        kept = 1 - initial
        for _ in range(i + 1):
            kept *= ((1 - final) / (1 - initial)) ** (1 / rounds) if initial < 1 else 0
        assert level == pytest.approx(1 - kept, abs=1e-6)


def test_a_lottery_ticket_removes_a_fifth_in_each_round():
    found = [float(staircase(1 - 0.8**3, rounds=3, end=30)(t)) for t in (0, 9, 10, 20, 29, 1000)]
    np.testing.assert_allclose(found, [0.2, 0.2, 0.36, 0.488, 0.488, 0.488], rtol=1e-6)


@pytest.mark.parametrize("interval", [1, 7, 100])
@pytest.mark.parametrize("schedule", [cubic(0.9, end=24), staircase(0.9, rounds=4, end=24)])
def test_the_target_is_reached_at_the_last_step_whatever_the_interval(interval, schedule):
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((10, 12)), jnp.float32)}
    method = every(interval, prune(sparsity=schedule), last=24)
    state = method.init(params)
    update = jax.jit(lambda s, t: method.update(params, s, step=t))
    for t in range(25):
        state = update(state, t)
    assert int(state.carried["w"].mask.sum()) == 12


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: cubic(1.5, 10), r"cubic\(final=1.5\): a share of zeros, 0 to 1"),
        (lambda: cubic(0.5, 10, initial=-0.1), "initial=-0.1"),
        (lambda: cubic(float("nan"), 10), "0 to 1"),
        (lambda: cubic(0.5, end=5, begin=6), "begin <= end"),
        (lambda: staircase(-1, 2, 10), "0 to 1"),
        (lambda: staircase(0.5, 2, 10, initial=0.6), "initial <= final"),
        (lambda: staircase(0.5, 0, 10), "1 or more"),
        (lambda: staircase(0.5, 1.5, 10), "whole number"),
        (lambda: staircase(0.5, 2, -1), "0 or more"),
    ],
)
def test_values_that_are_not_allowed(make, match):
    with pytest.raises(ValueError, match=match):
        make()
