"""Plans as data: printed, edited, written and read back; those that don't fit are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.model import AxisGroup, Coupling, Member
from jaxopt_nn.core.passes import Layer, Plan, layer_of

LEAVES = {"a": (5, 4), "bias": (4,), "var": (4,), "b": (8, 3), "free": (2, 2)}
HIDDEN = AxisGroup(
    4,
    (
        Member("a", 1, "producer", np.arange(4)),
        Member("bias", 0, "vector", np.arange(4)),
        Member("var", 0, "divisor", np.arange(4)),
        Member("b", 0, "consumer", np.tile(np.arange(4), 2)),
    ),
)
HEAD = AxisGroup(3, (Member("b", 1, "producer", np.arange(3)),), "reaches an output")
INPUTS = (jax.ShapeDtypeStruct((2, 5), jnp.bfloat16), {"ids": [jax.ShapeDtypeStruct((), jnp.int32), None]})


def plan(kept=(0, 3)):
    layers = (
        layer_of("a", Coupling(HIDDEN, ()), list(kept)),
        layer_of("b axis 1", Coupling(HEAD, ()), pinned=HEAD.pinned),
    )
    return Plan("some", LEAVES, INPUTS, layers)


def test_what_is_cut_and_what_would_be_masked():
    made = plan()
    rows = np.array([0, 3, 4, 7])
    assert {name: own.stay for name, own in made.widths().items()} == {"a": 2, "b axis 1": 3} and list(made.kept) == ["a"]
    found = {(path, axis): x.tolist() for path, cut in made.cuts.items() for axis, x in cut.axes.items()}
    assert found == {("a", 1): [0, 3], ("bias", 0): [0, 3], ("var", 0): [0, 3], ("b", 0): rows.tolist()}
    assert made.cuts["b"].small == (4, 3) and made.sizes == (20 + 4 + 4 + 24 + 4, 10 + 2 + 2 + 12 + 4)
    assert set(made.masks) == {"a", "bias", "b"}, "a variance that is zero divides by zero"
    np.testing.assert_array_equal(made.masks["b"][0], np.isin(np.arange(8), rows))
    assert made.layers[0].off.tolist() == [False, True, True, False]


def test_it_prints_and_reports():
    lines = str(plan()).splitlines()
    assert lines == [
        "layer     units  stay  rebuilt",
        "a             4     2  equal    a axis 1: 4 -> 2, bias axis 0: 4 -> 2, var axis 0: 4 -> 2 and 1 more",
        "b axis 1      3     3  -        reaches an output",
        "30 of 56 parameters stay",
    ]
    said = {m.path: (m.kind, m.reason) for m in plan().report}
    assert said["a"] == ("note", "2 of 4 units stay; cut: a axis 1, bias axis 0, var axis 0, b axis 0")
    assert said["b axis 1"] == ("skipped", "keeps its 3 units: reaches an output")
    assert str(Plan("nothing", {}, (), ())).splitlines()[-1] == "0 of 0 parameters stay"


def test_json_and_back():
    made = plan()
    text = made.to_json()
    again = Plan.from_json(text)
    assert again.to_json() == text and str(again) == str(made) and again.report == made.report
    assert again.inputs == INPUTS and again.leaves == LEAVES
    for path, cut in made.cuts.items():
        assert again.cuts[path].shape == cut.shape
        jax.tree.map(np.testing.assert_array_equal, again.cuts[path].axes, cut.axes)
    edited = json.loads(text)
    edited["layers"][0]["kept"] = [2]
    assert Plan.from_json(json.dumps(edited)).cuts["b"].axes[0].tolist() == [2, 6]


def test_edited():
    made = plan()
    other = made.replace({"a": [3, 1, 2]})
    assert other.kept["a"].tolist() == [1, 2, 3] and made.kept["a"].tolist() == [0, 3]
    assert made.replace({"a": None}).cuts == {} and "none was to go" in str(made.replace({"a": None}))
    other = made.replace({"a": np.array([2]), "b axis 1": range(3)}).widths()
    assert list(map(str, other.values())) == ["1 of 4, equal", "3 of 3, whole"]


@pytest.mark.parametrize(
    "kept, message",
    [
        ({"a": []}, "a: keeps none of 4 units, fewer than one"),
        ({"a": [0, 4]}, "a: kept names unit 4; it has the units 0 to 3"),
        ({"a": [-1, 2]}, "kept names unit -1"),
        ({"a": [1, 1]}, "kept names a unit twice"),
        ({"a": [0.5]}, r"kept is float64\[1\]; pass the numbers"),
        ({"a": np.array([True, False, True, True])}, r"kept is bool\[4\]"),
        ({"a": [[0], [1]]}, r"kept is int64\[2, 1\]"),
        ({"b axis 1": [0, 1]}, "b axis 1: keeps all of its 3 units: reaches an output"),
        ({"b axis": [0]}, "'b axis' is no layer of 2; nearest: b axis 1"),
    ],
)
def test_bad_edits(kept, message):
    with pytest.raises(ValueError, match=message):
        plan().replace(kept)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": (5, 6)}, r"a has shape \[5, 6\] here, and has shape \[5, 4\] in the plan of some"),
        ({"c": (2,)}, r"c has shape \[2\] here, and is missing in the plan"),
        ({"free": None}, r"free is missing here, and has shape \[2, 2\] in the plan"),
    ],
)
def test_a_plan_of_another_network(change, message):
    plan().check(LEAVES)
    other = {path: shape for path, shape in {**LEAVES, **change}.items() if shape is not None}
    with pytest.raises(ValueError, match=f"a plan of another network: {message}"):
        plan().check(other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda found: found.pop("layers"), "not a plan as Plan.to_json writes it"),
        (lambda found: found.update(schema="jaxopt_nn.plan/9"), "this version reads"),
        (lambda found: found["layers"][0].update(kept=[9]), "kept names unit 9"),
        (lambda found: found["layers"][0]["members"][0].update(path="x"), "not a plan"),
        (lambda found: found["layers"][0]["members"][0].update(axis=2), "not a plan"),
        (lambda found: found["layers"][0]["members"][3].update(units=[0, 1]), "b, axis 0: 2 units for 8 entries"),
    ],
)
def test_bad_json(change, message):
    found = json.loads(plan().to_json())
    change(found)
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(found))
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json("kept: all")


def test_inputs_that_json_does_not_hold():
    odd = Plan("some", {}, (INPUTS[0], "a word"), ())
    with pytest.raises(TypeError, match="inputs hold a str; only dicts, lists, tuples and arrays"):
        odd.to_json()
    assert Layer("a", 2, np.array([1]), ()).cut
