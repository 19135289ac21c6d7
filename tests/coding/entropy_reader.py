"""A decoder written from ``jaxopt_nn/coding/entropy/FORMAT.md`` alone, in plain Python: slow, and sharing no code."""

from __future__ import annotations

import bisect
import functools
import itertools
import math


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


class Range:
    """The range decoder."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.range = data, 4, 1 << 32
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def bit(self, one: int) -> int:
        bound = self.range * one >> 16
        bit = int(self.code < bound)
        if bit:
            self.range = bound
        else:
            self.code -= bound
            self.range -= bound
        while self.range < 1 << 24:
            self.range <<= 8
            self.code = self.code << 8 | (self.data[self.at] if self.at < len(self.data) else 0)
            self.at += 1
        return bit


class Counter:
    """22 bits of probability, and a count."""

    def __init__(self) -> None:
        self.chance, self.count = 1 << 21, 0

    def one(self) -> int:
        return min(max(self.chance >> 6, 1), 65535)

    def learn(self, bit: int, limit: int) -> None:
        target = (1 << 22) - 1 if bit else 0
        self.chance += (target - self.chance) * (131072 // (2 * self.count + 3)) >> 16
        self.count = min(self.count + 1, limit)


class Counters(dict):
    def __missing__(self, key):
        self[key] = Counter()
        return self[key]

    def bit(self, coder: Range, key) -> int:
        bit = coder.bit(self[key].one())
        self[key].learn(bit, 512)
        return bit


def read_counts(data: bytes, size: int, precision: int) -> list[int]:
    coder, counters, out = Range(data), Counters(), []
    before, last = 0, 1
    for _ in range(size):
        used = counters.bit(coder, ("used", before))
        before = (before << 1 | used) & 3
        if not used:
            out.append(0)
            continue
        context = 0 if last <= 2 else 1 if last <= 5 else 2
        if counters.bit(coder, ("differs", context)):
            up = counters.bit(coder, ("up", context)) if last > 1 else 1
            far = 1
            while far < (40 - last if up else last - 1) and counters.bit(coder, ("far", up, min(far, 60))):
                far += 1
            last += far if up else -far
        value = 1
        for j in range(1, last):
            if j > precision:
                bit = int(j == precision + 1)
            else:
                bit = counters.bit(coder, ("second", last)) if j == 1 else coder.bit(32768)
            value = value << 1 | bit
        out.append(value)
    return out


def frequencies(counts: list[int], bits: int) -> list[int]:
    shift = max(max(counts).bit_length() - 36, 0)
    weights = [c >> shift | (c > 0) for c in counts]
    total = sum(weights)
    out = [max(((w << bits + 1) + total) // (2 * total), 1) if w else 0 for w in weights]
    short = (1 << bits) - sum(out)
    order = sorted(range(len(out)), key=lambda i: -weights[i])
    while short:
        for i in order:
            if short > 0 and out[i] > 0:
                out[i] += 1
                short -= 1
            elif short < 0 and out[i] > 1:
                out[i] -= 1
                short += 1
            else:
                break
    return out


def rans(source: Bytes, head: int, n: int) -> list[int]:
    lanes, precision = 8 if head & 8 else 1, (0, 1, 2, 3, 4, 5, 7, 10, 15)[head >> 4]
    second = source.take(1)[0]
    bits, length = second & 31, 1 << 16 + (second >> 5)
    first, size, table = source.varint(), source.varint() + 1, source.varint()
    table = frequencies(read_counts(source.take(table), size, precision), bits)
    starts = [0, *itertools.accumulate(table)]
    parts = -(-n // length)
    sizes = [source.varint() for _ in range(parts - 1)]
    word, low = (32, 1 << 31) if bits > 16 else (16, 1 << 16)
    out: list[int] = []
    for part in range(parts):
        data = source.take(sizes[part]) if part < parts - 1 else source.take(len(source.data) - source.at)
        states = [int.from_bytes(data[word // 4 * i :][: word // 4], "little") for i in range(lanes)]
        at = word // 4 * lanes
        for i in range(min(length, n - len(out))):
            state = states[i % lanes]
            slot = state & ((1 << bits) - 1)
            symbol = bisect.bisect_right(starts, slot) - 1
            state = table[symbol] * (state >> bits) + slot - starts[symbol]
            if state < low:
                state = state << word | int.from_bytes(data[at : at + word // 8], "little")
                at += word // 8
            states[i % lanes] = state
            out.append(first + symbol)
        assert states == [low] * lanes and at == len(data)
    return out


def huffman(source: Bytes, n: int) -> list[int]:
    first, size, table = source.varint(), source.varint() + 1, source.varint()
    lengths = read_counts(source.take(table), size, 15)
    codes, code, last = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code <<= length - last
        codes[length, code] = first + symbol
        code, last = code + 1, length
    bits = "".join(f"{byte:08b}" for byte in source.take(len(source.data) - source.at))
    out, at = [], 0
    while len(out) < n:
        length = 1
        while (length, int(bits[at : at + length], 2)) not in codes:
            length += 1
        out.append(codes[length, int(bits[at : at + length], 2)])
        at += length
    return out


@functools.cache
def logistic() -> tuple[list[int], list[int]]:
    """``squash`` of -3072 to 3072 (at an offset of 3072), and ``stretch`` of 0 to 65535."""
    one = 1 << 64
    step = term = one
    for k in range(1, 12):
        term //= 256 * k
        step += -term if k % 2 else term
    power, upper = one, []
    for _ in range(3073):
        upper.append((one << 16) // (one + power))
        power = power * step >> 64
    squash = [min(max(p, 1), 65535) for p in [65536 - p for p in upper[:0:-1]] + upper]
    stretch, x = [], 0
    for p in range(65536):
        while x < 6144 and squash[x] < p:
            x += 1
        stretch.append(x - 3072)
    return squash, stretch


def octaves(x: int) -> int:
    length = (x + 1).bit_length() - 1
    return 4 * length + ((x + 1 << 2 >> length) & 3)


def clip(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


class Mixer:
    """Counters by context, weights by set, and the range decoder."""

    ZERO = (16, -24, 0, 112, -24, 0, 0, 0, 0, 16, 0, 56, 40)
    VALUE = (112, 16, 16, 16, 16, 8, 32, 32)

    def __init__(self, data: bytes) -> None:
        self.coder, (self.squash, self.stretch) = Range(data), logistic()
        self.forget()

    def forget(self) -> None:
        self.counters: dict = {}
        self.plain = Counters()
        self.weights: dict = {}

    def bit(self, kind: str, inputs: list[int], keys: list, base: int, prior: int, limit: int, sets: tuple, rate: int) -> int:
        for key in keys:
            counter = self.counters.setdefault(key, Counter())
            if counter.count == 0 and counter.chance == 1 << 21:
                counter.chance, counter.count = base << 6, prior
            inputs.append(self.stretch[counter.one()])
        first = [w << 8 for w in (self.ZERO if kind == "zero" else self.VALUE)]
        weights = [self.weights.setdefault((kind, which, s), list(first)) for which, s in enumerate(sets)]
        dots = [sum(w * x for w, x in zip(ws, inputs)) for ws in weights]
        bit = self.coder.bit(self.squash[clip(sum(dots) >> 17, -3072, 3072) + 3072])
        for ws, dot in zip(weights, dots):
            error = ((bit << 16) - self.squash[clip(dot >> 16, -3072, 3072) + 3072]) * rate
            for i, x in enumerate(inputs):
                ws[i] += x * error + (1 << 17) >> 18
        for key in keys:
            self.counters[key].learn(bit, limit)
        return bit


class Cells:
    """The adaptive model."""

    def __init__(self, data: bytes, stack: int, rows: int, columns: int, alphabet: int, zero: int, mixed: bool) -> None:
        self.mixer, self.mixed = Mixer(data), mixed
        self.stack, self.rows, self.columns = stack, rows, columns
        self.below, self.above, self.zero = zero, alphabet - 1 - zero, zero

    def decode(self, period: int, restart: bool) -> list[list[list[int]]]:
        self.period = p = period if 2 <= period < self.rows else 0
        far = [1, 2, 3] + ([p - 2, p - 1, p, p + 1, p + 2, 2 * p - 1, 2 * p, 2 * p + 1] if p else [])
        self.reach = [(d, 3 if d in (1, p) else 2 if d == 2 or abs(d - p) == 1 else 1) for d in far if d > 0]
        self.total = self.seen = 0
        density, out = [0] * self.rows, []
        for k in range(self.stack):
            if k and restart:
                self.mixer.forget()
                self.total = self.seen = 0
            self.sheet = [[0] * self.columns for _ in range(self.rows)]
            self.by_columns = [[0, -1, 0, 0, 0] for _ in range(self.columns if self.rows > 1 else 1)]
            for r in range(self.rows):
                overall = ((self.total << 16) + 6553) // (self.seen + 2)
                expected = self.expected(density, r, overall)
                self.row = [0, -1, 0, 0, 0]
                for c in range(self.columns):
                    self.sheet[r][c] = self.cell(r, c, expected)
                density[r] = ((self.row[0] << 16) + 40 * expected[3]) // (self.columns + 40)
            out.append([[v + self.zero for v in row] for row in self.sheet])
        return out

    def expected(self, density: list[int], r: int, overall: int) -> list[int]:
        above = density[r - 1] if r > 0 else overall
        distant = density[r - self.period] if 0 < self.period <= r else above
        near = [density[r - d] for d, _ in self.reach if d <= r]
        wider = (2 * overall + sum(near)) // (2 + len(near))
        return [above, distant, wider, (above + distant + 2 * overall + 4 * wider) >> 3]

    def at(self, r: int, c: int) -> int:
        return self.sheet[r][c] if r >= 0 and 0 <= c < self.columns else 0

    def cell(self, r: int, c: int, expected: list[int]) -> int:
        marks = [0] * 8
        column = self.by_columns[c if self.rows > 1 else 0]
        if self.mixed:
            filled, marks = self.mixed_zero(r, c, expected, column)
        else:
            filled = self.mixer.plain.bit(self.mixer.coder, "zero")
        self.seen += 1
        if not filled:
            return 0
        value = self.value(marks, 1 + 24 * 512 // (512 + self.total))
        self.total += 1
        for statistics, place in ((self.row, c), (column, r)):
            statistics[:] = [
                statistics[0] + 1, place, value, statistics[3] + value, statistics[4] + abs(value)
            ]  # fmt: skip
        return value

    def mixed_zero(self, r: int, c: int, expected: list[int], column: list[int]) -> tuple[int, list[int]]:
        overall = ((self.total << 16) + 6553) // (self.seen + 2)
        by_row = ((self.row[0] << 16) + 24 * expected[3]) // (c + 24)
        by_column = ((column[0] << 16) + 24 * overall) // (r + 24)
        both = clip(by_row * by_column // (overall + 1), 1, 65535)
        densities = [overall, by_row, by_column, both, *expected[:3]]
        p, full = self.period, lambda row, col: int(self.at(row, col) != 0)
        left, left2, corners = full(r, c - 1), full(r, c - 2), full(r - 1, c - 1) | full(r - 1, c + 1) << 1
        up, up2, up3 = full(r - 1, c), full(r - 2, c), full(r - 3, c)
        far, far2 = (full(r - p, c), full(r - 2 * p, c)) if p else (0, 0)
        around = full(r - p - 1, c) + full(r - p + 1, c) if p else 0
        keys = [
            left | left2 << 1 | up << 2 | corners << 3,
            (octaves(expected[0]) >> 1) * 40 + (octaves(expected[1]) >> 1),
            (octaves(by_row) >> 1) * 40 + (octaves(by_column) >> 1),
            min(octaves(r - column[1]), 63) << 6 | min(octaves(c - self.row[1]), 63),
            up | up2 << 1 | up3 << 2 | far << 3 | far2 << 4 | around << 5,
            min(up + up2 + up3 + far + far2 + around, 6) << 7 | octaves(by_column),
        ]
        bit = self.mixer.bit(
            "zero", [self.mixer.stretch[clip(d, 1, 65535)] for d in densities], [("zero", i, k) for i, k in enumerate(keys)],
            both, 3, 1023, (octaves(both) >> 2, left | up << 1 | far << 2), 1 + 4 * 512 // (512 + self.seen),
        )  # fmt: skip
        return bit, self.marks(r, c, column, both) if bit else []

    def marks(self, r: int, c: int, column: list[int], both: int) -> list[int]:
        values = [(clip(self.at(r - d, c), -3, 3), weight) for d, weight in self.reach]
        near = clip(sum(v * w for v, w in values), -20, 20) + 20
        close = clip(sum(v for v, w in values if w == 3), -6, 6) + 6
        sizes = [min(octaves(s[4] * 16 // max(s[0], 1)), 63) + 64 * (s[3] > 0) for s in (column, self.row)]
        signed = [clip(column[2], -7, 7) + 8, clip(self.row[2], -7, 7) + 8]
        return [0, *signed, *sizes, octaves(both), near, close + 13 * (near // 3)]

    def value_bit(self, marks: list[int], node: int, sets: tuple, rate: int) -> int:
        if not self.mixed:
            return self.mixer.plain.bit(self.mixer.coder, ("value", node))
        keys = [("value", i, mark, node) for i, mark in enumerate(marks)]
        order_0 = self.mixer.counters.get(keys[0], Counter())
        return self.mixer.bit("value", [], keys, order_0.chance >> 6, 1, 255, sets, rate)

    def value(self, marks: list[int], rate: int) -> int:
        negative = int(self.above == 0)
        if self.below and self.above:
            negative = self.value_bit(marks, 0, (0, 1), rate)
        top, step = (self.below if negative else self.above) - 1, 0
        unary = max(self.below, self.above) <= 24
        limit = top if unary else (top + 1).bit_length() - 1
        while step < limit and self.value_bit(marks, 1 + step, (2 + 2 * step + negative, 100 + step), rate):
            step += 1
        size = step
        if not unary:
            number = 1
            for j in range(step - 1, -1, -1):
                if number < 128:
                    node = 18 + (1 << step if step < 8 else 256 + (step - 8) * 128) + number
                    bit = self.value_bit(marks, node, (150 + step, 170 + step - j), rate)
                else:
                    bit = self.mixer.plain.bit(self.mixer.coder, ("low", step, j))
                number = number << 1 | bit
            size = number - 1
        return -size - 1 if negative else size + 1


def adaptive(source: Bytes, head: int, shape: tuple[int, ...], alphabet: int) -> list[int]:
    zero = (0, alphabet // 2)[head >> 6] if head >> 6 < 2 else source.varint()
    period, how = divmod(source.varint() if head & 8 else 0, 4)
    rows, columns = ((1, 1) + tuple(shape))[-2:]
    stack = math.prod(shape) // (rows * columns)
    high, wide = (columns, rows) if head & 16 else (rows, columns)
    data = source.take(len(source.data) - source.at)
    sides = (1, stack * high, wide) if how > 1 else (stack, high, wide)
    sheets = Cells(data, *sides, alphabet, zero, bool(head & 8)).decode(period, how == 1)
    if how == 2:
        sheets = [sheets[0][k * high :][:high] for k in range(stack)]
    if how == 3:
        sheets = [sheets[0][k::stack] for k in range(stack)]
    if head & 16:
        sheets = [list(zip(*sheet)) for sheet in sheets]
    return [value for sheet in sheets for row in sheet for value in row]


def decode(data: bytes, shape: tuple[int, ...], alphabet: int) -> list[int]:
    """The symbols, in C order."""
    n, source = math.prod(shape), Bytes(data)
    if n == 0:
        return []
    head = source.take(1)[0]
    if head == 0:
        width = (alphabet - 1).bit_length()
        number = int.from_bytes(data[1:], "little")
        return [number >> width * i & ((1 << width) - 1) for i in range(n)]
    if head == 1:
        return [source.varint()] * n
    if head == 3:
        return huffman(source, n)
    return rans(source, head, n) if head & 7 == 2 else adaptive(source, head, shape, alphabet)
