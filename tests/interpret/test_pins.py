"""The report of what keeps a network from being cut, against counts by hand and entry by entry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.paths import leaves_by_path
from tests.corpus import CORPUS
from tests.zoo import ZOO

MODELS = {**ZOO, **CORPUS}


def of(shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def by_reason(report):
    return {pin.reason: (pin.uncut, pin.parameters) for pin in report.pins}


def test_a_network_that_is_cut_everywhere():
    apply = lambda v, x: jax.nn.relu(x @ v["up"] + v["bias"][None]) @ v["down"]
    report = jn.coupling_report(apply, of({"up": (3, 8), "bias": (8,), "down": (8, 5)}), jnp.ones((1, 3)))
    assert (report.parameters, report.free, report.ends) == (64, 64, 0)
    assert [g.pinned is None for g in report.groups] == [True, False]
    assert by_reason(report) == {"is an axis of an input": (0, 24), "reaches an output of `apply`": (0, 40)}


def test_the_operation_that_holds_most_is_named_first():
    """Sorting holds the 8 units, that of the output 2 columns: of the second matrix both."""

    def apply(v, x):
        h = jax.nn.relu(x @ v["first"]) @ v["second"]
        return jnp.sort(h, axis=-1) @ v["third"]

    report = jn.coupling_report(apply, of({"first": (3, 4), "second": (4, 8), "third": (8, 2)}), jnp.ones((1, 3)))
    assert report.pins[0].reason == "`sort` orders it"
    assert report.pins[0].axes == (("second", 1), ("third", 0))
    assert (report.parameters, report.free, report.ends) == (60, 44, 16)
    assert by_reason(report) == {
        "`sort` orders it": (16, 48),
        "reaches an output of `apply`": (16, 16),
        "is an axis of an input": (0, 12),
    }


def test_parts_of_an_axis_count_for_themselves():
    """Of a fused kernel's three blocks one is sorted: a third of it, and all of what reads it."""

    def apply(v, x):
        a, b, c = jnp.split(x @ v["fused"], 3, axis=-1)
        return (jnp.sort(a, axis=-1) @ v["a"]) + (b * c) @ v["b"]

    report = jn.coupling_report(apply, of({"fused": (3, 12), "a": (4, 2), "b": (4, 2)}), jnp.ones((1, 3)))
    assert (report.parameters, report.free, report.ends) == (52, 32, 20)
    assert by_reason(report)["`sort` orders it"] == (20, 20)


def test_a_convolution_is_not_kept_by_its_window_and_a_stack_not_by_its_loop():
    def apply(v, x):
        h = jax.lax.conv_general_dilated(x, v["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w[0]) @ w[1], None), h.mean((1, 2)), (v["up"], v["down"]))
        return jnp.sort(h, axis=-1)

    shapes = {"kernel": (3, 3, 2, 4), "up": (5, 4, 6), "down": (5, 6, 4)}
    report = jn.coupling_report(apply, of(shapes), jnp.ones((1, 7, 7, 2)))
    assert (report.free, report.ends) == (240, 72) and report.parameters == 312
    assert by_reason(report) == {"`sort` orders it": (72, 312), "is an axis of an input": (72, 72)}


def test_a_matrix_that_nothing_reads():
    report = jn.coupling_report(lambda v, x: x @ v["a"], of({"a": (3, 4), "lost": (5, 6)}), jnp.ones((1, 3)))
    assert report.pins[0].axes == (("lost", 0), ("lost", 1)) and report.pins[0].uncut == 30
    assert report.free == 0 and report.ends == 12


def test_no_matrix_at_all():
    report = jn.coupling_report(lambda v, x: x * v["a"][None], of({"a": (3,)}), jnp.ones((1, 3)))
    assert report.parameters == 0 and report.pins == () and "0 of 0 groups" in str(report)


def test_the_table_is_cut_to_a_screen():
    report = jn.CouplingReport((), 10, 0, 0, tuple(jn.Pin(f"reason {i}", 10 - i, 10, (("w", 0),) * 5) for i in range(9)))
    lines = report.table(2).splitlines()
    assert len(lines) == 5 and lines[-1] == "and 7 reasons more"
    assert lines[2].split() == "reason 0 10 10 w axis 0, w axis 0, 3 more".split()
    assert len(report.table().splitlines()) == 11


@pytest.mark.parametrize("name", ["gqa_reshape", "fused_qkv", "gpt_sinusoidal", "mixer", "shared_slices", "inception"])
def test_counts_are_those_of_the_entries(name):
    """Each entry of each matrix is looked up in the groups' members."""
    model = MODELS[name]()
    report = jn.coupling_report(model.apply, model.variables, *model.inputs)
    free = total = 0
    matrices = {leaf.path for leaf in jn.inspect(model.apply, model.variables, *model.inputs).leaves if leaf.matrix}
    for path, x in leaves_by_path(model.variables).items():
        if path not in matrices:
            continue
        own = [m for g in report.groups if g.pinned is None for m in g.members if m.path == path]
        inside = np.zeros(x.shape, bool)
        for m, j in itertools.product(own, range(max(x.shape))):
            if j < x.shape[m.axis] and m.units[j] >= 0:
                np.moveaxis(inside, m.axis, 0)[j] = True
        free, total = free + inside.sum(), total + x.size
    assert (report.free, report.parameters) == (free, total)
    assert report.free + report.ends <= total
    if name == "gpt_sinusoidal":
        assert report.pins[0].reason == "`reduce_sum` reduces over it, and units differ there"
