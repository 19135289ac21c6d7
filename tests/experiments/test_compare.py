"""Comparisons: settings over seeds, the Pareto front, the fields that differ, and runs that can't be read."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from experiments import compare, index
from experiments.comparison import differences, pareto, runs_under
from experiments.comparison_page import page
from experiments.config import FREE
from tests.reporting.full_report import Page, entry, full

REPOSITORY = Path(compare.__file__).parent.parent


def run_of(folder, accuracy, size, seed=0, baseline=0.98, **config):
    """Writes a run whose config has these fields."""
    report = full(
        seed=seed, summary=None, cross_validation=None, folds=[], config={"model": "m:build", "seed": seed, **config},
        baseline=entry("baseline", baseline, 4000), stages=[entry("quantize", accuracy, size)],
        artifact={"path": "network.jn", "bytes": size // 4 + 100, "metrics_reloaded": {"accuracy": accuracy}},
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def stages(sparsity, bits):
    return [{"sparsity": sparsity}, {"bits": bits}]


def comparison(tmp_path):
    """What ``index`` gives of six settings of three seeds each, and one run that is cut off."""
    for s in (0.5, 0.7, 0.9):
        for b in (2, 4):
            for seed in range(3):
                folder = tmp_path / f"sparsity={s},bits={b}" / f"seed_{seed}"
                accuracy, size = 0.9 - 0.02 * s + 0.01 * b + 0.003 * seed**2, round(1000 * b * (1 - s))
                run_of(folder, accuracy, size, seed, 0.95, stages=stages(s, b))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "report.json").write_text('{"schema": 4, "con')
    return index.run(str(tmp_path))


def dominated(point, points):
    cheaper = [q for q in points if q[0] <= point[0] and q[1] >= point[1] and q != point]
    return bool(cheaper)


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_that_of_brute_force(seed):
    rng = random.Random(seed)
    whole = seed % 2  # whole numbers bring ties
    draw = (lambda: rng.randrange(4)) if whole else rng.random
    points = [(draw(), draw()) for _ in range(rng.randrange(12))]
    assert pareto(points) == [not dominated(p, points) for p in points]


def paths(value, at=()):
    """``{path: leaf}`` of nested dicts and lists, empty ones being leaves."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in items for path, leaf in paths(part, (*at, key)).items()}
    return {at: value}


def random_config(rng, depth=3):
    if not depth or rng.random() < 0.3:
        return rng.choice([0, 1, 1.0, True, None, "a", [], {}])
    if rng.random() < 0.3:
        return [random_config(rng, depth - 1) for _ in range(rng.randrange(3))]
    return {key: random_config(rng, depth - 1) for key in rng.sample("abcd", rng.randrange(4))}


@pytest.mark.parametrize("seed", range(40))
def test_the_fields_that_differ_are_those_of_brute_force(seed):
    rng = random.Random(seed)
    configs = [{"x": random_config(rng), "y": random_config(rng)} for _ in range(rng.randrange(1, 4))]
    flat = [paths(config) for config in configs]
    known = {path for each in flat for path in each}
    same = lambda path: len({(path in each, repr(each.get(path))) for each in flat}) == 1
    text = lambda path: "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    expected = [{text(p): leaf for p, leaf in each.items() if not same(p)} for each in flat]
    assert {path for path in known if same(path)} | {p for e in flat for p in e if not same(p)} == known
    assert differences(configs) == expected


def test_seeds_of_one_config_are_one_setting(tmp_path):
    made = comparison(tmp_path)
    assert [(cell["name"], cell["n"]) for cell in made["cells"]] == [
        (f"sparsity={s},bits={b}", 3) for s in (0.5, 0.7, 0.9) for b in (2, 4)
    ]  # fmt: skip
    cell = made["cells"][1]
    assert cell["overrides"] == {"stages[0].sparsity": 0.5, "stages[1].bits": 4}
    values = [0.93 + 0.003 * seed**2 for seed in range(3)]
    mean, deviation = sum(values) / 3, math.sqrt(sum((v - sum(values) / 3) ** 2 for v in values) / 2)
    assert cell["score"]["mean"] == pytest.approx(mean) and cell["score"]["std"] == pytest.approx(deviation)
    assert cell["score"]["high"] - mean == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    assert cell["against_float"]["mean"] == pytest.approx(mean - 0.95) and cell["bytes"]["mean"] == 2000
    assert cell["file"] == {"mean": 600, "std": 0, "low": 600, "high": 600, "n": 3}
    front = [c["name"] for c in made["cells"] if "bytes" in c["front"]]
    points = {c["name"]: (c["bytes"]["mean"], c["score"]["mean"]) for c in made["cells"]}
    assert front == [name for name, point in points.items() if not dominated(point, points.values())]
    assert made["failed"] == [{"folder": "cut", "error": "report.json is cut off, or no JSON; run its command again"}]
    assert json.loads((tmp_path / "index.json").read_text()) == made


def test_the_pages_numbers_are_the_comparisons(tmp_path):
    made = comparison(tmp_path)
    parsed = Page((tmp_path / "index.html").read_text())
    header, *cells = parsed.rows("Leaderboard")
    assert header == [
        "setting", "sparsity", "bits", "n", "accuracy", "against float, points", "bytes", "ratio", "file", "ms@1",
        "ms@32", "best in",
    ]  # fmt: skip
    best = max(made["cells"], key=lambda cell: cell["score"]["mean"])
    half = best["score"]["high"] - best["score"]["mean"]
    assert cells[0][:5] == ["sparsity=0.5,bits=4", "0.5", "4", "3", f"{best['score']['mean']:.2%} ± {100 * half:.2f}"]
    assert [float(line[4].split("%")[0]) for line in cells] == sorted((float(c[4].split("%")[0]) for c in cells), reverse=True)
    runs = parsed.rows("Runs")
    assert len(runs) == 19 and runs[1] == ["sparsity=0.5,bits=2/seed_0", "0", "91.00%", "95.00%", "1,000", "4.00x", "350"]
    links = [attrs["href"] for tag, attrs in parsed.tags if tag == "a"]
    assert all((tmp_path / unquote(link)).with_name("report.json").is_file() for link in links) and len(links) == 18
    fields = parsed.rows("Fields that are not the same in all")
    assert fields[1] == ["stages[0].sparsity", "3", "0.5 (2); 0.7 (2); 0.9 (2)"]
    assert parsed.rows("Runs that are not compared")[1][0] == "cut"


def test_runs_that_can_not_be_compared_are_listed_with_the_reason(tmp_path):
    good = run_of(tmp_path / "good", 0.9, 500)
    again = run_of(tmp_path / "again", 0.9, 500)
    lost = run_of(tmp_path / "lost", None, 500, seed=1)
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    (half / "checkpoints" / "config.json").write_text("{}")
    old, bare = tmp_path / "old", tmp_path / "bare"
    for folder, text in ((old, '{"schema": 3}'), (bare, '{"schema": 4}')):
        folder.mkdir()
        (folder / "report.json").write_text(text)
    empty = tmp_path / "none"
    empty.mkdir()
    made = compare.run(list(map(str, (good, again, lost, half, old, bare, empty, good))))
    assert [(cell["name"], cell["n"]) for cell in made["cells"]] == [("good", 1)]
    assert {entry["folder"]: entry["error"] for entry in made["failed"]} == {
        "lost": "its accuracy is no finite number",
        "half": "not finished: checkpoints, but no report.json; its command goes on",
        "old": "report.json has schema 3; this release reads schema 4: run its command again",
        "bare": "report.json lacks a field ('headline'); run its command again",
        "none": "no report.json",
        "again": "repeats good: the same config and seed",
    }
    assert (tmp_path / "compare.html").is_file() and (tmp_path / "compare.json").is_file()
    assert runs_under(tmp_path) == sorted([again, bare, good, half, lost, old])
    with pytest.raises(ValueError, match="no run is named"):
        compare.run([])
    with pytest.raises(ValueError, match="no run can be compared: lost: its accuracy is no finite number"):
        compare.run([str(lost)])
    with pytest.raises(FileNotFoundError, match="typo/run: no such folder"):
        compare.run([str(good), str(tmp_path / "typo" / "run")])
    assert not (tmp_path / "typo").exists()
    with pytest.raises(ValueError, match="no run lies below it"):
        index.run(str(good / "nothing"))


def test_runs_of_unknown_networks_are_settings_of_their_own(tmp_path):
    """``jaxopt_nn.compress`` without a config keeps the recipe alone, and that is the same for other networks."""
    for name in ("a", "b"):
        report = json.loads((run_of(tmp_path / name, 0.9, 500) / "report.json").read_text())
        (tmp_path / name / "report.json").write_text(json.dumps({**report, "config": {"stages": [{"bits": 4}]}}))
    made = index.run(str(tmp_path))
    assert [(cell["name"], cell["n"]) for cell in made["cells"]] == [("a", 1), ("b", 1)] and not made["failed"]


def test_fields_that_change_no_number_make_no_setting(tmp_path):
    for seed, field in enumerate(FREE):
        run_of(tmp_path / f"run_{seed}", 0.9, 500, seed, **{field: "changed"})
    (cell,) = index.run(str(tmp_path))["cells"]
    assert cell["n"] == len(FREE) and cell["overrides"] == {}


def test_a_run_above_the_seeds_of_another_keeps_its_name(tmp_path):
    run_of(tmp_path / "a", 0.9, 500, bits=4)
    for seed in range(2):
        run_of(tmp_path / "a" / f"seed_{seed}", 0.9, 500, seed, bits=2)
    assert [cell["name"] for cell in index.run(str(tmp_path))["cells"]] == ["a", "a/seed_0 and 1 more"]


def test_links_hold_whatever_a_folder_is_called(tmp_path):
    name = "w:4 #1?%41"
    run_of(tmp_path / name, 0.9, 500)
    parsed = Page(page(index.run(str(tmp_path))))
    (link,) = {attrs["href"] for tag, attrs in parsed.tags if tag == "a"}
    parts = urlsplit(link)
    assert not (parts.scheme or parts.query or parts.fragment) and unquote(parts.path) == f"./{name}/report.html"


def test_metrics_and_data_that_differ_are_not_compared_with_each_other(tmp_path):
    runs = [run_of(tmp_path / f"run_{k}", 0.9 + k / 100, 500 + k, seed=k, data=f"d{k // 2}") for k in range(4)]
    for k, folder in enumerate(runs):
        report = json.loads((folder / "report.json").read_text())
        report |= {"data": f"d{k // 2}", "headline": "loss" if k == 3 else "accuracy"}
        (folder / "report.json").write_text(json.dumps(report))
    made = compare.run(list(map(str, runs)), str(tmp_path / "out"))
    assert [(group["data"], group["metric"]["name"]) for group in made["groups"]] == [
        ("d0", "accuracy"), ("d1", "accuracy"), ("d1", "loss"),
    ]  # fmt: skip
    assert [cell["group"] for cell in made["cells"]] == [0, 1, 2]
    assert made["cells"][0]["name"] == "run_0 and 1 more"
    parsed = Page((tmp_path / "out" / "compare.html").read_text())
    assert parsed.all("h2")[:3] == ["Accuracy on d0", "Accuracy on d1", "Loss on d1"]


def test_names_of_runs_can_not_break_out(tmp_path):
    evil = "<script>alert(1)<"
    run_of(tmp_path / evil, 0.9, 500, stages=[{"name": evil}])
    run_of(tmp_path / "b", 0.8, 400, stages=[{"name": "b"}])
    parsed = Page(page(index.run(str(tmp_path))))
    assert len([1 for tag, _ in parsed.tags if tag == "script"]) == 1 and parsed.rows("Leaderboard")[1][:2] == [evil, evil]


@pytest.mark.slow
def test_the_commands(tmp_path):
    runs = [run_of(tmp_path / "runs" / f"r{k}", 0.9 + k / 100, 500 + k, bits=k) for k in range(2)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for arguments, name in (
        (["compare", *map(str, runs), f"--out={tmp_path / 'out'}"], tmp_path / "out" / "compare.html"),
        (["index", str(tmp_path / "runs")], tmp_path / "runs" / "index.html"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{arguments[0]}", *arguments[1:]], cwd=REPOSITORY, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"page: {name}" in done.stdout and "91.00" in done.stdout and name.is_file()
