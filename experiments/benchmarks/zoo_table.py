"""Claim: on every model of the zoo each matrix feeds a site or is listed, and integer weights and arithmetic run.

Command: ``python -m experiments.benchmarks.zoo_table`` (about 4 minutes; needs the repository, for ``tests.zoo``)

``covered``: parameters in matrix-shaped leaves that feed a site. ``W8A8``: largest difference between the deployed integer
network and its fake-quantized float twin, over the largest output; ``agree``: share of equal arg-max answers of the two.
``W4``: the same for stored 4-bit weights against their view.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.rule import identity_rule
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic, fake_quant_activations
from jaxopt_nn.methods.quantize import quantize
from tests.zoo import ZOO

from .common import emit


def difference(ours: Any, theirs: Any) -> tuple[float, float]:
    """(largest difference over largest magnitude, share of equal arg-max along the last axis)."""
    worst, agree = 0.0, []
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            worst = max(worst, float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)))
            if a.ndim and a.shape[-1] > 1:
                agree.append(np.mean(a.argmax(-1) == b.argmax(-1)))
    return worst, float(np.mean(agree)) if agree else 1.0


def row(name: str) -> dict[str, Any]:
    model = ZOO[name]()
    info = inspect(model.apply, model.variables, *model.inputs)
    out: dict[str, Any] = {
        "model": name,
        "parameters": sum(leaf.size for leaf in info.leaves),
        "sites": len(info.sites),
        "covered": f"{info.coverage:.1%}",
    }
    for bits, rule in ((8, [("**", arithmetic("w8a8"))]), (4, [])):
        method = quantize(bits)
        state = method.init(model.variables, info)
        stored = method.pack(model.variables, state)
        deployed = rewrite(model.apply, rule)
        left = sorted(
            {m.path for m in deployed.explain(stored, *model.inputs).of("float") if not m.path.startswith("@")}
        )
        # what the integers leave in float, the twin leaves unrounded
        twin = [*((name, identity_rule()) for name in left), ("**", fake_quant_activations(8))] if rule else []
        reference = rewrite(model.apply, twin)(method.view(model.variables, state), *model.inputs)
        worst, agree = difference(deployed(prepare(stored), *model.inputs), reference)
        label = "W8A8" if bits == 8 else "W4"
        out |= {label: worst, f"{label} agree": f"{agree:.1%}"}
        if bits == 8:
            out["left in float"] = left
    out["no site"] = no_site(info)
    return out


def no_site(info: ModelInfo) -> list[str]:
    """The matrices that feed no site, by reason."""
    by_reason: dict[str, list[str]] = {}
    for m in info.report.of("no site"):
        by_reason.setdefault(m.reason.split(" in ")[0], []).append(m.path)
    return [
        f"{paths[0] if len(paths) == 1 else f'{len(paths)} leaves'}: {reason}" for reason, paths in by_reason.items()
    ]


def main() -> None:
    emit([row(name) for name in ZOO])


if __name__ == "__main__":
    main()
