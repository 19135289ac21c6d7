"""The TPU's programs: right numbers on this host, and what the TPU compiler makes of them, with no TPU present."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.cost.aot import compile_for
from jaxopt_nn.formulations import products, table, tpu
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.tensors.base import densify
from jaxopt_nn.tensors.qtensor import QTensor
from jaxopt_nn.tensors.vector_codebook import VectorCodebook

S = jax.ShapeDtypeStruct
needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler installed")
LAST = (((1,), (0,)), ((), ()))


def stored(shape, scales, bits, dtype=jnp.float32):
    """Random codes and scales; the stored form."""
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape))
    return QTensor.from_codes(codes, rng.uniform(0.1, 1, scales).astype(np.float32), bits=bits, dtype=dtype)


def abstract(shape, scales, bits):
    return prepare(jax.eval_shape(lambda: stored(shape, scales, bits, jnp.bfloat16)), "tpu")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "scales"), [((70, 128), (70, 4)), ((128, 70), (4, 70)), ((2, 64, 6), (2, 2, 6))])
def test_groups_lie_before_their_entries(shape, scales, bits):
    q = stored(shape, scales, bits)
    axis = next(a for a, (d, n) in enumerate(zip(scales, shape)) if 1 < d < n)
    ready = prepare(q, "tpu")
    rest = [n for a, n in enumerate(shape) if a != axis]
    assert ready.codes.shape == (*rest[:-1], scales[axis], 32, rest[-1])
    assert ready.nbytes == q.nbytes
    np.testing.assert_array_equal(ready.densify(), q.densify())


def test_groups_that_fill_no_tile_stay_as_they_are():
    ready = prepare(stored((48, 7), (2, 7), 4), "tpu")
    assert ready.codes.shape == (48, 7) and ready.codes.dtype == jnp.int4


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("k", [4, 16])
def test_values_of_shared_vectors_are_not_narrowed_to_the_width_of_their_codes(k, platform):
    rng = np.random.default_rng(k)
    codes, table = rng.integers(0, k, (16, 12, 1)), rng.normal(size=(1, 1, 1, k, 4))
    shared = VectorCodebook.from_codes(jnp.asarray(codes), jnp.asarray(table, jnp.float32), along=0)
    assert shared.bits == (2 if k == 4 else 4)
    ready = prepare({"kernel": shared}, platform)["kernel"]
    assert ready.codes.dtype == jnp.float32
    expected = table.astype("f4")[0, 0, 0][codes[..., 0]].transpose(0, 2, 1).reshape(64, 12)
    np.testing.assert_array_equal(ready.densify(), expected)
    np.testing.assert_array_equal(tpu.native(shared.expand()).densify(), expected)


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (600,)])
def test_a_lookup_reads_the_rows_to_the_bit(shape, group):
    q = stored((70, 64), (70, 64 // group if group else 1), 8)
    ids = np.random.default_rng(1).integers(-80, 150, shape)
    rows = jax.jit(lambda w, i: densify(products.take(w, i, 0)))(prepare(q, "tpu"), ids)
    np.testing.assert_array_equal(rows, np.asarray(q.densify())[np.clip(ids, 0, 69)])


def test_a_lookup_of_columns_and_in_a_bfloat16_weight():
    q = stored((64, 70), (1, 70), 4, jnp.bfloat16)
    ids = jnp.array([3, 69, 0, 3])
    rows = densify(products.take(prepare(q, "tpu"), ids, 1))
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows, q.densify()[:, ids])


def test_a_large_table_is_looked_up_in_blocks(monkeypatch):
    monkeypatch.setattr(tpu, "BLOCK", 2**10)  # 16 rows
    q = stored((90, 64), (90, 1), 8)
    ids = np.random.default_rng(1).integers(-100, 190, 40)
    look = lambda w, i: densify(products.take(w, i, 0))
    np.testing.assert_array_equal(jax.jit(look)(prepare(q, "tpu"), ids), np.asarray(q.densify())[np.clip(ids, 0, 89)])
    dots = [e for e in jax.make_jaxpr(tpu._looked_up, static_argnums=2)(prepare(q, "tpu"), ids, 0).eqns]
    assert str(dots).count("dot_general") == 6


@pytest.mark.parametrize("activations", [8, 32])
@pytest.mark.parametrize("scales", [(1, 6), (2, 6)])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 64), (2, 1, 64), (1, 9, 64)])
def test_padded_rows_change_nothing(shape, scales, activations):
    q = stored((64, 6), scales, 4)
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    seen = x
    if activations == 8:
        scale = jnp.abs(x).max(-1, keepdims=True) / 127
        seen = jnp.round(x / scale) * scale
    with table.choices() as chosen:
        out = products.dot(x, prepare(q, "tpu"), dims, activations=activations)
    np.testing.assert_allclose(out, np.tensordot(seen, q.densify(), 1), rtol=0, atol=2e-5 * float(jnp.abs(x).sum()))
    assert ("padded" in chosen[0].program) == (np.prod(shape[:-1]) < 8)


def test_padded_rows_with_the_weight_on_the_left_and_batches():
    q = stored((2, 64, 6), (2, 2, 6), 4)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, 2)), jnp.float32)
    w = prepare(q, "tpu")
    left = products.dot(w, x, (((1,), (0,)), ((0,), (1,))))
    np.testing.assert_allclose(left, np.einsum("sio,is->so", q.densify(), x), rtol=0, atol=1e-4)
    right = products.dot(x[None], w, (((1,), (1,)), ((2,), (0,))))
    np.testing.assert_allclose(right, np.einsum("bis,sio->sbo", x[None], q.densify()), rtol=0, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(("scales", "bits", "activations"), [(1, 8, 16), (1, 4, 16), (8, 4, 16), (1, 8, 8)])
def test_one_row_costs_what_eight_do(scales, bits, activations):
    weight = abstract((2048, 8192), (scales, 8192), bits)
    run = lambda w, x: products.dot(x, w, LAST, activations=activations)
    one, eight = (compile_for(run, weight, [S((n, 2048), jnp.bfloat16)]).estimated_cycles for n in (1, 8))
    assert one <= 1.2 * eight


@pytest.mark.parametrize(("shape", "barriers"), [((64, 128), 1), ((128, 64), 0), ((64, 64), 0)])
def test_a_widening_product_stands_apart_from_its_scale(shape, barriers):
    w = prepare(stored(shape, (1, shape[1]), 8), "tpu")
    run = jax.make_jaxpr(lambda x: products.dot(x, w, LAST))(jnp.ones((9, shape[0])))
    assert str(run).count("optimization_barrier") == barriers


@needs_compiler
def test_groups_are_scaled_inside_of_the_product():
    weight = abstract((1024, 2048), (8, 2048), 4)
    x = S((64, 1024), jnp.bfloat16)
    chosen = compile_for(lambda w, x: products.dot(x, w, LAST), weight, [x])
    assert chosen.float_copies() == [] and chosen.temp_bytes < 1024 * 2048
    plain = compile_for(lambda w, x: x @ w.densify(), weight, [x])
    assert chosen.estimated_cycles < 0.5 * plain.estimated_cycles


@needs_compiler
@pytest.mark.parametrize("groups", [1, 9])
def test_a_lookup_leaves_the_table_where_it_is(groups):
    table_ = abstract((8192, 576), (8192, groups), 4)
    ids = S((64,), jnp.int32)
    chosen = compile_for(lambda w, i: tpu.take(w, i, 0).densify(), table_, [ids])
    gathered = compile_for(lambda w, i: w.take(i, 0).densify(), table_, [ids])
    copies = lambda program: program.weight_copies([(8192, 576)])
    moved = lambda program: [
        c for c in copies(program) if c.dtype.startswith("s") and c.opcode != "copy-done"
    ]  # a prefetch
    assert moved(chosen) == [] and moved(gathered) != []
    assert chosen.estimated_cycles < 0.5 * gathered.estimated_cycles


@pytest.mark.parametrize(
    ("shape", "scales", "dims"),
    [
        ((64, 600), (1, 600), LAST),
        ((600, 64), (600, 2), (((1,), (1,)), ((), ()))),
        ((2, 64, 300), (2, 1, 300), (((2,), (1,)), ((0,), (0,)))),
    ],
)
def test_a_weight_too_large_for_the_chip_is_read_in_blocks(monkeypatch, shape, scales, dims):
    """Blocks of whole lanes along the outputs, a shorter one last; the same numbers."""
    q = stored(shape, scales, 8)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((*shape[:-2], 9, 64)), jnp.float32)
    ready = prepare(q, "tpu")
    whole = products.dot(x, ready, dims)
    monkeypatch.setattr(tpu, "WHOLE", 2**10)
    monkeypatch.setattr(tpu, "BLOCK", 2**13)
    run = lambda x, w: products.dot(x, w, dims)
    names = [str(e.params.get("name")) for e in jax.make_jaxpr(run)(x, ready).eqns]
    assert sum(name in ("direct", "scaled") for name in names) == -(-max(shape) // 128)
    np.testing.assert_allclose(jax.jit(run)(x, ready), whole, rtol=1e-5, atol=1e-5 * float(jnp.abs(whole).max()))
