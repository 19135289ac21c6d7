"""Where batches come from: arrays in memory, or anything that can be gone over again."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.core.arguments import in_words, require
from jaxopt_nn.core.paths import leaves_by_path

PyTree = Any
#: Most steps, and bytes of minibatches, of one call of the compiled training.
STRETCH = 100
STRETCH_BYTES = 64e6
#: What is said of an iterator.
ONCE = "which can be gone over once only; pass a list, a dataset, or a function that returns a new iterator at each call"


class Stretch(NamedTuple):
    """Minibatches to train on in one call.

    Attributes:
      batches: a batch with a leading axis of steps, of which the first ``n`` count.
      real: float32 ``[steps, B]``, 0 for rows that fill up a short batch; None where there is none.
      done: steps since the beginning after them.
    """

    batches: PyTree
    real: Any
    n: int
    done: int


def order_of(examples: int, batch_size: int, key: jax.Array) -> np.ndarray:
    """Which examples each minibatch of an epoch holds, drawn from ``key``: int ``[steps, B]``, the same everywhere.

    The rest that fills no batch is left out; fewer examples than ``batch_size`` are one smaller batch.
    """
    words = np.asarray(jax.random.key_data(key)).ravel()
    # the generator's stream, not its shuffle, is what NumPy promises to keep
    order = np.argsort(np.random.PCG64(words.tolist()).random_raw(examples), kind="stable")
    steps = max(examples // batch_size, 1)
    return order[: steps * batch_size].reshape(steps, -1)


def check_batch_size(batch_size: Any) -> int:
    """The batch size.

    Raises:
      ValueError: it is no whole number from 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: allowed are the whole numbers from 1")
    return batch_size


class Arrays:
    """A pytree of arrays ``[n, ...]`` in memory, the examples along their first axes.

    Args:
      tree: NumPy arrays, or what becomes one.
      name: what messages call it, such as ``train``.

    Raises:
      ValueError: no array, no example, lengths that differ, NaN or Inf among floats.

    Example:
      >>> data = jn.Arrays((np.zeros((10, 4), np.float32), np.arange(10)), "train")
      >>> data.size, data.steps(batch_size=4)  # what fills no batch is left out of an epoch
      (10, 2)
      >>> inputs, labels = data.rows(slice(0, 3))
      >>> inputs.shape, labels
      ((3, 4), array([0, 1, 2]))
      >>> jn.Arrays((np.zeros((10, 4)), np.arange(9)), "train")
      Traceback (most recent call last):
          ...
      ValueError: train: the first axes are the examples, and differ: 0 [10, 4], 1 [9]; pass ...
    """

    def __init__(self, tree: PyTree, name: str):
        self.tree, self.name = jax.tree.map(np.asarray, tree, is_leaf=_is_numbers), name
        leaves = leaves_by_path(self.tree)
        if not leaves:
            raise ValueError(f"{name}: holds no array; pass (inputs, labels), a dict of arrays, or batches")
        for path, x in leaves.items():
            if x.dtype.kind in "OSUMm":
                raise TypeError(f"{_at(name, path)}: dtype {x.dtype} is no number; convert it first")
        lengths = {path: len(x) if x.ndim else None for path, x in leaves.items()}
        if len(set(lengths.values())) > 1 or None in lengths.values():
            said = ", ".join(f"{path or 'the array'} {list(leaves[path].shape)}" for path in list(lengths)[:4])
            raise ValueError(
                f"{name}: the first axes are the examples, and differ: {said}{', ...' if len(lengths) > 4 else ''}; pass "
                "arrays, no nested lists, of equally many examples"
            )
        self.size = int(next(iter(lengths.values())) or 0)
        if not all(x.size for x in leaves.values()):
            raise ValueError(f"{name}: no examples; pass arrays with at least one row")
        for path, x in leaves.items():
            if x.dtype.kind in "fc" and not np.isfinite(x).all():
                raise ValueError(f"{_at(name, path)}: NaN or Inf; clean the data first")

    @property
    def example(self) -> PyTree:
        """A batch of one."""
        return self.rows(slice(0, 1))

    @property
    def sample(self) -> PyTree:
        """The examples that can be looked at before the work begins: all."""
        return self.tree

    def rows(self, at: Any) -> PyTree:
        return jax.tree.map(lambda x: x[at], self.tree)

    def batch_rows(self, batch_size: int) -> int:
        """Rows of a minibatch."""
        return min(batch_size, self.size)

    def steps(self, batch_size: int) -> int:
        """Minibatches of an epoch."""
        return max(self.size // check_batch_size(batch_size), 1)

    def stretches(self, batch_size: int, epochs: int, key: jax.Array, start: int = 0) -> Iterator[Stretch]:
        """The stretches of all epochs from step ``start`` (the end of one) on; epoch ``e`` is drawn from ``fold_in(key, e)``.

        All have one shape: an epoch is cut into nearly equal parts.
        """
        steps = self.steps(batch_size)
        length = _length(self.example, batch_size, steps)
        for epoch in range(start // steps, epochs):
            order = order_of(self.size, batch_size, jax.random.fold_in(key, epoch))
            for at in range(0, steps, length):
                n = min(length, steps - at)
                if epoch * steps + at >= start:
                    rows = order[np.minimum(np.arange(at, at + length), steps - 1)]
                    yield Stretch(self.rows(rows), None, n, epoch * steps + at + n)

    def batches(self, size: int) -> Iterator[tuple[PyTree, np.ndarray]]:
        """``(batch, real)`` of all examples in order, ``size`` rows each; the last is filled up with the first example."""
        for start in range(0, self.size, size):
            part = self.rows(slice(start, start + size))
            yield _filled(part, min(size, self.size - start), size)


class Stream:
    """Batches from a function that returns an iterator, or from what can be iterated again: a loader, a dataset, a list.

    A function that has an argument ``epoch`` or ``seed`` is told the epoch's number, and a seed drawn for it: then a run that
    was interrupted goes on to the same numbers. Of what shuffles by itself only the position is known: a resumed run sees its
    own order. All batches have the shapes and dtypes of the first; one with fewer rows is filled up, and these rows count for
    nothing. The number of batches of an epoch is its length, or counted once, and the same ever after: what never ends has
    none, and is to be cut.

    Raises:
      ValueError: an iterator, which can be gone over once only. Where batches are asked for: what gives the same iterator
        again; a batch that does not fit, or that the data fails to give; fewer or more batches than an epoch has.

    Example:
      >>> def batches(epoch):  # a function is called once an epoch; a loader or a list works as well
      ...     rng = np.random.default_rng(epoch)
      ...     for rows in (4, 4, 2):
      ...         yield rng.normal(size=(rows, 3)).astype(np.float32), np.zeros(rows, int)
      >>> data = jn.Stream(batches, "train")
      >>> data.steps(batch_size=4)  # counted once; its own batches decide, not batch_size
      3
      >>> [int(real.sum()) for _, real in data.batches(4)]  # rows that are real: the last batch is filled up
      [4, 4, 2]
    """

    def __init__(self, given: Any, name: str):
        if isinstance(given, Iterator):
            raise ValueError(f"{name}: is an iterator, {ONCE}")
        self._given, self.name = given, name
        known = inspect.signature(given).parameters if callable(given) else {}
        self._asks = [argument for argument in ("epoch", "seed") if argument in known]
        self._last: Iterator[PyTree] | None = None
        self._length, self._examples = _known_length(given), 0

    def _pass(self, epoch: int, key: jax.Array | None) -> Iterator[PyTree]:
        """The batches of an epoch, checked; ``key`` None: of an evaluation."""
        draw = 0 if key is None else int(jax.random.bits(jax.random.fold_in(key, epoch)))
        known = {"epoch": epoch, "seed": draw}
        like, done, examples = None, 0, 0
        for batch in self._iterated({argument: known[argument] for argument in self._asks}, epoch):
            where = f"{self.name}, batch {done} of epoch {epoch}"
            if done == self._length:
                raise ValueError(
                    f"{self.name}: epoch {epoch} has more than {done} batches, of which its length, or its first pass, told; "
                    "give it a length that holds"
                )
            batch = _numbers(batch, where)
            like = like or _described(self.sample if "sample" in self.__dict__ else batch)
            _check_batch(batch, like, where)
            done, examples = done + 1, examples + len(jax.tree.leaves(batch)[0])
            yield batch
        if done != (done if self._length is None else self._length):
            raise ValueError(
                f"{self.name}: epoch {epoch} ended after {done} batches, an epoch has {self._length}; pass data that can be "
                "gone over again and gives as many batches each time"
            )
        self._length, self._examples = done, examples

    def _iterated(self, arguments: dict[str, int], epoch: int) -> Iterator[PyTree]:
        """What the data gives; an error of its own names the batch."""
        done = 0
        try:
            given = self._given(**arguments) if callable(self._given) else self._given
            found = iter(require(given, Iterable, "what its function returns", "an iterator over batches"))
            again, self._last = found is self._last, found
            while not again:
                yield next(found)
                done += 1
        except StopIteration:
            return
        except Exception as error:
            raise ValueError(f"{self.name}, batch {done} of epoch {epoch}: {type(error).__name__}: {error}") from error
        raise ValueError(f"{self.name}: gives the same iterator again, {ONCE}")

    @functools.cached_property
    def sample(self) -> PyTree:
        """The examples that can be looked at before the work begins: the first batch."""
        batch = next(self._pass(0, None), None)
        if batch is None:
            raise ValueError(f"{self.name}: gives no batch; pass at least one")
        return batch

    @property
    def example(self) -> PyTree:
        return jax.tree.map(lambda x: x[:1], self.sample)

    @property
    def size(self) -> int:
        """Examples of an epoch, as its last pass counted them."""
        if not self._examples:
            self._count()
        return self._examples

    def _count(self) -> None:
        for _ in self._pass(0, None):
            pass

    def batch_rows(self, batch_size: int) -> int:
        return len(jax.tree.leaves(self.sample)[0])

    def steps(self, batch_size: int) -> int:
        if self._length is None:
            self._count()
        if not self._length:
            raise ValueError(f"{self.name}: gives no batch; pass at least one")
        return self._length

    def stretches(self, batch_size: int, epochs: int, key: jax.Array, start: int = 0) -> Iterator[Stretch]:
        steps, rows = self.steps(0), self.batch_rows(0)
        length = _length(self.example, rows, steps)
        for epoch in range(start // steps, epochs):
            batches = self._pass(epoch, key)
            for at in range(0, steps, length):
                part = list(itertools.islice(batches, min(length, steps - at)))
                if epoch * steps + at >= start:
                    yield self._stacked(part, length, rows, epoch * steps + at + len(part))
            next(batches, None)  # an epoch that goes on is an error

    def _stacked(self, part: list[PyTree], length: int, rows: int, done: int) -> Stretch:
        filled = [_filled(batch, len(jax.tree.leaves(batch)[0]), rows) for batch in part]
        padded = [*filled, *[filled[-1]] * (length - len(filled))]
        batches = jax.tree.map(lambda *each: np.stack(each), *(batch for batch, _ in padded))
        return Stretch(batches, np.stack([real for _, real in padded]), len(part), done)

    def batches(self, size: int) -> Iterator[tuple[PyTree, np.ndarray]]:
        rows = self.batch_rows(0)
        for batch in self._pass(0, None):
            yield _filled(batch, len(jax.tree.leaves(batch)[0]), rows)


Source = Arrays | Stream


def source_of(given: Any, name: str) -> Source:
    """Data as a source: a tuple, dict or array of arrays lies in memory; a list, a loader or a function gives batches."""
    if isinstance(given, Arrays | Stream):
        return given
    if isinstance(given, str | bytes):
        raise TypeError(f"{name} is {in_words(given)}; read the file first, and pass arrays (inputs, labels)")
    in_memory = isinstance(given, tuple | dict) or hasattr(given, "__array__")
    if in_memory:
        return Arrays(given, name)
    if callable(given) or hasattr(given, "__iter__"):
        return Stream(given, name)
    raise TypeError(
        f"{name} is a {type(given).__name__}; pass arrays (inputs, labels), or what gives batches: a list, a loader, a "
        "function that returns an iterator"
    )


def _length(example: PyTree, rows: int, steps: int) -> int:
    """Steps of a stretch."""
    size = sum(x.nbytes for x in jax.tree.leaves(example)) * rows
    most = max(min(STRETCH, int(STRETCH_BYTES / max(size, 1))), 1)
    return math.ceil(steps / math.ceil(steps / most))


def _filled(batch: PyTree, rows: int, size: int) -> tuple[PyTree, np.ndarray]:
    """A batch with ``size`` rows, its first repeated behind its own; and which are real, float32 ``[size]``."""
    real = (np.arange(size) < rows).astype(np.float32)
    if rows == size:
        return batch, real
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], size - rows, axis=0)]), batch), real


def _numbers(batch: PyTree, where: str) -> PyTree:
    batch = jax.tree.map(np.asarray, batch)
    for path, x in leaves_by_path(batch).items():
        if x.dtype.kind in "OSUMm":
            raise TypeError(f"{_at(where, path)}: dtype {x.dtype} is no number; convert it first")
        if x.ndim == 0 or not len(x):
            raise ValueError(f"{_at(where, path)}: has no row; leave empty batches out")
        if x.dtype.kind in "fc" and not np.isfinite(x).all():
            raise ValueError(f"{_at(where, path)}: NaN or Inf; clean the data first")
    return batch


def _described(batch: PyTree) -> dict[str, tuple[Any, ...]]:
    leaves = leaves_by_path(batch)
    return {path: (len(x), x.shape[1:], x.dtype) for path, x in leaves.items()}


def _check_batch(batch: PyTree, like: dict[str, tuple[Any, ...]], where: str) -> None:
    """Raises ValueError where a batch has other leaves, shapes or dtypes than the first, or more rows."""
    found = _described(batch)
    if len({rows for rows, _, _ in found.values()}) > 1:
        said = ", ".join(f"{path or 'the array'} {rows}" for path, (rows, _, _) in found.items())
        raise ValueError(f"{where}: numbers of rows differ: {said}")
    if found.keys() != like.keys():
        raise ValueError(f"{where}: holds {sorted(found)}, the first batch {sorted(like)}")
    for path, (rows, shape, dtype) in found.items():
        first, shape_of_first, dtype_of_first = like[path]
        if (shape, dtype) != (shape_of_first, dtype_of_first) or rows > first:
            raise ValueError(
                f"{_at(where, path)}: {dtype}{[rows, *shape]}, the first batch has {dtype_of_first}{[first, *shape_of_first]}; "
                "all batches need its shapes and dtypes, and no more rows"
            )


def _known_length(given: Any) -> int | None:
    """The length that a loader tells; of some, such as an endless dataset, Python's ``len`` fails."""
    try:
        return len(given)
    except TypeError:
        return None


def _is_numbers(x: Any) -> bool:
    """Whether a list stands for an array."""
    return isinstance(x, list) and all(isinstance(each, bool | int | float | np.generic) for each in x)


def _at(where: str, path: str) -> str:
    return f"{where}, {path}" if path else where
