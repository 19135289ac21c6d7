"""What a rewritten model runs at each of its sites, read off its jaxpr: each site's equations are marked while it is traced."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxopt_nn.core.leaf_rows import Operation, Run
from jaxopt_nn.core.model import Site
from jaxopt_nn.formulations import parts, table
from jaxopt_nn.formulations.table import Choice
from jaxopt_nn.interpret import jaxprs
from jaxopt_nn.interpret.evaluate import Evaluator, Indices, Totals
from jaxopt_nn.interpret.leaves import NAMES, as_it_stands
from jaxopt_nn.interpret.tags import Key

_MARK = re.compile(r"site\[([\d,]*)\]")
#: Why a weight with codes is multiplied as floats, by the name of the program.
WRITTEN = {
    "float, scaled weight": "the weight is written in float at each call: there are more rows than entries in a group",
    "float, decoded": "the weight is held as floats: no program on codes is faster",
    "float on rounded activations": "the weight is held as floats: no program on codes is faster",
    parts.WRITTEN: "its parts are multiplied at each call: products with one after the other would take more",
    parts.EXPANDED: "a part of it is held as floats: no program runs on it as it is stored",
    "float, decoded convolution": "the weight is held as floats: no program on codes is faster",
}


@dataclasses.dataclass
class Watched(Evaluator):
    """An evaluator that marks the equations of each site and notes the programs that the table chooses.

    Attributes:
      chosen: filled with ``{key of a site: choices}``.
    """

    chosen: dict[Key, Sequence[Choice]] = dataclasses.field(default_factory=dict)

    def equation(
        self, key: Key, eqn: Any, operands: Sequence[Any], totals: Totals, indices: Indices
    ) -> tuple[list[Any], Totals, Indices]:
        if key not in self.sites:
            return super().equation(key, eqn, operands, totals, indices)
        with jax.named_scope(f"site[{','.join(map(str, key))}]"), table.choices() as chosen:
            self.chosen[key] = chosen
            return super().equation(key, eqn, operands, totals, indices)

    def shared(self, old: Any, new: Any) -> Any:
        """No sharing: equal programs of two calls differ in their marks."""
        return new


def runs(closed: Any, sites: Mapping[Key, Site], chosen: Mapping[Key, Sequence[Choice]]) -> tuple[dict[str, Run], list[Run]]:
    """What each site is in a program that ``Watched`` traced, by name; and the dots and convolutions that are in no site."""
    found: dict[Key, list[tuple[int, Operation]]] = {}
    rest: Counter[Operation] = Counter()
    _walk(jaxprs.opened(closed).jaxpr, None, found, rest)
    made: dict[str, Run] = {}
    for key, site in sites.items():
        if key not in found:  # in a body that was not entered, where nothing is compressed and no rule stands
            made[site.name] = as_it_stands(site)
            rest -= Counter(made[site.name].operations)
            continue
        made[site.name] = _run(site, found[key], chosen.get(key, ()))
    return made, [Run(f"{x.name} in no site", (x,) * n) for x, n in rest.items()]


def _run(site: Site, found: Sequence[tuple[int, Operation]], chosen: Sequence[Choice]) -> Run:
    operations = [x for _, x in found if x.name != "lookup"]
    if site.kind == "gather":
        operations += [max(found, key=lambda pair: pair[0])[1]] if found and not operations else []
    programs = tuple(dict.fromkeys(choice.program for choice in chosen))
    reasons = [WRITTEN[name] for name in programs if name in WRITTEN]
    slow = max((choice.over_float or 0 for choice in chosen), default=0)
    if slow > 1.05:
        reasons.append(f"slower than float: {slow:.2g} of its time, as measured once")
    share = next((choice.macs for choice in reversed(chosen) if choice.macs is not None), 1.0)
    return Run(site.name, tuple(operations), ", ".join(programs), "; ".join(reasons), round(site.macs * share))


def _walk(jaxpr: Any, key: Key | None, found: dict[Key, list[tuple[int, Operation]]], rest: Counter[Operation]) -> None:
    for eqn in jaxpr.eqns:
        mark = _MARK.search(str(eqn.source_info.name_stack))
        own = tuple(map(int, mark[1].split(","))) if mark else key
        kept = found.setdefault(own, []) if own is not None else None
        name = NAMES.get(jaxprs.SITE_PRIMITIVES.get(eqn.primitive.name, ""))
        if name is not None:
            avals = [v.aval for v in eqn.invars[: 1 if name == "lookup" else 2]]
            operation = Operation(name, tuple(f"{a.dtype}{list(a.shape)}" for a in avals))
            if kept is not None:
                kept.append((avals[0].size, operation))
            elif name != "lookup":
                rest[operation] += 1
        for inner in core.jaxprs_in_params(eqn.params):
            _walk(jaxprs.opened(inner).jaxpr, own, found, rest)
