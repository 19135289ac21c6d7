"""Codebooks: values to the bit, true bytes, both forms, and every operation against the dense array."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_nn as jn
from jaxopt_nn.formulations import products, table
from tests.tensors.test_qtensor import IDS, LAYOUT, same


def drawn(shape=(6, 8), groups=(1, 1), values=5, origin=False, seed=0, **options):
    """A codebook, and the dense array by NumPy."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, values, shape)
    tables = rng.standard_normal((*groups, values - origin)).astype(np.float32)
    wide = np.concatenate([np.zeros((*groups, 1), np.float32), tables], -1) if origin else tables
    for axis, n in enumerate(shape):
        wide = np.repeat(wide, n // wide.shape[axis], axis)
    dense = np.take_along_axis(wide, codes[..., None], -1)[..., 0]
    return jn.Codebook.from_codes(jnp.asarray(codes), jnp.asarray(tables), origin=origin, **options), dense


SHAPES = [
    ((6, 8), (1, 1)), ((6, 8), (1, 8)), ((6, 8), (1, 4)), ((6, 8), (3, 2)), ((2, 6, 5), (2, 1, 1)), ((9,), (1,)),
    ((3, 3, 4, 5), (1, 1, 1, 1)),
]  # fmt: skip


@pytest.mark.exact
@pytest.mark.parametrize("shape, groups", SHAPES)
def test_values_and_bytes(shape, groups):
    for values, origin in ((1, False), (2, True), (3, False), (5, True), (16, True), (17, False), (255, False), (256, True)):
        shared, dense = drawn(shape, groups, values, origin)
        bits = max(math.ceil(math.log2(values)), 1)
        same(shared.densify(), dense)
        assert (shared.shape, shared.bits, shared.values, shared.dtype) == (shape, bits, values, jnp.float32)
        n = 1 if shared.axis is None else shape[shared.axis]
        assert shared.nbytes == math.prod(shape) // n * math.ceil(n * bits / 8) + 4 * math.prod(groups) * (values - origin)
        assert shared.nbytes == sum(x.nbytes for x in jax.tree.leaves(shared))
        assert (shared.zero_code() is None) != origin


def test_narrow_dtypes_have_narrow_tables():
    shared, dense = drawn(dtype=jnp.bfloat16)
    assert shared.table.dtype == jnp.bfloat16 and shared.nbytes == 6 * 3 + 5 * 2
    same(shared.densify(), jnp.asarray(dense).astype(jnp.bfloat16))
    wide = shared.cast("float32")
    same(wide.densify(), jnp.asarray(dense).astype(jnp.bfloat16).astype(jnp.float32))
    assert drawn()[0].cast("float16").densify().dtype == jnp.float16 and drawn()[0].cast(jnp.int8) is NotImplemented


def test_layers_of_a_stack_have_tables_of_their_own():
    shared, dense = drawn((3, 6, 8), (1, 1, 1), 4, stack=(0,))
    assert shared.table.shape == (3, 1, 1, 4) and shared.axis == -1
    same(lax.scan(lambda c, t: (c, t.densify()), 0, shared)[1], dense)
    same(jax.vmap(lambda t: t.densify())(shared), dense)
    same(jax.jit(lambda t, i: t.index(i, 0).densify())(shared, 2), dense[2])


def test_bad_arguments_name_the_tensor():
    codes = jnp.zeros((6, 8), int)
    make = lambda codes, *shape, **kw: jn.Codebook.from_codes(codes, jnp.ones(shape), name="params/k", **kw)
    with pytest.raises(ValueError, match=r"params/k: a table of shape \(1, 1, 300\) has 300 values; allowed are 1 to 256"):
        make(codes, 1, 1, 300)
    with pytest.raises(ValueError, match="params/k: the code 3 has no value in a table of 3"):
        make(codes + 3, 1, 1, 3)
    with pytest.raises(ValueError, match="params/k: scale: axis 0 of the weight has 6 entries"):
        make(codes, 4, 1, 3)
    with pytest.raises(ValueError, match="params/k: axis 0 is a stack axis"):
        make(codes, 1, 1, 3, stack=(0,), axis=0)
    with pytest.raises(ValueError, match="holds no entry"):
        make(jnp.zeros((0, 8), int), 1, 1, 3)
    with pytest.raises(ValueError, match=r"params/k: the code -1 has no value in a table of 3; allowed are 0 to 2: give each"):
        make(codes.at[0, 3].set(-1), 1, 1, 3)
    with pytest.raises(TypeError, match="params/k: the codes are float32, not all of them whole; pass integers from 0 to 2"):
        make(codes + 0.5, 1, 1, 3)
    for wrong in ((5,), (0, -3)):
        with pytest.raises(ValueError, match=rf"params/k: stack: {wrong[-1]} is no axis of a weight of 2 axes; .* -2 to 1"):
            make(codes, 1, 1, 3, stack=wrong)
    with pytest.raises(ValueError, match="params/k: axis: 2 is no axis of a weight of 2 axes"):
        make(codes, 1, 1, 3, axis=2)
    for dtype, said in ((jnp.int8, "int8"), (bool, "bool"), (jnp.complex64, "complex64"), ("half a float", "'half a float'")):
        with pytest.raises(ValueError, match=f"params/k: dtype {said} is no float; pass what densify shall give"):
            make(codes, 1, 1, 3, dtype=dtype)


FORMS = {
    "stored": lambda t: t,
    "outputs first": lambda t: t.laid((1, 0)),
    "tpu": lambda t: jn.prepare(t, "tpu"),
    "cpu": lambda t: jn.prepare(t, "cpu"),
}
CASES = [
    ("stored", (1, 1), 5, False), ("stored", (3, 2), 20, True), ("stored", (1, 8), 4, True), ("outputs first", (3, 2), 5, True),
    ("tpu", (1, 1), 16, True), ("tpu", (1, 8), 20, False), ("cpu", (1, 8), 5, True),
]  # fmt: skip


@pytest.mark.parametrize("form, groups, values, origin", CASES)
def test_layout_operations(form, groups, values, origin):
    shared, dense = drawn((6, 8), groups, values, origin)
    held = FORMS[form](shared)
    results = jax.jit(lambda t: {name: op(t).densify() for name, (op, _) in LAYOUT.items()})(held)
    for name, (_, expected) in LAYOUT.items():
        same(results[name], np.asarray(expected(dense)))


def test_vectors_move_as_their_values():
    shared, dense = vectors((6, 8), 2, stages=2)
    results = jax.jit(lambda t: {name: op(t).densify() for name, (op, _) in LAYOUT.items()})(shared)
    for name, (_, expected) in LAYOUT.items():
        np.testing.assert_array_equal(results[name], expected(dense))


def test_reshapes_and_concatenates_where_tables_permit():
    shared, dense = drawn((6, 8), (1, 4), 5, True)
    same(shared.reshape((2, 3, 8)).densify(), dense.reshape(2, 3, 8))
    same(shared.reshape((6, 4, 2)).densify(), dense.reshape(6, 4, 2))
    assert shared.reshape((48,)) is NotImplemented
    other, second = drawn((6, 4), (1, 1), 5, True, seed=1)
    joined = shared.concatenate([other], 1)
    assert joined.table.shape == (1, 6, 4)  # runs of two outputs
    same(joined.densify(), np.concatenate([dense, second], 1))
    assert shared.concatenate([drawn((6, 4), (1, 1), 5)[0]], 1) is NotImplemented
    assert shared.concatenate([drawn((6, 4), (1, 1), 6, True)[0]], 1) is NotImplemented


def test_cut():
    shared, dense = drawn((12, 8), (1, 4), 6, True)
    for axis, keep in ((0, [0, 3, 11]), (1, [0, 1, 4, 5]), (1, [2, 3, 5, 4]), (1, [6])):
        small = shared.cut(axis, keep)
        same(small.densify(), np.take(dense, keep, axis))
        assert small.axis == shared.axis and small.codes.dtype == jnp.uint8
    assert shared.cut(1, [0, 1, 2]) is NotImplemented
    with pytest.raises(ValueError, match="axis 0 has 12 entries"):
        shared.cut(0, [12])


def test_sharding():
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    shared, dense = drawn((16, 8), (1, 4), 16)
    assert shared.axis == -2
    put = lambda t, s: jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), t, s)
    spec = shared.spec(P(None, "a"), mesh)
    assert spec.codes == P(None, "a") and spec.table == P(None, "a")
    same(jax.jit(lambda t: t.densify())(put(shared, spec)), dense)
    assert shared.spec(P(None, ("a", "b"))) is NotImplemented and drawn((16, 8))[0].spec(P(None, "b")).table == P(None, None)


def test_a_mask_keeps_the_codes_of_what_stays():
    shared, dense = drawn((4, 6, 8), (4, 1, 1), 8, True, stack=(0,))
    mask = np.random.default_rng(1).random((4, 6, 8)) < 0.3
    masked = jn.Masked.pack(jnp.asarray(mask), shared, (0,))
    same(masked.densify() + 0.0, np.where(mask, dense, 0.0) + 0.0)
    most = mask.reshape(4, -1).sum(1).max()
    assert masked.nbytes == 4 * (6 + math.ceil(most * 3 / 8) + 4 * 7)
    same(masked.index(2, 0).densify(), np.where(mask, dense, 0)[2])
    assert masked.describe() == f"{100 * most / 48:.3g} % kept, 3 bits, 8 shared values"
    without, _ = drawn((6, 8))
    assert jn.Masked.pack(jnp.asarray(mask[0]), without).frame is None  # no code for zero: floats are kept


def test_two_of_four_around_a_codebook():
    shared, dense = drawn((8, 6), (1, 1), 4, True)
    mask = np.zeros((2, 4, 6), bool)
    mask[:, [0, 2]] = True
    mask = mask.reshape(8, 6)
    kept = jn.NofM.pack(jnp.asarray(mask), shared, 4, 0)
    wanted = np.where(mask, dense, 0)
    same(kept.densify(), wanted)
    same(kept.transpose((1, 0)).densify(), wanted.T)
    same(kept.index(3, 1).densify(), wanted[:, 3])


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_prepared_is_the_same_value_and_says_what_it_holds(platform):
    for values, groups in ((4, (1, 1)), (5, (1, 8)), (16, (1, 1)), (40, (1, 1))):
        shared, dense = drawn((16, 8), groups, values, True)
        ready = jn.prepare(shared, platform)
        same(ready.densify(), dense)
        same(jax.jit(lambda t: t.densify())(ready), dense)
        looked_up = platform != "cpu" and values <= 16
        assert isinstance(ready, jn.Codebook) == looked_up and ready.platform == platform
        if looked_up and platform == "tpu" and values in (4, 16):
            assert ready.nbytes == shared.nbytes and ready.codes.dtype == {4: jnp.uint2, 16: jnp.uint4}[values]
        assert ("shared values" in ready.describe()) == looked_up
        assert looked_up or "in float32" in ready.describe()


DOTS = [
    ((4, 16), (16, 8), (((1,), (0,)), ((), ()))), ((4, 8), (16, 8), (((1,), (1,)), ((), ()))),
    ((16, 4), (16, 8), (((0,), (0,)), ((), ()))), ((3, 4, 16), (3, 16, 8), (((2,), (1,)), ((0,), (0,)))),
]  # fmt: skip


@pytest.mark.parametrize("platform", [None, "cpu", "gpu", "tpu"])
@pytest.mark.parametrize("left, right, dims", DOTS)
def test_dots_are_the_dense_ones(left, right, dims, platform):
    x = jnp.asarray(np.random.default_rng(2).standard_normal(left), jnp.float32)
    stack = (0,) if len(right) == 3 else ()
    lead = (1,) * (len(right) - 2)
    for groups in ((3, 1, 1) if stack else (1, 1), (*lead, 1, 8), (*lead, 4, 1)):
        shared, dense = drawn(right, groups, 6, True, stack=stack)
        held = shared if platform is None else jn.prepare(shared, platform)
        run = jax.jit(lambda x, w: products.dot(x, w, dims))
        with table.choices() as chosen:
            out = run(x, held)
        np.testing.assert_allclose(out, lax.dot_general(x, jnp.asarray(dense), dims), rtol=2e-5, atol=2e-5)
        assert chosen[0].program.startswith("float, decoded" if platform == "cpu" else "float, looked up")


def test_convolutions_are_the_dense_ones():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 6, 4)), jnp.float32)
    for groups in ((1, 1, 1, 1), (1, 1, 1, 5), (1, 1, 2, 1)):
        shared, dense = drawn((3, 3, 4, 5), groups, 20)
        numbers = lax.conv_dimension_numbers(x.shape, dense.shape, ("NHWC", "HWIO", "NHWC"))
        params = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": numbers}
        wanted = lax.conv_general_dilated(x, jnp.asarray(dense), **params)
        for held in (shared, jn.prepare(shared, "cpu"), jn.prepare(shared, "tpu")):
            np.testing.assert_allclose(products.conv(x, held, params), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", [None, "cpu", "gpu", "tpu"])
def test_lookups_read_rows(platform):
    shared, dense = drawn((300, 8), (1, 1), 16)
    held = shared if platform is None else jn.prepare(shared, platform)
    rows = products.take(held, jnp.asarray(IDS), 0)
    same(jn.densify(rows), np.take(dense, IDS, 0))


# -- vectors -------------------------------------------------------------------------------------------------------------


def vectors(shape=(6, 8), run=2, along=1, k=5, stages=1, stack=(), seed=0, **options):
    """A codebook of vectors, and the dense array by loops over its runs."""
    rng = np.random.default_rng(seed)
    counts = [n // run if a == along else n for a, n in enumerate(shape)]
    groups = [n if a in stack else 1 for a, n in enumerate(shape)]
    codes = rng.integers(0, k, (*counts, stages))
    tables = rng.standard_normal((*groups, stages, k, run)).astype(np.float32)
    dense = np.zeros(shape, np.float32)
    for at in np.ndindex(*counts):
        own = tables[tuple(i if d > 1 else 0 for i, d in zip(at, groups))]
        value = own[0, codes[at][0]]
        for m in range(1, stages):
            value = value + own[m, codes[at][m]]
        place = tuple(slice(i * run, (i + 1) * run) if a == along else i for a, i in enumerate(at))
        dense[place] = value
    made = jn.VectorCodebook.from_codes(jnp.asarray(codes), jnp.asarray(tables), along=along, stack=stack, **options)
    return made, dense


@pytest.mark.exact
@pytest.mark.parametrize(
    "shape, along, stack", [((6, 8), 1, ()), ((6, 8), 0, ()), ((3, 4, 6), 1, (0,)), ((3, 2, 4, 6), 2, (0, 1)), ((8,), 0, ())]
)
def test_vectors_and_their_bytes(shape, along, stack):
    for k, stages in ((2, 1), (5, 2), (256, 1)):
        shared, dense = vectors(shape, 2, along, k, stages, stack)
        same(shared.densify(), dense)
        same(shared.expand().densify(), dense)
        bits, runs = shared.bits, [n // 2 if a == along else n for a, n in enumerate(shape)]
        n = 1 if shared.axis is None else runs[shared.axis]
        size = stages * math.prod(runs) // n * math.ceil(n * bits / 8) + math.prod(shape[a] for a in stack) * stages * k * 2 * 4
        assert shared.nbytes == size == sum(x.nbytes for x in jax.tree.leaves(shared)) and shared.shape == shape


def test_layers_of_vectors():
    shared, dense = vectors((3, 6, 8), 2, 1, 5, 2, (0,))
    same(lax.scan(lambda c, t: (c, t.densify()), 0, shared)[1], dense)
    same(jax.vmap(lambda t: t.densify())(shared), dense)
    layer = jax.jit(lambda t, i: t.index(i, 0))(shared, 1)
    assert isinstance(layer, jn.VectorCodebook)
    same(layer.densify(), dense[1])
    part = jax.jit(lambda t, i: t.dynamic_slice((i, 0, 0), (2, 6, 8)))(shared, 1)
    assert isinstance(part, jn.VectorCodebook)
    same(part.densify(), dense[1:])


def test_vectors_are_cut_by_whole_runs():
    shared, dense = vectors((6, 8), 2, 1, 5, 2)
    for axis, keep in ((0, [1, 4]), (1, [0, 1, 6, 7])):
        small = shared.cut(axis, keep)
        same(small.densify(), np.take(dense, keep, axis))
        assert small.nbytes < shared.nbytes
    assert shared.cut(1, [1, 2]) is NotImplemented
    with pytest.raises(ValueError, match="axis 1 has 8 entries"):
        shared.cut(1, [8])
    layers, both = vectors((3, 4, 6), 2, 1, 4, 1, (0,))
    same(layers.cut(0, [2, 0]).densify(), both[[2, 0]])


def test_bfloat16_vectors():
    one, dense = vectors(dtype=jnp.bfloat16)
    same(one.densify(), jnp.asarray(dense).astype(jnp.bfloat16))
    assert one.table.dtype == jnp.bfloat16
    two, dense = vectors(stages=2, dtype=jnp.bfloat16)
    same(two.densify(), jnp.asarray(dense).astype(jnp.bfloat16))
    assert two.table.dtype == jnp.float32


def test_a_vector_codebook_says_what_it_is():
    assert vectors(k=16)[0].describe() == "4 bits a run of 2, 16 shared vectors"
    assert vectors(k=16, stages=2)[0].describe() == "2 x 4 bits a run of 2, 16 shared vectors"
    with pytest.raises(ValueError, match=r"weight: codes of shape \(6, 4, 1\) and a table of shape \(1, 2, 5, 2\)"):
        jn.VectorCodebook.from_codes(jnp.zeros((6, 4, 1), int), jnp.ones((1, 2, 5, 2)), along=1)


def test_bad_vectors_name_the_tensor():
    codes, table = jnp.zeros((6, 4, 1), int), jnp.ones((1, 1, 1, 5, 2))
    make = lambda codes=codes, **kw: jn.VectorCodebook.from_codes(codes, table, **{"along": 1, "name": "params/k", **kw})
    with pytest.raises(ValueError, match="params/k: the code 5 has no value in a table of 5; allowed are 0 to 4"):
        make(codes + 5)
    with pytest.raises(ValueError, match="params/k: the code -1 has no value"):
        make(codes - 1)
    with pytest.raises(TypeError, match="params/k: the codes are float32, not all of them whole"):
        make(codes + 0.5)
    with pytest.raises(ValueError, match="params/k: along: 2 is no axis"):
        make(along=2)
    with pytest.raises(ValueError, match="params/k: stack: -3 is no axis"):
        make(stack=(-3,))
    with pytest.raises(ValueError, match="params/k: dtype int8 is no float"):
        make(dtype=jnp.int8)


@pytest.mark.parametrize("made", [lambda: drawn((6, 8), (1, 4), 5, True), lambda: vectors(stages=2)], ids=["values", "vectors"])
def test_comes_back_from_an_artifact(made, tmp_path):
    tree = {"w": made()[0]}
    jn.save_artifact(tmp_path / "a", tree)
    back, _ = jn.load_artifact(tmp_path / "a")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(same, jax.tree.leaves(back), jax.tree.leaves(tree))
