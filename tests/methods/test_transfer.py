"""Weight transfer: what moves, what does not, and why."""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_nn.core.paths import leaves_by_path, matches
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.transfer import _capturing, transfer_weights

TEACHER = {
    "encoder": [{"kernel": jnp.full((3, 4), float(i)), "bias": jnp.full(4, 10.0 + i)} for i in range(2)],
    "head": {"kernel": jnp.full((4, 5), 7.0)},
    "extra": jnp.ones(2),
}
STUDENT = {
    "params": {
        "enc_0": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4, jnp.bfloat16)},
        "enc_1": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)},
        "head": {"kernel": jnp.zeros((4, 10))},
        "norm": jnp.zeros(4),
    }
}
MAP = [("encoder/*/*", "params/enc_*/*"), ("head/**", "params/head/**")]


def test_leaves_move_by_path_and_shape_and_the_report_names_every_other():
    tree, report = transfer_weights(TEACHER, STUDENT, MAP)
    assert jax.tree.structure(tree) == jax.tree.structure(STUDENT)
    found = leaves_by_path(tree)
    for i in range(2):
        np.testing.assert_array_equal(found[f"params/enc_{i}/kernel"], np.full((3, 4), i))
        np.testing.assert_array_equal(found[f"params/enc_{i}/bias"], np.full(4, 10 + i))
    assert found["params/enc_0/bias"].dtype == jnp.bfloat16
    assert found["params/norm"] is STUDENT["params"]["norm"] and found["params/head/kernel"].shape == (4, 10)
    said = {(m.kind, m.path): m.reason for m in report}
    assert said["moved", "params/enc_1/kernel"] == "from encoder/1/kernel"
    assert said["moved", "params/enc_0/bias"] == "from encoder/0/bias, cast from float32 to bfloat16"
    assert "[4, 5] in source, [4, 10] in target" in said["skipped", "params/head/kernel"]
    assert "[4, 5] in source, [4, 10] in target" in said["skipped", "head/kernel"]
    assert "no params/norm in source" in said["skipped", "params/norm"]
    assert "no extra in target" in said["skipped", "extra"]
    moved = {m.path for m in report.of("moved")}
    assert {m.path for m in report} == moved | {"params/head/kernel", "params/norm", "head/kernel", "extra"}
    assert len(moved) == 4


def test_leaves_that_no_pattern_matches_keep_their_path_and_the_first_match_counts():
    source = {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.full(2, 2.0)}, "c": jnp.full(2, 3.0)}
    target = {"x": {"w": jnp.zeros(2)}, "y": {"w": jnp.zeros(2)}, "c": jnp.zeros(2)}
    tree, _ = transfer_weights(source, target, [("a/*", "x/*"), ("*/w", "y/w")])
    assert [float(tree[k]["w"][0]) for k in "xy"] == [1.0, 2.0] and float(tree["c"][0]) == 3.0


@pytest.mark.parametrize(
    ("path", "pattern", "replacement", "expected"),
    [
        ("a/b/c/kernel", "**/kernel", "params/**/w", "params/a/b/c/w"),
        ("kernel", "**/kernel", "params/**/w", "params/w"),
        ("a/b/kernel", "**/*/kernel", "**/new_*/w", "a/new_b/w"),
        ("layer_3/w", "layer_?/w", "blocks/?/w", "blocks/3/w"),
        ("l_a_b", "l_*_*", "*/*", "a/b"),
        ("x1/w", "x[0-9]/w", "y*", "y1"),
        ("x1/w", "x[!a]/w", "y*", "y1"),
        ("a/b/c", "a/**", "z", "z"),
        ("p.q/w", "p.q/*", "*", "w"),
    ],
)
def test_captured_wildcards(path, pattern, replacement, expected):
    source, target = nested(path.split("/"), 1.0), nested(expected.split("/"), 0.0)
    tree, report = transfer_weights(source, target, [(pattern, replacement)])
    assert [m.path for m in report.of("moved")] == [expected]
    np.testing.assert_array_equal(leaves_by_path(tree)[expected], np.ones(3))


def nested(keys, value):
    return {keys[0]: nested(keys[1:], value)} if keys else jnp.full(3, value)


@given(
    st.lists(st.text("ab_", min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.sampled_from(["**", "*", "a*", "*_*", "?", "[ab]*", "[!a]", "ab", "a"]), min_size=1, max_size=4),
)
def test_capturing_patterns_match_what_the_library_s_globs_match(keys, parts):
    path, pattern = "/".join(keys), "/".join(parts)
    found = _capturing(pattern).fullmatch(path + "/")
    assert (found is not None) == matches(pattern, path)
    if found and "**" not in parts:
        assert all(fnmatch.fnmatchcase(k, p) for k, p in zip(keys, parts))


def test_dtypes_of_another_kind_and_abstract_targets():
    source = {"n": jnp.ones(2), "w": jnp.ones(3)}
    target = {"n": jnp.zeros(2, jnp.int32), "w": jax.ShapeDtypeStruct((3,), jnp.float16)}
    tree, report = transfer_weights(source, target)
    assert tree["n"] is target["n"] and tree["w"].dtype == jnp.float16
    assert any("dtype float32 in source, int32 in target" in m.reason for m in report.of("skipped"))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_leaf_whose_values_overflow_stays_behind(array):
    """Cast, they would be inf, or wrap around; inf itself and what rounds into the range may move."""
    source = {
        "big": array([[1e6, 1.0], [-7e4, np.inf]], "float32"),
        "edge": array([65519.0, -np.inf, np.nan], "float32"),
        "count": array([300, -1, 7], "int32"),
        "nan": array([1.0, np.nan], "float16"),
    }
    target = {
        "big": jnp.zeros((2, 2), jnp.float16),
        "edge": jnp.zeros(3, jnp.float16),
        "count": jnp.zeros(3, jnp.uint8),
        "nan": jnp.zeros(2, jnp.bfloat16),
    }
    tree, report = transfer_weights(source, target)
    assert tree["big"] is target["big"] and tree["count"] is target["count"]
    np.testing.assert_array_equal(tree["edge"], np.float16([65504, -np.inf, np.nan]))
    assert {m.path for m in report.of("moved")} == {"edge", "nan"}
    said = {m.path: m.reason for m in report.of("skipped") if m.reason.startswith("target")}
    assert said == {
        "big": "target keeps its own: big does not fit: 2 of 4 values overflow float16",
        "count": "target keeps its own: count does not fit: 2 of 3 values overflow uint8",
    }
    with pytest.raises(ValueError, match="nothing moved: w: 1 of 1 values overflow float32"):
        transfer_weights({"w": np.float64([1e300])}, {"w": jnp.zeros(1)})


PACKED = {"w": quantize(4).pack({"w": jnp.ones((2, 2))}, quantize(4).init({"w": jnp.ones((2, 2))}))["w"]}


@pytest.mark.parametrize(
    ("source", "target", "rename", "match"),
    [
        (TEACHER, STUDENT, [("encodr/*/kernel", "x/*/w")], "matches no path of source .*encoder/0/kernel"),
        (TEACHER, STUDENT, [("encoder/*/kernel", "params/*/*")], "2 wildcards to fill, but 1"),
        (TEACHER, STUDENT, [("encoder/*/kernel", "params/enc_0/kernel")], "both encoder/0/kernel and encoder/1/kernel"),
        (TEACHER, STUDENT, [], "nothing moved: no encoder/0/bias in target; .*rename="),
        ({"w": jnp.ones(2)}, {"w": jnp.ones(3)}, [], r"nothing moved: w: shape \[2\] in source, \[3\] in target"),
        ({}, STUDENT, [], "source holds no array"),
        (TEACHER, {}, [], "target holds no array"),
        (PACKED, {"w": jnp.ones((2, 2))}, [], "w: is a QTensor in source; .*densify"),
        ({"w": jnp.ones((2, 2))}, PACKED, [], "w: is a QTensor in target"),
    ],
)
def test_values_that_are_not_allowed(source, target, rename, match):
    with pytest.raises(ValueError, match=match):
        transfer_weights(source, target, rename)
