"""The page of methods: a row for each public method, and rows for what its command runs."""

import pathlib

from experiments.benchmarks.methods_table import CASES
from jaxopt_nn.pipeline import registry

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "methods.md"
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| `jn.")]


def test_each_public_method_has_a_row():
    names = {*registry.METHODS, *registry.PASSES, *registry.CRITERIA, *registry.ALLOCATIONS, "cubic", "staircase"}
    names |= {make.__name__ for make in registry.RANGES.values()}
    names |= {"arithmetic", "fake_quant_activations", "transfer_weights", "Distill"}
    names -= {"cut_layers"}  # the network of the table has none that could go
    text = "\n".join(ROWS)
    assert not {name for name in names if name not in text}


def test_the_rows_are_what_the_command_runs():
    assert [row.split("`")[1] for row in ROWS] == [case.code for case in CASES]
