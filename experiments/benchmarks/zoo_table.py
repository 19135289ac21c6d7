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

from experiments.benchmarks.common import emit
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic, fake_quant_activations
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.tensors.prepare import prepare
from tests.zoo import ZOO


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
    for bits, rule, twin in ((8, [("**", arithmetic("w8a8"))], fake_quant_activations(8)), (4, [], ())):
        method = quantize(bits)
        state = method.init(model.variables, info)
        stored = method.pack(model.variables, state)
        deployed = rewrite(model.apply, rule)
        reference = rewrite(model.apply, twin)(method.view(model.variables, state), *model.inputs)
        worst, agree = difference(deployed(prepare(stored), *model.inputs), reference)
        label = "W8A8" if bits == 8 else "W4"
        out |= {label: worst, f"{label} agree": f"{agree:.1%}"}
        if bits == 8:
            report = deployed.explain(stored, *model.inputs)
            out["float"] = sorted({m.path for m in report.of("float") if not m.path.startswith("@")})
    out["no site"] = [f"{m.path} ({m.reason})" for m in info.report.of("no site")]
    return out


def main() -> None:
    emit([row(name) for name in ZOO])


if __name__ == "__main__":
    main()
