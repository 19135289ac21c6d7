"""The table of leaves and the histograms, against NumPy and counting by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxopt_nn as jn
from jaxopt_nn.reporting.leaf_table import histograms, leaf_table, told_stages
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.qtensor import QTensor


def rows(tree):
    table = leaf_table(tree, {"b": 7})
    json.dumps(table, allow_nan=False)
    return {row["path"]: row for row in table}


def test_each_leaf_of_a_stored_network(rng):
    dense = rng.normal(size=(6, 8)).astype(np.float32)
    quantized = QTensor.quantize(jnp.asarray(dense), jnp.full((1, 8), 0.25), bits=4)
    keep = np.abs(dense) > 0.6
    tree = {
        "a": {"kernel": Masked.pack(keep, quantized), "bias": jnp.asarray([0.0, -2.0, 3.0], jnp.bfloat16)},
        "b": quantized,
        "c": Masked.pack(keep, jnp.asarray(dense)),
        "d": QTensor.quantize(
            jnp.abs(jnp.asarray(dense)), jnp.full((1, 1), 0.5), jnp.zeros((1, 1)), bits=8, signed=False
        ),
    }
    found = rows(tree)
    assert list(found) == ["a/bias", "a/kernel", "b", "c", "d"]
    assert found["a/bias"] == {
        "path": "a/bias", "shape": [3], "format": "bfloat16", "bits": 16.0, "size": 3, "nonzero": 2, "bytes": 6,
        "min": -2.0, "max": 3.0, "share": 6 / jn.nbytes(tree), "macs": None, "stage": None, "alone": None,
    }  # fmt: skip
    assert sum(row["share"] for row in found.values()) == pytest.approx(1) and found["b"]["macs"] == 7
    formats = {path: row["format"] for path, row in found.items()}
    assert formats["a/kernel"] == "Masked(QTensor int4)" and formats["b"] == "QTensor int4"
    assert formats["c"] == "Masked(float32)" and formats["d"] == "QTensor uint8"
    codes = np.clip(np.round(dense / 0.25), -8, 7)
    for path, values in {"b": codes * 0.25, "a/kernel": keep * codes * 0.25, "c": keep * dense}.items():
        assert found[path]["nonzero"] == np.count_nonzero(values)
        assert (found[path]["min"], found[path]["max"]) == (values.min(), values.max())
    kept = int(keep.sum())
    assert found["b"]["bytes"] == 6 * 8 // 2 + 8 * 4
    assert found["c"]["bytes"] == 6 + 4 * kept and found["c"]["bits"] == 8 * (6 + 4 * kept) / 48
    assert found["a/kernel"]["bytes"] == 6 + -(-kept // 2) + 8 * 4


def test_leaves_without_an_order_or_a_value_have_defined_rows():
    found = rows({
        "complex": jnp.asarray([1j, 0.0]),
        "empty": jnp.zeros((0, 3)),
        "key": jax.random.key(0),
        "nan": jnp.asarray([jnp.nan, jnp.inf, 0.0, -2.0]),
        "none": jnp.asarray([jnp.nan, -jnp.inf]),
        "scalar": jnp.asarray(7),
        "zero": np.zeros((2, 2), np.float32),
    })  # fmt: skip
    limits = {path: (row["nonzero"], row["min"], row["max"]) for path, row in found.items()}
    assert limits == {
        "complex": (1, None, None), "empty": (0, None, None), "key": (1, None, None), "nan": (3, -2.0, -0.0),
        "none": (2, None, None), "scalar": (1, 7.0, 7.0), "zero": (0, 0.0, 0.0),
    }  # fmt: skip
    assert (found["empty"]["bits"], found["empty"]["bytes"], found["empty"]["size"]) == (0.0, 0, 0)
    assert (found["scalar"]["shape"], found["scalar"]["bits"], found["scalar"]["format"]) == ([], 32.0, "int32")
    assert leaf_table({}, {}) == []


def test_a_leaf_is_told_with_the_stages_that_changed_its_format():
    forms = {"baseline": ("float", "float"), "clip": ("float", "float"), "prune": ("mask", "float"), "w4": ("codes", "codes")}
    entries = [
        {"name": name, "leaves": [{"path": path, "format": form} for path, form in zip("ab", each)]}
        for name, each in forms.items()
    ]
    found = [[leaf["stage"] for leaf in entry["leaves"]] for entry in told_stages(entries)]
    assert found == [[None, None], [None, None], ["prune", None], ["prune, w4", "w4"]]


def test_a_kind_of_leaf_is_compiled_once(rng):
    tree = lambda n: {str(i): jnp.asarray(rng.normal(size=(4, 5)), jnp.float32) for i in range(n)}
    leaf_table(tree(1), {})
    with jax.no_tracing():
        leaf_table(tree(3), {})


@pytest.mark.parametrize("bins", [1, 3, 61])
def test_histograms_are_numpys_on_the_reported_edges(rng, bins):
    dense = rng.normal(size=(40, 30)).astype(np.float32)
    after = QTensor.quantize(jnp.asarray(dense), jnp.full((1, 30), 0.25), bits=4)
    found = histograms({"w": dense, "b": dense[0]}, {"w": after, "b": dense[0]}, ["w"], bins=bins)
    assert list(found) == ["w"]
    one = found["w"]
    edges = np.asarray(one["edges"], np.float32)
    reach = max(np.abs(dense).max(), np.abs(np.asarray(after.densify())).max())
    np.testing.assert_allclose(edges, np.linspace(-reach, reach, bins + 1), rtol=1e-6, atol=1e-7)
    assert np.array_equal(edges, -edges[::-1]) and edges[-1] == reach
    for name, values in {"before": dense, "after": after.densify()}.items():
        assert one[name] == np.histogram(np.asarray(values), edges)[0].tolist()
        assert sum(one[name]) == dense.size


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=4, max_size=4), st.sampled_from([1, 5, 61]))
def test_pruned_weights_fall_into_the_middle_bin(values, bins):
    before = np.asarray(values, np.float32).reshape(1, -1)
    after = np.concatenate([np.zeros((1, 7), np.float32), -np.zeros((1, 2), np.float32)], axis=1)
    one = histograms([before], [after], ["0"], bins=bins)["0"]
    assert one["after"][bins // 2] == 9 and sum(one["after"]) == 9
    assert sum(one["before"]) == len(values)
    assert np.all(np.diff(one["edges"]) > 0)


def test_histograms_of_odd_leaves():
    odd = {"nan": [jnp.nan, jnp.inf, 0.5, -1.0], "empty": np.zeros((0, 2)), "zero": [0.0, 0.0], "complex": [1j, 0j]}
    odd = {path: np.asarray(leaf, np.complex64 if path == "complex" else np.float32) for path, leaf in odd.items()}
    found = histograms(odd, odd, odd, bins=3)
    assert found["nan"]["before"] == found["nan"]["after"] == [1, 0, 1] and found["nan"]["edges"][-1] == 1.0
    assert found["empty"]["before"] == [0, 0, 0] and found["empty"]["edges"][-1] == 1.0
    assert found["zero"]["before"] == [0, 2, 0]
    assert found["complex"]["before"] == [0, 3, 1]
    json.dumps(found, allow_nan=False)


def test_what_histograms_refuse():
    tree = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="bins=60: needs an odd number"):
        histograms(tree, tree, ["kernel"], bins=60)
    with pytest.raises(ValueError, match="kernels: no leaf of the tree `before` has this path; nearest: kernel"):
        histograms(tree, tree, ["kernels"])
    with pytest.raises(ValueError, match="kernel: no leaf of the tree `after`"):
        histograms(tree, {}, ["kernel"])
