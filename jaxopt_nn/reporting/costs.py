"""What a recipe buys where, in sentences: bytes, multiply-accumulates, and time at each batch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

Entry = Mapping[str, Any]
#: A difference of latency is told where the whole interval of the ratio lies beyond this factor. On two cores with ten other
#: programs on them, the lower end of one and the same pair moved between 0.99 and 1.24 from run to run.
MARGIN = 1.3
#: A difference of bytes or multiply-accumulates is told from this factor on; they are counted and have no noise.
COUNTED = 1.05


def fastest(report: Mapping[str, Any]) -> tuple[str, float] | None:
    """The batch at which the last stage gains most against the baseline, and how many times faster it is there; None where
    no gain can be told."""
    gains = [(1 / at["ratio"], n) for n, at in _last(report)["latency"].items() if _told(at) == "faster"]
    return (max(gains)[1], max(gains)[0]) if gains else None


def speed(report: Mapping[str, Any]) -> list[str]:
    """Where the last stage is faster or slower than the baseline, and a plain word in front; nothing where latency was not
    measured."""
    found = _last(report)["latency"]
    if not found:
        return []
    ways = {n: _told(at) for n, at in found.items()}
    said = [f"{_times(found[n], way)} at {n}" for n, way in ways.items() if way in ("faster", "slower")]
    if alike := [f"{n} ({_interval(found[n])} of its time)" for n, way in ways.items() if way == ""]:
        said.append(f"no difference seen at {', '.join(alike)}; below {MARGIN:g}x nothing is told")
    if few := [n for n, way in ways.items() if way == "few"]:
        said.append(f"too few rounds at {', '.join(few)}")
    return [f"{_lead(report, set(ways.values()))}against the baseline, by batch: {'; '.join(said)}"]


def bought(report: Mapping[str, Any]) -> list[str]:
    """What each stage changes against the one before it, where there are several; and that zeros buy no time."""
    entries = [report["baseline"], *report["stages"]]
    pairs = list(itertools.pairwise(entries))
    each = [f"{stage['name']} {', '.join(_changes(before, stage)) or 'none of these'}" for before, stage in pairs]
    out = [f"bytes, MACs and time, stage after stage: {'; '.join(each)}"] if len(pairs) > 1 else []
    if masking := [stage["name"] for before, stage in pairs if _masked(stage) > _masked(before)]:
        out.append(
            f"the zeros of {', '.join(masking)} save bytes and no time: XLA multiplies them like other numbers, and they are "
            "counted in MACs; units that are cut save both"
        )
    return out


def _changes(before: Entry, after: Entry) -> list[str]:
    """In what an entry differs from the one before."""
    out = []
    for key, word in (("bytes", "bytes"), ("macs", "MACs")):
        ratio = max(before[key], 1) / max(after[key], 1)
        if max(ratio, 1 / ratio) >= COUNTED:
            out.append(f"{max(ratio, 1 / ratio):.1f}x {'fewer' if ratio > 1 else 'more'} {word}")
    for n in after["latency"]:
        at = _between(before["latency"][n], after["latency"][n])
        if (way := _told(at)) in ("faster", "slower"):
            out.append(f"{max(at['ratio'], 1 / at['ratio']):.1f}x {way} at {n}")
    return out


def _between(before: Entry, after: Entry) -> dict[str, Any]:
    """The ratio of two stages' times, from their ratios to the baseline; the interval holds all that both leave possible."""
    known = None not in (before["low"], before["high"], after["low"], after["high"])
    ends = (after["low"] / before["high"], after["high"] / before["low"]) if known else (None, None)
    return {"ratio": after["ratio"] / before["ratio"], "low": ends[0], "high": ends[1]}


def _told(at: Entry) -> str:
    """``faster``, ``slower``, ``""`` where neither can be told, or ``few`` where there is no interval."""
    if at["low"] is None or at["high"] is None:
        return "few"
    return "slower" if at["low"] > MARGIN else "faster" if at["high"] < 1 / MARGIN else ""


def _times(at: Entry, way: str) -> str:
    """``2.50x faster (2.00 to 3.33)``."""
    ratio, low, high = (at[key] for key in ("ratio", "low", "high"))
    if way == "faster":
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    return f"{ratio:.2f}x {way} ({low:.2f} to {high:.2f})"


def _interval(at: Entry) -> str:
    return f"{at['low']:.2f} to {at['high']:.2f}"


def _lead(report: Mapping[str, Any], ways: set[str]) -> str:
    smaller = _last(report)["bytes"] < report["baseline"]["bytes"]
    if "faster" in ways and "slower" not in ways:
        return "smaller and faster, on this backend; " if smaller else "faster, on this backend; "
    if "slower" in ways and "faster" not in ways:
        return "smaller, not faster, on this backend; " if smaller else "not faster, on this backend; "
    return ""


def _masked(entry: Entry) -> int:
    return sum(leaf["format"].startswith("Masked") for leaf in entry.get("leaves", ()))


def _last(report: Mapping[str, Any]) -> Entry:
    return [report["baseline"], *report["stages"]][-1]
