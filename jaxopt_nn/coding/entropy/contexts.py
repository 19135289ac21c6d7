"""The contextual model: what is known of a cell before it is coded, and how predictions from it are mixed.

``FORMAT.md`` fixes every number here: a change of one is a new mode.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxopt_nn.coding.entropy.adaptive import AT, FRESH, REACH, begin, code_bit, code_learnt, finish, learn
from jaxopt_nn.coding.entropy.compiled import compiled

#: Contexts of each counter of the zero decision, and of each counter of a value's decisions.
CELLS, VALUES = 4096, 256
#: Densities that are mixed as they are, counters of the zero decision, counters of a value's decisions.
DENSITIES, ZERO_COUNTERS, VALUE_COUNTERS = 7, 6, 8
WIDTH, SETS = DENSITIES + ZERO_COUNTERS, 1024
#: The first set of weights of a value's decisions.
VALUE_SETS = 512
#: Magnitudes up to this are told one by one, larger ones by their length in bits and the bits.
UNARY = 24
#: How many cells an expected density weighs in a row's, a column's and a whole row's density.
ROW_PRIOR, COLUMN_PRIOR, DENSITY_PRIOR = 24, 24, 40
#: The count that fresh counters begin with, and the largest.
ZERO_PRIOR, ZERO_LIMIT, VALUE_PRIOR, VALUE_LIMIT = 3, 1023, 1, 255
#: Rates of learning: at first this much above 1, half of it after so many decisions.
ZERO_RATE, ZERO_HALF, VALUE_RATE, VALUE_HALF = 4, 512, 24, 512
#: First weights in 1/256, densities first.
ZERO_WEIGHTS = (16, -24, 0, 112, -24, 0, 0, 0, 0, 16, 0, 56, 40)
VALUE_WEIGHTS = (112, 16, 16, 16, 16, 8, 32, 32)
#: Statistics of a row or a column so far: cells that are not zero, the last one's place and value, sums of values and sizes.
COUNT, LAST, VALUE, SUM, SIZE = range(5)
#: What ``code_value`` returns where ``data`` is full, and for a value outside the alphabet.
NO_ROOM, OUTSIDE = -(1 << 30), -(1 << 30) - 1


class Model(NamedTuple):
    """What decisions read and teach."""

    counters: Any
    weights: Any
    inputs: Any
    slots: Any
    coder: Any
    data: Any
    squash: Any
    stretch: Any
    reciprocals: Any


@compiled
def octaves(x):
    """Four times the binary logarithm of x + 1, rounded down to a quarter by the two bits after the first."""
    x = x + 1
    length = bits_after_first(x)
    return 4 * length + (((x << 2) >> length) & 3)


@compiled
def bits_after_first(x):
    length = 0
    while x >> (length + 1):
        length += 1
    return length


@compiled
def clipped(x, low, high):
    return min(max(x, low), high)


@compiled
def mixed_bit(model, bit, decoding, direct, counters, base, prior, limit, first, second, rate):
    """Codes one decision by ``direct`` inputs and ``counters`` counters, weighed by the mean of two sets of weights.

    Fresh counters start at ``base`` with a count of ``prior``. Counters and weights learn.
    """
    one, two = 0, 0
    width = direct + counters
    for i in range(width):
        if i >= direct:
            slot = model.slots[i - direct]
            packed = np.int64(model.counters[slot])
            if packed == FRESH:
                packed = base << 16 | prior
                model.counters[slot] = packed
            model.inputs[i] = model.stretch[clipped(packed >> 16, 1, 65535)]
        one += model.weights[first, i] * model.inputs[i]
        two += model.weights[second, i] * model.inputs[i]
    chance = model.squash[clipped((one + two) >> 17, -REACH, REACH) + REACH]
    bit = code_bit(model.coder, model.data, chance, bit, decoding)
    if bit < 0:
        return bit
    error_one = ((bit << 16) - model.squash[clipped(one >> 16, -REACH, REACH) + REACH]) * rate
    error_two = ((bit << 16) - model.squash[clipped(two >> 16, -REACH, REACH) + REACH]) * rate
    for i in range(width):
        model.weights[first, i] += (model.inputs[i] * error_one + (1 << 17)) >> 18
        model.weights[second, i] += (model.inputs[i] * error_two + (1 << 17)) >> 18
        if i >= direct:
            learn(model.counters, model.slots[i - direct], bit, limit, model.reciprocals)
    return bit


@compiled
def value_bit(model, bit, decoding, mixing, marks, base, nodes, node, first, second, rate):
    """Codes a decision of a value: ``node`` names it."""
    if not mixing:
        return code_learnt(model.coder, model.data, model.counters, base + node, bit, decoding, model.reciprocals)
    for i in range(VALUE_COUNTERS):
        model.slots[i] = base + (i * VALUES + marks[i]) * nodes + node
    order_0 = np.int64(model.counters[base + node]) >> 16
    first, second = VALUE_SETS + first, VALUE_SETS + second
    return mixed_bit(model, bit, decoding, 0, VALUE_COUNTERS, order_0, VALUE_PRIOR, VALUE_LIMIT, first, second, rate)


@compiled
def value_at(sheet, row, column, zero):
    """The value of a cell, 0 outside of the sheet."""
    if row < 0 or column < 0 or column >= sheet.shape[1]:
        return 0
    return np.int64(sheet[row, column]) - zero


@compiled
def filled(sheet, row, column, zero):
    return 1 if value_at(sheet, row, column, zero) != 0 else 0


@compiled
def distances(period):
    """How far above a cell those lie that it resembles, and how much each of them weighs."""
    out = np.zeros((11, 2), np.int64)
    n, p = 0, period
    for i, d in enumerate((1, 2, 3, p - 2, p - 1, p, p + 1, p + 2, 2 * p - 1, 2 * p, 2 * p + 1)):
        if d > 0 and (period > 0 or i < 3):
            out[n, 0] = d
            out[n, 1] = 3 if d == 1 or d == period else (2 if d == 2 or abs(d - period) == 1 else 1)
            n += 1
    return out[:n]


@compiled
def expected_densities(density, row, period, overall, reach, out):
    """Fills ``out`` [4]: the densities of the row above, the one a period above, the mean of more, a blend of all."""
    out[0] = density[row - 1] if row > 0 else overall
    out[1] = density[row - period] if 0 < period <= row else out[0]
    wider, terms = 2 * overall, 2
    for i in range(len(reach)):
        if reach[i, 0] <= row:
            wider += density[row - reach[i, 0]]
            terms += 1
    out[2] = wider // terms
    out[3] = (out[0] + out[1] + 2 * overall + 4 * out[2]) >> 3


@compiled
def zero_inputs(model, overall, by_row, by_column, both, expected):
    inputs, stretch = model.inputs, model.stretch
    inputs[0] = stretch[clipped(overall, 1, 65535)]
    inputs[1] = stretch[clipped(by_row, 1, 65535)]
    inputs[2] = stretch[clipped(by_column, 1, 65535)]
    inputs[3] = stretch[both]
    for i in range(3):
        inputs[4 + i] = stretch[clipped(expected[i], 1, 65535)]


@compiled
def zero_slots(model, sheet, r, c, zero, period, by_row, by_column, expected, since_row, since_column):
    """Chooses the counters of the zero decision; returns the second set of weights."""
    left, left2 = filled(sheet, r, c - 1, zero), filled(sheet, r, c - 2, zero)
    up, up2, up3 = filled(sheet, r - 1, c, zero), filled(sheet, r - 2, c, zero), filled(sheet, r - 3, c, zero)
    corners = filled(sheet, r - 1, c - 1, zero) | filled(sheet, r - 1, c + 1, zero) << 1
    far, far2, around = 0, 0, 0
    if period > 0:
        far, far2 = filled(sheet, r - period, c, zero), filled(sheet, r - 2 * period, c, zero)
        around = filled(sheet, r - period - 1, c, zero) + filled(sheet, r - period + 1, c, zero)
    slots = model.slots
    slots[0] = left | left2 << 1 | up << 2 | corners << 3
    slots[1] = (octaves(expected[0]) >> 1) * 40 + (octaves(expected[1]) >> 1)
    slots[2] = (octaves(by_row) >> 1) * 40 + (octaves(by_column) >> 1)
    slots[3] = min(octaves(since_column), 63) << 6 | min(octaves(since_row), 63)
    slots[4] = up | up2 << 1 | up3 << 2 | far << 3 | far2 << 4 | around << 5
    slots[5] = min(up + up2 + up3 + far + far2 + around, 6) << 7 | octaves(by_column)
    for i in range(ZERO_COUNTERS):
        slots[i] += i * CELLS
    return 32 + (left | up << 1 | far << 2)


@compiled
def mixed_zero(model, sheet, r, c, value, decoding, zero, period, row, columns, w, expected, total, seen):
    """Codes whether a cell's value is not 0, by contexts; returns it, and the density that row and column give together."""
    overall = ((total << 16) + 6553) // (seen + 2)
    by_row = ((row[COUNT] << 16) + ROW_PRIOR * expected[3]) // (c + ROW_PRIOR)
    by_column = ((columns[COUNT, w] << 16) + COLUMN_PRIOR * overall) // (r + COLUMN_PRIOR)
    both = clipped(by_row * by_column // (overall + 1), 1, 65535)
    zero_inputs(model, overall, by_row, by_column, both, expected)
    since = c - row[LAST], r - columns[LAST, w]
    second = zero_slots(model, sheet, r, c, zero, period, by_row, by_column, expected, since[0], since[1])
    rate = 1 + ZERO_RATE * ZERO_HALF // (ZERO_HALF + seen)
    first, bit = octaves(both) >> 2, 1 if value else 0
    bit = mixed_bit(
        model, bit, decoding, DENSITIES, ZERO_COUNTERS, both, ZERO_PRIOR, ZERO_LIMIT, first, second, rate
    )
    return bit, both


@compiled
def value_marks(marks, sheet, r, c, zero, reach, row, columns, w, both):
    """Chooses the contexts of a value's decisions."""
    near, close = 0, 0
    for i in range(len(reach)):
        value = clipped(value_at(sheet, r - reach[i, 0], c, zero), -3, 3)
        near += value * reach[i, 1]
        if reach[i, 1] == 3:
            close += value
    near = clipped(near, -20, 20) + 20
    marks[0] = 0
    marks[1] = clipped(columns[VALUE, w], -7, 7) + 8
    marks[2] = clipped(row[VALUE], -7, 7) + 8
    size = columns[SIZE, w] * 16 // max(columns[COUNT, w], 1)
    marks[3] = min(octaves(size), 63) + (64 if columns[SUM, w] > 0 else 0)
    marks[4] = min(octaves(row[SIZE] * 16 // max(row[COUNT], 1)), 63) + (64 if row[SUM] > 0 else 0)
    marks[5] = octaves(both)
    marks[6] = near
    marks[7] = clipped(close, -6, 6) + 6 + 13 * (near // 3)


@compiled
def nodes_of(largest):
    """How many decisions the values up to ``largest`` have."""
    if largest <= UNARY:
        return 1 + UNARY
    length = bits_after_first(largest)
    return 18 + (2 << length if length < 8 else 256 + (length - 7) * 128)


@compiled
def code_value(model, value, decoding, mixing, marks, base, nodes, below, above, rate):
    """Codes a value other than 0: its sign, then its size less one; returns it, NO_ROOM or OUTSIDE."""
    negative = 1 if above == 0 else 0
    if below > 0 and above > 0:
        negative = value_bit(model, 1 if value < 0 else 0, decoding, mixing, marks, base, nodes, 0, 0, 1, rate)
        if negative < 0:
            return NO_ROOM
    size, top = abs(value) - 1, (below if negative else above) - 1
    unary = max(below, above) <= UNARY
    goal, limit, step = size, top, 0
    if not unary:
        goal, limit = bits_after_first(size + 1), bits_after_first(top + 1)
    while step < limit:
        more = 1 if goal > step else 0
        sets = 2 + 2 * step + negative, 100 + step
        more = value_bit(model, more, decoding, mixing, marks, base, nodes, 1 + step, sets[0], sets[1], rate)
        if more < 0:
            return NO_ROOM
        if more == 0:
            break
        step += 1
    if unary:
        size = step
    else:
        size = code_low_bits(model, size + 1, step, decoding, mixing, marks, base, nodes, rate) - 1
        if size < 0:
            return NO_ROOM
        if size > top:
            return OUTSIDE
    return -size - 1 if negative else size + 1


@compiled
def code_low_bits(model, number, count, decoding, mixing, marks, base, nodes, rate):
    """Codes the last ``count`` bits of a number whose first bit is known; returns it, or 0 where ``data`` is full."""
    prefix = 1
    for j in range(count - 1, -1, -1):
        bit = (number >> j) & 1
        if prefix < 128:
            node = 18 + (1 << count if count < 8 else 256 + (count - 8) * 128) + prefix
            bit = value_bit(model, bit, decoding, mixing, marks, base, nodes, node, 150 + count, 170 + count - j, rate)
        else:
            slot = len(model.counters) - 1 - (count * 16 + j)
            bit = code_learnt(model.coder, model.data, model.counters, slot, bit, decoding, model.reciprocals)
        if bit < 0:
            return 0
        prefix = prefix << 1 | bit
    return prefix


@compiled
def forget(model, mixing):
    """Counters and weights as at the start."""
    model.counters[:] = FRESH
    if mixing:
        for i in range(SETS):
            for j in range(WIDTH):
                model.weights[i, j] = 0
                if i < VALUE_SETS:
                    model.weights[i, j] = ZERO_WEIGHTS[j] << 8
                elif j < VALUE_COUNTERS:
                    model.weights[i, j] = VALUE_WEIGHTS[j] << 8


@compiled
def note(statistics, place, value):
    """A value that is not 0 enters the statistics of its row or column."""
    statistics[COUNT] += 1
    statistics[LAST] = place
    statistics[VALUE] = value
    statistics[SUM] += value
    statistics[SIZE] += abs(value)


@compiled
def new_model(base, nodes, mixing, data, squash, stretch, reciprocals):
    size = base + (VALUE_COUNTERS * VALUES if mixing else 1) * nodes + 272
    counters, weights = np.empty(size, np.uint32), np.zeros((SETS, WIDTH), np.int64)
    inputs, slots, coder = np.zeros(WIDTH, np.int64), np.zeros(WIDTH, np.int64), np.zeros(3, np.int64)
    return Model(counters, weights, inputs, slots, coder, data, squash, stretch, reciprocals)


@compiled
def code_row(
    model, sheet, r, zero, alphabet, period, mixing, decoding, base, nodes, marks, reach, row, columns, expected, total, seen
):
    """Codes the cells of a row, before which ``seen`` cells with ``total`` values were; returns 0, -1 or -2."""
    below, above = zero, alphabet - 1 - zero
    row[:] = 0
    row[LAST] = -1
    for c in range(sheet.shape[1]):
        w = c if columns.shape[1] > 1 else 0
        value, before, both = np.int64(sheet[r, c]) - zero, total + row[COUNT], 0
        bit = 1 if value else 0
        if mixing:
            bit, both = mixed_zero(
                model, sheet, r, c, value, decoding, zero, period, row, columns, w, expected, before, seen + c
            )
        else:
            bit = code_learnt(model.coder, model.data, model.counters, 0, bit, decoding, model.reciprocals)
        if bit < 0:
            return -1
        if bit:
            if mixing:
                value_marks(marks, sheet, r, c, zero, reach, row, columns, w, both)
            rate = 1 + VALUE_RATE * VALUE_HALF // (VALUE_HALF + before)
            value = code_value(model, value, decoding, mixing, marks, base, nodes, below, above, rate)
            if value <= NO_ROOM:
                return -1 if value == NO_ROOM else -2
            note(row, c, value)
            note(columns[:, w], r, value)
        if decoding:
            sheet[r, c] = zero + (value if bit else 0)
    return 0


@compiled
def code_cells(cells, zero, alphabet, period, restart, mixing, data, decoding, squash, stretch, reciprocals):
    """Codes ``cells`` [stack, rows, columns] uint16, written to when decoding; values are ``cells - zero``.

    Returns the bytes written or looked at, -1 where ``data`` is full, -2 for a value outside the alphabet.
    """
    rows, wide = cells.shape[1:]
    nodes, base = nodes_of(max(zero, alphabet - 1 - zero)), ZERO_COUNTERS * CELLS if mixing else 1
    model = new_model(base, nodes, mixing, data, squash, stretch, reciprocals)
    marks, expected = np.zeros(VALUE_COUNTERS, np.int64), np.zeros(4, np.int64)
    # A single row has one column's statistics, those of all its cells.
    columns = np.zeros((5, wide if rows > 1 else 1), np.int64)
    row, density, reach = np.zeros(5, np.int64), np.zeros(rows, np.int64), distances(period)
    begin(model.coder, data, decoding)
    total, seen = 0, 0
    for k in range(len(cells)):
        if k == 0 or restart:
            forget(model, mixing)
            total, seen = 0, 0
        columns[:] = 0
        columns[LAST] = -1
        for r in range(rows):
            overall = ((total << 16) + 6553) // (seen + 2)
            expected_densities(density, r, period, overall, reach, expected)
            status = code_row(
                model, cells[k], r, zero, alphabet, period, mixing, decoding, base, nodes,
                marks, reach, row, columns, expected, total, seen,
            )  # fmt: skip
            if status < 0:
                return status
            total, seen = total + row[COUNT], seen + wide
            density[r] = ((row[COUNT] << 16) + DENSITY_PRIOR * expected[3]) // (wide + DENSITY_PRIOR)
    return model.coder[AT] if decoding else finish(model.coder, data)
