"""What is lost without a unit when its readers are refitted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxopt_nn.core.model import Read, Site
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.methods.criteria.base import asking
from jaxopt_nn.methods.taps import gram
from jaxopt_nn.passes.reconstruction import damped, row_units
from jaxopt_nn.passes.units import Units

GRAM = "gram"


def _taps(site: Site) -> Mapping[str, Tap]:
    return {} if site.kind == "gather" else {GRAM: gram()}


@asking(taps=_taps)
def removal_error(units: Units) -> np.ndarray | None:
    """The squared error of what reads a unit once it is gone and the other weights are refitted (ZipLM, Kurtic et al. 2023).

    For a site ``x @ w`` with ``H = x^T x + d I`` that is ``tr(w_u^T [(H^-1)_uu]^-1 w_u)``, ``u`` the rows of the unit:
    OBS for a set of weights at once, summed over the sites that read the unit. A unit that others can stand in for is worth
    little. The network is refitted by ``reconstruct=True``. Departure: ZipLM removes one unit at a time and updates H; here all
    are scored at once, so that of two twins both look weak. Needs ``info=calibrate(network, the pass, batches)``.

    Returns:
      float64 ``[size]``; None where no site with a weight reads the units.

    Example:
      >>> v = {"up": jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 1.0]]), "down": jnp.array([[1.0], [1.0], [1.0]])}
      >>> net = jn.Network(lambda v, x: (x @ v["up"]) @ v["down"], v)
      >>> x, cut = jnp.array([[1.0, 0.0], [0.3, 1.0], [2.0, -1.0]]), jn.cut_units(jn.scores.removal_error, share=0.3)
      >>> info = jn.calibrate(net, cut, [x])
      >>> cut.plan(net, info, x).kept["up"]  # unit 1 is twice unit 0
      array([1, 2])
    """
    errors = [
        _errors(units, read, units.sites[read.site])
        for read in units.reads
        if units.sites[read.site].weight is not None and read.site in units.stats[GRAM]
    ]
    return np.sum(errors, 0) if errors else None


def _errors(units: Units, read: Read, site: Site) -> np.ndarray:
    w = np.asarray(site.matrix(units.leaves[site.leaf or ""])).astype(np.float64)
    inverse = np.linalg.inv(damped(np.asarray(units.stats[GRAM][read.site]).astype(np.float64)))
    rows = row_units(read)
    order = np.argsort(rows, kind="stable")[np.sum(rows < 0) :]
    counts = np.bincount(rows[order], minlength=units.size)
    starts = np.cumsum(counts) - counts
    total = np.zeros(units.size)
    for count in set(counts.tolist()) - {0}:
        alike = np.flatnonzero(counts == count)
        own = order[starts[alike][:, None] + np.arange(count)]  # [units, rows of each]
        part = w[..., own, :]
        blocks = inverse[..., own[:, :, None], own[:, None, :]]
        errors = part * np.linalg.solve(blocks, part)
        total[alike] = errors.sum(axis=(-2, -1)).reshape(-1, len(alike)).sum(0)
    return total
