"""Adaptive binary coding with mixed contexts: compiled loops in integers, so that every machine computes the same bits.

A symbol is a few binary decisions (is it zero, its sign, its magnitude bit by bit). Several counters, each looked up by a
context of its own, say how probable a one is; a logistic mixer weighs them (Mahoney 2005, PAQ); a range coder writes the
decision. ``FORMAT.md`` fixes each table, shift and context.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from jaxopt_nn.coding.entropy.compiled import compiled

#: Entries of the range coder's state.
LOW, RANGE, AT = 0, 1, 2
TOP, FULL = 1 << 24, 1 << 32
#: A counter: 22 bits of probability above 10 bits of count; fresh ones say one half.
FRESH = 1 << 31
#: Units of the logistic domain: 1/256; probabilities have 16 bits.
REACH = 3072


@functools.cache
def logistic() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """``squash`` [2 REACH + 1], its inverse ``stretch`` [65536], and reciprocals [1024] of counts, in integers alone."""
    one = 1 << 64
    step, term = one, one
    for k in range(1, 12):  # exp(-1/256) by its series, in 64 fractional bits
        term //= 256 * k
        step += -term if k % 2 else term
    upper, power = [], one
    for _ in range(REACH + 1):
        upper.append((one << 16) // (one + power))
        power = power * step >> 64
    squash = np.clip([65536 - p for p in upper[:0:-1]] + upper, 1, 65535).astype(np.int64)
    stretch = np.searchsorted(squash, np.arange(65536), side="left").clip(0, 2 * REACH) - REACH
    counts = np.arange(1024)
    return squash, stretch.astype(np.int64), ((2 << 16) // (2 * counts + 3)).astype(np.int64)


@compiled
def code_bit(coder, data, one, bit, decoding):
    """Codes one decision whose probability of a one is ``one`` / 65536; the decision, or -1 where ``data`` is full."""
    bound = (coder[RANGE] * one) >> 16
    if decoding:
        bit = 1 if coder[LOW] < bound else 0
    if bit:
        coder[RANGE] = bound
    else:
        coder[RANGE] -= bound
        coder[LOW] += -bound if decoding else bound
        if coder[LOW] >= FULL:
            carry(data, coder[AT])
            coder[LOW] -= FULL
    while coder[RANGE] < TOP:
        coder[RANGE] <<= 8
        if decoding:
            coder[LOW] = coder[LOW] << 8 | (data[coder[AT]] if coder[AT] < len(data) else 0)
        else:
            if coder[AT] >= len(data):
                return -1
            data[coder[AT]] = coder[LOW] >> 24
            coder[LOW] = (coder[LOW] & 0xFFFFFF) << 8
        coder[AT] += 1
    return bit


@compiled
def carry(data, at):
    """Adds one to the number that ends before ``at``."""
    at -= 1
    while data[at] == 255:
        data[at] = 0
        at -= 1
    data[at] += 1


@compiled
def begin(coder, data, decoding):
    """A range coder at the start of ``data``; a decoder reads four bytes, zeros past the end."""
    coder[LOW], coder[RANGE], coder[AT] = 0, FULL, 0
    if decoding:
        for i in range(4):
            coder[LOW] = coder[LOW] << 8 | (data[i] if i < len(data) else 0)
        coder[AT] = 4


@compiled
def finish(coder, data):
    """Writes the fewest bytes that name the interval and drops zeros at the end: the length, or -1 where data is full."""
    kept = 0
    while kept < 4:
        unit = 1 << (32 - 8 * kept)
        value = (coder[LOW] + unit - 1) // unit * unit
        if value < coder[LOW] + coder[RANGE]:
            break
        kept += 1
    unit = 1 << (32 - 8 * kept)
    value = (coder[LOW] + unit - 1) // unit * unit
    if value >= FULL:
        carry(data, coder[AT])
        value -= FULL
    for _ in range(kept):
        if coder[AT] >= len(data):
            return -1
        data[coder[AT]] = value >> 24
        value = (value & 0xFFFFFF) << 8
        coder[AT] += 1
    length = coder[AT]
    while length > 0 and data[length - 1] == 0:
        length -= 1
    return length


@compiled
def learn(counters, slot, bit, limit, reciprocals):
    """Moves a counter towards the decision by 1 / (count + 1.5), the count at most ``limit``."""
    packed = np.int64(counters[slot])
    count, chance = packed & 1023, packed >> 10
    chance += (((bit << 22) - bit - chance) * reciprocals[count]) >> 16
    counters[slot] = chance << 10 | min(count + 1, limit)


@compiled
def chance_of(counters, slot):
    """The counter's probability in 16 bits, from 1 to 65535."""
    return min(max(np.int64(counters[slot]) >> 16, 1), 65535)


@compiled
def code_learnt(coder, data, counters, slot, bit, decoding, reciprocals):
    """Codes a decision with one counter alone, and lets it learn."""
    bit = code_bit(coder, data, chance_of(counters, slot), bit, decoding)
    if bit >= 0:
        learn(counters, slot, bit, 512, reciprocals)
    return bit


@compiled
def code_length(coder, data, counters, last, length, decoding, reciprocals):
    """Codes a length in bits, from 1 to 40, by how it differs from the ``last`` one; returns it, or -1."""
    context = 0 if last <= 2 else (1 if last <= 5 else 2)
    differs = code_learnt(coder, data, counters, 4 + context, 1 if length != last else 0, decoding, reciprocals)
    if differs <= 0:
        return last if differs == 0 else -1
    up = 1
    if last > 1:
        up = code_learnt(coder, data, counters, 7 + context, 1 if length > last else 0, decoding, reciprocals)
        if up < 0:
            return -1
    far, reach = 1, (40 - last if up else last - 1)
    while far < reach:
        more = 1 if abs(length - last) > far else 0
        more = code_learnt(coder, data, counters, 10 + up * 64 + min(far, 60), more, decoding, reciprocals)
        if more < 0:
            return -1
        if more == 0:
            break
        far += 1
    return last + far if up else last - far


@compiled
def code_counts(counts, precision, data, decoding, reciprocals):
    """Codes ``counts`` [n] and writes there what is kept: the first ``precision`` + 1 bits of each, then half a unit.

    For each: is it zero (by the two before it), how its length in bits differs from the last one's, the bits after the
    first. Returns the bytes written or looked at; -1 where ``data`` is full; -2 for a length above 40 bits.
    """
    coder = np.zeros(3, np.int64)
    counters = np.full(192, FRESH, np.uint32)
    begin(coder, data, decoding)
    before, last = 0, 1
    for i in range(len(counts)):
        value = np.int64(counts[i])
        bit = code_learnt(coder, data, counters, before, 1 if value > 0 else 0, decoding, reciprocals)
        if bit < 0:
            return -1
        before = (before << 1 | bit) & 3
        if bit == 0:
            counts[i] = 0
            continue
        length = 0
        while value >> length:
            length += 1
        last = code_length(coder, data, counters, last, length, decoding, reciprocals)
        if last < 0 or last > 40:
            return -1 if last < 0 else -2
        kept = 1
        for j in range(1, last):
            bit = 1 if j == precision + 1 else 0
            if j <= precision:
                bit = (value >> (last - 1 - j)) & 1
                if j == 1:
                    bit = code_learnt(coder, data, counters, 144 + last, bit, decoding, reciprocals)
                else:
                    bit = code_bit(coder, data, 32768, bit, decoding)
                if bit < 0:
                    return -1
            kept = kept << 1 | bit
        counts[i] = kept
    return coder[AT] if decoding else finish(coder, data)
