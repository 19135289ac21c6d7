"""The data of a task whose outputs are classes: one for each example, or one for each of its places (a language model)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

METRICS = ("accuracy", "bits/byte")


@dataclasses.dataclass(frozen=True)
class Data:
    """Inputs and labels to train on, and others to evaluate on.

    Attributes:
      train, test: ``(x, y)``; ``x`` is ``[n, ...]`` as ``apply`` takes it, ``y`` is ``[n]``, or ``[n, T]`` where the logits
        are ``[n, T, classes]``; integers from 0 to classes - 1.
      metric: what a report calls its number: ``"accuracy"``, or ``"bits/byte"`` where labels are bytes to be predicted.

    Raises:
      ValueError: a part is empty, ``x`` and ``y`` differ in length, train and test differ in shape or dtype, NaN or Inf
        among the inputs, labels that are negative or have no axis, another metric.
      TypeError: labels that are no integers.
    """

    train: tuple[Any, Any]
    test: tuple[Any, Any]
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = (np.asarray(a) for a in getattr(self, part))
            _check(part, x, y)
            object.__setattr__(self, part, (x, y))
        for what, a, b in zip(("inputs", "labels"), self.train, self.test, strict=True):
            if a.shape[1:] != b.shape[1:] or (what == "inputs" and a.dtype != b.dtype):
                raise ValueError(
                    f"Data: train {what} are {a.dtype}{list(a.shape[1:])} each, test {what} {b.dtype}{list(b.shape[1:])}"
                )
        if self.metric not in METRICS:
            raise ValueError(f"Data(metric={self.metric!r}): allowed are {', '.join(METRICS)}")

    @property
    def example(self) -> np.ndarray:
        """One input with its batch axis, ``[1, ...]``."""
        return self.test[0][:1]

    def check_labels(self, classes: int, what: str = "apply") -> None:
        """Raises ValueError where a label is outside ``0 .. classes - 1``, the outputs of the network ``what``."""
        for part in ("train", "test"):
            y = getattr(self, part)[1]
            if y.max() >= classes:
                at = np.unravel_index(y.argmax(), y.shape)
                place = ", ".join(map(str, at))
                raise ValueError(
                    f"Data.{part}: label {y[at]} at {place}, but {what} gives {classes} logits: allowed are 0 to "
                    f"{classes - 1}; number the classes from 0, or give {what} as many outputs as there are classes"
                )


def _check(part: str, x: np.ndarray, y: np.ndarray) -> None:
    if y.ndim == 0:
        raise ValueError(f"Data.{part}: labels have no axis; pass class numbers, [n] or [n, T]")
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"Data.{part}: labels are {y.dtype}; pass integers")
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(
            f"Data.{part}: inputs have shape {list(x.shape)}, labels {list(y.shape)}; the first axes differ"
        )
    if not y.size:
        raise ValueError(f"Data.{part}: no examples")
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise ValueError(f"Data.{part}: NaN or Inf among the inputs")
    if y.min() < 0:
        raise ValueError(f"Data.{part}: label {y.min()}; allowed are 0 to classes - 1")
