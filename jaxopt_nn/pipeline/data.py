"""The data of a classification task."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Data:
    """Inputs and labels to train on, and others to evaluate on.

    Attributes:
      train, test: ``(x, y)``; ``x`` is ``[n, ...]`` as ``apply`` takes it, ``y`` is ``[n]``, integers from 0 to classes - 1.

    Raises:
      ValueError: a part is empty, ``x`` and ``y`` differ in length, train and test differ in shape or dtype, NaN or Inf
        among the inputs, labels that are negative or have other than one axis.
      TypeError: labels that are no integers.
    """

    train: tuple[Any, Any]
    test: tuple[Any, Any]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = (np.asarray(a) for a in getattr(self, part))
            _check(part, x, y)
            object.__setattr__(self, part, (x, y))
        (a, _), (b, _) = self.train, self.test
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise ValueError(
                f"Data: train inputs are {a.dtype}{list(a.shape[1:])} each, test inputs {b.dtype}{list(b.shape[1:])}"
            )

    @property
    def example(self) -> np.ndarray:
        """One input with its batch axis, ``[1, ...]``."""
        return self.test[0][:1]

    def check_labels(self, classes: int) -> None:
        """Raises ValueError where a label is outside ``0 .. classes - 1``."""
        for part in ("train", "test"):
            y = getattr(self, part)[1]
            if y.max() >= classes:
                at = int(y.argmax())
                raise ValueError(
                    f"Data.{part}: label {y[at]} at {at}, but apply gives {classes} logits: allowed are 0 to {classes - 1}"
                )


def _check(part: str, x: np.ndarray, y: np.ndarray) -> None:
    if y.ndim != 1:
        raise ValueError(f"Data.{part}: labels have shape {list(y.shape)}; pass class numbers, one axis (no one-hot)")
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"Data.{part}: labels are {y.dtype}; pass integers")
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(
            f"Data.{part}: inputs have shape {list(x.shape)}, labels {list(y.shape)}; the first axes differ"
        )
    if not len(y):
        raise ValueError(f"Data.{part}: no examples")
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise ValueError(f"Data.{part}: NaN or Inf among the inputs")
    if y.min() < 0:
        raise ValueError(f"Data.{part}: label {y.min()}; allowed are 0 to classes - 1")
