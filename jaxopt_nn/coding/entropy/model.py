"""The adaptive model's stream: a byte of options, then the range coder's bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy import adaptive, contexts
from jaxopt_nn.coding.entropy.reader import Reader, varint


class Options(NamedTuple):
    """How cells are looked at: mixed contexts or one counter a decision; columns first; each matrix of a stack anew;
    how many rows above a row lies the one that it resembles (0: none)."""

    mixed: bool = False
    turned: bool = False
    restart: bool = False
    period: int = 0


def encode(symbols: NDArray[Any], alphabet: int, zero: int, mode: int, room: int, options: Options) -> bytes | None:
    """``symbols`` in at most ``room`` bytes; None where they don't fit."""
    cells = _matrices(symbols)
    if options.turned:
        cells = np.swapaxes(cells, 1, 2)
    centre = 0 if zero == 0 else 1 if zero == alphabet // 2 else 2
    flags = options.mixed << 3 | options.turned << 4 | options.restart << 5 | centre << 6
    head = bytes([mode | flags]) + (varint(zero) if centre == 2 else b"") + (varint(options.period) if options.mixed else b"")
    if room <= len(head):
        return None
    data = np.empty(room - len(head), np.uint8)
    flat = np.ascontiguousarray(cells, dtype=np.uint16).reshape(-1)
    if flat is symbols or flat.base is symbols:
        flat = flat.copy()
    length = _run(flat, cells.shape, alphabet, zero, options, data, False)
    return None if length < 0 else head + data[:length].tobytes()


def decode(reader: Reader, head: int, out: NDArray[Any], alphabet: int) -> None:
    """Fills ``out``."""
    centre = head >> 6
    if alphabet < 2 or centre == 3:
        raise ValueError("coded data: damaged: the adaptive model has an unknown option")
    zero = (0, alphabet // 2)[centre] if centre < 2 else reader.varint(alphabet)
    mixed = bool(head & 8)
    options = Options(mixed, bool(head & 16), bool(head & 32), reader.varint(1 << 32) if mixed else 0)
    view = _matrices(out)
    target = np.swapaxes(view, 1, 2) if options.turned else view
    flat = np.zeros(out.size, np.uint16)
    data = np.frombuffer(reader.rest(), np.uint8).copy()
    length = _run(flat, target.shape, alphabet, zero, options, data, True)
    if length < len(data):
        raise ValueError("coded data: damaged: the adaptive model's decisions do not end where its bytes do")
    target[...] = flat.reshape(target.shape)


def _matrices(array: NDArray[Any]) -> NDArray[Any]:
    rows, columns = ((1, 1) + array.shape)[-2:]
    return array.reshape(-1, rows, columns)


def _run(
    flat: NDArray[np.uint16], shape: tuple[int, ...], alphabet: int, zero: int, options: Options, data: Any, decoding: bool
) -> int:
    period = min(options.period, shape[1])
    return int(
        contexts.code_cells(
            flat, *shape, zero, alphabet, period, options.restart, options.mixed, data, decoding, *adaptive.logistic()
        )
    )


def search(symbols: NDArray[Any], alphabet: int, zero: int, mode: int, room: int) -> bytes | None:
    """The smallest of several ways to look at ``symbols`` with mixed contexts, below ``room`` bytes; None if none is."""
    best, options = None, Options(mixed=True)

    def better(tried: Options) -> bool:
        nonlocal best, options
        data = encode(symbols, alphabet, zero, mode, (len(best) if best else room) - 1, tried)
        if data is not None:
            best, options = data, tried
        return data is not None

    stack, rows, columns = _matrices(symbols).shape
    better(options)
    if min(rows, columns) > 1:
        better(options._replace(turned=True))
    if stack > 1:
        better(options._replace(restart=True))
    for period in periods(symbols, zero, options.turned):
        better(options._replace(period=period))
    return best


def periods(symbols: NDArray[Any], zero: int, turned: bool) -> list[int]:
    """Distances of rows whose densities resemble each other most, best first, at most two."""
    cells = _matrices(symbols)
    density = (cells != zero).mean(axis=(1 if turned else 2), dtype=np.float32)
    rows = density.shape[1]
    if rows < 16:
        return []
    density = density - density.mean(axis=1, keepdims=True)
    scores = [float((density[:, p:] * density[:, :-p]).sum()) / (rows - p) for p in range(2, min(rows // 3, 256))]
    order = np.argsort(scores)[::-1]
    return [int(p) + 2 for p in order[:2] if scores[p] > 0]
