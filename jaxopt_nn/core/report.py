"""What a method, a pass or the interpreter has to say about single weights and sites: one type for all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True)
class Message:
    """One remark on a leaf or a site: its kind (of ``KINDS``), its path or name, the reason as a full clause."""

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
    "moved": "a leaf that took its values from a leaf of another tree",
    "note": "anything else worth knowing",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """An ordered set of messages; prints as a table."""

    messages: tuple[Message, ...] = ()

    def __add__(self, other: Report | Iterable[Message]) -> Report:
        return Report(tuple(dict.fromkeys((*self.messages, *other))))

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def of(self, *kinds: str) -> Report:
        """The messages of the given kinds."""
        return Report(tuple(m for m in self.messages if m.kind in kinds))

    def as_json(self) -> list[dict[str, str]]:
        return [dataclasses.asdict(m) for m in self.messages]

    def __str__(self) -> str:
        if not self.messages:
            return "(nothing to report)"
        width = max(len(m.path) for m in self.messages)
        return "\n".join(f"{m.kind:<10}  {m.path:<{width}}  {m.reason}" for m in self.messages)


class Recorder:
    """Collects messages during a trace; a repeated message is kept once."""

    def __init__(self) -> None:
        self._messages: dict[Message, None] = {}

    def add(self, kind: str, path: str, reason: str) -> None:
        self._messages[Message(kind, path, reason)] = None

    def report(self) -> Report:
        return Report(tuple(self._messages))
