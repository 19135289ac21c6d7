"""The report against the program: the operands of all dots and convolutions, by a walk that knows nothing of the report."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from tests.zoo import ZOO
from tests.zoo.compressed import network, quantized

#: The weights and the arithmetic: as given, packed, prepared.
FORMS = {
    "float": (lambda name: network(name).variables, ()),
    "w8a8": (lambda name: quantized(name, 8).prepared, arithmetic("w8a8")),
    "w4, weight only": (lambda name: quantized(name, 4).prepared, ()),
    "w8a8, stored": (lambda name: quantized(name, 8).stored, arithmetic("w8a8")),
    "w4a16, stored": (lambda name: quantized(name, 4).stored, arithmetic("w4a16")),
}
PRODUCTS = {"dot_general": "dot", "conv_general_dilated": "convolution"}


def products(jaxpr):
    """``(name, "dtype[shape]", "dtype[shape]")`` of every dot and convolution, with those of all inner jaxprs."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name in PRODUCTS:
            sides = [f"{v.aval.dtype.name}{list(v.aval.shape)}" for v in eqn.invars]
            yield (PRODUCTS[eqn.primitive.name], *sides)
        for inner in core.jaxprs_in_params(eqn.params):
            yield from products(inner)


def told(report):
    """The same, as the report's rows and its sites of two activations say it; a site of several leaves counts once."""
    runs = {run.site: run for row in report.rows for run in row.runs}
    runs |= {run.site: run for run in (*report.activations, *report.others)}
    return Counter(
        (x.name, *x.operands) for run in runs.values() for x in run.operations if x.name in PRODUCTS.values()
    )


@functools.cache
def explained(name, form):
    m = network(name)
    variables, rule = FORMS[form]
    variables, run = variables(name), rewrite(m.apply, rule)
    return run.explain(variables, *m.inputs), jax.make_jaxpr(run)(variables, *m.inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ZOO)
def test_the_table_is_the_program(name, form):
    report, program = explained(name, form)
    assert told(report) == Counter(products(program))


@pytest.mark.parametrize("name", ZOO)
def test_every_leaf_has_a_row(name):
    m = network(name)
    report, _ = explained(name, "float")
    leaves = leaves_by_path(m.variables)
    assert [(row.path, row.shape, row.dtype) for row in report.rows] == [
        (path, x.shape, str(x.dtype)) for path, x in leaves.items()
    ]
    assert all(row.role and (row.runs or row.role != "no site" or row.reasons) for row in report.rows)
    text = report.table(limit=None)
    assert all(any(line.split()[0] == path for line in text.splitlines()) for path in leaves if path)
    assert all(jnp.prod(jnp.array(row.shape, int)) == row.size for row in report.rows)
