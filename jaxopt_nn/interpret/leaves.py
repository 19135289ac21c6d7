"""The rows of a report: what stands in each leaf, how the model uses it, and what the program does with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxopt_nn.core.leaf_rows import LeafRow, Operation, Run
from jaxopt_nn.core.model import Leaf, ModelInfo, Roles, Site
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.tensors.base import is_compressed

NAMES = {"dot": "dot", "conv": "convolution", "gather": "lookup"}
_ADDED, _SCALES = ("add", "add_any", "sub"), ("mul", "div")
#: Kinds of message on a site, which hold for every leaf behind it; the others are on the leaf of their path.
_OF_SITES = ("float", "derived")


def as_it_stands(site: Site) -> Run:
    """A site as the model has it."""
    operands = tuple(f"{dtype}{list(shape)}" for dtype, shape in zip(site.dtypes, site.shapes, strict=True))
    operation = Operation(NAMES[site.kind], operands[:1] if site.kind == "gather" else operands)
    return Run(site.name, (operation,), macs=site.macs)


def told(
    info: ModelInfo, leaves: Mapping[str, Any], report: Report, runs: Mapping[str, Run], others: Iterable[Run] = ()
) -> Report:
    """``report`` with the rows of all leaves.

    Args:
      info: of the model. leaves: by path; a compressed tensor is one leaf.
      runs: of every site, by name. others: dots and convolutions in no site.
    """
    said = list(dict.fromkeys((*info.report, *report)))
    rows = tuple(_row(leaf, leaves[leaf.path], info, runs, said) for leaf in info.leaves)
    activations = tuple(runs[site.name] for site in info.sites if site.weight is None)
    return Report(report.messages, rows, activations, tuple(others))


def _clause(message: Message) -> str:
    kind = {"skipped": "left alone", "float": "in float"}.get(message.kind, message.kind)
    return message.reason if kind in ("derived", "note") else f"{kind}: {message.reason}"


def _row(leaf: Leaf, value: Any, info: ModelInfo, runs: Mapping[str, Run], said: Sequence[Message]) -> LeafRow:
    own = tuple(runs[name] for name in leaf.sites)
    role = _unread_role(leaf.reason) if leaf.reason is not None else _role(leaf, info)
    reasons = [_clause(m) for m in said if _on(m, leaf) and m.kind != "no site"]
    reasons += [run.reason for run in own if run.reason]
    if role == "no site":
        reasons.append(str(leaf.reason))
    form = value.describe() if is_compressed(value) else str(leaf.dtype)
    return LeafRow(leaf.path, leaf.shape, str(leaf.dtype), form, role, own, tuple(dict.fromkeys(reasons)))


def _on(message: Message, leaf: Leaf) -> bool:
    if message.kind in _OF_SITES:
        return message.path in leaf.sites
    return message.path == leaf.path or (message.path in leaf.sites and message.path.startswith(f"{leaf.path}#"))


def _role(leaf: Leaf, info: ModelInfo) -> str:
    """``dot [S, I, O]``: how the sites use the leaf, contractions first, with a letter for each of its axes."""
    kinds: dict[str, None] = {}
    for site, _ in info.sites_of(leaf.path):
        exact = all(use.exact for use in site.uses if use.path == leaf.path)
        kinds[NAMES[site.kind] if exact else f"derived, {NAMES[site.kind]}"] = None
    roles = info.roles.get(leaf.path)
    return " and ".join(kinds) + (f" {letters(roles, len(leaf.shape))}" if roles is not None and leaf.shape else "")


def letters(roles: Roles, ndim: int) -> str:
    """``[S, I, O]``; ``-`` for an axis without a role."""
    named = {a: letter for letter, axes in (("S", roles.stack), ("I", roles.input), ("O", roles.output)) for a in axes}
    return f"[{', '.join(named.get(a, '-') for a in range(ndim))}]"


def _unread_role(reason: str) -> str:
    """The role of a leaf that feeds no site, by the reason: ``no site`` where that takes more than a word."""
    if reason == "is not read by apply":
        return "not read"
    roles = []
    for clause in reason.split("; "):
        by = re.search(r"combined with an activation by `(\w+)`", clause)
        name = by[1] if by and not clause.startswith("derived") else ""
        roles.append(
            "added" if name in _ADDED else "scales" if name in _SCALES
            else "handed through" if clause == "reaches an output" else "no site"
        )  # fmt: skip
    return "no site" if "no site" in roles else " and ".join(dict.fromkeys(roles))
