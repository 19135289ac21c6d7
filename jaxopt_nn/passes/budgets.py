"""How much of a network goes: the one argument of a pass that says so, and the parts that choose."""

from __future__ import annotations

from typing import Any

from jaxopt_nn.passes.choice import check_share
from jaxopt_nn.passes.costs import COSTS
from jaxopt_nn.passes.widths import check_widths


def check_parts(name: str, score: Any, allocation: Any, **numbers: Any) -> None:
    """Raises TypeError for a score or an allocation that is no callable, ValueError for numbers that are none from 1."""
    for key, part, example in (("score", score, "scores.l2_norm"), ("allocation", allocation, "per_layer")):
        if not callable(part):
            raise TypeError(f"{name}({key}={part!r}): pass a callable, e.g. jn.{example}")
    for key, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}({key}={number!r}): allowed are the whole numbers from 1")


def one_budget(name: str, what: str, **kinds: Any) -> tuple[str, Any]:
    """The one kind of budget that is there, and its amount, of ``what``.

    Raises:
      ValueError: none or two; a number outside its range.
    """
    own = {kind: amount for kind, amount in kinds.items() if amount is not None}
    if len(own) != 1:
        said = ", ".join(f"{kind}={amount!r}" for kind, amount in own.items()) or "nothing"
        raise ValueError(f"{name}: how many {what} go? pass one of {', '.join(kinds)}; got {said}")
    ((kind, amount),) = own.items()
    if kind == "widths":
        check_widths(name, amount)
    elif kind == "share":
        check_share(amount)
    elif kind == "layers":
        check_parts(name, check_parts, check_parts, layers=amount)
    elif isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount != amount:
        raise ValueError(f"{name}({kind}={amount!r}): pass a number")
    elif kind in COSTS and not 0 < amount < 1:
        raise ValueError(f"{name}({kind}={amount!r}): allowed are shares of it between 0 and 1, that go")
    return kind, amount
