"""Pages in headless Chromium: headings sort, filters hide rows and marks, and nothing is wider than a telephone."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

from experiments.comparison_page import page as comparison_page
from jaxopt_nn.reporting import page
from tests.experiments.test_compare import comparison
from tests.reporting.full_report import full

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --virtual-time-budget=4000"
).split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: pages are not tried in a browser"),
]


def told(text, script, tmp_path):
    """What ``script`` returns in a page shown 400 pixels wide, where ``page`` is its document."""
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<body><iframe style="width:400px;height:900px;border:0" srcdoc="{escape(text)}"></iframe><pre id="told"></pre>'
        '<script>addEventListener("load", () => { const page = document.querySelector("iframe").contentDocument;'
        f'document.getElementById("told").textContent = JSON.stringify((() => {{ {script} }})()); }});</script>'
    )
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return json.loads(unescape(re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)[1]))


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_no_page_is_wider_than_a_telephone(which, tmp_path):
    text = page.page(full()) if which == "report" else comparison_page(comparison(tmp_path))
    script = """page.querySelectorAll("details").forEach((fold) => { fold.open = true; });
        const charts = [...page.querySelectorAll("svg")].map((chart) => chart.clientWidth);
        return [page.documentElement.scrollWidth, Math.max(...charts)]"""
    wide, chart = told(text, script, tmp_path)
    assert wide <= 400 and 300 <= chart <= 400


def test_a_click_on_a_heading_sorts_both_ways(tmp_path):
    script = """const table = page.querySelector("table");
        const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent === "bytes");
        const column = () => [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].textContent);
        const seen = [column()];
        for (let i = 0; i < 2; i++) {
          head.querySelector("button").click();
          seen.push(column(), head.getAttribute("aria-sort"));
        }
        return seen"""
    before, down, falls, up, rises = told(page.page(full()), script, tmp_path)
    assert before == ["4,000", "1,500", "400"] == down and falls == "descending"
    assert up == down[::-1] and rises == "ascending"


def test_a_filter_hides_rows_and_their_marks(tmp_path):
    script = """const field = page.querySelector("input"), table = page.querySelector("table[data-search]");
        const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
        const marks = () => [...page.querySelectorAll("svg [data-run]")].filter((mark) => !mark.hasAttribute("hidden")).length;
        const seen = [shown(), marks()];
        field.value = "sparsity=0.5 bits=4"; field.dispatchEvent(new Event("input"));
        seen.push(shown(), marks());
        field.value = "";
        const list = page.querySelector("select");
        list.selectedIndex = 1;
        list.dispatchEvent(new Event("input"));
        return [...seen, shown(), marks()]"""
    everything, marks, one, fewer, chosen, those = told(comparison_page(comparison(tmp_path)), script, tmp_path)
    assert len(everything) == 6 and len(one) == 1 and len(chosen) == 2
    assert marks == 6 * fewer and those == 2 * fewer


def test_a_mark_tells_its_numbers_when_pointed_at(tmp_path):
    script = """const mark = page.querySelector("svg [data-tip]"), tip = page.getElementById("tip");
        mark.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
        return [page.querySelectorAll("svg title").length, tip.hidden, tip.textContent]"""
    titles, hidden, said = told(page.page(full()), script, tmp_path)
    assert titles == 0 and not hidden and said
