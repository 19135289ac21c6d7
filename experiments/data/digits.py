"""Handwritten digits, from scikit-learn's wheel: no download.

1797 images of 8 x 8 pixels, of 43 writers (Alpaydin and Kaynak, 1998, the test part of the UCI set).
"""

from __future__ import annotations

import numpy as np

from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.task import Task


def digits(fold: int = 0, folds: int = 5, seed: int = 0, valid: float = 0.0) -> Task:
    """Fold ``fold`` of a shuffled split into ``folds`` parts, the same for a seed on every machine.

    Args:
      valid: the share of the training part that is held out as validation data, from 0 (none) to 0.5.

    Returns:
      Inputs float32 ``[n, 8, 8, 1]`` in [0, 1], labels int32 0 to 9; the fold is the test part, the others the training.

    Raises:
      ValueError: fewer than 2 folds, or a fold outside them; more than 179 folds, whose test parts had fewer images than there
        are classes, so that at least one class would be missing from each and an accuracy would say little; a ``valid`` outside
        [0, 0.5], or of less than one image.
    """
    from sklearn import datasets

    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(f"digits(fold={fold}, folds={folds}): needs folds of at least 2 and 0 <= fold < folds")
    images, labels = datasets.load_digits(return_X_y=True)
    most = len(labels) // len(np.unique(labels))
    if folds > most:
        raise ValueError(
            f"digits(folds={folds}): allowed are 2 to {most}, so that the test part of each fold has as many of the "
            f"{len(labels):,} images as there are classes"
        )
    x = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    y = labels.astype(np.int32)
    # the generator's stream, not its shuffle, is what NumPy promises to keep
    order = np.argsort(np.random.Generator(np.random.PCG64(seed)).random(len(y)), kind="stable")
    parts = np.array_split(order, folds)
    train = np.concatenate([part for i, part in enumerate(parts) if i != fold])
    held_out = round(valid * len(train))
    if not 0 <= valid <= 0.5 or (valid and not held_out):
        raise ValueError(f"digits(valid={valid}): a share of the training part from 0 to 0.5, of one image at least, e.g. 0.1")
    train, judged = train[held_out:], train[:held_out]
    return classification(
        train=(x[train], y[train]), test=(x[parts[fold]], y[parts[fold]]), valid=(x[judged], y[judged]) if held_out else None
    )
