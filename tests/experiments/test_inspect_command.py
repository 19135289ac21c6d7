"""What a config's model is made of: numbers by hand, the recipe's leaves, files and the command."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.classes import classification
from tests.experiments import test_configs


def own_model(seed):
    """An embedding tied to the head, a mixed activation site, a scan over two layers, an unused matrix."""

    def apply(variables, x):
        h = variables["table"][x]
        h = jnp.einsum("bts,bsd->btd", jnp.einsum("btd,bsd->bts", h, h), h)
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, variables["layers"])
        h = h @ (2 * variables["derived"])
        return (h * variables["scale"][None, None]) @ variables["table"].T

    shapes = {"table": (11, 8), "layers": (2, 8, 8), "derived": (8, 8), "scale": (8,), "unused": (5, 5)}
    kind = lambda name: jnp.bfloat16 if name == "derived" else jnp.float32
    return Network(apply, {name: jnp.ones(shape, kind(name)) for name, shape in shapes.items()})


def own_data():
    x = np.zeros((6, 3), np.int32)
    return classification(train=(x, x), test=(x, x))


def tiny(**changes):
    return {
        "seed": 0, "model": f"{__name__}:own_model", "batch_size": 2, "data": {"source": f"{__name__}:own_data"},
        "float": {"epochs": 1, "learning_rate": 0.1},
        "stages": [
            {"name": "prune", "method": "prune", "where": "layers", "sparsity": 0.5},
            {"name": "quantize", "method": "quantize", "bits": 4, "epochs": 2},
        ], **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return inspect.run(tiny())


def test_sites_and_totals(found):
    sites = {site["name"]: site for site in found["sites"]}
    assert found["input"] == "int32[1, 3]"
    assert sites["layers"]["macs"] == 2 * 3 * 8 * 8 and sites["layers"]["parameters"] == 128
    assert (sites["layers"]["stack"], sites["layers"]["in"], sites["layers"]["out"]) == ([0], [1], [2])
    first, second = sites["table"], sites["table#1"]
    assert {first["kind"], second["kind"]} == {"gather", "dot"}
    assert first["parameters"] + second["parameters"] == 88, "a tied leaf counts once"
    assert second["macs"] == 3 * 8 * 11 and second["out"] == [0]
    derived = next(site for name, site in sites.items() if name.startswith("derived"))
    assert derived["kind"] == "dot*" and derived["bytes"] == 2 * 64
    mixed = [site for site in sites.values() if not site["weight"]]
    assert [site["macs"] for site in mixed] == [3 * 3 * 8] * 2 and not any(site["parameters"] for site in mixed)
    totals = found["totals"]
    assert totals["parameters"] == 88 + 128 + 64 + 8 + 25 and totals["bytes"] == 4 * (88 + 128 + 8 + 25) + 2 * 64
    assert totals["macs"] == sum(s["macs"] for s in sites.values()) and totals["flops"] == 2 * totals["macs"]
    assert totals["parameters"] == sum(entry["parameters"] for entry in (*found["sites"], *found["leaves"]))
    assert totals["coverage"] == pytest.approx((88 + 128 + 64) / (88 + 128 + 64 + 25))


def test_what_has_no_site_is_listed_with_the_reason(found):
    reasons = {leaf["path"]: leaf["reason"] for leaf in found["leaves"]}
    assert reasons.keys() == {"scale", "unused"}
    assert "mul" in reasons["scale"] and "not read" in reasons["unused"]


def test_what_can_not_be_cut(found):
    cutting = found["cutting"]
    assert cutting["parameters"] == 88 + 128 + 64 + 25 and cutting["free"] + cutting["ends"] <= cutting["parameters"]
    uncut = [pin["uncut"] for pin in cutting["pins"]]
    assert uncut == sorted(uncut, reverse=True) and uncut[0] > 0
    rows = inspect.pin_rows(found)
    assert any(cells[0] == "is in no product with an activation" and cells[1] == "25" for cells in rows), rows
    assert any("groups may be cut" in said for said in inspect.sentences(found))


def test_what_is_cut_together(found):
    """The residual stream is the table's width, tied to the head, through the layers; the vocabulary stays."""
    rows = inspect.group_rows(found)
    stream = next(entry for entry in found["axis_groups"] if entry["units"] == 8)
    assert {(m["path"], m["axis"]) for m in stream["axes"]} >= {("table", 1), ("layers", 1), ("layers", 2), ("scale", 0)}
    assert sum(row[1] == "11" and row[3].startswith("no: ") for row in rows) == 1
    assert [row[3] == "yes" for row in rows] == sorted((row[3] == "yes" for row in rows), reverse=True)


def test_what_each_stage_takes(found):
    prune, quantize = found["stages"]
    assert prune["takes"] == ["layers"] and prune["parameters"] == 128
    assert {left["path"]: left["reason"] for left in prune["left"]}["table"] == "matches no pattern of the recipe"
    assert "table" in quantize["takes"] and "layers" in quantize["takes"]
    assert {left["path"] for left in quantize["left"]} >= {"scale", "unused"}
    lines = inspect.stage_rows(found)
    assert lines[0] == ["prune", "takes", f"1 of 5 leaves, {128 / 313:.1%} of the parameters"]


def test_what_the_data_decides_is_said_and_not_guessed():
    stage = {"name": "dead", "method": "prune_neurons", "threshold": 0.0}
    made = inspect.run(tiny(stages=[stage, *tiny()["stages"][:1]]))
    assert made["stages"][0] == {"name": "dead", "takes": None, "parameters": None, "left": []}
    assert inspect.stage_rows(made)[0] == ["dead", "takes", "decided by the data, when the stage begins"]
    assert made["stages"][1]["takes"] == ["layers"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    test_configs.write_idx(folder)
    return folder


@pytest.mark.parametrize("name", test_configs.NAMES)
def test_every_config_can_be_inspected(name, images):
    config = test_configs.shrunk(name, images)
    made = inspect.run(config)
    assert [stage["name"] for stage in made["stages"]] == [stage["name"] for stage in config["stages"]]
    takes = [stage["takes"] for stage, own in zip(made["stages"], config["stages"]) if own["method"] != "identity"]
    assert all(own is None or own for own in takes)
    assert len(inspect.stage_rows(made)) >= len(made["stages"])


def test_the_picture_counts_the_whole_model(found):
    figure = Figure()
    inspect._draw(figure, found)
    parameters, macs = figure.axes
    assert parameters.get_title() == "parameters: 313" and macs.get_title() == "MACs an example: 984"
    said = [text.get_text() for text in parameters.texts]
    assert f" 128, {100 * 128 / 313:.3g} %" in said


def test_files(found, tmp_path):
    made = inspect.run(tiny(), str(tmp_path / "out"))
    assert made == found == json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert (tmp_path / "out" / "inspect.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out" / "groups.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "out" / "inspect.md").read_text()
    assert "## What is cut together" in text and "![axis groups](groups.png)" in text
    assert "## What can't be cut" in text and "| unused | is not read by apply |" in text and "| quantize | takes |" in text
    assert "* the weight is computed from its leaf before use" in text


def test_reasons_are_grouped_without_the_place():
    pairs = [(f"b{i}", f"combined with an activation by `add` in MLP/Dense_{i}") for i in range(5)]
    assert inspect._by_reason([*pairs, ("w", "is in no site")]) == [
        ["b0, b1 and 3 more", "combined with an activation by `add`"],
        ["w", "is in no site"],
    ]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (tiny(model="experiments.models.digits:biuld"), "nearest: build"),
        (tiny(stages=[{"name": "q", "method": "quantize", "where": "layer", "bits": 4}]), "stage 'q': .* nearest: layers"),
        (tiny(stages=[{"name": "q", "method": "quantise", "bits": 4}]), "nearest: quantize"),
        (tiny(sead=1), "config.sead: no such field"),
    ],
)  # fmt: skip
def test_mistakes_are_named(config, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        inspect.run(config)


def test_the_command(tmp_path):
    line = [sys.executable, "-m", "experiments.inspect", "--config=configs/digits_quickstart.py"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=pathlib.Path(inspect.__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["site", "kind", "operands"]
    assert lines[1].split()[-3:] == ["19,200", "19,200", "76,800"]
    assert "total" in lines[5] and lines[5].split()[-3:] == ["50,200", "50,610", "202,440"]
    assert any(line.split()[:3] == ["quantize", "takes", "3"] for line in lines)
