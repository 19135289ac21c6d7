"""What reads units that go makes up for them: its remaining weights are refitted by least squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Coupling, ModelInfo, Read, Site, StatKey
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.biases import biases
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.taps import gram, moments

#: Of the statistics, apart from those that a score may ask for.
GRAM, MOMENTS = "gram of the readers", "moments of the readers"
#: Of the mean of a Gram's diagonal, added to it (Frantar & Alistarh 2023 take the same).
DAMPING = 0.01


def grams(info: ModelInfo, layers: Mapping[str, Coupling]) -> dict[StatKey, Tap]:
    """The statistics of the sites that read the units of ``layers``, of those that can be refitted."""
    read = {read.site for coupling in layers.values() for read in coupling.reads}
    own = [site for sites in _readers(info).values() for site in sites if any(s.name in read for s in sites)]
    return {((), site.name, name): tap for site in own for name, tap in ((GRAM, gram()), (MOMENTS, moments()))}


def reconstructed(network: Network, plan: Plan, info: ModelInfo, layers: Mapping[str, Coupling]) -> Network:
    """The network whose weights that stay make up for the units that the plan takes out; shapes are as before.

    Of each site ``x @ w`` that reads such units, ``w`` is replaced by the least-squares solution over the calibration data in
    which the rows of the units are zero: ``w_K + (G_KK + d I)^-1 G_KD w_D`` with ``G = x^T x``, ``K`` what stays, ``D`` what
    goes and ``d`` 1 % of the mean of G's diagonal. That is the joint optimal update of OBS for a set of weights (Hassibi &
    Stork 1993; for structures Kurtic et al. 2023, ZipLM). Where a leaf is added to the site's output and to nothing else, it is
    refitted too, as the intercept, if its entries are the site's outputs in their order: then ``G`` is that of ``x`` less its
    mean ``m``, and the bias gains ``m (w - w')``. A weight that several sites read alike is fitted to all of them at once,
    without an intercept. Each site is refitted on the inputs that it has in the whole network. Weights that sites read in
    different ways (an embedding that is the head too), or that are computed before use, stay as they are.

    Raises:
      ValueError: ``info`` lacks the statistics.
    """
    off = _rows_off(plan, layers)
    leaves, added = leaves_by_path(network.variables), biases(network.apply, network.variables, *plan.inputs)
    new: dict[str, Any] = {}
    for path, sites in _readers(info).items():
        gone = next((off[site.name] for site in sites if site.name in off), np.zeros(0, bool))
        if not gone.any():
            continue
        grams = [_statistic(plan, info, site, GRAM) for site in sites]
        site, w, bias = sites[0], leaves[path], added.get(sites[0].name)
        own = site.matrix(w)
        if len(sites) > 1 or bias is None:
            fitted = refitted(np.asarray(own), sum(grams), gone)
        else:
            mean, weight = (np.asarray(_statistic(plan, info, site, MOMENTS)[name]) for name in ("mean", "weight"))
            fitted, shift = with_intercept(np.asarray(own), grams[0], mean, weight, gone)
            b = leaves[bias]
            new[bias] = jnp.asarray(np.asarray(b) + shift.reshape(b.shape), b.dtype)
        new[path] = site.put(w, jnp.asarray(fitted, w.dtype))
    return network.replace(variables=map_with_path(lambda path, x: new.get(path, x), network.variables))


def _statistic(plan: Plan, info: ModelInfo, site: Site, name: str) -> Any:
    if (key := ((), site.name, name)) not in info.stats:
        raise ValueError(
            f"{plan.name}: the refit of {site.name} needs its inputs on data; pass info=calibrate(network, the pass, batches)"
        )
    own = info.stats[key]
    return np.asarray(own) if name == GRAM else own


def with_intercept(
    w: np.ndarray, gram: np.ndarray, mean: np.ndarray, weight: np.ndarray, off: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``refitted`` beside a bias: the matrix, and what the bias gains, ``[S..., O]``.

    Args:
      mean: of the inputs, ``[S..., I]``. weight: of the data, ``[S...]``: how many rows.
    """
    kind = np.complex128 if np.iscomplexobj(gram) else np.float64
    gram, mean = gram.astype(kind), mean.astype(kind)
    around = gram - weight[..., None, None] * mean.conj()[..., :, None] * mean[..., None, :]
    fitted = refitted(w, around, off)
    return fitted, np.einsum("...i,...io->...o", mean, w - fitted)


def refitted(w: np.ndarray, gram: np.ndarray, off: np.ndarray) -> np.ndarray:
    """The matrix ``[S..., I, O]`` without the rows that are ``off``, whose products are nearest to those of ``w``.

    Args:
      gram: ``x^T x`` of its inputs, ``[S..., I, I]``.
      off: bool ``[I]``.

    Returns:
      float64, zero in these rows.
    """
    kind = np.result_type(w.dtype, np.float64) if np.iscomplexobj(w) else np.float64
    w, gram = w.astype(kind), gram.astype(np.result_type(gram.dtype, np.float64))
    out = np.where(off[:, None], 0, w)
    if off.all():
        return out
    stay = ~off
    own = damped(gram)[..., stay, :][..., stay]
    out[..., stay, :] += np.linalg.solve(own, gram[..., stay, :][..., off] @ w[..., off, :])
    return out


def damped(gram: np.ndarray) -> np.ndarray:
    """A Gram ``[..., I, I]`` with 1 % of the mean of its diagonal on the diagonal; with 1 where that is zero."""
    damping = DAMPING * np.einsum("...ii->...", gram).real / gram.shape[-1]
    return gram + np.where(damping > 0, damping, 1.0)[..., None, None] * np.eye(gram.shape[-1])


def row_units(read: Read) -> np.ndarray:
    """Of each input of a site the unit that it belongs to, int ``[I]``, -1 for none."""
    along = read.units.reshape([-1 if i == read.axis else 1 for i in range(len(read.shape))])
    return np.broadcast_to(along, read.shape).reshape(-1)


def _readers(info: ModelInfo) -> dict[str, list[Site]]:
    """The sites of each leaf that is the weight of all of its sites as it stands, and read by all in the same way."""
    sites: dict[str, list[Site]] = {}
    for site in info.sites:
        for path in site.leaves:
            sites.setdefault(path, []).append(site)
    return {path: own for path, own in sites.items() if all(_alike(site, own[0]) for site in own)}


def _alike(site: Site, first: Site) -> bool:
    if site.kind == "gather" or site.weight is None or len(site.uses) != 1:
        return False
    (use,) = site.uses
    return use.exact and use.matrix is not None and use.matrix == first.uses[0].matrix


def _rows_off(plan: Plan, layers: Mapping[str, Coupling]) -> dict[str, np.ndarray]:
    """Of each site the inputs that go, bool ``[I]``."""
    off: dict[str, np.ndarray] = {}
    for layer in plan.layers:
        if not layer.cut or layer.name not in layers:
            continue
        for read in layers[layer.name].reads:
            units = row_units(read)
            gone = (units >= 0) & layer.off[units]
            off[read.site] = off.get(read.site, np.zeros(len(gone), bool)) | gone
    return off
