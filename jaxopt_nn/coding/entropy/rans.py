"""Static range asymmetric numeral systems: compiled loops over interleaved states.

A state lies in [2^16, 2^32) and is renewed by 16 bits (Duda 2013, section 3; interleaved: Giesen 2014). Symbol ``i`` of a chunk
belongs to lane ``i mod lanes``; all lanes share one row of words, in the order in which the decoder asks for them.
"""

from __future__ import annotations

import numpy as np

from jaxopt_nn.coding.entropy.compiled import compiled

#: Lanes of a chunk: independent states, so that a processor works on several symbols at a time.
LANES = 8
LOWEST = 1 << 16


@compiled
def _put(state, symbol, words, at, frequencies, starts, bits):
    """One symbol onto a state: the new state, and where the next word goes (words are filled from the end)."""
    frequency = np.uint64(frequencies[symbol])
    words[at - 1] = np.uint16(state & np.uint64(0xFFFF))  # stays only where the state is full: no branch to mispredict
    full = state >= frequency << np.uint64(32 - bits)
    state = state >> np.uint64(16) if full else state
    at -= np.int64(full)
    quotient = np.uint64(np.uint32(state) // np.uint32(frequency))
    rest = state - quotient * frequency
    return (quotient << np.uint64(bits)) + rest + np.uint64(starts[symbol]), at


@compiled
def encode_lanes(symbols, frequencies, starts, bits, words, states):
    """Codes ``symbols`` [n] backwards into the end of ``words`` [>= n + 1] uint16; final ``states`` [lanes] uint64.

    Returns the index of the first word used.
    """
    at, n, lanes = len(words), len(symbols), len(states)
    for lane in range(lanes):
        states[lane] = LOWEST
    whole = n - n % lanes if lanes == 8 else 0
    for i in range(n - 1, whole - 1, -1):
        states[i % lanes], at = _put(states[i % lanes], symbols[i], words, at, frequencies, starts, bits)
    if whole == 0:
        return at
    a, b, c, d = states[0], states[1], states[2], states[3]
    e, f, g, h = states[4], states[5], states[6], states[7]
    for i in range(whole - 8, -1, -8):
        h, at = _put(h, symbols[i + 7], words, at, frequencies, starts, bits)
        g, at = _put(g, symbols[i + 6], words, at, frequencies, starts, bits)
        f, at = _put(f, symbols[i + 5], words, at, frequencies, starts, bits)
        e, at = _put(e, symbols[i + 4], words, at, frequencies, starts, bits)
        d, at = _put(d, symbols[i + 3], words, at, frequencies, starts, bits)
        c, at = _put(c, symbols[i + 2], words, at, frequencies, starts, bits)
        b, at = _put(b, symbols[i + 1], words, at, frequencies, starts, bits)
        a, at = _put(a, symbols[i], words, at, frequencies, starts, bits)
    states[0], states[1], states[2], states[3] = a, b, c, d
    states[4], states[5], states[6], states[7] = e, f, g, h
    return at


@compiled
def slot_tables(frequencies, symbol_of, step_of):
    """Fills, for each of 2^bits slots, its symbol and ``(frequency - 1) << 16 | slot - start``."""
    slot = 0
    for i in range(len(frequencies)):
        for j in range(frequencies[i]):
            symbol_of[slot] = i
            step_of[slot] = ((frequencies[i] - 1) << 16) | j
            slot += 1


@compiled
def _take(state, words, at, symbol_of, step_of, mask, bits):
    """One symbol from a state, renewed from ``words[at]`` (which exists): the new state, the next word, the symbol."""
    slot = state & mask
    step = np.uint64(step_of[slot])
    state = ((step >> np.uint64(16)) + np.uint64(1)) * (state >> bits) + (step & np.uint64(0xFFFF))
    renewed = (state << np.uint64(16)) | np.uint64(words[at])
    low = state < np.uint64(LOWEST)
    return (renewed if low else state), at + np.int64(low), symbol_of[slot]


@compiled
def decode_lanes(words, states, symbol_of, step_of, bits, out):
    """Fills ``out`` [n]; False if the words end early, some are left or a state does not end where it began."""
    n, lanes, end = len(out), len(states), len(words)
    mask, shift = np.uint64((1 << bits) - 1), np.uint64(bits)
    at, i = 0, 0
    if lanes == 8:
        a, b, c, d = states[0], states[1], states[2], states[3]
        e, f, g, h = states[4], states[5], states[6], states[7]
        while i + 8 <= n and at + 8 <= end:
            a, at, out[i] = _take(a, words, at, symbol_of, step_of, mask, shift)
            b, at, out[i + 1] = _take(b, words, at, symbol_of, step_of, mask, shift)
            c, at, out[i + 2] = _take(c, words, at, symbol_of, step_of, mask, shift)
            d, at, out[i + 3] = _take(d, words, at, symbol_of, step_of, mask, shift)
            e, at, out[i + 4] = _take(e, words, at, symbol_of, step_of, mask, shift)
            f, at, out[i + 5] = _take(f, words, at, symbol_of, step_of, mask, shift)
            g, at, out[i + 6] = _take(g, words, at, symbol_of, step_of, mask, shift)
            h, at, out[i + 7] = _take(h, words, at, symbol_of, step_of, mask, shift)
            i += 8
        states[0], states[1], states[2], states[3] = a, b, c, d
        states[4], states[5], states[6], states[7] = e, f, g, h
    while i < n:
        state = states[i % lanes]
        slot = state & mask
        step = np.uint64(step_of[slot])
        state = ((step >> np.uint64(16)) + np.uint64(1)) * (state >> shift) + (step & np.uint64(0xFFFF))
        if state < np.uint64(LOWEST):
            if at >= end:
                return False
            state = (state << np.uint64(16)) | np.uint64(words[at])
            at += 1
        states[i % lanes] = state
        out[i] = symbol_of[slot]
        i += 1
    for lane in range(lanes):
        if states[lane] != np.uint64(LOWEST):
            return False
    return at == end


@compiled
def encode_wide(symbols, frequencies, starts, bits, words, states):
    """As ``encode_lanes`` with states in [2^31, 2^63) and words of 32 bits, for frequencies of up to 31 bits."""
    at, n, lanes = len(words), len(symbols), len(states)
    for lane in range(lanes):
        states[lane] = np.uint64(1 << 31)
    for i in range(n - 1, -1, -1):
        state, symbol = states[i % lanes], np.int64(symbols[i])
        frequency = frequencies[symbol]
        if state >= frequency << np.uint64(63 - bits):
            at -= 1
            words[at] = np.uint32(state & np.uint64(0xFFFFFFFF))
            state >>= np.uint64(32)
        quotient = state // frequency
        states[i % lanes] = (quotient << np.uint64(bits)) + (state - quotient * frequency) + starts[symbol]
    return at


@compiled
def decode_wide(words, states, starts, buckets, bits, out):
    """Fills ``out`` [n]; False as ``decode_lanes``. ``starts`` [size + 1]; ``buckets`` [2^16]: a slot's top bits' symbol."""
    n, lanes, end, at = len(out), len(states), len(words), 0
    mask, shift = np.uint64((1 << bits) - 1), np.uint64(bits)
    for i in range(n):
        state = states[i % lanes]
        slot = state & mask
        low = np.int64(buckets[slot >> np.uint64(bits - 16)])
        top = np.int64(slot >> np.uint64(bits - 16)) + 1
        high = np.int64(buckets[top]) if top < len(buckets) else len(starts) - 2
        while low < high:
            middle = (low + high + 1) // 2
            if starts[middle] <= slot:
                low = middle
            else:
                high = middle - 1
        state = (starts[low + 1] - starts[low]) * (state >> shift) + slot - starts[low]
        if state < np.uint64(1 << 31):
            if at >= end:
                return False
            state = (state << np.uint64(32)) | np.uint64(words[at])
            at += 1
        states[i % lanes] = state
        out[i] = low
    for lane in range(lanes):
        if states[lane] != np.uint64(1 << 31):
            return False
    return at == end
