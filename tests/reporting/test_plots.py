"""Plots: what is drawn where, and that any report can be drawn."""

import io
import math
import struct

import matplotlib
import numpy as np
import pytest
from matplotlib import style
from matplotlib.collections import LineCollection
from matplotlib.image import imread

from jaxopt_nn.reporting import plots, tables
from tests.reporting.full_report import ACCURACIES, full
from tests.reporting.test_write import BARE, REPORT, entry, leaf, logged, of_errors

ALL = ["metric_bytes.png", "training.png", "leaves.png", "weights.png", "gradients.png"]


def size(picture):
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", picture[16:24])


def figure(draw, report):
    """The figure behind a picture, laid out."""
    with style.context(["default", plots.STYLE]):
        made = draw.__wrapped__(report)
        made.draw_without_rendering()
    return made


def test_every_plot_is_a_png_and_looks_the_same_whatever_the_settings_of_the_caller():
    found = plots.images(REPORT)
    assert list(found) == ALL == list(plots.PLOTS)
    for picture in found.values():
        width, height = size(picture)
        assert width == 1140 and height > 200
        assert imread(io.BytesIO(picture))[0, 0, :3].tolist() == [1, 1, 1], "light background"
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "figure.dpi": 10}):
        before = dict(matplotlib.rcParams)
        assert plots.images(REPORT) == found
        assert dict(matplotlib.rcParams) == before


def test_what_has_nothing_to_show_is_not_drawn():
    assert list(plots.images(BARE)) == ["metric_bytes.png"]
    assert plots.images({**BARE, "stages": []}) == {}
    old = {key: value for key, value in BARE.items() if key not in ("history", "histograms")}
    assert list(plots.images({**old, "stages": [{**entry("q", 0.9, 10), "leaves": []}]})) == ["metric_bytes.png"]


@pytest.mark.parametrize(
    ("sizes", "accuracies"),
    [
        ((4000, 4000, 4000), (0.5, 0.5, 0.5)),
        ((4000, 4000, 4000), (0.98, 0.9, 0.95)),
        ((400, 4000, 40), (0.98, 0.9, 0.95)),
        ((0, 1, 10**12), (0.0, 1.0, 0.5)),
    ],
)
def test_accuracy_against_bytes_of_any_report(sizes, accuracies):
    stages = [entry(f"s{i}", a, max(s, 1), bytes=s) for i, (a, s) in enumerate(zip(accuracies, sizes, strict=True))]
    width, height = size(plots.metric_bytes({**REPORT, "stages": stages}))
    assert width > 900 and height > 500


@pytest.mark.parametrize("errors", [False, True])
def test_labels_of_many_stages_cover_no_other_label_and_no_point(errors):
    stages = [entry(f"stage {i}", 0.97 - 0.01 * i, int(4000 * 0.75**i)) for i in range(1, 9)]
    report = {**REPORT, "stages": stages}
    made = figure(plots.metric_bytes, of_errors(report) if errors else report)
    (axes,) = made.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 9 and all(axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    points = axes.transData.transform(axes.lines[1].get_xydata())
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert axes.yaxis_inverted() == errors, "better is up"


def test_each_fold_is_a_point_and_means_have_their_intervals():
    report = full()
    (axes,) = figure(plots.metric_bytes, report).axes
    folds = [c.get_offsets().tolist() for c in axes.collections if c.get_alpha()]
    by_stage = list(zip(*ACCURACIES))[:3]
    sizes = (4000.0, 1500.0, 400.0)
    expected = [[[size, pytest.approx(100 * value)] for value in values] for size, values in zip(sizes, by_stage)]
    assert folds == expected
    bars = [c.get_segments()[0].tolist() for c in axes.collections if isinstance(c, LineCollection)]
    told = [report["summary"]["baseline"], *report["summary"]["stages"]]
    for bar, size, stage in zip(bars, sizes, told, strict=True):
        mean = stage["metrics"]["accuracy"]
        assert bar == [[size, pytest.approx(100 * mean[end])] for end in ("low", "high")]
    low, high = axes.get_ylim()
    assert low < min(bar[0][1] for bar in [b.get_segments()[0] for b in axes.collections if isinstance(b, LineCollection)])
    assert high > 100


def test_labels_of_one_size_are_joined_and_stand_where_their_neighbours_are_not():
    found = [REPORT["baseline"], *REPORT["stages"]]
    value = [100 * e["metrics"]["accuracy"] for e in found]
    labels = plots._labels(found, value, [tables.shown(REPORT, "accuracy", v / 100) for v in value])
    assert [text.split("\n")[:-1] for text, *_ in labels] == [
        ["baseline  98.00%", "clip  97.00%"], ["prune  90.00%"], ["quantize  95.00%"],
    ]  # fmt: skip
    assert [side for *_, side in labels] == [1, -1, 1]


def test_stages_stand_one_after_the_other_with_their_names_in_rows():
    history = [logged(f"a long name {i}", step) for i in range(4) for step in (5, 10 if i else 1000)]
    made = figure(plots.training_curves, {**REPORT, "history": history})
    upper, lower = made.axes
    curves = [line for line in lower.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in curves] == [[5, 1000], [1005, 1010], [1015, 1020], [1025, 1030]]
    assert curves[1].get_ydata().tolist() == [90, 95]
    names = [text.get_window_extent() for text in upper.texts]
    assert [text.get_text() for text in upper.texts] == [f"a long name {i}" for i in range(4)]
    assert not any(a.overlaps(b) for i, a in enumerate(names) for b in names[:i])


def test_a_gradient_of_exactly_zero_is_shown_as_such_and_a_stage_that_logs_none_keeps_its_place():
    norms = {"w": 0.01, "v": 0.0}
    history = [logged("float", 10), logged("q", 5, gradient_norms=norms), logged("q", 10, gradient_norms=norms)]
    (axes,) = figure(plots.gradient_norms, {**REPORT, "history": history}).axes
    curves = {tuple(line.get_ydata()) for line in axes.lines if list(line.get_xdata()) == [15, 20]}
    assert curves == {(0.01, 0.01), (0.01 / 3, 0.01 / 3)}
    assert "exactly 0" in [text.get_text() for text in axes.texts]


def test_leaves_that_are_left_out_are_counted():
    many = [f"block/{i}/kernel" for i in range(50)]
    last = entry("q", 0.9, 400, leaves=[leaf(path, 1.0 + i % 8) for i, path in enumerate(many)])
    one = REPORT["histograms"]["a/kernel"]
    histograms = {path: {**one, "before": [1, i, 1]} for i, path in enumerate(many)}
    history = [logged("q", step, gradient_norms=dict.fromkeys(many, 0.1)) for step in (1, 2)]
    report = {**REPORT, "stages": [last], "histograms": histograms, "history": history}
    weights = figure(plots.weight_histograms, report)
    assert [axes.get_title("left") for axes in weights.axes] == many[-12:], "the largest"
    assert weights.legends[0].get_title().get_text() == "12 of 50 matrices: the largest, 38 left out"
    bars = figure(plots.leaf_bits, report)
    assert "40 of 50 leaves" in bars._suptitle.get_text() and len(bars.axes[0].get_yticks()) == 40
    norms = figure(plots.gradient_norms, report).legends[0]
    names = [text.get_text().strip() for text in norms.texts]
    assert (
        len(names) == 12
        and {names[0], names[-1]} == {many[0], many[-1]}
        and "38 left out" in norms.get_title().get_text()
    )


def test_bars_are_as_long_as_their_numbers():
    bits, nonzero = figure(plots.leaf_bits, REPORT).axes
    assert [bar.get_width() for bar in bits.containers[1]] == [3.2, 32.0]
    assert [bar.get_width() for bar in bits.containers[0]] == [32.0, 32.0], "the baseline"
    assert [bar.get_width() for bar in nonzero.containers[0]] == [25.0, 24.0]
    assert [label.get_text() for label in bits.get_yticklabels()] == ["a/kernel", "a/bias"]


def test_the_histogram_shows_the_counts():
    (axes,) = figure(plots.weight_histograms, REPORT).axes
    before, after = [patch.get_data() for patch in axes.patches]
    one = REPORT["histograms"]["a/kernel"]
    np.testing.assert_array_equal(before.values, one["before"])
    np.testing.assert_array_equal(after.values, one["after"])
    np.testing.assert_array_equal(after.edges, one["edges"])


def test_names_are_drawn_as_they_are():
    odd = "_$x^{$/素\n<b>"
    report = {
        **REPORT,
        "stages": [entry(odd, 0.9, 400, leaves=[leaf(odd, 4.0)])],
        "history": [logged(odd, step, gradient_norms={odd: 0.1}) for step in (1, 2)],
        "histograms": {odd: REPORT["histograms"]["a/kernel"]},
    }
    assert list(plots.images(report)) == ALL
    report["history"] = [logged("q", step, gradient_norms={"_$x^{$\n<b>": 0.1}) for step in (1, 2)]
    legend = figure(plots.gradient_norms, report).legends[0]
    assert [text.get_text().strip() for text in legend.texts] == [r"_\$x^{\$ <b>"]


def test_long_names_stay_different():
    paths = [f"params/decoder/blocks/layer_{i}/attention/query_projection/kernel" for i in range(12)]
    short = plots.shortened(paths, 32)
    assert len(set(short)) == 12 and {len(name) for name in short} == {32}
    assert plots.shortened(["a/b", "c" * 5], 5) == ["a/b", "ccccc"]
    assert plots.shortened(["abcdefgh"] * 2, 5) == ["ab…gh"] * 2


@pytest.mark.parametrize("losses", [(1.0, math.nan, 2.0), (math.nan, 1.0, math.inf), (math.nan,) * 3])
def test_scores_that_are_not_finite_are_left_out(losses):
    before, *stages = [entry(f"s{i}", 0.9, 4000 // (i + 1), metrics={"loss": loss}) for i, loss in enumerate(losses)]
    history = [logged("s", step, loss=loss, gradient_norms={"w": loss}) for step, loss in zip((5, 10, 15), losses)]
    report = {**REPORT, "headline": "loss", "baseline": before, "stages": stages, "history": history}
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert list(plots.images(report)) == (ALL if finite else ALL[1:])
    if finite:
        curve = next(
            line for line in figure(plots.metric_bytes, report).axes[0].lines if line.get_color() == plots.BLUE
        )
        assert curve.get_ydata().tolist() == pytest.approx(finite)


def test_a_panel_for_each_metric_of_training_and_none_that_is_empty():
    plain = [{**logged("s", step), "metrics": {"loss": 1.0}} for step in (1, 2)]
    assert len(figure(plots.training_curves, {**REPORT, "history": plain}).axes) == 1
    many = [{**logged("s", step), "metrics": {"loss": 1.0, "a": 1, "accuracy": 0.5, "b": 2}} for step in (1, 2)]
    made = figure(plots.training_curves, {**REPORT, "history": many})
    assert [axes.get_ylabel() for axes in made.axes] == ["training loss", "training accuracy, %", "training a"]
