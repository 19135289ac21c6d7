"""Compilation for this machine and, with no TPU, for TPUs: bytes, room, and copies of weights in memory."""

import importlib.util
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_nn.cost.aot import GIB, compile_for, devices
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.tensors.qtensor import QTensor

S = jax.ShapeDtypeStruct
LAYERS, ROWS, COLUMNS = 3, 256, 256
TPUS = ["v5e:2x2", "v6e:2x2", "v4:2x2x1", "v5p:2x2x1"]
tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler installed")


def weights(dtype=jnp.int8, rows=ROWS):
    return {"codes": S((LAYERS, rows, COLUMNS), dtype), "scale": S((LAYERS, 1, COLUMNS), jnp.float32)}


def scanned(layer):
    return lambda variables, x: lax.scan(lambda x, w: (layer(x, w).astype(x.dtype), None), x, variables)[0]


def copied(x, w):
    """A barrier makes the compiler write the dequantized layer."""
    return x @ lax.optimization_barrier(w["codes"].astype(x.dtype) * w["scale"])


def integer(x, w):
    dims = (((1,), (0,)), ((), ()))
    codes = jnp.clip(jnp.round(x * 16), -127, 127).astype(jnp.int8)
    total = lax.dot_general(codes, w["codes"], dims, preferred_element_type=jnp.int32)
    return total.astype(x.dtype) * w["scale"] / 16


def unpacked(x, w):
    """Two codes in a byte, in neighbouring rows: the compiler writes them out before it multiplies."""
    low, high = (w["codes"] << 4).astype(jnp.int8) >> 4, w["codes"].astype(jnp.int8) >> 4
    codes = jnp.stack([low, high], 1).reshape(ROWS, COLUMNS)
    return x @ (codes.astype(x.dtype) * w["scale"])


def large_results(text, size):
    """An independent reading: instructions outside fusions whose result has at least ``size`` entries."""
    blocks = {m[1]: m[2] for m in re.finditer(r"^(?:ENTRY )?%(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S)}
    called = {k: set(re.findall(r"calls=%([\w.\-]+)", v)) for k, v in blocks.items()}
    fused = set(re.findall(r"fusion\(.*?calls=%([\w.\-]+)", text))
    while more := {c for k in fused for c in called[k]} - fused:
        fused |= more
    lines = "\n".join(v for k, v in blocks.items() if k not in fused)
    found = re.findall(r"%(\S+) = \w+\[([\d,]+)\]\S* ([\w\-]+)\(", lines)
    passed = {"parameter", "get-tuple-element", "bitcast", "constant"}
    return sorted(n for n, d, op in found if np.prod([*map(int, d.split(","))]) >= size and op not in passed)


def test_a_float_copy_is_found_and_an_integer_dot_has_none():
    x = S((8, ROWS), jnp.float32)
    with_copy = compile_for(scanned(copied), weights(), [x], "local")
    (copy,) = with_copy.float_copies()
    assert (copy.dtype, copy.shape, copy.nbytes) == ("f32", (ROWS, COLUMNS), 4 * ROWS * COLUMNS)
    assert copy.paths[0] == "codes" and not copy.on_chip
    assert "codes" in str(copy) and copy.op_name in str(copy)
    assert with_copy.temp_bytes >= copy.nbytes
    without = compile_for(scanned(integer), weights(), [x], "local")
    assert without.float_copies() == []
    assert without.temp_bytes < with_copy.temp_bytes


def test_local_bytes_are_those_of_the_arrays():
    compiled = compile_for(scanned(integer), weights(), [jnp.ones((8, ROWS))], "local")
    assert compiled.argument_bytes == LAYERS * (ROWS * COLUMNS + 4 * COLUMNS) + 4 * 8 * ROWS
    assert compiled.output_bytes == 4 * 8 * COLUMNS
    assert compiled.fits and compiled.hbm_bytes is None and compiled.estimated_cycles is None


def test_memory_of_ones_own_decides_what_fits():
    x = S((8, ROWS), jnp.float32)
    total = compile_for(scanned(integer), weights(), [x], "local").total_bytes
    assert compile_for(scanned(integer), weights(), [x], "local", hbm_bytes=total).fits
    assert not compile_for(scanned(integer), weights(), [x], "local", hbm_bytes=total - 1).fits


def test_shapes_set_the_size_from_which_a_copy_counts():
    compiled = compile_for(scanned(copied), weights(), [S((8, ROWS), jnp.float32)], "local")
    assert len(compiled.float_copies([(ROWS, COLUMNS)])) == 1
    assert compiled.float_copies([(ROWS, COLUMNS + 1)]) == []


def test_a_scale_spread_over_its_layer_is_a_copy_and_a_plain_float_weight_is_not():
    def apply(v, x):
        spread = jnp.broadcast_to(v["scale"], (ROWS, COLUMNS))
        return (x @ v["plain"].T) @ (v["codes"].astype(jnp.float32) * spread), spread, v["plain"].T

    variables = {"codes": S((ROWS, COLUMNS), jnp.int8), "scale": S((1, COLUMNS), jnp.float32)}
    variables["plain"] = S((ROWS, ROWS), jnp.float32)
    compiled = compile_for(apply, variables, [S((4, ROWS), jnp.float32)], "local")
    assert any(copy.paths == ("scale",) for copy in compiled.float_copies())
    assert all("plain" not in copy.paths for copy in compiled.float_copies())


def test_a_lookup_in_an_embedding_is_an_activation():
    def apply(v, tokens):
        return v["codes"][tokens].astype(jnp.float32) * v["scale"][tokens]

    variables = {"codes": S((16, 8), jnp.int8), "scale": S((16, 1), jnp.float32)}
    compiled = compile_for(apply, variables, [S((100,), jnp.int32)], "local")
    assert compiled.output_bytes == 100 * 8 * 4
    assert compiled.float_copies() == []


def test_scalars_keys_and_unused_leaves_are_inputs_too():
    def apply(v, scale, key):
        return v["w"].astype(jnp.bfloat16) * scale + jax.random.normal(key, (2, 2), jnp.bfloat16)

    variables = {"unused": S((1000,), jnp.float32), "w": np.ones((2, 2), np.int8)}
    compiled = compile_for(apply, variables, [3.0, jax.random.key(0)], "local")
    assert compiled.argument_bytes == 4000 + 4 + 4 + 8
    assert compiled.output_bytes == 4 * 2  # a Python number does not widen bfloat16


@tpu
@pytest.mark.parametrize("topology", TPUS)
def test_tpus_keep_int4_packed_and_report_copies(topology):
    x = S((8, ROWS), jnp.bfloat16)
    narrow = compile_for(scanned(integer), weights(jnp.int4), [x], topology)
    codes, scales = LAYERS * ROWS * COLUMNS // 2, LAYERS * COLUMNS * 4
    assert codes <= narrow.argument_bytes - 2 * 8 * ROWS <= codes + 8 * scales + 4096
    assert narrow.fits and narrow.message == "" and narrow.estimated_cycles > 0
    assert narrow.float_copies() == []
    wide = compile_for(scanned(copied), weights(jnp.int4), [x], topology)
    copies = wide.float_copies()
    assert copies and all(c.shape[-2:] == (ROWS, COLUMNS) for c in copies)
    assert max((c.nbytes for c in copies if not c.on_chip), default=0) <= wide.temp_bytes


@tpu
def test_copies_are_those_of_an_independent_reading():
    variables, x = weights(jnp.uint8, ROWS // 2), S((8, ROWS), jnp.float32)
    compiled = compile_for(scanned(unpacked), variables, [x])
    found = sorted(c.instruction for c in compiled.weight_copies([(ROWS, COLUMNS)]))
    assert found == large_results(compiled.hlo, ROWS * COLUMNS) != []


@tpu
def test_a_program_without_room_says_so_and_how_much_it_needs():
    variables = {"w": S((5 * 2**20, 1024), jnp.float32)}  # 20 GiB
    compiled = compile_for(lambda v, x: v["w"][:8] + x, variables, [S((8, 1024), jnp.float32)])
    assert not compiled.fits and "HBM" in compiled.message
    assert compiled.argument_bytes == 20 * GIB + 4 * 8192
    assert compiled.total_bytes == pytest.approx(20 * GIB, rel=0.01) and compiled.hbm_bytes == 16 * GIB
    assert compiled.estimated_cycles is None
    with pytest.raises(ValueError, match="does not fit"):
        compiled.float_copies()


@tpu
def test_shardings_over_the_topology_are_kept():
    mesh = Mesh(np.array(devices("v5e:2x2")[:2]), ("model",), axis_types=(AxisType.Auto,))
    whole = weights()
    columns = NamedSharding(mesh, PartitionSpec(None, None, "model"))
    halves = jax.tree.map(lambda s: S(s.shape, s.dtype, sharding=columns), whole)
    x = S((8, ROWS), jnp.bfloat16)
    one, two = (compile_for(scanned(integer), v, [x]).argument_bytes for v in (whole, halves))
    assert two - 2 * 8 * ROWS == pytest.approx((one - 2 * 8 * ROWS) / 2, rel=0.01)


@tpu
def test_compressed_tensors_in_the_place_of_leaves():
    kernel = jax.random.normal(jax.random.key(0), (ROWS, COLUMNS))
    scale = jnp.max(jnp.abs(kernel), 0, keepdims=True) / 7
    stored = {"kernel": QTensor.quantize(kernel, scale, None, bits=4, signed=True, dtype="float32")}
    x = S((8, ROWS), jnp.float32)

    def apply(v, x):
        return x @ lax.optimization_barrier(v["kernel"].densify())

    ready = compile_for(apply, prepare(stored, "tpu"), [x])
    (path,) = {c.paths for c in ready.float_copies()}
    assert path[0] == "kernel"
    assert ready.argument_bytes - 4 * 8 * ROWS <= ROWS * COLUMNS // 2 + 8 * 4 * COLUMNS + 4096
    assert jnp.ones(3).sum() == 3  # this machine's backend is still there


@tpu
@pytest.mark.parametrize("name", ["v5e", "v3:2x2", "h100", "", "v5e:1x3"])
def test_unknown_topologies_are_named_with_the_known(name):
    with pytest.raises(ValueError, match=re.escape(f"topology={name!r}") + ".*'v5e:2x2'"):
        compile_for(lambda v: v, jnp.ones(2), [], name)


def test_without_the_tpu_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(RuntimeError, match=r"pip install 'jaxopt_nn\[tpu\]'"):
        devices("v5e:4x4")
