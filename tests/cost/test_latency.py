"""Interleaved timing: who is called, how often and in which order; no time is asserted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.cost import latency
from jaxopt_nn.cost.latency import BLOCKS, interleaved, paired_ratio


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

def noisy(rng, rounds=240, ratio=1.0):
    """Times of two programs on a machine whose load drifts and jumps, hitting both, beside spikes that hit one call."""
    steps = rng.normal(0, 0.05, rounds)
    load = np.zeros(rounds)
    for t in range(1, rounds):
        load[t] = 0.97 * load[t - 1] + steps[t]
    busy = np.where(rng.random(rounds // 40).repeat(40) < 0.3, 2.0, 1.0)
    call = lambda: np.exp(rng.normal(0, 0.1, rounds)) * np.where(rng.random(rounds) < 0.05, 5.0, 1.0)
    common = np.exp(load) * busy
    return common * call(), ratio * common * call()


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_the_interval_of_a_paired_ratio_holds_the_truth(rng, ratio):
    """Of 400 simulated runs at most 5 % (and three standard errors) miss it; of equal programs those call one slower."""
    found = np.array([paired_ratio(*noisy(rng, ratio=ratio)) for _ in range(400)])
    missed = np.mean((found[:, 1] > ratio) | (found[:, 2] < ratio))
    assert missed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.median(found[:, 2] - found[:, 1]) < 0.1 * ratio, "and it is narrow"


def test_a_load_that_hits_both_cancels_and_a_few_rounds_give_no_interval(rng):
    before, after, load = rng.uniform(1, 2, 8), rng.uniform(2, 4, 8), rng.uniform(1, 100, 8)
    assert paired_ratio(load * before, load * after) == pytest.approx(paired_ratio(before, after))
    ratio, *ends = paired_ratio([1.0, 2.0, 3.0], [2.0, 4.0, 9.0])
    assert ratio == 2.0 and np.isnan(ends).all()


def test_at_least_so_many_rounds_are_timed_whatever_they_take():
    out = interleaved({"a": lambda: None}, warmup=1, repeats=50, seconds=0, least=6)
    assert len(out["a"].times) == 6


@pytest.mark.parametrize("rounds", [1, 29, 30, 31, 59, 89, 240])
def test_there_are_never_more_blocks_than_said(monkeypatch, rounds):
    counts = []
    monkeypatch.setattr(latency, "median_interval", lambda values: counts.append(len(values)))
    paired_ratio(np.ones(rounds), np.ones(rounds))
    assert min(rounds, BLOCKS // 2) <= counts[0] <= BLOCKS


def test_calls_are_timed_on_flat_arrays(monkeypatch):
    """Else the time of a call would hold that of taking compressed tensors apart in Python."""
    calls = []
    timings = lambda functions, **how: calls.append(functions) or interleaved(functions, warmup=1, repeats=1)
    monkeypatch.setattr(latency, "interleaved", timings)
    variables = {"w": jn.quantize(4).pack({"w": jnp.ones((4, 2))}, jn.quantize(4).init({"w": jnp.ones((4, 2))}))["w"]}
    apply = lambda v, x, states: (x @ jn.densify(v["w"])) * states["scale"]
    (entry,), left_out = latency.latencies([(apply, (variables, {"scale": jnp.float32(3.0)}))], (jnp.ones((1, 4)),), [2])
    assert not left_out and entry["2"]["ratio"] == 1.0
    np.testing.assert_allclose(calls[0]["0"](), np.full((2, 2), 12.0), rtol=1e-6)
    leaves, inputs = calls[0]["0"].args
    assert all(isinstance(x, jax.Array) for x in (*leaves, *inputs))
