"""Interleaved timing: who is called, how often and in which order; no time is asserted."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.cost.latency import interleaved


def recorded(calls, name):
    def function():
        calls.append(name)
        return {"out": [jnp.ones(3)]}

    return function


def test_candidates_take_turns_and_change_their_order():
    calls = []
    out = interleaved({n: recorded(calls, n) for n in "ab"}, warmup=2, repeats=3, seconds=60)
    assert "".join(calls) == "abab" + "ab" + "ba" + "ab"
    assert list(out) == ["a", "b"]
    assert {len(t.times) for t in out.values()} == {3}


def test_numbers_are_ordered_and_finite():
    out = interleaved({"a": lambda: np.zeros(2)}, warmup=1, repeats=5)["a"]
    assert 0 <= out.p10_ms <= out.median_ms <= out.p90_ms < np.inf
    assert out.first_ms >= 0


def test_time_runs_out_after_one_whole_round():
    calls = []
    out = interleaved({n: recorded(calls, n) for n in "ab"}, warmup=1, repeats=1000, seconds=0)
    assert {len(t.times) for t in out.values()} == {1}
    assert len(calls) == 4


@pytest.mark.parametrize("bad", [{"warmup": 0}, {"repeats": 0}, {"seconds": -1.0}, {"seconds": float("nan")}])
def test_numbers_below_the_least_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*allowed"):
        interleaved({"a": lambda: None}, **bad)


def test_no_function_is_refused():
    with pytest.raises(ValueError, match="no function"):
        interleaved({})
