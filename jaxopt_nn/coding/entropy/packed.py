"""Symbols as packed bits, low bits first: compiled loops."""

from __future__ import annotations

import numpy as np

from jaxopt_nn.coding.entropy.compiled import compiled


@compiled
def pack(symbols, width, out):
    """Fills ``out`` [ceil(n * width / 8)] with ``width`` bits a symbol, the last byte's free bits zero."""
    held, bits, at = np.uint64(0), 0, 0
    for i in range(len(symbols)):
        held |= np.uint64(symbols[i]) << np.uint64(bits)
        bits += width
        while bits >= 8:
            out[at] = held & np.uint64(255)
            held >>= np.uint64(8)
            bits -= 8
            at += 1
    if bits:
        out[at] = held


@compiled
def unpack(data, width, alphabet, out):
    """Fills ``out`` [n]; False where a symbol is not below the alphabet or a free bit of the last byte is set."""
    held, bits, at = np.uint64(0), 0, 0
    mask, outside = np.uint64((1 << width) - 1), 0
    for i in range(len(out)):
        while bits < width:
            held |= np.uint64(data[at]) << np.uint64(bits)
            bits += 8
            at += 1
        symbol = held & mask
        if symbol >= np.uint64(alphabet):
            outside = 1
        out[i] = symbol
        held >>= np.uint64(width)
        bits -= width
    return outside == 0 and held == np.uint64(0)
