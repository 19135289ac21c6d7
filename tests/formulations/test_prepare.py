"""Prepared forms: equal values, chosen by size, rows and measurement; and what runs is told before it runs."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.formulations import cpu, products, table, tuning
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.base import nbytes
from jaxopt_nn.tensors.decoded import Decoded
from jaxopt_nn.tensors.qtensor import QTensor

MATMUL = (((1,), (0,)), ((), ()))


def make(shape, scale_shape, bits=4, signed=True):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    return QTensor.quantize(x, affine.abs_max(x, scale_shape) / 2 ** (bits - 1), bits=bits, signed=signed)


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a).view("u4"), np.asarray(b).view("u4"))


@pytest.fixture
def large(monkeypatch):
    """A network of any size counts as one that no cache holds."""
    monkeypatch.setattr(cpu, "SMALL", 0)


@pytest.mark.parametrize(
    "shape, scale_shape, codes",
    [
        ((6, 8), (1, 8), (8, 6)),
        ((6, 8), (1, 1), (8, 6)),
        ((6, 8), (6, 1), (6, 8)),
        ((6, 8), (3, 8), (3, 8, 2)),
        ((8, 6), (8, 3), (3, 8, 2)),
        ((3, 6, 8), (3, 1, 8), (3, 8, 6)),
        ((3, 6, 8), (3, 2, 8), (3, 2, 8, 3)),
        ((6, 2, 4), (1, 2, 4), (2, 4, 6)),
        ((6, 2, 4), (3, 2, 4), (3, 2, 4, 2)),
    ],
)
def test_layouts_on_cpu(large, shape, scale_shape, codes):
    """Outputs first, what shares a scale last; groups first, behind what may be a stack."""
    q = make(shape, scale_shape)
    ready = prepare(q, "cpu")
    assert ready.codes.shape == codes and ready.codes.dtype == jnp.int8 and ready.platform == "cpu"
    same(ready.densify(), q.densify())
    same(jax.jit(lambda t: t.densify())(ready), q.densify())


def test_small_networks_and_kernels_hold_floats():
    kernel, matrix = make((3, 3, 2, 4), (1, 1, 1, 4)), make((6, 8), (3, 8))
    big = QTensor(jax.ShapeDtypeStruct((4096, 1024), jnp.int8), jax.ShapeDtypeStruct((1, 1024), jnp.float32), None, 8, True,
                  "float32")  # fmt: skip
    alone = prepare({"kernel": kernel, "matrix": matrix}, "cpu")
    beside = prepare({"kernel": kernel, "matrix": matrix, "big": big}, "cpu")
    assert all(isinstance(x, Decoded) for x in alone.values())
    assert [type(beside[k]) for k in ("kernel", "matrix", "big")] == [Decoded, QTensor, QTensor]
    assert nbytes(alone["matrix"].codes) == 4 * 48 and alone["matrix"].codes.shape == (8, 6)
    for name, q in (("kernel", kernel), ("matrix", matrix)):
        same(alone[name].densify(), q.densify())
        assert alone[name].bits == 4 and alone[name].format == "Decoded int4"
    narrow = make((6, 8), (3, 8)).cast(jnp.bfloat16)
    assert prepare(narrow, "cpu").codes.dtype == jnp.bfloat16


def test_unsigned_bytes_are_int8_once(large):
    q = QTensor.from_codes(np.arange(48).reshape(6, 8) * 5, jnp.full((1, 8), 0.1), jnp.full((1, 8), 7), bits=8, signed=False)
    for platform in ("cpu", "gpu", "tpu"):
        ready = prepare(q, platform)
        assert ready.codes.dtype == ready.zero.dtype == jnp.int8
        same(ready.densify(), q.densify())


def test_rows_that_codes_are_slower_at_run_on_floats(large, monkeypatch):
    q = make((6, 8), (3, 8))
    assert isinstance(prepare(q, "cpu", batch=1, activations=32), Decoded)
    monkeypatch.setattr(cpu, "features", lambda: frozenset())
    assert isinstance(prepare(q, "cpu", batch=256), Decoded) and isinstance(prepare(q, "cpu"), QTensor)
    assert isinstance(prepare(make((6, 8), (1, 8)), "cpu", batch=256, activations=8), QTensor)
    assert isinstance(prepare(q, "cpu", batch=1), QTensor) and isinstance(prepare(q, "cpu", batch=8, activations=32), QTensor)
    with pytest.raises(ValueError, match="batch=0"):
        prepare(q, batch=0)
    with pytest.raises(ValueError, match="activations=9"):
        prepare(q, activations=9)


@pytest.mark.parametrize("batch", [1, 8])
def test_what_runs_is_told_before_it_runs(large, batch):
    q = prepare({"w": make((512, 512), (1, 512), 8)}, "cpu")
    run = jn.rewrite(lambda v, x: jnp.tanh(x) @ v["w"])
    with table.choices() as found:
        jax.eval_shape(run, q, jnp.ones((batch, 512)))
    (choice,) = found
    assert (choice.form, choice.rows, choice.activations) == ("QTensor int8, int8[512, 512]", batch, 32)
    assert choice.program == "float32, in blocks" and "SLOWER" not in str(choice)
    with table.choices() as found:
        jax.eval_shape(jn.rewrite(lambda v, x: x @ v["w"], jn.arithmetic("w8a8")), q, jnp.ones((batch, 512)))
    assert [c.program for c in found] == ["integer, in one dot"] and "SLOWER" not in str(found[0])


def test_every_program_of_the_cpu_is_measured():
    """A program that nobody timed could be slower than float without a word."""
    ran = set()
    for q in (make((512, 512), (1, 512), 8), make((512, 512), (4, 512), 4)):
        for form in cpu.forms(q, small=False).values():
            for bits in (8, 16, 32):
                call = products.Call(MATMUL, 1, None, "float32", bits)
                ran |= {p.name for p in table.candidates(form(q), jnp.ones((1, 512)), call)}
    assert ran <= set(cpu.MEASURED) and len(ran) >= 7


def test_tuning_measures_once_and_keeps_it(large, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_MEMORY", {})
    monkeypatch.setattr(table, "TUNED", {})
    monkeypatch.setattr(tuning, "SPREAD_BYTES", 1)
    times = itertools.count()
    monkeypatch.setattr(tuning, "_each", lambda run, copies, x: -float(next(times)))  # the last candidate is the fastest
    q = make((16, 8), (4, 8))
    first = prepare({"a": q, "b": q}, batch=3, tune=True)
    used = next(times)
    names = [tuple(k) for k in table.TUNED]
    assert len(names) == len(cpu.forms(q, small=False)) and json.loads(tuning.cache_file().read_text())
    same(first["a"].densify(), q.densify())
    monkeypatch.setattr(tuning, "_MEMORY", {})
    table.TUNED.clear()
    second = prepare({"a": q}, batch=3, tune=True)
    assert next(times) == used + 1 and type(second["a"]) is type(first["a"]) and len(table.TUNED) == len(names)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)
    np.testing.assert_allclose(products.dot(x, first["a"], MATMUL, activations=16), x @ q.densify(), rtol=1e-4, atol=1e-4)
    tuning.cache_file().write_text("{")
    monkeypatch.setattr(tuning, "_MEMORY", {})
    prepare(q, batch=3, tune=True)
    assert json.loads(tuning.cache_file().read_text())


def test_a_place_that_cannot_be_written_is_no_error(large, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tuning, "_MEMORY", {})
    monkeypatch.setattr(tuning, "_each", lambda run, copies, x: 1.0)
    q = make((16, 8), (1, 8))
    same(prepare(q, batch=2, tune=True).densify(), q.densify())
    assert prepare(make((2, 3, 4), (2, 1, 4)), batch=2, tune=True).platform == "cpu"
