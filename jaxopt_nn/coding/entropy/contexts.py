"""The contextual model: what is known of a cell before it is coded, and how predictions from it are mixed."""

from __future__ import annotations

import numpy as np

from jaxopt_nn.coding.entropy.adaptive import AT, FRESH, REACH, begin, chance_of, code_bit, code_learnt, finish, learn
from jaxopt_nn.coding.entropy.compiled import compiled

#: Counters that a context of the zero decision can choose among, and contexts of a value's decisions.
CELLS, VALUES = 4096, 256
#: Models of the zero decision and of the others.
ZERO_MODELS, VALUE_MODELS = 10, 6
SETS = 1024


@compiled
def octaves(x):
    """Four times the binary logarithm of x + 1, rounded down to a quarter by the two bits after the first."""
    x = x + 1
    length = 0
    while x >> length > 1:
        length += 1
    return 4 * length + (((x << 2) >> length) & 3)


@compiled
def mixed_bit(coder, data, bit, decoding, slots, models, counters, limit, weights, first, second, rate, inputs, squash, stretch, reciprocals):
    """Codes one decision by the counters at ``slots`` [models], weighed by two sets of weights; all of them learn."""
    base = chance_of(counters, slots[0])
    one, two = 0, 0
    for i in range(models):
        if np.int64(counters[slots[i]]) & 1023 == 0:
            counters[slots[i]] = base << 16
        x = stretch[chance_of(counters, slots[i])]
        inputs[i] = x
        one += weights[first, i] * x
        two += weights[second, i] * x
    chance = squash[min(max((one + two) >> 17, -REACH), REACH) + REACH]
    bit = code_bit(coder, data, chance, bit, decoding)
    if bit < 0:
        return bit
    error_one = (bit << 16) - squash[min(max(one >> 16, -REACH), REACH) + REACH]
    error_two = (bit << 16) - squash[min(max(two >> 16, -REACH), REACH) + REACH]
    for i in range(models):
        weights[first, i] += (inputs[i] * error_one * rate + (1 << 17)) >> 18
        weights[second, i] += (inputs[i] * error_two * rate + (1 << 17)) >> 18
        learn(counters, slots[i], bit, limit, reciprocals)
    return bit


@compiled
def value_at(cells, start, row, column, rows, columns, zero):
    """The value of a cell, 0 outside of the matrix that begins at ``start``."""
    if row < 0 or column < 0 or column >= columns:
        return 0
    return np.int64(cells[start + row * columns + column]) - zero


@compiled
def code_cells(cells, stack, rows, columns, zero, alphabet, period, restart, mixing, data, decoding, squash, stretch, reciprocals):
    """Codes ``cells`` [stack * rows * columns] uint16, written to when decoding; values are ``cells - zero``.

    Returns the bytes written or looked at, -1 where ``data`` is full, -2 for a value outside the alphabet.
    """
    below, above = zero, alphabet - 1 - zero
    unary = max(below, above) <= 24
    nodes = 2 + 24 if unary else 2 + 17 + 17 * 128
    zero_models = ZERO_MODELS if mixing else 1
    value_models = VALUE_MODELS if mixing else 1
    base = zero_models * CELLS
    counters = np.full(base + value_models * VALUES * nodes + 512, FRESH, np.uint32)
    plain = base + value_models * VALUES * nodes
    weights = np.zeros((SETS, max(ZERO_MODELS, VALUE_MODELS)), np.int64)
    inputs = np.zeros(max(ZERO_MODELS, VALUE_MODELS), np.int64)
    slots = np.zeros(max(ZERO_MODELS, VALUE_MODELS), np.int64)
    marks = np.zeros(VALUE_MODELS, np.int64)
    coder = np.zeros(3, np.int64)
    width = columns if rows > 1 else 1
    column_count = np.zeros(width, np.int64)
    column_last = np.zeros(width, np.int64)
    column_value = np.zeros(width, np.int64)
    column_sum = np.zeros(width, np.int64)
    column_size = np.zeros(width, np.int64)
    density = np.zeros(rows, np.int64)
    begin(coder, data, decoding)
    total, seen = 0, 0
    for k in range(stack):
        if k == 0 or restart:
            counters[:] = FRESH
            total, seen = 0, 0
            for i in range(SETS):
                for j in range(weights.shape[1]):
                    weights[i, j] = (1 << 16) * 4 // (10 if i < 512 else 10)
        column_count[:] = 0
        column_last[:] = -1
        column_value[:] = 0
        column_sum[:] = 0
        column_size[:] = 0
        start = k * rows * columns
        for r in range(rows):
            row_count, row_last, row_value, row_sum, row_size = 0, -1, 0, 0, 0
            overall = ((total << 16) + 32768) // (seen + 2)
            prior = overall
            if r > 0:
                prior = density[r - 1]
            if r >= period and period > 0:
                prior = (prior + density[r - period]) >> 1
            prior = (prior * 3 + overall) >> 2
            for c in range(columns):
                at, w = start + r * columns + c, c if rows > 1 else 0
                by_row = ((row_count << 16) + 16 * prior) // (c + 16)
                by_column = ((column_count[w] << 16) + 6 * overall) // (r + 6)
                both = min(by_row * by_column // (overall + 1), 65535)
                value = np.int64(cells[at]) - zero
                bit = 1 if value != 0 else 0
                slots[0] = 0
                if mixing:
                    left = 1 if value_at(cells, start, r, c - 1, rows, columns, zero) != 0 else 0
                    left2 = 1 if value_at(cells, start, r, c - 2, rows, columns, zero) != 0 else 0
                    up = 1 if value_at(cells, start, r - 1, c, rows, columns, zero) != 0 else 0
                    up2 = 1 if value_at(cells, start, r - 2, c, rows, columns, zero) != 0 else 0
                    up_left = 1 if value_at(cells, start, r - 1, c - 1, rows, columns, zero) != 0 else 0
                    up_right = 1 if value_at(cells, start, r - 1, c + 1, rows, columns, zero) != 0 else 0
                    far = 0
                    if period > 0:
                        far = 1 if value_at(cells, start, r - period, c, rows, columns, zero) != 0 else 0
                    slots[1] = 1 * CELLS + (c & 4095)
                    slots[2] = 2 * CELLS + (min(row_count, 63) << 6 | octaves(c))
                    slots[3] = 3 * CELLS + (octaves(by_column) << 1 | left)
                    slots[4] = 4 * CELLS + (octaves(by_row) << 1 | up)
                    slots[5] = 5 * CELLS + (octaves(both) << 1 | far)
                    slots[6] = 6 * CELLS + (left | left2 << 1 | up << 2 | up2 << 3 | up_left << 4 | up_right << 5 | far << 6)
                    slots[7] = 7 * CELLS + ((octaves(density[r - 1] if r > 0 else 0) >> 1) * 40
                                            + (octaves(density[r - period] if period > 0 and r >= period else 0) >> 1))
                    slots[8] = 8 * CELLS + ((octaves(by_row) >> 1) * 40 + (octaves(by_column) >> 1))
                    slots[9] = 9 * CELLS + (min(octaves(r - column_last[w]), 63) << 6 | min(octaves(c - row_last), 63))
                    first = octaves(both) >> 2
                    second = 32 + (left | up << 1 | far << 2)
                    bit = mixed_bit(coder, data, bit, decoding, slots, ZERO_MODELS, counters, 1023, weights, first, second, 6, inputs, squash, stretch, reciprocals)
                else:
                    bit = code_learnt(coder, data, counters, 0, bit, decoding, reciprocals)
                if bit < 0:
                    return -1
                seen += 1
                if bit == 0:
                    if decoding:
                        cells[at] = zero
                    continue
                # The value's contexts.
                marks[0] = 0
                if mixing:
                    marks[1] = min(max(column_value[w], -7), 7) + 8
                    marks[2] = min(max(row_value, -7), 7) + 8
                    marks[3] = min(octaves(column_size[w] * 16 // max(column_count[w], 1)), 63) + 64 * (1 if column_sum[w] > 0 else 0)
                    marks[4] = min(octaves(row_size * 16 // max(row_count, 1)), 63) + 64 * (1 if row_sum > 0 else 0)
                    marks[5] = min(octaves(both), 127)
                negative = 0
                if below == 0:
                    negative = 0
                elif above == 0:
                    negative = 1
                else:
                    bit = 1 if value < 0 else 0
                    for i in range(value_models):
                        slots[i] = base + (i * VALUES + marks[i]) * nodes
                    if mixing:
                        bit = mixed_bit(coder, data, bit, decoding, slots, value_models, counters, 255, weights, 512, 513, 6, inputs, squash, stretch, reciprocals)
                    else:
                        bit = code_learnt(coder, data, counters, slots[0], bit, decoding, reciprocals)
                    if bit < 0:
                        return -1
                    negative = bit
                for i in range(value_models):
                    slots[i] = base + (i * VALUES + marks[i]) * nodes
                size = abs(value) - 1
                top = (below if negative else above) - 1
                step, node, known = 0, 0, 0
                # Unary: is the size above `step`? Otherwise the same of the length of size + 1.
                goal = size
                if not unary:
                    top_length = 0
                    while (top + 1) >> (top_length + 1):
                        top_length += 1
                    goal = 0
                    while (size + 1) >> (goal + 1):
                        goal += 1
                    limit = top_length
                else:
                    limit = top
                while step < limit:
                    bit = 1 if goal > step else 0
                    for i in range(value_models):
                        slots[i] = base + (i * VALUES + marks[i]) * nodes + 2 + step
                    if mixing:
                        bit = mixed_bit(coder, data, bit, decoding, slots, value_models, counters, 255, weights, 514 + 2 * step + negative, 600 + step, 6, inputs, squash, stretch, reciprocals)
                    else:
                        bit = code_learnt(coder, data, counters, slots[0], bit, decoding, reciprocals)
                    if bit < 0:
                        return -1
                    if bit == 0:
                        break
                    step += 1
                if unary:
                    size = step
                else:
                    prefix = 1
                    for j in range(step - 1, -1, -1):
                        bit = ((size + 1) >> j) & 1
                        if prefix < 128:
                            for i in range(value_models):
                                slots[i] = base + (i * VALUES + marks[i]) * nodes + 19 + step * 128 + prefix
                            if mixing:
                                bit = mixed_bit(coder, data, bit, decoding, slots, value_models, counters, 255, weights, 640 + step, 660 + step - j, 6, inputs, squash, stretch, reciprocals)
                            else:
                                bit = code_learnt(coder, data, counters, slots[0], bit, decoding, reciprocals)
                        else:
                            bit = code_learnt(coder, data, counters, plain + 16 * step + j, bit, decoding, reciprocals)
                        if bit < 0:
                            return -1
                        prefix = prefix << 1 | bit
                    size = prefix - 1
                    if size > top:
                        return -2
                value = -size - 1 if negative else size + 1
                if decoding:
                    cells[at] = zero + value
                total += 1
                row_count += 1
                row_last = c
                row_value = value
                row_sum += value
                row_size += size + 1
                column_count[w] += 1
                column_last[w] = r
                column_value[w] = value
                column_sum[w] += value
                column_size[w] += size + 1
            density[r] = ((row_count << 16) + 2 * overall) // (columns + 2)
    if decoding:
        return coder[AT]
    return finish(coder, data)
