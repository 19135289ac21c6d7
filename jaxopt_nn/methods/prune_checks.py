"""Parts of a pruning that don't go together, told where it is constructed."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax

from jaxopt_nn.core.arguments import check_takes, require
from jaxopt_nn.methods.allocations.base import Allocation
from jaxopt_nn.methods.allocations.lamp import lamp
from jaxopt_nn.methods.allocations.per_leaf import per_leaf
from jaxopt_nn.methods.allocations.per_output import per_output
from jaxopt_nn.methods.criteria.base import Criterion, asked
from jaxopt_nn.methods.criteria.saliency import SCHEDULE
from jaxopt_nn.methods.regrowth import Regrowth
from jaxopt_nn.methods.schedules import LAST
from jaxopt_nn.methods.structures.base import Structure


def check_parts(
    criterion: Criterion, sparsity: Any, threshold: Any, structure: Structure, allocation: Allocation, regrow: Any
) -> tuple[Any, float]:
    """The amount that is asked, and what it is at step 0; errors as in ``prune``."""
    _check_kinds(criterion, structure, allocation, regrow)
    amount = _amount(sparsity, threshold, structure)
    if threshold is not None and allocation is not per_leaf:
        raise ValueError(
            "prune(threshold=..., allocation=...): a threshold decides for each weight by itself; leave allocation out"
        )
    start = _start(amount, "sparsity" if threshold is None else "threshold")
    _check_structure(amount, threshold, structure, allocation)
    if isinstance(regrow, Regrowth):
        _check_regrowth(amount, threshold, structure, allocation, regrow)
    wants = asked(criterion)
    if wants.signed and allocation is lamp:
        raise ValueError(
            f"prune(allocation=lamp): divides squares of scores, and {_named(criterion)} gives scores of either sign; pass "
            "allocation=global_budget, or magnitude"
        )
    first = regrow.start if isinstance(regrow, Regrowth) else None
    if (wants.gradients or (wants.memory.keys() - wants.probes.keys())) and start > 0 and first is None:
        other = f"a schedule that starts at 0, e.g. {SCHEDULE}"
        if isinstance(regrow, Regrowth):
            other = "a criterion of the first masks, e.g. regrow=rigl(end=1000, start=random_scores(0))"
        raise ValueError(
            f"prune: {_named(criterion)} needs gradients, which update gets and init does not, and {start:g} is asked for in "
            f"init: pass {other}"
        )
    return amount, start


def _named(criterion: Any) -> str:
    return getattr(criterion, "__name__", "the criterion")


def _check_kinds(criterion: Any, structure: Any, allocation: Any, regrow: Any) -> None:
    """Raises TypeError where a part is none; only a config gives its name."""
    scored = "the function itself: magnitude, saliency, or your own (weight, gradient or None, known) -> score of its shape"
    shared = "the function itself: per_leaf, erk, or your own (scores, known, sparsity) -> {path: bool mask}"
    check_takes(criterion, 3, "prune: criterion", scored)
    check_takes(allocation, 3, "prune: allocation", shared)
    require(structure, Structure, "prune: structure", "a Structure: single_weights, n_of_m(2, 4), blocks(8, 128)")
    require(regrow, bool | Regrowth, "prune: regrow", "True, False, rigl(end=1000) or sparse_evolution(key=0)")


def _amount(sparsity: Any, threshold: Any, structure: Structure) -> Any:
    if sparsity is None and threshold is None and structure.share is not None:
        return structure.share
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            f"prune(sparsity={sparsity}, threshold={threshold}): give one of them: the share of zeros, or the score below "
            "which weights go"
        )
    name, amount = ("threshold", threshold) if sparsity is None else ("sparsity", sparsity)
    if not callable(amount) and (isinstance(amount, bool) or not isinstance(amount, numbers.Real)):
        raise TypeError(
            f"prune({name}={amount!r}): pass one number, or a schedule of the step such as cubic(0.9, end=1000)"
        )
    return amount


def _start(amount: Any, name: str) -> float:
    """The amount at step 0."""
    with jax.ensure_compile_time_eval():
        start = float(amount(0) if callable(amount) else amount)
    when = f"{start} at step 0" if callable(amount) else f"{start}"
    if name == "sparsity" and not 0 <= start <= 1:
        share = f"; for {start:g} % pass sparsity={start / 100:g}" if 1 < start <= 100 else ""
        raise ValueError(f"prune(sparsity={when}): a share of zeros, 0 to 1, or a schedule of the step{share}")
    if not 0 <= start < math.inf:
        raise ValueError(f"prune(threshold={when}): a finite score, 0 or more, or a schedule of the step")
    return start


def _check_structure(amount: Any, threshold: Any, structure: Structure, allocation: Allocation) -> None:
    """Raises ValueError where a pattern leaves no choice to what is asked beside it."""
    if structure.select is None:
        return
    fixed = f"prune(structure={structure.name}): keeps as many in each of its groups"
    if threshold is not None:
        raise ValueError(f"{fixed}, whatever their scores; leave threshold out")
    if allocation is not per_leaf:
        raise ValueError(f"{fixed}, so that nothing is left to share out among leaves; leave allocation out")
    if structure.share is not None:
        with jax.ensure_compile_time_eval():
            end = float(amount(LAST) if callable(amount) else amount)
        if abs(end - structure.share) > 1e-6:
            raise ValueError(
                f"{fixed}, which makes {structure.share:g} of zeros, and not {end:g}; leave sparsity out, or pass a schedule "
                f"that ends there, e.g. cubic({structure.share:g}, end=1000)"
            )


def _check_regrowth(
    amount: Any, threshold: Any, structure: Structure, allocation: Allocation, regrow: Regrowth
) -> None:
    """Raises ValueError where what goes can't be made up for by what returns."""
    call = f"prune(regrow={regrow.name})"
    if threshold is not None:
        raise ValueError(f"{call}: as many return as go, so the share of zeros is constant; pass sparsity, not threshold")
    if callable(amount):
        raise ValueError(f"{call}: as many return as go, so the share of zeros is constant; pass sparsity=0.9, no schedule")
    if structure.select is not None:
        raise ValueError(
            f"{call}: what returns lies where its score is highest, which breaks the pattern of {structure.name}; pass "
            "structure=single_weights or blocks(...)"
        )
    if allocation is per_output:
        raise ValueError(
            f"{call}: what returns lies where its score is highest in the layer, so that outputs keep unequally many; pass "
            "allocation=per_leaf"
        )
