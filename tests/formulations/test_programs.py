"""Every program of the table against NumPy: one arithmetic is one result, whatever runs it."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.formulations import cpu, gpu, table, tpu
from jaxopt_nn.formulations.labels import Call
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.qtensor import QTensor

FORMS = {"cpu": cpu, "gpu": gpu, "tpu": tpu}


def tensor(shape, scale_shape, bits, signed, zero, seed=0):
    w = jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32) + 0.2
    qmin, qmax = affine.code_range(bits, signed)
    lo, hi = affine.minmax(w, scale_shape)
    if zero == "half":
        scale, offset = affine.binary_params(w, scale_shape)
        return QTensor.quantize(w, scale, offset + qmin, bits=bits, signed=signed)
    scale, offset = affine.affine_params(lo, hi, qmin, qmax)
    return QTensor.quantize(w, scale, offset if zero else None, bits=bits, signed=signed)


def values(q):
    """The weight in float64, from its stored integers."""
    spread = lambda p: np.asarray(affine.expand_groups(p.astype(jnp.float32), q.shape), np.float64)
    zero = 0.0 if q.zero is None else spread(q.zero)
    return (np.asarray(q.elementwise(), np.float64) - zero) * spread(q.scale)


def seen(x, axes, program, activations):
    """The activations that a program multiplies, in float64."""
    if program.startswith("bfloat16"):
        return x.astype(jnp.bfloat16).astype(np.float64)
    levels = 127 * 256 + 127 if "16-bit" in program else 2 ** (activations - 1) - 1
    if "16-bit" not in program and activations > 8:
        return x.astype(np.float64)
    scale = np.abs(x.astype(np.float32)).max(axes, keepdims=True) * np.float32(1 / levels)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    return np.rint(x.astype(np.float32) * (np.float32(1) / scale)).astype(np.float64) * scale


def check(q, x, numbers, side, spec, activations=(5, 8, 16, 32)):
    """All forms of all backends, all programs of each; the names of the programs that ran."""
    ran, done = set(), set()
    axes = tuple(numbers[0][1 - side])
    for platform, backend in FORMS.items():
        forms = {"stored": lambda t: t} | backend.forms(q, small=False)
        for form, bits in itertools.product(forms, activations):
            weight = forms[form](q).coded()
            weight = dataclasses.replace(weight, platform=platform)
            call = Call(numbers, side, None, "float32", bits)
            for program in table.candidates(weight, x, call):
                same = (program.name, bits, *table.key(weight, 0, bits)[1:])
                if same in done:
                    continue
                done.add(same)
                out = program.run(weight, x, call)
                pair = (seen(np.asarray(x, np.float32), axes, program.name, bits), values(q))
                expected = np.einsum(spec, *pair)
                bound = np.einsum(spec, *map(np.abs, pair)).max()
                narrow = x.dtype == jnp.bfloat16 and not (bits <= 8 or "16-bit" in program.name)
                scaled = narrow and program.name.startswith(("float, scaled weight", "float, decoded"))
                np.testing.assert_allclose(
                    out, expected, rtol=0, atol=(4e-3 if scaled else 2e-6) * bound, err_msg=f"{platform} {form} {program}"
                )
                ran.add(program.name)
    return ran


@pytest.mark.parametrize("bits", range(1, 9))
def test_all_widths(bits, monkeypatch):
    """Signed and unsigned, zero points or none, groups or none, one row and three, sizes that nothing divides; on CPUs that
    multiply narrow numbers by themselves, and on others."""
    narrow, rows = bits in (2, 3, 6, 7), 1 if bits < 5 else 3
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"vnni", "bf16"} if narrow else ()))
    signed, zero = bits % 2 == 0, bits % 3 != 0
    q = tensor((18, 7), (3, 7), bits, signed, "half" if bits == 1 else zero)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, 18)), jnp.float32)
    ran = check(q, x, (((1,), (0,)), ((), ())), 1, "bi,io->bo", (8, 16, 32))
    assert {"integer, groups in turn", "float32, groups in turn", "float on rounded activations"} <= ran
    assert ("integer, 16-bit activations as two rows" in ran) == (narrow or rows <= 2)
    assert ("bfloat16, groups in turn" in ran) == narrow


CASES = {
    "scale of an output, unsigned": ((18, 7), (1, 7), 8, False, True, (2, 18), (((1,), (0,)), ((), ())), 1, "bi,io->bo"),
    "unsigned without zero points": ((18, 7), (1, 7), 8, False, False, (2, 18), (((1,), (0,)), ((), ())), 1, "bi,io->bo"),
    "weight at the left, groups": ((7, 18), (7, 6), 4, True, False, (2, 18), (((1,), (1,)), ((), ())), 0, "oi,bi->ob"),
    "experts": ((3, 8, 5), (3, 2, 5), 4, True, True, (3, 4, 8), (((2,), (1,)), ((0,), (0,))), 1, "ebi,eio->ebo"),
    "heads joined": ((4, 6, 5), (1, 3, 5), 3, True, False, (2, 4, 6), (((1, 2), (0, 1)), ((), ())), 1, "bhd,hdo->bo"),
    "groups along outputs": ((6, 8), (6, 2), 4, True, False, (2, 6), (((1,), (0,)), ((), ())), 1, "bi,io->bo"),
    "contracted along outputs": ((8, 6), (4, 6), 4, True, True, (2, 6), (((1,), (1,)), ((), ())), 1, "bi,oi->bo"),
    "vector": ((18, 7), (3, 7), 4, True, False, (18,), (((0,), (0,)), ((), ())), 1, "i,io->o"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_any_axes(name):
    shape, scale_shape, bits, signed, zero, x_shape, numbers, side, spec = CASES[name]
    x = jnp.asarray(np.random.default_rng(1).normal(size=x_shape), jnp.float32)
    first, second = spec.split("->")[0].split(",")
    spec = f"{second},{first}->{spec.split('->')[1]}" if side == 0 else spec
    check(tensor(shape, scale_shape, bits, signed, zero), x, numbers, side, spec, (5, 8, 16, 32))


@pytest.mark.parametrize("scale_shape", [(1, 530), (4, 530)])
@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_with_a_rest(scale_shape, rows, monkeypatch):
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"bf16", "vnni"}))
    q = tensor((500, 530), scale_shape, 8, False, True)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(rows, 500)), jnp.float32)
    ran = check(q, x, (((1,), (0,)), ((), ())), 1, "bi,io->bo", (16, 32))
    turns = {"bfloat16, groups in turn", "float32, groups in turn"}
    assert ({"bfloat16, in blocks"} if scale_shape[0] == 1 else turns) | {"float32, in blocks"} <= ran


def test_bfloat16_activations():
    q = tensor((18, 7), (3, 7), 4, True, True)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 18)), jnp.bfloat16)
    check(q, x, (((1,), (0,)), ((), ())), 1, "bi,io->bo", (8, 16, 32))


def test_an_outlier_and_an_empty_row():
    """16-bit rows are off by at most the row's largest magnitude over 65,278, entry by entry."""
    q = tensor((18, 7), (1, 7), 8, True, False)
    x = np.random.default_rng(1).normal(size=(2, 18)).astype(np.float32)
    x[0, 3], x[1] = 1e4, 0
    check(q, jnp.asarray(x), (((1,), (0,)), ((), ())), 1, "bi,io->bo", (8, 16, 32))
    rounded = seen(x, (1,), "16-bit", 16)
    assert np.all(np.abs(rounded - x).max(1) <= np.abs(x).max(1) / 65278 * 1.01)
