"""The page: valid, complete, alone; its numbers are the report's, and nothing that a name can break."""

import copy

import pytest

from jaxopt_nn.reporting import page, tables
from jaxopt_nn.reporting.write import markdown
from tests.reporting.full_report import ACCURACIES, Page, entry, fold, full, leaf, numbers


def test_each_number_is_the_reports():
    parsed = Page(page.page(full()))
    assert parsed.all("h1") == ["digits: m:build on d:load"] == parsed.all("title")[:1]
    header, *cells = parsed.rows("Baseline and stages")
    assert (header, cells) == tables.rows(full())
    header, *cells = parsed.rows("accuracy of each fold; differences to the baseline of the same fold, in points")
    assert header == ["stage", "fold 1", "fold 2", "fold 3", "mean", "95% interval", "difference", "its 95% interval"]
    for line, values in zip(cells, zip(*ACCURACIES), strict=True):
        assert line[1:4] == [f"{value:.2%}" for value in values] and line[4] == f"{sum(values) / 3:.2%}"
    # Student's t with 2 degrees of freedom is 4.3027; the differences of "quantize" are -0.03, -0.02, -0.025
    mean, half = -2.5, 4.3027 * 0.5 / 3**0.5
    assert cells[2][0] == "quantize" and cells[2][6:] == ["-2.50", f"{mean - half:+.2f} to {mean + half:+.2f}"]
    assert parsed.rows("Times over the baseline's")[-1] == ["quantize", "0.90", "0.80 to 1.10", "0.90", "0.80 to 1.10"]


def test_layers_have_bars_and_vectors_are_one_line():
    parsed = Page(page.page(full()))
    header, *cells = parsed.rows("Leaves")
    assert (header, cells) == tables.leaf_rows(full()["stages"][-1])
    assert [line[0].split(",")[0] for line in cells] == ["a/kernel", "b/kernel", "2 vectors"]
    bars = [attrs["style"] for _, attrs in parsed.tags if attrs.get("style", "").startswith("--bar")]
    assert bars == ["--bar:100.00%", "--bar:16.67%", "--bar:16.67%"], "of 75.0%, 12.5% and 12.5%"


def test_classes_are_counted():
    parsed = Page(page.page(full()))
    _, *cells = parsed.rows("Right answers by class")
    assert cells[0] == ["0", "30", "96.7%", "93.3%", "-3.3", "2", "1"]
    _, *matrix = parsed.rows("Confusion after quantize: a row for each true class")
    assert matrix == [["0", "28", "1", "1"], ["1", "", "29", "1"], ["2", "1", "", "29"]]
    report = full(confusion={**full()["confusion"], "changed": None, "names": ["cat", "dog", "cow"]})
    assert Page(page.page(report)).rows("Right answers by class")[1] == ["cat", "30", "96.7%", "93.3%", "-3.3"]


def test_a_test_set_besides_validation_data_has_lines_of_its_own():
    folds = [{**fold(k, *row), "valid": numbers(0.9), "final": numbers(0.8)} for k, row in enumerate(ACCURACIES)]
    from jaxopt_nn.reporting.folds import summary

    parsed = Page(page.page(full(folds=folds, summary=summary(folds))))
    _, *cells = parsed.rows("accuracy of each fold; differences to the baseline of the same fold, in points")
    assert [line[0] for line in cells] == [
        "baseline", "prune", "quantize", "baseline, test data", "quantize, test data", "control, test data",
    ]  # fmt: skip
    assert cells[1][6] == f"{100 * (sum(row[1] for row in ACCURACIES) / 3 - 0.9):+.2f}"
    assert cells[4][6] == f"{100 * (0.8 - sum(row[0] for row in ACCURACIES) / 3):+.2f}"


def test_the_markdown_has_the_tables_in_the_pages_order():
    report = full()
    text, parsed = markdown(report, ["metric_bytes.png", "training.png"]), Page(page.page(report))
    for caption in ("Baseline and stages", "Leaves", "Right answers by class", "Cut off", "Leaves and why"):
        for line in parsed.rows(caption):
            assert "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" in text
    order = ["Stages", "All folds", f"By layer, after {tables.last(report)['name']}", "By class"]
    assert sorted(order, key=parsed.all("h2").index) == sorted(order, key=lambda name: text.index(f"## {name}")) == order


def test_names_can_not_break_out():
    evil = """</td></title></svg></style><script>alert("1")</script>'&amp;<img src=http://x onerror=y>"""
    report = full(
        title=evil, versions={evil: evil}, devices=[evil], seed=evil, config={"model": "</pre></details>" + evil},
        skipped=[{"path": evil, "reason": evil}], histograms={evil: full()["histograms"]["a/kernel"]},
        stages=[entry(evil, 0.97, 1500), entry(evil, 0.95, 400, leaves=[leaf(evil, [20, 50], 0.75, format=evil)])],
        history=[{"stage": evil, "step": 1, "metrics": numbers(0.5), "gradient_norms": {evil: 1.0}}],
    )  # fmt: skip
    report["confusion"]["names"] = [evil] * 3
    parsed = Page(page.page(report))
    assert len([1 for tag, _ in parsed.tags if tag == "script"]) == 1
    assert parsed.all("h1") == [evil] and evil in parsed.all("h3") and parsed.all("dd")[0] == evil
    assert evil in parsed.rows("Leaves")[1] and evil in parsed.rows("Leaves and why")[1]


ABSENT = [
    "title", "config_name", "model", "data", "folds", "summary", "cross_validation", "control", "teacher", "confusion",
    "histograms", "history",
]  # fmt: skip


@pytest.mark.parametrize("names", [*([name] for name in ABSENT), [*ABSENT]])
@pytest.mark.parametrize("null", [False, True])
def test_what_a_report_does_not_have_is_not_on_the_page(names, null):
    report = full()
    names = [*names, *(["summary", "cross_validation"] if "folds" in names else [])]
    for name in names:
        report[name] = None
        if not null:
            del report[name]
    text = page.page(report)
    parsed = Page(text)
    assert "nan" not in " ".join(parsed.all("td")) and "None" not in text
    for figure in text.split("<figure>")[1:]:
        assert 'class="c' in figure.split("</figure>")[0], "no empty chart"


def test_a_bare_report():
    bare = full(
        artifact=None, skipped=[], config={}, **{name: None for name in ABSENT},
        baseline=entry("baseline", 0.98, 4000, latency={}, leaves=[]), stages=[entry("q", 0.9, 400, latency={}, leaves=[])],
    )  # fmt: skip
    parsed = Page(page.page(bare))
    assert parsed.all("h2") == ["Stages", "Left alone, or not used as packed", "How to reproduce it"]
    assert "Nothing: every leaf" in parsed.of("p") and "jaxopt_nn.compress" in parsed.of("p")
    assert Page(page.page({**bare, "stages": []})).all("h2") == parsed.all("h2")
    lost = copy.deepcopy(bare)
    lost["stages"][0]["metrics"]["accuracy"] = float("nan")
    assert "nan" in Page(page.page(lost)).rows("Baseline and stages")[2]
