"""What a method, a pass or the interpreter has to say about single weights and sites: one type for all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from jaxopt_nn.core.leaf_rows import LeafRow, Run, summary, table
from jaxopt_nn.core.text_table import aligned


@dataclasses.dataclass(frozen=True)
class Message:
    """One remark on a leaf or a site: its kind (of ``KINDS``), its path or name, the reason as a full clause.

    Attributes:
      kind: one of ``skipped``, ``partial``, ``no site``, ``derived``, ``densified``, ``stored``, ``float``, ``assumed``,
        ``derivative``, ``opaque``, ``constant``, ``anew``, ``moved``, ``note`` (``KINDS`` says what each means).
      path: of the leaf, or the name of the site.
      reason: a full clause.

    Raises:
      ValueError: another kind.

    Example:
      >>> v = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> for message in jn.explain(jn.where("kernel", jn.prune(sparsity=0.5)), v):
      ...     print(message.kind, "|", message.path, "|", message.reason)
      skipped | bias | matches no pattern of the recipe
      assumed | kernel | roles: last axis is the output, no stack (pass info=inspect(...))
    """

    kind: str
    path: str
    reason: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.path}: kind {self.kind!r} is none of {', '.join(KINDS)}")


#: What each kind of message says.
KINDS = {
    "skipped": "a leaf that the method left alone",
    "partial": "a leaf that one member of a chain left alone and another took",
    "no site": "a leaf with a matrix in it that feeds no dot, convolution or gather as it is",
    "derived": "a site whose weight is computed from leaves before use; compressed ones are densified there if need be",
    "densified": "a compressed tensor that was turned into a float array at a use",
    "stored": "a compressed tensor that is not in the form that the backend runs",
    "float": "a site that a rule left in float",
    "assumed": "something that was assumed because nobody said it",
    "derivative": "a custom derivative that is not used because its body was entered",
    "opaque": "an operation that can't be looked into",
    "constant": "an array closed over by apply that feeds a site",
    "anew": "a state that could not be carried over to a network that was cut, and was made anew",
    "moved": "a leaf that took its values from a leaf of another tree",
    "note": "anything else worth knowing",
}


#: Lines of a table that fit a screen.
SCREEN = 40


@dataclasses.dataclass(frozen=True)
class Report:
    """An ordered set of messages, and where it is about a whole model a row for each leaf; prints as a table.

    Iterates over the messages, and is true where there are any.

    Attributes:
      rows: of all leaves, in the tree's order.
      activations: the sites that no leaf feeds: both operands are activations, or one is a constant.
      others: dots and convolutions that are in no site: of constants alone, or inside what can't be looked into.

    Example:
      >>> v = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> report = jn.explain(jn.where("kernel", jn.quantize(8)), v)
      >>> print(report)
      skipped  bias    matches no pattern of the recipe
      note     kernel  keeps 50% of its bytes: its scales take as much as its codes, or more
      assumed  kernel  roles: last axis is the output, no stack (pass info=inspect(...))
      >>> len(report.of("skipped")), report.as_json()[0]["kind"]
      (1, 'skipped')
    """

    messages: tuple[Message, ...] = ()
    rows: tuple[LeafRow, ...] = ()
    activations: tuple[Run, ...] = ()
    others: tuple[Run, ...] = ()

    def __add__(self, other: Report | Iterable[Message]) -> Report:
        messages = tuple(dict.fromkeys((*self.messages, *other)))
        told = other if isinstance(other, Report) and not self.rows else self
        return dataclasses.replace(told, messages=messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def of(self, *kinds: str) -> Report:
        """The messages of the given kinds."""
        return Report(tuple(m for m in self.messages if m.kind in kinds))

    def as_json(self) -> list[dict[str, str]]:
        return [dataclasses.asdict(m) for m in self.messages]

    def summaries(self) -> list[str]:
        """A line for each kind of site that no leaf feeds, and of dots in no site, with how many there are."""
        return summary(self.activations, "activations") + summary(self.others, "no site")

    def table(self, limit: int | None = SCREEN) -> str:
        """The rows of the leaves with most parameters, then what is to be said beside them; ``limit=None``: all of it.

        Messages on a leaf are notes of its row; with all of it each site of activations has its line.
        """
        parts = [table(self.rows, limit)] if self.rows else []
        parts += self.summaries()
        if limit is None:
            parts += [f"{run.site}: {run}" for run in self.activations]
        told = {name for row in self.rows for name in (row.path, *row.sites)}
        rest = [m for m in self.messages if m.path not in told]
        shown = rest[:limit]
        parts += aligned([(m.kind, m.path, m.reason) for m in shown], left=3)
        if len(shown) < len(rest):
            parts.append(f"... and {len(rest) - len(shown)} more messages: print(report.table(limit=None))")
        return "\n".join(parts or ["(nothing to report)"])

    def __str__(self) -> str:
        return self.table()


class Recorder:
    """Collects messages during a trace; a repeated message is kept once."""

    def __init__(self) -> None:
        self._messages: dict[Message, None] = {}

    def add(self, kind: str, path: str, reason: str) -> None:
        self._messages[Message(kind, path, reason)] = None

    def report(self) -> Report:
        return Report(tuple(self._messages))
