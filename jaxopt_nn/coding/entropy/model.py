"""The adaptive model's stream: a byte of options, then the range coder's bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy import adaptive, contexts
from jaxopt_nn.coding.entropy.reader import Reader, damaged, varint

#: Symbols of the sample that stands for an array of more than four times as many.
SAMPLE = 1 << 17


#: What becomes of a stack: its matrices follow each other, each knows nothing of the others, all rows are those of one matrix
#: (matrix after matrix, or row after row).
FOLLOW, ALONE, BY_MATRIX, BY_ROW = range(4)


class Options(NamedTuple):
    """How cells are looked at: mixed contexts or one counter a decision; columns first; the stack's arrangement; how many
    rows above a row lies the one that it resembles (0: none)."""

    mixed: bool = False
    turned: bool = False
    arrangement: int = FOLLOW
    period: int = 0


def encode(symbols: NDArray[Any], alphabet: int, zero: int, mode: int, room: int, options: Options) -> bytes | None:
    """``symbols`` in at most ``room`` bytes; None where they don't fit."""
    centre = 0 if zero == 0 else 1 if zero == alphabet // 2 else 2
    head = bytes([mode | options.mixed << 3 | options.turned << 4 | centre << 6]) + (varint(zero) if centre == 2 else b"")
    if options.mixed:
        head += varint(options.period * 4 + options.arrangement)
    if room <= len(head):
        return None
    data = np.empty(room - len(head), np.uint8)
    cells = np.array(_arranged(_matrices(symbols), options), dtype=np.uint16, order="C")
    length = _run(cells, alphabet, zero, options, data, False)
    return None if length < 0 else head + data[:length].tobytes()


def decode(reader: Reader, head: int, out: NDArray[Any], alphabet: int) -> None:
    """Fills ``out``."""
    centre = head >> 6
    if alphabet < 2 or centre == 3 or head & 32:
        raise damaged("the adaptive model has an unknown option")
    zero = (0, alphabet // 2)[centre] if centre < 2 else reader.varint(alphabet)
    mixed = bool(head & 8)
    period, arrangement = divmod(reader.varint(1 << 32) if mixed else 0, 4)
    options = Options(mixed, bool(head & 16), arrangement, period)
    places = _arranged(_matrices(out), options)
    cells: NDArray[Any] = np.zeros(places.shape, np.uint16)
    data = np.frombuffer(reader.rest(), np.uint8).copy()
    length = _run(cells, alphabet, zero, options, data, True)
    if length < len(data):
        raise damaged("the adaptive model's decisions do not end where its bytes do")
    stack, rows, columns = _matrices(out).shape
    if options.turned:
        rows, columns = columns, rows
    if arrangement == BY_ROW:
        cells = cells.reshape(rows, stack, columns).swapaxes(0, 1)
    cells = cells.reshape(stack, rows, columns)
    _matrices(out)[...] = cells.swapaxes(1, 2) if options.turned else cells


def _arranged(cells: NDArray[Any], options: Options) -> NDArray[Any]:
    """Matrices ``[stack, rows, columns]`` as the options look at them."""
    if options.turned:
        cells = cells.swapaxes(1, 2)
    if options.arrangement == BY_ROW:
        cells = cells.swapaxes(0, 1)
    return cells if options.arrangement in (FOLLOW, ALONE) else cells.reshape(1, -1, cells.shape[2])


def _matrices(array: NDArray[Any]) -> NDArray[Any]:
    rows, columns = ((1, 1) + array.shape)[-2:]
    return array.reshape(-1, rows, columns)


def _run(cells: NDArray[np.uint16], alphabet: int, zero: int, options: Options, data: Any, decoding: bool) -> int:
    period = options.period if 2 <= options.period < cells.shape[1] else 0
    return int(
        contexts.code_cells(
            cells, zero, alphabet, period, options.arrangement == ALONE, options.mixed, data, decoding, *adaptive.logistic()
        )
    )


def search(symbols: NDArray[Any], alphabet: int, zero: int, mode: int, room: int, worth: float) -> bytes | None:
    """The smallest of several ways to look at ``symbols`` with mixed contexts, below ``room`` bytes; None if none is.

    For long arrays a sample chooses the way, and whether it saves the share ``worth`` of the sample's entropy.
    """
    sample = _sample(symbols)
    if sample is None:
        return _best(symbols, alphabet, zero, mode, room - 1)[0]
    counts = np.bincount(sample.reshape(-1))
    counts = counts[counts > 0]
    entropy = float((counts * np.log2(sample.size / counts)).sum()) / 8
    data, options = _best(sample, alphabet, zero, mode, int(entropy * (1 - worth)))
    return None if data is None else encode(symbols, alphabet, zero, mode, room - 1, options)


def _best(symbols: NDArray[Any], alphabet: int, zero: int, mode: int, room: int) -> tuple[bytes | None, Options]:
    """The smallest stream of at most ``room`` bytes, None if there is none, and its options."""
    best, options = None, Options(mixed=True)

    def attempt(tried: Options) -> None:
        nonlocal best, options
        data = encode(symbols, alphabet, zero, mode, len(best) - 1 if best else room, tried)
        if data is not None:
            best, options = data, tried

    stack, rows, columns = _matrices(symbols).shape
    attempt(options)
    if min(rows, columns) > 1:
        attempt(options._replace(turned=True))
    if stack > 1:
        for arrangement in (ALONE, BY_MATRIX, BY_ROW):
            attempt(options._replace(arrangement=arrangement))
    for period in periods(_arranged(_matrices(symbols), options), zero):
        attempt(options._replace(period=period))
    if options.arrangement == BY_ROW:
        attempt(options._replace(period=symbols.shape[-3]))
    return best, options


def _sample(symbols: NDArray[Any]) -> NDArray[Any] | None:
    """Some rows from the middle of a long array; None for one that is short enough to try it all."""
    cells = _matrices(symbols)
    _, rows, columns = cells.shape
    if cells.size <= 4 * SAMPLE:
        return None
    middle = len(cells) // 2
    if rows * columns <= SAMPLE:
        return cells[middle : middle + SAMPLE // (rows * columns)]
    number = min(rows, max(SAMPLE // columns, 1))
    start = (rows - number) // 2
    return cells[middle, start : start + number, : max(SAMPLE // number, 1)]


def periods(cells: NDArray[Any], zero: int) -> list[int]:
    """Distances of rows of ``[stack, rows, columns]`` whose densities resemble each other most, best first, at most two."""
    density = (cells != zero).mean(axis=2, dtype=np.float32)
    rows = density.shape[1]
    if rows < 16:
        return []
    density = density - density.mean(axis=1, keepdims=True)
    scores = [float((density[:, p:] * density[:, :-p]).sum()) / (rows - p) for p in range(2, min(rows // 3, 256))]
    order = np.argsort(scores)[::-1]
    return [int(p) + 2 for p in order[:2] if scores[p] > 0]
