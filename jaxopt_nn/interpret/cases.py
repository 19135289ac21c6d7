"""What stands at which site: ``(pattern, value)`` pairs of rules or taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxopt_nn.core.arguments import in_words, require
from jaxopt_nn.core.model import Site
from jaxopt_nn.core.paths import matches, no_match
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.program import Program

Cases = Sequence[tuple[str, Any]]
#: What messages give as an example of a value at a site.
EXAMPLES = {Rule: "arithmetic('w4a8')", Tap: "moments()"}


def cases_of(given: Any, kind: type, what: str, *, groups: bool = False) -> Cases:
    """One value, pairs, or a mapping as ``[(pattern, value), ...]``; with ``groups`` a mapping may stand for a value.

    Raises:
      TypeError: it is none of these.
    """
    if isinstance(given, kind):
        return [("**", given)]
    example = f"a {kind.__name__}, e.g. {EXAMPLES[kind]}, or a list of pairs [('**/kernel', {EXAMPLES[kind]}), ...]"
    if not isinstance(given, Mapping | list | tuple):
        require(given, kind, what, example)
    cases = list(given.items()) if isinstance(given, Mapping) else list(given)
    for case in cases:
        if not (isinstance(case, tuple | list) and len(case) == 2 and isinstance(case[0], str)):
            raise TypeError(f"{what}: an entry is {in_words(case)}, no pair; pass {example}")
        if not (groups and isinstance(case[1], Mapping)):
            require(case[1], kind, f"{what}: what stands for {case[0]!r}", example)
    return [(pattern, value) for pattern, value in cases]


def assigned(program: Program, cases: Cases, what: str) -> dict[tuple[int, ...], Any]:
    """``{site key: value of the first case whose pattern matches}``; a pattern is matched with the name and the leaf.

    Raises:
      ValueError: a pattern matches no site.
    """
    found: dict[tuple[int, ...], Any] = {}
    used: set[str] = set()
    for key, site in program.sites.items():
        for pattern, value in cases:
            if _site_matches(pattern, site):
                used.add(pattern)
                found.setdefault(key, value)
    names = [site.name for site in program.sites.values()]
    for pattern, _ in cases:
        if pattern not in used and pattern != "**":
            raise ValueError(f"{what} {no_match(pattern, names, 'site')}")
    return found


def _site_matches(pattern: str, site: Site) -> bool:
    return matches(pattern, site.name) or (site.leaf is not None and matches(pattern, site.leaf))
