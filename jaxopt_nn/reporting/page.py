"""A report as one HTML page that needs no other file and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from jaxopt_nn.reporting import plots
from jaxopt_nn.reporting.tables import LEGEND, fact_tables, headline, json_text, last, leaf_rows, rows, sentences

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1c1c1c; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #ddd; }
.headline { font-size: 1.15rem; font-weight: 600; margin: 0 0 .5rem; }
.note, figcaption { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; border-bottom: 1px solid #e8e8e8; }
th { border-bottom: 2px solid #999; }
.text { text-align: left; }
.prose { text-align: left; white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 2rem; }
img { display: block; max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .6rem 0; }
dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto;
  font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 11px; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
}
"""
#: Columns that hold words; the others hold numbers and stand to the right.
_WORDS = {"stage": "text", "path": "text", "shape": "text", "format": "text", "reason": "prose"}
_RERUN = """\
import json, pathlib
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads(pathlib.Path(__file__).with_name("report.json").read_text())["config"])
"""


def page(report: dict[str, Any], images: Mapping[str, bytes]) -> str:
    """The page ``report.html``.

    Args:
      report: as in ``report.json``; any of its lists may be empty.
      images: PNGs by file name, as ``plots.images`` gives them; none where matplotlib is missing.
    """
    sections = [
        _stages(report), _figures(images), _leaves(report), _facts(report), _skipped(report), _config(report),
        _circumstances(report),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Compression report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        "<h1>Compression report</h1>\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n</html>\n"
    )


def _stages(report: dict[str, Any]) -> str:
    said = [f"<p>{escape(_sentence(text))}</p>" for text in sentences(report)]
    return "\n".join([
        f'<p class="headline">{escape(headline(report))}</p>', *said, _table(*rows(report)),
        f'<p class="note">{escape(_sentence(LEGEND))}</p>',
    ])  # fmt: skip


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _figures(images: Mapping[str, bytes]) -> str:
    if not images:
        return _section("Plots", ['<p class="note">No plots: matplotlib is not installed.</p>'])
    out = []
    for name, content in images.items():
        plot, data = plots.PLOTS[name], base64.b64encode(content).decode()
        out.append(
            f'<figure>\n<img src="data:image/png;base64,{data}" alt="{escape(plot.title)}">\n'
            f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
        )
    return _section("Plots", out)


def _leaves(report: dict[str, Any]) -> str:
    header, cells = leaf_rows(last(report))
    note = (
        '<p class="note">Bits/w counts everything that is stored for a weight: codes, scales and mask. '
        "Min and max are of the decoded weights.</p>"
    )
    return _section(f"Leaves after {last(report)['name']}", [note, _table(header, cells)]) if cells else ""


def _facts(report: dict[str, Any]) -> str:
    sections = [
        _section(title, [f'<p class="note">{escape(note)}</p>', _table(*table)])
        for title, note, table in fact_tables(report)
    ]
    return "\n".join(sections)


def _skipped(report: dict[str, Any]) -> str:
    listed = [[skipped["path"], skipped["reason"]] for skipped in report["skipped"]]
    body = (
        _table(["path", "reason"], listed) if listed else "<p>Nothing: every leaf is compressed and used as packed.</p>"
    )
    return _section("Left alone, or not used as packed", [body])


def _config(report: dict[str, Any]) -> str:
    return _section("Config", [
        f"<details>\n<summary>as JSON</summary>\n<pre>{escape(json_text(report['config']))}</pre>\n</details>"
    ])  # fmt: skip


def _circumstances(report: dict[str, Any]) -> str:
    devices = sorted(set(report["devices"]))
    counted = [f"{report['devices'].count(device)} of {device}" for device in devices]
    pairs = [("seed", report["seed"]), ("devices", "; ".join(counted))]
    pairs += [(name, version) for name, version in report["versions"].items()]
    terms = "\n".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    if "model" in report["config"]:
        how = [
            "<p>Save this as again.py beside report.json, which holds the whole config,</p>",
            f"<pre>{escape(_RERUN)}</pre>",
            "<p>and run it with the versions above:</p>",
            "<pre>python -m experiments.compress --config=again.py --workdir=again</pre>",
        ]
    else:
        how = [
            "<p>Call jaxopt_nn.compress with the same network, data and recipe, the seed and the versions above.</p>"
        ]
    note = '<p class="note">On the same kind of device all numbers come out the same, but for times.</p>'
    return _section("How to reproduce it", [f"<dl>\n{terms}\n</dl>", *how, note])


def _section(title: str, body: Iterable[str]) -> str:
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *body, "</section>"])


def _table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    kinds = [f' class="{_WORDS[name]}"' if name in _WORDS else "" for name in header]
    line = lambda tag, texts: (
        "<tr>"
        + "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))
        + "</tr>"
    )
    return "\n".join([
        '<div class="wide">\n<table>\n<thead>', line("th", header), "</thead>\n<tbody>",
        *(line("td", texts) for texts in cells), "</tbody>\n</table>\n</div>",
    ])  # fmt: skip
