"""Charts: every mark stands where its numbers say, ticks are round, and nothing is drawn that isn't there."""

import math
import re

import numpy as np
import pytest

from jaxopt_nn.reporting import charts, svg
from tests.reporting.full_report import full, numbers


def circles(text):
    return [tuple(map(float, found)) for found in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', text)]


def chart(x, y, points):
    made = svg.Chart(x, y, "test")
    for point in points:
        made.point(*point)
    return made.html()


def test_points_stand_on_a_line_between_the_corners():
    left, right = circles(chart(svg.Axis("x", 0, 10), svg.Axis("y", -1, 1), [(0, -1), (10, 1)]))
    assert left[0] < right[0] and left[1] > right[1], "up is less in an SVG"
    (middle,) = circles(chart(svg.Axis("x", 0, 10), svg.Axis("y", -1, 1), [(5, 0)]))
    assert middle == pytest.approx(np.mean([left, right], axis=0), abs=0.06)
    (decade,) = circles(chart(svg.Axis("x", 1, 100, log=True), svg.Axis("y", -1, 1, reverse=True), [(10, -0.5)]))
    assert decade[0] == pytest.approx(middle[0], abs=3)
    assert decade[1] == pytest.approx(left[1] + 0.75 * (right[1] - left[1]), abs=0.06)


@pytest.mark.parametrize("seed", range(20))
def test_ticks_are_few_round_inside_and_tell_their_values(seed):
    rng = np.random.default_rng(seed)
    low = float(rng.normal() * 10.0 ** rng.integers(-4, 6))
    high = low + float(10.0 ** rng.uniform(-4, 6))
    for axis in (svg.Axis("x", low, high), svg.Axis("x", abs(low), abs(low) + high - low, log=True)):
        ticks = axis.ticks()
        assert 1 <= len(ticks) <= 9 and len({text for _, text in ticks}) == len(ticks)
        assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value, _ in ticks)
        if not axis.log:
            assert [float(text.replace(",", "")) for _, text in ticks] == pytest.approx([v for v, _ in ticks], rel=1e-2)


@pytest.mark.parametrize("value", [0.0, 0.98, -3e-7, 1e9])
@pytest.mark.parametrize("log", [False, True])
def test_one_value_has_an_axis(value, log):
    axis = svg.spanning("x", [value, math.nan], log=log)
    texts = [text for _, text in axis.ticks()]
    assert len({*texts}) == len(texts) > 0 and ((value <= 0 and log) or 0 < axis.place(value) < 1)


def test_a_series_of_one_point_is_a_point_and_gaps_break_a_line():
    made = svg.Chart(svg.Axis("x", 0, 10), svg.Axis("y", 0, 10), "test")
    made.line([(0, 1), (1, math.nan), (2, 3), (3, 4)])
    text = made.html()
    assert len(circles(text)) == 1 and len(re.findall(r'class="c0 line', text)) == 1
    once = full(history=[{"stage": "float", "step": 7, "metrics": numbers(0.5)}])
    drawn = charts.curves(once)
    assert len(drawn) == 2 and all(len(circles(text)) == 1 for text in drawn)


def test_what_is_not_finite_is_left_out_and_error_bars_end_at_the_frame():
    text = chart(svg.Axis("x", 0, 1), svg.Axis("y", 0, 1), [(math.nan, 0.5), (0.5, math.inf)])
    assert not circles(text)
    made = svg.Chart(svg.Axis("x", 0, 1), svg.Axis("y", 0, 1), "test")
    made.interval(0.5, 0.5, -100, 100)
    made.interval(0.5, 0.5, math.nan, 1)
    (bar,) = re.findall(r'bar"><path d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)M', made.html())
    assert all(0 <= float(end) <= 300 for end in bar)
    assert charts.score_by_size(full(stages=[])) == "" == charts.latency(full(stages=[]))


def test_labels_cover_no_point_and_no_other_label():
    points = [(x, y) for x in (3.0, 3.3, 3.6) for y in (4.0, 4.3)]
    made = svg.Chart(svg.Axis("x", 0, 10), svg.Axis("y", 0, 10), "test")
    for x, y in points:
        made.point(x, y)
        made.label(x, y, "a label")
    text = made.html()
    labels = [tuple(map(float, at)) for at in re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)"', text)]
    boxes = [(x, y - 11.5, x + svg.CHARACTER * 7, y + 3.5) for x, y in labels]
    assert boxes and not any(svg._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(a[0] < x < a[2] and a[1] < y < a[3] for a in boxes for x, y in circles(text))


def test_each_fold_has_a_mark_that_tells_its_value():
    text = "".join(charts.folds(full()))
    for value in ("98.00%", "94.50%", "-3 points", "+1 points"):
        assert f"{value}</title>" in text
    size = charts.score_by_size(full())
    assert "quantize, fold 3\n94.50%</title>" in size and "95% interval" in size and "400 bytes, ratio 10.00x" in size
