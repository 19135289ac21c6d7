"""What reads units that go makes up for them: its remaining weights are refitted by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import Coupling, ModelInfo, Read, Site, StatKey
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.taps import gram

#: Of the statistic, apart from one that a score may ask for.
GRAM = "gram of the readers"
#: Of the mean of a Gram's diagonal, added to it (Frantar & Alistarh 2023 take the same).
DAMPING = 0.01


def grams(info: ModelInfo, layers: Mapping[str, Coupling]) -> dict[StatKey, Tap]:
    """The Grams of the sites that read the units of ``layers``, of those that can be refitted."""
    read = {read.site for coupling in layers.values() for read in coupling.reads}
    return {((), site.name, GRAM): gram() for site in _single(info) if site.name in read}


def reconstructed(network: Network, plan: Plan, info: ModelInfo, layers: Mapping[str, Coupling]) -> Network:
    """The network whose weights that stay make up for the units that the plan takes out; shapes are as before.

    Of each site ``x @ w`` that reads such units, ``w`` is replaced by the least-squares solution over the calibration data in
    which the rows of the units are zero: ``w_K + (G_KK + d I)^-1 G_KD w_D`` with ``G = x^T x``, ``K`` what stays, ``D`` what
    goes and ``d`` 1 % of the mean of G's diagonal. That is the joint optimal update of OBS for a set of weights (Hassibi &
    Stork 1993; for structures Kurtic et al. 2023, ZipLM). Each site is refitted on the inputs that it has in the whole network.
    Weights that several sites read, or that are computed before use, stay as they are.

    Raises:
      ValueError: ``info`` lacks the statistics.
    """
    off = _rows_off(plan, layers)
    leaves = leaves_by_path(network.variables)
    new: dict[str, Any] = {}
    for site in _single(info):
        if site.name in off and off[site.name].any() and site.leaf is not None:
            if (key := ((), site.name, GRAM)) not in info.stats:
                raise ValueError(
                    f"{plan.name}: the refit of {site.name} needs its inputs on data; pass info=calibrate(network, the pass, "
                    "batches)"
                )
            w = leaves[site.leaf]
            fitted = refitted(np.asarray(site.matrix(w)), np.asarray(info.stats[key]), off[site.name])
            new[site.leaf] = site.put(w, jnp.asarray(fitted, w.dtype))
    return network.replace(variables=map_with_path(lambda path, x: new.get(path, x), network.variables))


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


def _single(info: ModelInfo) -> Iterator[Site]:
    """The sites whose weight is one leaf as it stands, which no other site reads."""
    counts: dict[str, int] = {}
    for site in info.sites:
        for path in site.leaves:
            counts[path] = counts.get(path, 0) + 1
    for site in info.sites:
        if site.kind != "gather" and site.weight is not None and len(site.uses) == 1 and counts[site.uses[0].path] == 1:
            if site.uses[0].exact and site.uses[0].matrix is not None:
                yield site


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
