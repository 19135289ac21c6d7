"""Sweeps: every cell with every seed once, resumable, mistakes said before any run, numbers by hand."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import compress, summary, sweep
from experiments.config import checked, decisive
from experiments.grid import cells_of, read_grid
from jaxopt_nn.core.paths import addresses
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.checkpoints import claim, locked
from jaxopt_nn.pipeline.classes import classification
from tests.reporting.full_report import Page

REPOSITORY = pathlib.Path(sweep.__file__).parent.parent


def own_model(seed):
    return Network(lambda variables, x: x @ variables["w"], {"w": jnp.full((4, 2), 0.01 * seed)})


def own_data(fold, seed):
    x = np.random.default_rng(seed).standard_normal((40, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    return classification(train=(x[:32], y[:32]), test=(x[32:], y[32:]))


def tiny(**changes):
    return {
        "seed": 0, "model": f"{__name__}:own_model", "checkpoint": "", "batch_size": 8,
        "data": {"source": f"{__name__}:own_data", "cross_validate": False},
        "float": {"epochs": 2, "learning_rate": 0.1},
        "stages": [
            {"name": "prune", "method": "prune", "sparsity": 0.5, "where": "**"},
            {"name": "quantize", "method": "quantize", "bits": 8, "rule": ""},
        ], **changes,
    }  # fmt: skip


GRID = "stages[0].sparsity=0.25,0.5;stages[1].bits=2,4"
#: Noise of each seed, shared by all cells.
NOISE = {0: 0.0, 1: 0.02, 2: -0.05, 7: 0.5}


KIND = {"metrics": {"accuracy": {"unit": "%", "better": "higher"}}, "headline": "accuracy"}


@pytest.fixture
def runs(monkeypatch):
    """``compress.run`` by a formula; the configs and folders that it was called with."""
    calls = []

    def run(config, workdir, say=None, *, latency=True, floats=None):
        assert latency is False
        calls.append((config, workdir))
        sparsity, bits, seed = config["stages"][0]["sparsity"], config["stages"][1]["bits"], config["seed"]
        if sparsity == 0.99 and seed == 1:
            raise FloatingPointError("stage 'prune': the loss is nan in epoch 1;\nlower learning_rate")
        final = 0.8 + NOISE[seed] - 0.1 * sparsity + 0.01 * bits + 0.001 * seed * bits
        report = {
            "config": checked(config), **KIND, "seed": seed, "baseline": {"metrics": {"accuracy": 0.9 + NOISE[seed]}},
            "stages": [
                {"metrics": {"accuracy": 0.0}},
                {"metrics": {"accuracy": final}, "bytes": 100 * bits, "ratio": 32 / bits},
            ],
        }  # fmt: skip
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(workdir) / "report.json").write_text(json.dumps(report))
        return report

    monkeypatch.setattr(compress, "run", run)
    return calls


def test_every_cell_is_run_once_with_every_seed(runs, tmp_path):
    made = sweep.run(tiny(), GRID, str(tmp_path), seeds=3)
    asked = [(c["stages"][0]["sparsity"], c["stages"][1]["bits"], c["seed"]) for c, _ in runs]
    assert asked == [(s, b, n) for n in range(3) for s in (0.25, 0.5) for b in (2, 4)]
    assert [c["name"] for c in made["cells"]] == [f"sparsity={s},bits={b}" for s in (0.25, 0.5) for b in (2, 4)]
    assert runs[1][1] == str(tmp_path / "sparsity=0.25,bits=4" / "seed_0")
    assert made["missing"] == 0 and not made["failed"]
    assert json.loads((tmp_path / "sweep.json").read_text()) == made
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    parsed = Page((tmp_path / "sweep.html").read_text())
    assert [line[:4] for line in parsed.rows("Leaderboard")[1:]] == [
        [cell["name"], *map(str, cell["overrides"].values()), "3"]
        for cell in sorted(made["cells"], key=lambda cell: -cell["score"]["mean"])
    ]
    assert len(parsed.rows("Runs")) == 1 + len(runs)
    assert "| sparsity=0.5,bits=4 | 3 |" in (tmp_path / "sweep.md").read_text()


def test_mean_spread_and_paired_differences(runs, tmp_path):
    made = sweep.run(tiny(), GRID, str(tmp_path), seeds=3, baseline="stages[0].sparsity=0.25,stages[1].bits=2")
    base, other = made["cells"][0], made["cells"][3]
    values = np.array([0.8 + NOISE[s] - 0.05 + 0.04 + 0.004 * s for s in range(3)])
    assert other["score"]["mean"] == pytest.approx(values.mean())
    assert other["score"]["std"] == pytest.approx(values.std(ddof=1)) and other["score"]["std"] > 0.03
    assert other["baseline_score"]["mean"] == pytest.approx(0.9 - 0.01)
    assert other["bytes"] == {"mean": 400, "std": 0, "low": 400, "high": 400, "n": 3} and other["ratio"]["mean"] == 8
    half = 4.302653 * values.std(ddof=1) / np.sqrt(3)  # Student's t of 2 degrees of freedom
    assert other["score"]["high"] - values.mean() == pytest.approx(half, rel=1e-6)
    differences = np.array([-0.025 + 0.02 + 0.002 * s for s in range(3)])
    found = other["difference"]
    assert found["mean"] == pytest.approx(differences.mean()) and found["n"] == 3
    assert found["standard_error"] == pytest.approx(differences.std(ddof=1) / np.sqrt(3))
    assert found["standard_error"] < 0.002, "the noise of a seed is in both cells"
    assert base["difference"] is None and made["baseline"] == base["name"]
    header, cells = sweep.header_and_cells(made)
    assert cells[0][-1] == "baseline" and cells[3][header.index("difference, points")] == "-0.30 ± 0.12 (n=3)"


def test_one_seed_has_no_spread(runs, tmp_path):
    made = sweep.run(tiny(seed=7), "stages[1].bits=2,4", str(tmp_path), seeds=1, baseline="bits=4")
    assert made["seeds"] == [7] and made["cells"][0]["score"]["std"] is None
    assert made["cells"][0]["difference"]["standard_error"] is None
    assert "±" not in str(sweep.header_and_cells(made))


def test_finished_runs_are_kept_and_others_go_on(runs, tmp_path):
    first = sweep.run(tiny(), GRID, str(tmp_path), seeds=2)
    (tmp_path / "sparsity=0.5,bits=2" / "seed_1" / "report.json").write_text('{"config": {"se')
    del runs[:]
    lines = []
    assert sweep.run(tiny(), GRID, str(tmp_path), seeds=2, say=lines.append) == first
    assert [workdir for _, workdir in runs] == [str(tmp_path / "sparsity=0.5,bits=2" / "seed_1")]
    assert lines[0] == "7 of 8 runs are finished and kept"
    assert lines[1].startswith("run 8 of 8: sparsity=0.5,bits=2 seed 1: accuracy 79.20%, 200 bytes; ")
    assert lines[1].endswith("about 0 s left")
    del runs[:]
    wider = sweep.run(tiny(), GRID.replace("2,4", "2,4,8"), str(tmp_path), seeds=3)
    assert len(runs) == 18 - 8 and [c["n"] for c in wider["cells"]] == [3] * 6


def test_a_folder_of_another_config_is_refused_before_any_run(runs, tmp_path):
    sweep.run(tiny(), "stages[1].bits=2", str(tmp_path), seeds=1)
    del runs[:]
    said = r"bits=2/seed_0: holds a run of another config; different: batch_size \(8 there, 4 here\)"
    with pytest.raises(ValueError, match=said):
        sweep.run(tiny(batch_size=4), "stages[1].bits=4,2", str(tmp_path), seeds=1)
    place = tmp_path / "bits=8" / "seed_0" / "checkpoints"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(checked(tiny(float={"epochs": 9, "learning_rate": 0.1}))))
    with pytest.raises(ValueError, match=r"float.epochs \(9 there, 2 here\)"):
        sweep.run(tiny(), "stages[1].bits=8", str(tmp_path), seeds=1)
    assert not runs


def test_a_run_that_fails_does_not_lose_the_others(runs, tmp_path):
    lines = []
    made = sweep.run(
        tiny(), "stages[0].sparsity=0.5,0.99", str(tmp_path), seeds=3, baseline="sparsity=0.5", say=lines.append
    )
    assert [c["n"] for c in made["cells"]] == [3, 2] and made["cells"][1]["difference"]["n"] == 2
    assert [(f["cell"], f["seed"]) for f in made["failed"]] == [("sparsity=0.99", 1)]
    assert made["failed"][0]["error"].startswith("FloatingPointError: stage 'prune': the loss is nan")
    assert any("failed: FloatingPointError: stage 'prune'" in line for line in lines)
    assert "failed: sparsity=0.99 seed 1" in (tmp_path / "sweep.md").read_text()


@pytest.mark.parametrize(("end", "bad"), [("baseline", float("nan")), ("final", float("inf")), ("final", None)])
def test_a_score_that_is_no_finite_number_is_a_failure(runs, tmp_path, monkeypatch, bad, end):
    whole = compress.run

    def run(config, workdir, say=None, *, latency=True, floats=None):
        report = whole(config, workdir, latency=latency, floats=floats)
        if config["seed"] == 1:
            {"baseline": report["baseline"], "final": report["stages"][-1]}[end]["metrics"]["accuracy"] = bad
            (pathlib.Path(workdir) / "report.json").write_text(json.dumps(report))
        return report

    monkeypatch.setattr(compress, "run", run)
    monkeypatch.setattr(sweep, "draw", lambda made: b"")
    for _ in range(2):
        result = sweep.run(tiny(), "stages[1].bits=2,4", str(tmp_path), seeds=3)
        assert json.loads((tmp_path / "sweep.json").read_text()) == result
        assert [cell["n"] for cell in result["cells"]] == [2, 2] and result["missing"] == 0
        assert [(f["cell"], f["seed"], f["error"]) for f in result["failed"]] == [
            (f"bits={bits}", 1, "ValueError: its accuracy is no finite number") for bits in (2, 4)
        ]
        assert len(runs) == 6, "finished runs are kept, these too"


def test_fields_that_change_no_number_are_no_other_config(runs, tmp_path):
    config = tiny()
    sweep.run(config, "", str(tmp_path), seeds=1)
    sweep.run({**config, "checkpoint_seconds": 1.0, "export": ["cpu"]}, "", str(tmp_path), seeds=1)
    assert len(runs) == 2, "the run ends anew, from its checkpoints, so that the programs are exported"
    (tmp_path / "config" / "seed_0" / "report.json").unlink()
    claim(tmp_path / "config" / "seed_0" / "checkpoints", decisive(checked(config)))
    sweep.run(config, "", str(tmp_path), seeds=1)
    assert len(runs) == 3


def test_an_interrupt_keeps_what_is_finished(runs, tmp_path, monkeypatch):
    whole = compress.run

    def interrupted(config, workdir, say=None, *, latency=True, floats=None):
        if len(runs) == 3:
            raise KeyboardInterrupt
        return whole(config, workdir, latency=latency, floats=floats)

    monkeypatch.setattr(compress, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(tiny(), GRID, str(tmp_path), seeds=2)
    made = json.loads((tmp_path / "sweep.json").read_text())
    assert [c["n"] for c in made["cells"]] == [1, 1, 1, 0] and made["missing"] == 5
    assert "5 runs are not done yet" in (tmp_path / "sweep.md").read_text()
    monkeypatch.setattr(compress, "run", whole)
    assert sweep.run(tiny(), GRID, str(tmp_path), seeds=2)["missing"] == 0
    assert len(runs) == 8


def test_means_over_folds_and_numbers_that_are_better_lower():
    cell = cells_of(checked(tiny()), {})[0]
    report = {
        **KIND, "seed": 3, "baseline": {"metrics": {"accuracy": 0.5}},
        "stages": [{"metrics": {"accuracy": 0.4}, "bytes": 8, "ratio": 2.0, "latency": {"32": {"ms": 1.5}}}],
        "summary": {"test": {
            end: {"metrics": {"accuracy": {"mean": mean}}} for end, mean in (("baseline", 0.55), ("final", 0.45))
        }},
    }  # fmt: skip
    found = sweep.record(report, cell.name, "config/seed_3")
    assert (found["score"], found["baseline_score"], found["folder"]) == (0.45, 0.55, "config/seed_3")
    assert (found["seed"], found["ms@32"]) == (3, 1.5) and "file" not in found
    assert sweep.record({**report, "artifact": {"bytes": 5}}, cell.name, "")["file"] == 5
    kind = {"metrics": {"bits/byte": {"unit": "bits/byte", "better": "lower"}}, "headline": "bits/byte"}
    of = lambda value: {"metrics": {"bits/byte": value}, "bytes": 8, "ratio": 2.0}
    reports = [{**kind, "seed": seed, "baseline": of(2.0), "stages": [of(3.0)]} for seed in (0, 1)]
    found = [sweep.record(report, cell.name, "") for report in reports]
    made = sweep.summary({}, [cell], [0, 1], None, found, [])
    assert made["cells"][0]["score"] == {"mean": 3.0, "std": 0.0, "low": 3.0, "high": 3.0, "n": 2}
    assert made["metric"]["better"] == "lower"
    header, cells = sweep.header_and_cells(made)
    assert header[2:4] == ["bits/byte", "float"] and cells[0][2:4] == ["3.0000 ± 0.0000", "2.0000 ± 0.0000"]
    assert (header[-1], cells[0][-1]) == ("file", "-")
    assert sweep.scored(found[0]) == "bits/byte 3.0000"
    assert made["cells"][0]["against_control"] is None and not any("control" in s for s in sweep.sentences(made))


def test_controls_are_compared_seed_by_seed():
    """0.4, 0.5 and 0.6 beside controls of 0.5 and 0.7 in the first two: -0.1 and -0.2."""
    cell = cells_of(checked(tiny()), {})[0]
    of = lambda value: {"metrics": {"accuracy": value}, "bytes": 8, "ratio": 2.0}
    controls = [{"metrics": {"accuracy": 0.5}}, {"metrics": {"accuracy": 0.1}, "test": {"accuracy": 0.7}}, None]
    reports = [
        {**KIND, "seed": n, "baseline": of(0.9), "stages": [of(0.4 + 0.1 * n)], "control": c} for n, c in enumerate(controls)
    ]
    made = sweep.summary({}, [cell], [0, 1, 2], None, [sweep.record(r, cell.name, "") for r in reports], [])
    found = made["cells"][0]["against_control"]
    assert found["values"] == pytest.approx([-0.1, -0.2]) and found["standard_error"] == pytest.approx(0.05)
    assert any(s.endswith("accuracy 60.00 ± 14.14; this less its control -15.00 ± 5.00 (n=2)") for s in sweep.sentences(made))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_size=8, 16", {"batch_size": [8, 16]}),
        ("float.learning_rate=1e-3,{'schedule': 'cosine', 'init_value': 0.1}",
         {"float.learning_rate": [1e-3, {"schedule": "cosine", "init_value": 0.1}]}),
        ("stages[0].where=**/w,'a,b;c',w", {"stages[0].where": ["**/w", "a,b;c", "w"]}),
        ("stages[1].rule=w4a8,''; data.cross_validate=True,False",
         {"stages[1].rule": ["w4a8", ""], "data.cross_validate": [True, False]}),
        ("model=a.b:c;stages[0].sparsity=0,0.5", {"model": ["a.b:c"], "stages[0].sparsity": [0.0, 0.5]}),
        ("stages[0].sparsity=0.5,1;stages[1].bits=1,4", {"stages[0].sparsity": [0.5, 1.0], "stages[1].bits": [1, 4]}),
        ({"stages[0].sparsity": (1, None)}, {"stages[0].sparsity": [1.0, None]}),
        ("", {}),
    ],
)  # fmt: skip
def test_values_are_literals_or_strings_and_numbers_of_the_configs_kind(text, expected):
    assert repr(read_grid(text, checked(tiny()))) == repr(expected)


def test_a_mapping_is_a_grid_and_the_config_is_left_alone():
    config = checked(tiny())
    before = json.dumps(config)
    cells = cells_of(config, read_grid({"stages[1].bits": [1, 2]}, config))
    assert [c.config["stages"][1]["bits"] for c in cells] == [1, 2] and json.dumps(config) == before
    assert addresses(config)["stages[1].bits"] == 8 and addresses(config)["model_args"] == {}


def test_names_of_cells_are_unique_folders():
    config = checked(tiny())
    grid = {"stages[0].where": ["a/b", "a?b", "x" * 200], "stages[1].name": ["q"], "stages[0].name": ["p", ".."]}
    cells = cells_of(config, read_grid(grid, config))
    assert cells[0].name == "where=a/b,stages[1].name=q,stages[0].name=p"
    assert cells[0].folder == "where=a_b,stages[1].name=q,stages[0].name=p"
    assert len({c.folder for c in cells}) == 6 and not any(len(c.folder) > 125 or "/" in c.folder for c in cells)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"grid": "stages[0].sparsty=0.5"},
            r"stages\[0\].sparsty: the config has no such field; nearest: stages\[0\].sparsity",
        ),
        ({"grid": "stages[2].bits=4"}, r"stages\[2\].bits: the config has no such field; nearest: stages\[1\].bits"),
        ({"grid": "stages.bits=4"}, "no such field"),
        ({"grid": "stages[0]sparsity=4"}, "is no address; write e.g. stages.1..sparsity"),
        ({"grid": "batch_size"}, "'batch_size': write key=value"),
        ({"grid": "batch_size="}, "batch_size: no value"),
        ({"grid": "batch_size=8,8"}, "a value stands there twice: 8, 8"),
        ({"grid": "stages[0].sparsity=1,1.0"}, "a value stands there twice: 1.0, 1.0"),
        (
            {"grid": "stages[1].bits=4,2.0"},
            r"stages\[1\].bits=2.0: the config holds the whole number 8; list whole numbers, or write 8.0 there",
        ),
        ({"grid": "stages[1].bits=True"}, "bits=True: the config holds the number 8"),
        ({"grid": "batch_size=8;batch_size=16"}, "batch_size stands there twice"),
        ({"grid": "batch_size=big"}, "batch_size='big': the config holds the number 8"),
        ({"grid": "data.cross_validate=true"}, "'true': the config holds False; allowed are True and False"),
        ({"grid": "seed=1,2"}, "say --seeds=n"),
        ({"grid": GRID, "baseline": "sparsity=0.3,bits=2"}, "is no cell of the grid; cells: sparsity="),
        (
            {"grid": GRID, "baseline": "stages[1].bits=2"},
            "fits 2 cells; cells: sparsity=0.25,bits=2, sparsity=0.5,bits=2",
        ),
        ({"grid": GRID, "baseline": "bits=2"}, "fits 2 cells; cells: sparsity=0.25,bits=2, sparsity=0.5,bits=2"),
        ({"grid": GRID, "seeds": 0}, "seeds=0: allowed are 1 and more"),
        (
            {"grid": "stages[0].sparsity=0.5,2.0,-1.0"},
            r"2 of 3 cells can't be run:\n  sparsity=2.0: stages\[0\] \(prune\): .*2.0.*\n  sparsity=-1.0: stages",
        ),
        (
            {"grid": "stages[0].name=prune,quantize"},
            "1 of 2 cells can't be run:\n  name=quantize: ",
        ),
    ],
)
def test_mistakes_are_said_before_any_run(runs, tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        sweep.run(tiny(), workdir=str(tmp_path / "sweep"), **arguments)
    assert not runs and not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "grid",
    ["stages[1].bits=2,4", "stages[0].sparsity=0.25,0.5", "stages[1].rule=w4a8,w8a8", "", GRID],
    ids=["bytes", "number", "words", "one", "two keys"],
)
def test_pictures(runs, tmp_path, grid):
    made = sweep.run(tiny(), grid, str(tmp_path), seeds=2)
    assert sweep.draw(made)[:4] == b"\x89PNG"


def test_lines_join_cells_of_other_bytes_and_texts_stay_inside():
    criteria, shares = ("magnitude", "saliency"), (0.5, 0.9)
    cells = [
        {
            "name": f"{criterion} {share}", "n": 3, "bytes": {"mean": 1000 * (1 - share)},
            "overrides": {"stages[0].criterion": criterion, "stages[0].sparsity": share},
            "score": {"mean": 0.9 + 0.01 * i - 0.1 * share, "std": 0.01}, "baseline_score": {"mean": 0.8},
        }
        for i, criterion in enumerate(criteria) for share in shares
    ]  # fmt: skip
    figure = Figure()
    summary._draw(figure, {"cells": cells, "metric": {"name": "accuracy", **KIND["metrics"]["accuracy"]}, "seeds": [0, 1, 2]})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    assert [line.get_xdata().tolist() for line in lines] == [pytest.approx([100, 500])] * 2
    assert [text.get_text() for text in axes.get_legend().get_texts()][1:] == [f"criterion={c}" for c in criteria]
    first, second = [line.get_transform().transform(line.get_xydata()) for line in lines]
    assert np.all(second[:, 0] - first[:, 0] > 4), "bars of one place stand side by side"
    assert first[0, 0] > first[1, 0], "smaller to the right"
    for text in axes.texts:
        box = text.get_window_extent()
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and box.y1 <= axes.bbox.y1
    assert sorted(text.get_text() for text in axes.texts) == ["0.5", "0.9"]


def test_two_sweeps_do_not_share_a_directory(runs, tmp_path):
    with locked(tmp_path), pytest.raises(OSError, match=r"another run .* is using this workdir"):
        sweep.run(tiny(), GRID, str(tmp_path))
    assert not runs


def test_a_real_sweep_from_the_command_line(tmp_path):
    (tmp_path / "own.py").write_text(
        "import jax.numpy as jnp, numpy as np\nimport jaxopt_nn as jn\nfrom ml_collections import ConfigDict\n"
        "def model(seed): return jn.Network(lambda v, x: x @ v['w'], {'w': jnp.full((4, 2), 0.01 * seed)})\n"
        "def data(seed):\n    x = np.random.default_rng(seed).standard_normal((40, 4)).astype(np.float32)\n"
        "    y = (x[:, 0] > 0).astype(int)\n    return jn.classification(train=(x[:32], y[:32]), test=(x[32:], y[32:]))\n"
        f"def get_config(): return ConfigDict({tiny(model='own:model', data={'source': 'own:data'})!r})\n"
    )
    flags = [f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'sweep'}", "--seeds=1"]
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "runpy.run_module('experiments.sweep', run_name='__main__')"
    )

    def command(*more):
        return subprocess.run(
            [sys.executable, "-c", code, *flags, *more], capture_output=True, text=True, cwd=REPOSITORY
        )

    done = command("--grid=stages[0].where=**,v", "--baseline=where=**")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run 1 of 2: where=** seed 0: accuracy ")
    assert lines[2].split()[:2] == ["cell", "n"] and lines[3].split()[:2] == ["where=**", "1"]
    assert sum(line.startswith("failed: where=v seed 0: ValueError: ") for line in lines) == 1
    wrong = command("--grid=stages[0].sparsty=0.5")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr and "error: grid: " in wrong.stderr
