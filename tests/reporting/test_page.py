"""The page: valid, complete, alone, and nothing that a name can break."""

import base64
import copy
from html.parser import HTMLParser

import pytest

from jaxopt_nn.reporting import page as pages
from jaxopt_nn.reporting import plots
from tests.reporting.test_write import BARE, CROSS, REPORT, entry, leaf

VOID = {"img", "meta"}
PICTURE = b"\x89PNG\r\n\x1a\nrest"


class Page(HTMLParser):
    """Fails on a tag that is not closed in order; collects tags with attributes, and texts by the tag around them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else None, data))

    def cells(self, tag="td"):
        return [text for around, text in self.texts if around == tag]


def test_the_page_says_all_of_it():
    report = {**REPORT, "config": {"model": "m:build", "stages": [{"bits": 4}]}, "cross_validation": CROSS}
    page = Page(pages.page(report, {"training.png": PICTURE}))
    cells = page.cells()
    for stage in ("baseline", "clip", "prune", "quantize"):
        assert stage in cells
    assert {"a/kernel", "a/bias", "20 x 50", "Masked(QTensor int4)", "3.20"} <= set(cells)
    assert cells[-2:] == ["a/b", "x | y"], "what was left alone, and why"
    prose = " ".join(text for _, text in page.texts)
    assert "10.0x smaller than float32" in prose and "over 2 folds 98.00% before, 97.50% after, 0.50 points lost" in prose
    assert "Artifact: 500 bytes on disk" in prose and "Cross-validation: 2 folds" in prose
    assert '"bits": 4' in prose and page.tags.count(("details", {})) == 1
    assert "8 of cpu: x" in prose and "experiments.compress --config=again.py" in prose
    assert page.cells("dt") == ["seed", "devices", "jax"] and page.cells("dd") == ["3", "8 of cpu: x", "1.2"]


def test_smaller_and_not_faster_is_said_at_the_top():
    report = copy.deepcopy(REPORT)
    report["stages"][-1]["latency_ms"] = {"1": 1.0, "32": 12.0}
    paragraphs = Page(pages.page(report, {})).cells("p")
    said = "Smaller, not faster, on this backend; time over the baseline's, by batch: 2.00x at 1, 1.00x at 32 "
    assert f"{said}(at 32 within the noise of medians)." in paragraphs[:2]


def test_pictures_are_inside_with_their_captions_and_nothing_else_is_loaded():
    text = pages.page(REPORT, dict.fromkeys(plots.PLOTS, PICTURE))
    page = Page(text)
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [attrs["src"] for attrs in pictures] == ["data:image/png;base64," + base64.b64encode(PICTURE).decode()] * 5
    assert page.cells("figcaption") == [plot.caption for plot in plots.PLOTS.values()]
    assert all(attrs["alt"] for attrs in pictures)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "a"}
    assert not {key for _, attrs in page.tags for key in attrs} - {
        "alt",
        "charset",
        "class",
        "content",
        "lang",
        "name",
        "src",
    }
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_names_can_not_break_out():
    evil = """</td><script>alert("1")</script>'&amp;<img src=http://x onerror=y>"""
    report = {
        **REPORT,
        "stages": [entry(evil, 0.9, 400, leaves=[leaf(evil, 4.0, format=evil)])],
        "skipped": [{"path": evil, "reason": evil}],
        "versions": {evil: evil},
        "devices": [evil],
        "seed": evil,
        "config": {"model": "</pre></details>" + evil},
    }
    page = Page(pages.page(report, {}))
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.cells().count(evil) == 5
    assert page.cells("h2")[1] == f"Leaves after {evil}"
    assert page.cells("dd") == [evil, f"1 of {evil}", evil] and page.cells("dt")[-1] == evil


@pytest.mark.parametrize("stages", [BARE["stages"], []])
def test_a_report_with_empty_parts(stages):
    page = Page(pages.page({**BARE, "stages": stages}, {}))
    assert [text for text in page.cells("h2")] == [
        "Plots", "Left alone, or not used as packed", "Config", "How to reproduce it",
    ]  # fmt: skip
    prose = " ".join(text for _, text in page.texts)
    assert "No plots" in prose and "Nothing: every leaf" in prose and "jaxopt_nn.compress" in prose
