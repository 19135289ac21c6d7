"""The numbers of one stage that need no data: true bytes, what became of each leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.report import Report
from jaxopt_nn.core.transform import Facts
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.reporting.leaf_table import leaf_table
from jaxopt_nn.tensors.base import densify, nbytes

PyTree = Any


def row(
    name: str,
    stored: Network,
    prepared: Network,
    baseline: PyTree,
    info: ModelInfo,
    facts: Sequence[Facts] = (),
) -> dict[str, Any]:
    """A stage's entry in the report; ``metrics`` and ``latency`` are filled in by who measured them.

    ``params`` and ``nonzero`` count entries of inexact dtype. ``bytes`` are those of the stored form (codes, scales,
    masks, biases, states of rules, everything), ``resident_bytes`` those of the prepared one; ``ratio`` is the baseline's
    float32 bytes over ``bytes``, ``bits_per_weight`` divides by the baseline's parameters. ``macs`` are the
    multiply-accumulates of all sites of ``info`` for one example, those between activations too. ``facts`` are tables of the
    stage's method, when the stage began.
    """
    size = nbytes(stored)
    weights = prepared.variables
    return {
        "name": name,
        "metrics": {},
        "params": _entries(weights),
        "nonzero": int(_nonzero(weights)),
        "bytes": size,
        "resident_bytes": nbytes(prepared),
        "ratio": float32_bytes(baseline) / size,
        "bits_per_weight": 8 * size / _entries(baseline),
        "macs": sum(site.macs for site in info.sites),
        "latency": {},
        "leaves": leaf_table(stored.variables, _macs_by_leaf(info)),
        "facts": [{**fact._asdict(), "header": list(fact.header), "cells": list(map(list, fact.cells))} for fact in facts],
    }


def _macs_by_leaf(info: ModelInfo) -> dict[str, int]:
    """Of the sites that read a leaf, by its path."""
    return {row.path: sum(run.macs for run in row.runs) for row in info.report.rows if row.runs}


def counted(entry: dict[str, Any], report: Report) -> dict[str, Any]:
    """A stage's entry with the multiply-accumulates of what runs: fewer where a weight is multiplied by its factors.

    Args:
      report: of the prepared network on one example.
    """
    runs = {run.site: run.macs for row in report.rows for run in row.runs}
    own = {row.path: sum(run.macs for run in row.runs) for row in report.rows if row.runs}
    leaves = [{**leaf, "macs": own.get(leaf["path"])} for leaf in entry["leaves"]]
    return {**entry, "macs": sum(runs.values()) + sum(run.macs for run in report.activations), "leaves": leaves}


def float32_bytes(variables: PyTree) -> int:
    """Bytes of a tree with its floats at 4 bytes each, whatever their dtype, and complex numbers at 8."""
    numbers = _numbers(variables)
    others = nbytes(variables) - nbytes(numbers)
    return others + sum(x.size * (8 if jnp.iscomplexobj(x) else 4) for x in numbers)


def _numbers(variables: PyTree) -> list[Any]:
    return [x for x in jax.tree.leaves(variables) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _entries(variables: PyTree) -> int:
    return sum(x.size for x in _numbers(jax.eval_shape(densify, variables)))


@jax.jit
def _nonzero(variables: PyTree) -> jax.Array:
    counts = [jnp.count_nonzero(x) for x in _numbers(densify(variables))]
    return sum(counts, jnp.zeros((), jnp.int32))
