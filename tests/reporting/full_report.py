"""A report with all that a report can have, in schema 4, and a parser that checks a page."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

from jaxopt_nn.reporting.folds import summary

VOID = {"img", "meta", "circle", "rect", "path", "input"}
KINDS = {"accuracy": {"unit": "%", "better": "higher"}, "loss": {"unit": "nats", "better": "lower"}}
#: Accuracies of baseline, first and second stage and control by fold.
ACCURACIES = [(0.98, 0.97, 0.95, 0.985), (0.96, 0.965, 0.94, 0.97), (0.97, 0.95, 0.945, 0.965)]


def numbers(accuracy):
    return {"accuracy": accuracy, "loss": None if accuracy is None else round(1 - accuracy, 4)}


def leaf(path, shape, share, stage="quantize", **changed):
    size = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return {
        "path": path, "shape": shape, "format": "QTensor int4" if stage else "float32", "bits": 4.5 if stage else 32.0,
        "size": size, "nonzero": size // 2, "bytes": size, "share": share, "macs": size if len(shape) > 1 else None,
        "alone": 0.125 if stage else None, "stage": stage, "min": -0.5, "max": 0.25, **changed,
    }  # fmt: skip


def entry(name, accuracy, size, **changed):
    latency = {b: {"ms": ms, "ratio": 0.9, "low": 0.8, "high": 1.1} for b, ms in (("1", 0.5), ("32", 12.0))}
    leaves = [leaf("a/kernel", [20, 50], 0.75), leaf("b/kernel", [50, 4], 0.125), leaf("a/bias", [50], 0.1, None),
              leaf("b/bias", [4], 0.025, None)]  # fmt: skip
    return {
        "name": name, "metrics": numbers(accuracy), "params": 1000, "nonzero": 250, "bytes": size, "resident_bytes": 2 * size,
        "ratio": 4000 / size, "bits_per_weight": size / 125, "macs": 1200, "latency": latency, "leaves": leaves,
        "facts": [], **changed,
    }  # fmt: skip


def fold(seed, baseline, first, second, control):
    stage = lambda name, accuracy, size: {
        "name": name, "metrics": numbers(accuracy), "bytes": size, "ratio": 4000 / size, "nonzero": 250,
    }  # fmt: skip
    return {
        "seed": seed, "baseline": numbers(baseline), "final": numbers(second), "control": numbers(control),
        "stages": [stage("prune", first, 1500), stage("quantize", second, 400)],
    }  # fmt: skip


def full(**changed):
    """A fresh report of three folds and two stages."""
    folds = [fold(seed, *row) for seed, row in enumerate(ACCURACIES)]
    fact = {"title": "Cut off", "note": "How much.", "header": ["path", "share, %"], "cells": [["a/kernel", 1.25]]}
    history = [
        {"stage": stage, "step": step, "epoch": step / 10, "metrics": numbers(1 - 0.5 / step),
         "gradient_norms": {"a/kernel": 0.1 / step, "b/kernel": 0.0}, **({"valid": numbers(0.9)} if step == 12 else {})}
        for stage in ("float", "prune", "quantize") for step in (5, 10, 12)
    ]  # fmt: skip
    return {
        "schema": 4, "config_name": "digits", "model": "m:build", "data": "d:load", "title": "digits: m:build on d:load",
        "config": {"model": "m:build", "stages": [{"bits": 4}]},
        "seed": 3, "devices": ["cpu: x"] * 8, "versions": {"jax": "1.2"},
        "metrics": KINDS, "headline": "accuracy",
        "baseline": entry("baseline", 0.98, 4000),
        "stages": [entry("prune", 0.97, 1500, facts=[fact]), entry("quantize", 0.95, 400)],
        "folds": folds, "summary": summary(folds), "control": {"metrics": numbers(0.985)},
        "cross_validation": {
            "folds": 3, "examples": 90, **{name: numbers(0.96) for name in ("baseline", "final", "control")},
        },
        "teacher": {"metrics": numbers(0.99), "params": 20_000},
        "artifact": {"path": "x", "bytes": 500, "metrics_reloaded": numbers(0.95)},
        "skipped": [{"path": "a/bias", "reason": "matches no pattern | of the recipe"}],
        "history": history,
        "histograms": {
            "a/kernel": {"edges": [-1.0, -0.25, 0.25, 1.0], "before": [300, 400, 300], "after": [0, 900, 100]},
        },
        "confusion": {
            "labels": [0, 1, 2],
            "baseline": [[29, 1, 0], [0, 30, 0], [2, 0, 28]], "final": [[28, 1, 1], [0, 29, 1], [1, 0, 29]],
            "changed": [{"label": k, "lost": lost, "won": won} for k, (lost, won) in enumerate([(2, 1), (1, 0), (0, 1)])],
        },
        **changed,
    }  # fmt: skip


class Page(HTMLParser):
    """Parses a page; fails on a tag that is not closed in order, on an id twice, on anything that would be loaded."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [attrs["id"] for _, attrs in self.tags if "id" in attrs]
        assert len(ids) == len({*ids})
        assert not {tag for tag, _ in self.tags} & {"link", "iframe", "object", "form", "img", "base"}
        assert not any({"src", "srcset", "action"} & attrs.keys() for _, attrs in self.tags)
        assert not any(re.match(r"\w+:|//", attrs["href"]) for _, attrs in self.tags if "href" in attrs)
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", self.of("style") + self.of("script"))
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert len([1 for tag, _ in self.tags if tag == "table"]) == len(self.all("caption"))
        assert all(attrs.get("aria-label") for tag, attrs in self.tags if tag == "svg")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.append((tag, []))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            next(texts for tag, texts in reversed(self.texts) if tag == self.open[-1]).append(data)

    def all(self, tag):
        """The texts right inside the tags of one name."""
        return ["".join(texts) for name, texts in self.texts if name == tag]

    def of(self, tag):
        return "".join(self.all(tag))

    def rows(self, caption):
        """The cells of the table with this caption, header first."""
        out, inside = [], False
        for tag, texts in self.texts:
            if tag == "caption":
                inside = "".join(texts) == caption
            elif inside and tag == "tr":
                out.append([])
            elif inside and tag in ("th", "td"):
                out[-1].append("".join(texts))
            elif inside and tag == "a":
                out[-1][-1] += "".join(texts)
        return out
