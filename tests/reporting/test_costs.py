"""What a recipe buys is told where it was measured, beyond the noise, and of the stage that buys it."""

import pytest

from jaxopt_nn.reporting import costs, tables


def timed(*ends):
    """Intervals of the ratio to the baseline's time at 1, 32, 1024; the ratio is their middle."""
    middle = lambda low, high: 1.0 if low is None else (low + high) / 2
    found = [{"ms": 1.0, "ratio": middle(*each), "low": each[0], "high": each[1]} for each in ends]
    return dict(zip(("1", "32", "1024"), found))


SAME = ((1.0, 1.0),) * 3


def entry(name, size=4000, macs=1000, ends=SAME, masked=0):
    leaves = [{"format": "Masked(QTensor int4)" if i < masked else "float32"} for i in range(2)]
    return {"name": name, "metrics": {}, "bytes": size, "macs": macs, "ratio": 4000 / size, "latency": timed(*ends),
            "leaves": leaves}  # fmt: skip


def report(*stages, **baseline):
    return {"baseline": entry("baseline", **baseline), "stages": list(stages), "headline": "accuracy"}


@pytest.mark.parametrize(
    ("ends", "size", "said"),
    [
        (((1.9, 2.1), (0.9, 1.3), (0.3, 0.5)), 400,
         "against the baseline, by batch: 2.00x slower (1.90 to 2.10) at 1; 2.50x faster (2.00 to 3.33) at 1024; no difference "
         "seen at 32 (0.90 to 1.30 of its time); below 1.3x nothing is told"),
        (((0.95, 1.05), (0.7, 0.8), (0.4, 0.5)), 400,
         "smaller and faster, on this backend; against the baseline, by batch: 2.22x faster (2.00 to 2.50) at 1024; no "
         "difference seen at 1 (0.95 to 1.05 of its time), 32 (0.70 to 0.80 of its time); below 1.3x nothing is told"),
        (((0.4, 0.5), (0.4, 0.5), (0.4, 0.5)), 4000,
         "faster, on this backend; against the baseline, by batch: 2.22x faster (2.00 to 2.50) at 1; 2.22x faster (2.00 to "
         "2.50) at 32; 2.22x faster (2.00 to 2.50) at 1024"),
        (((1.9, 2.1), (1.05, 1.4), (None, None)), 400,
         "smaller, not faster, on this backend; against the baseline, by batch: 2.00x slower (1.90 to 2.10) at 1; no "
         "difference seen at 32 (1.05 to 1.40 of its time); below 1.3x nothing is told; too few rounds at 1024"),
        (((1.35, 1.5),) * 3, 4000,
         "not faster, on this backend; against the baseline, by batch: 1.43x slower (1.35 to 1.50) at 1; 1.43x slower (1.35 to "
         "1.50) at 32; 1.43x slower (1.35 to 1.50) at 1024"),
    ],
)  # fmt: skip
def test_a_difference_of_latency_is_told_beyond_the_margin_only(ends, size, said):
    assert costs.speed(report(entry("q", size, ends=ends))) == [said]


def test_nothing_is_said_of_latency_that_was_not_measured():
    made = report(entry("q", ends=()), ends=())
    assert costs.speed(made) == [] and costs.fastest(made) is None and costs.bought(made) == []


def test_each_stage_is_told_by_what_it_buys_against_the_one_before():
    half, slow = ((0.98, 1.02), (0.98, 1.02), (0.45, 0.55)), ((0.98, 1.02), (1.9, 2.1), (0.45, 0.55))
    made = report(
        entry("prune", 1000, masked=2), entry("clip", 1000, masked=2), entry("cut", 500, 250, half, masked=2),
        entry("round", 125, 250, slow, masked=2), entry("grow", 250, 500, slow, masked=2),
    )  # fmt: skip
    told, zeros = costs.bought(made)
    assert told == (
        "bytes, MACs and time, stage after stage: prune 4.0x fewer bytes; clip none of these; cut 2.0x fewer bytes, 4.0x fewer "
        "MACs, 2.0x faster at 1024; round 4.0x fewer bytes, 2.0x slower at 32; grow 2.0x more bytes, 2.0x more MACs"
    )
    assert zeros.startswith("the zeros of prune save bytes and no time: XLA multiplies them")


def test_two_noisy_stages_are_no_gain_of_the_second():
    """0.8 to 1.0 after 0.9 to 1.3: the second may be as slow as the first, or nearly twice as fast."""
    made = report(entry("a", 2000, ends=((0.9, 1.3),) * 3), entry("b", 1000, ends=((0.6, 0.8),) * 3))
    assert costs.bought(made) == ["bytes, MACs and time, stage after stage: a 2.0x fewer bytes; b 2.0x fewer bytes"]
    few = report(entry("a", 2000, ends=((None, None),) * 3), entry("b", 1000, ends=((0.1, 0.1),) * 3))
    assert "faster" not in costs.bought(few)[0]


def test_of_zeros_nothing_is_said_where_nothing_is_masked():
    assert costs.bought(report(entry("cut", 1000, 250))) == []
    assert "the zeros of q " in costs.bought(report(entry("q", 1000, masked=1)))[0]


def test_the_headline_says_where_it_is_faster_most():
    kinds = {"accuracy": {"unit": "%", "better": "higher"}}
    faster = report(entry("cut", 400, 250, ((0.6, 0.7), (0.9, 1.0), (0.4, 0.6))))
    assert costs.fastest(faster) == ("1024", 2.0)
    said = tables.headline({**faster, "metrics": kinds})
    assert said.startswith("10.0x smaller than float32 and 2.0x faster at a batch of 1024: 4,000 bytes before, 400 after;")
    same = tables.headline({**report(entry("q", 400)), "metrics": kinds})
    assert same.startswith("10.0x smaller than float32: 4,000 bytes before")
