"""Chains of factors and sums: values, algebra, bytes, and products through the factors, against NumPy on dense arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxopt_nn.formulations import parts, products, table
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.numerics import affine
from jaxopt_nn.tensors.base import CompressedTensor, is_compressed
from jaxopt_nn.tensors.low_rank import LowRank
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.qtensor import QTensor
from jaxopt_nn.tensors.sum import Sum

RNG = np.random.default_rng(0)
IDS = [[1, 0], [1, 1]]


def f32(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def codes(x, stack=()):
    scale = tuple(n if a in stack or a == x.ndim - 1 else 1 for a, n in enumerate(x.shape))
    return QTensor.quantize(x, affine.symmetric_params(affine.abs_max(x, scale), -128, 127), bits=8, stack=stack)


#: Tensors, and the einsum of their factors.
CASES = {
    "matrix": (LowRank((f32(8, 3), f32(3, 6))), "ir,ro->io"),
    "codes": (LowRank((codes(f32(8, 3)), codes(f32(3, 6)))), "ir,ro->io"),
    "stack": (LowRank((f32(2, 8, 3), f32(2, 3, 6))), "sir,sro->sio"),
    "stack behind": (LowRank((f32(2, 8, 3), f32(2, 3, 6)), (1, 1), (-2, -3, -1)), "sir,sro->iso"),
    "stack of codes": (LowRank((codes(f32(2, 8, 3), (0,)), codes(f32(2, 3, 6), (0,)))), "sir,sro->sio"),
    "heads": (LowRank((f32(8, 3), f32(3, 2, 5)), (1, 2)), "ir,rhd->ihd"),
    "channel": (LowRank((f32(3, 3, 4, 5), f32(5, 6)), (3, 1)), "hwir,ro->hwio"),
    "spatial": (LowRank((f32(3, 4, 5), f32(5, 2, 6)), (2, 2), (-4, -2, -3, -1)), "hir,rwo->hwio"),
    "tucker": (LowRank((f32(4, 2), f32(2, 3, 3, 3), f32(3, 6)), (1, 2, 1), (-2, -4, -3, -1)), "ir,rhwq,qo->hwio"),
}


def test_a_list_of_factors_is_a_tuple():
    left, right = f32(8, 3), f32(3, 6)
    made = LowRank([left, right])
    assert made.factors == (left, right) and jax.tree.structure(made) == jax.tree.structure(LowRank((left, right)))
    made.check()


@pytest.mark.parametrize("wrong", ["int32", "complex64", "flaot32", None, 3])
def test_what_densify_gives_is_a_float(wrong):
    """As the file has it: what it would refuse can't be made."""
    for make in (lambda name: Sum(f32(2, 2), f32(2, 2), name), lambda name: LowRank((f32(2, 1), f32(1, 2)), float_dtype=name)):
        with pytest.raises(ValueError, match=rf"(Sum|LowRank): dtype '?{wrong}'? is no float; pass what densify shall give"):
            make(wrong)
        assert make(jnp.bfloat16).float_dtype == "bfloat16"


def values(tensor, equation):
    factors = [np.asarray(x.densify() if is_compressed(x) else x, np.float64) for x in tensor.factors]
    return np.einsum(equation, *factors)


@pytest.fixture(params=CASES)
def case(request):
    tensor, equation = CASES[request.param]
    return tensor, values(tensor, equation)


def near(got, wanted):
    got = got.densify() if is_compressed(got) else got
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(initial=0), 1e-6))


def test_values_shape_and_bytes(case):
    tensor, dense = case
    assert isinstance(tensor, CompressedTensor) and tensor.shape == dense.shape and tensor.dtype == jnp.float32
    near(tensor, dense)
    near(jax.jit(lambda t: t.densify())(tensor), dense)
    assert tensor.nbytes == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tensor))
    like = jax.eval_shape(lambda: tensor)
    assert (like.shape, like.nbytes, like.ranks) == (tensor.shape, tensor.nbytes, tensor.ranks)
    assert type(prepare(tensor)) is LowRank and prepare(tensor).shape == tensor.shape
    near(prepare(tensor, "tpu"), dense)


def operations(t):
    """Each with NumPy's own: ``(on the tensor, on the array)``."""
    n, shape = len(t.shape), t.shape
    for order in itertools.islice(itertools.permutations(range(n)), 1, 6):
        half = [max(1, x // 2) for x in np.asarray(shape)[list(order)]]
        yield lambda t, o=order: t.transpose(o), lambda x, o=order: x.transpose(o)
        yield (
            lambda t, o=order, h=half: t.transpose(o).slice([0] * n, h),
            lambda x, o=order, h=half: x.transpose(o)[tuple(map(slice, h))],
        )
    for a in range(n):
        starts, sizes = [int(b == a) for b in range(n)], [1 if b == a else x for b, x in enumerate(shape)]
        one = lambda x, a=a: np.take(x, [1], a)
        yield lambda t, a=a: t.index(1, a), lambda x, a=a: np.take(x, 1, a)
        yield lambda t, a=a: t.take(jnp.array(IDS), a), lambda x, a=a: np.take(x, IDS, a)
        yield lambda t, a=a: t.rev((a,)), lambda x, a=a: np.flip(x, a)
        yield lambda t, a=a: t.split((1, shape[a] - 1), a)[1], lambda x, a=a: np.split(x, [1], a)[1]
        yield lambda t, b=starts, s=sizes: t.dynamic_slice(b, s), one
        yield lambda t, a=a: t.reshape((*shape[:a], 1, *shape[a:])), lambda x, a=a: np.expand_dims(x, a)
        yield lambda t, a=a, s=sizes: t.index(1, a).reshape(s), one


def test_algebra(case):
    tensor, dense = case
    ours, theirs = zip(*operations(tensor))
    made = jax.jit(lambda t: [fn(t).densify() for fn in ours])(tensor)
    for got, fn in zip(made, theirs, strict=True):
        near(got, fn(dense))
    near(tensor.cut(dense.ndim - 1, [2, 0]), np.take(dense, [2, 0], dense.ndim - 1))
    near(tensor.cut(0, [1]), dense[[1]])
    assert tensor.cast(jnp.bfloat16).densify().dtype == jnp.bfloat16 and tensor.cast(jnp.int32) is NotImplemented
    with pytest.raises(ValueError, match=r"cut: axis 0 has \d entries"):
        tensor.cut(0, [99])


def test_reshapes_within_a_factor():
    heads, dense = CASES["heads"][0], values(*CASES["heads"])
    near(heads.reshape((8, 10)), dense.reshape(8, 10))
    near(heads.reshape((2, 4, 1, 10)), dense.reshape(2, 4, 1, 10))
    assert heads.reshape((16, 5)) is NotImplemented and heads.reshape((80,)) is NotImplemented
    near(heads.transpose((2, 1, 0)).transpose((2, 1, 0)).reshape((8, 10)), dense.reshape(8, 10))
    assert heads.transpose((0, 2, 1)).reshape((8, 10)).densify().shape == (8, 10)
    near(heads.transpose((0, 2, 1)).reshape((8, 10)), dense.transpose(0, 2, 1).reshape(8, 10))
    behind, dense = CASES["stack behind"][0], values(*CASES["stack behind"])
    assert behind.reshape((16, 6)) is NotImplemented
    near(behind.reshape((2, 4, 2, 6)), dense.reshape(2, 4, 2, 6))


def test_stacks():
    """Scan slices the children, vmap adds an axis to them, a stack that does not lead is indexed."""
    for name in ("stack", "stack of codes"):
        tensor, dense = CASES[name][0], values(*CASES[name])
        near(lax.scan(lambda c, t: (c, t.densify()), 0, tensor.leading())[1], dense)
        near(jax.vmap(lambda t: t.densify())(tensor), dense)
        assert tensor.index(1, 0).stacked == 0
    behind, dense = CASES["stack behind"][0], values(*CASES["stack behind"])
    assert behind.leading() is NotImplemented
    near(lax.scan(lambda c, t: (c, t.densify()), 0, behind.transpose((1, 0, 2)).leading())[1], dense.transpose(1, 0, 2))


def test_specs():
    specs = CASES["stack"][0].spec(P("layers", "x", "y"))
    assert specs.factors == (P("layers", "x", None), P("layers", None, "y"))
    specs = CASES["tucker"][0].spec(P(None, None, "x", "y"))
    assert specs.factors == (P("x", None), P(None, None, None, None), P(None, "y"))
    specs = CASES["codes"][0].spec(P("x"), jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)))
    assert jax.tree.structure(specs, is_leaf=lambda s: isinstance(s, P)) == jax.tree.structure(CASES["codes"][0])


# -- products ----------------------------------------------------------------------------------------------------------


def chosen(fn, *args):
    with table.choices() as found:
        jax.eval_shape(fn, *args)
    return found


def macs_of(fn, *args):
    """Of all dots and convolutions of a program."""
    total = 0
    for eqn in jax.make_jaxpr(fn)(*args).eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += eqn.outvars[0].aval.size * int(np.prod([eqn.invars[0].aval.shape[a] for a in contracted]))
        if eqn.primitive.name == "conv_general_dilated":
            kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
            total += eqn.outvars[0].aval.size * int(np.prod(kernel)) // kernel[spec[0]]
    return total


DOTS = [  # tensor, the shape of the other operand, dimension numbers, side
    ("matrix", (5, 8), (((1,), (0,)), ((), ())), 1),
    ("matrix", (5, 6), (((1,), (1,)), ((), ())), 1),
    ("matrix", (8, 5), (((0,), (0,)), ((), ())), 0),
    ("codes", (5, 8), (((1,), (0,)), ((), ())), 1),
    ("stack", (2, 5, 8), (((2,), (1,)), ((0,), (0,))), 1),
    ("stack", (5, 8), (((1,), (1,)), ((), ())), 1),
    ("stack", (5, 2, 8), (((1, 2), (0, 1)), ((), ())), 1),
    ("stack behind", (2, 5, 8), (((2,), (0,)), ((0,), (1,))), 1),
    ("heads", (5, 2, 5), (((1, 2), (1, 2)), ((), ())), 1),
    ("heads", (7, 8), (((1,), (0,)), ((), ())), 1),
    ("heads", (2, 7, 8), (((2,), (0,)), ((0,), (1,))), 1),
    ("channel", (5, 3, 3, 4), (((1, 2, 3), (0, 1, 2)), ((), ())), 1),
    ("spatial", (5, 4), (((1,), (2,)), ((), ())), 1),
]


@pytest.mark.parametrize(("name", "shape", "dims", "side"), DOTS)
def test_dots(name, shape, dims, side):
    tensor, dense = CASES[name][0], values(*CASES[name])
    x = f32(*shape)
    pair, like = ((x, tensor), (x, dense)) if side else ((tensor, x), (dense, x))
    wanted = np.asarray(lax.dot_general(*(jnp.asarray(a, jnp.float32) for a in like), dims, precision="highest"))
    got = products.dot(*pair, dims)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_cheaper_way_is_taken():
    """Few rows of a low rank go through the factors, forth or back; where they would cost more the factors are multiplied."""
    low, full = LowRank((f32(64, 4), f32(4, 32))), LowRank((f32(12, 12), f32(12, 12)))
    forth, back = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
    run = lambda dims: lambda x, t: products.dot(x, t, dims)
    for dims, width in ((forth, 64), (back, 32)):
        x = f32(16, width)
        assert macs_of(run(dims), x, low) == 16 * 4 * (64 + 32)
        (choice,) = chosen(run(dims), x, low)
        assert choice.program == parts.THROUGH and choice.macs == pytest.approx(4 * (64 + 32) / (64 * 32))
    assert chosen(run(forth), f32(4, 12), full)[-1].program == parts.THROUGH  # 4 x 288 < 4 x 144 + 1728
    (choice,) = chosen(run(forth), f32(64, 12), full)
    assert choice.program == parts.WRITTEN and macs_of(run(forth), f32(64, 12), full) == 64 * 144 + 12**3
    whole = (((), ()), ((), ()))  # an outer product has no use of the factors
    assert products.dot(f32(2), low, whole).shape == (2, 64, 32)
    report = rewrite(lambda v, x: x @ v["w"]).explain({"w": full}, f32(64, 12))
    assert "products with one after the other would take more" in str(report)


NUMBERS = {"NHWC": ("NHWC", "HWIO", "NHWC"), "NCHW": ("NCHW", "OIHW", "NCHW")}
WAYS = {
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 3), "padding": "VALID"},
    "padded": {"window_strides": (2, 1), "padding": [(2, 1), (0, 3)]},
    "dilated": {"window_strides": (1, 2), "padding": [(2, 2), (1, 1)], "rhs_dilation": (2, 1), "lhs_dilation": (1, 2)},
}


@pytest.mark.parametrize("layout", NUMBERS)
@pytest.mark.parametrize("way", WAYS)
def test_convolutions(layout, way):
    """Each form, with strides, padding and dilations, is two or three convolutions."""
    for name in ("channel", "spatial", "tucker"):
        tensor, dense = CASES[name][0], jnp.asarray(values(*CASES[name]), jnp.float32)
        x = f32(2, 9, 10, 4)
        if layout == "NCHW":
            tensor, dense, x = tensor.transpose((3, 2, 0, 1)), dense.transpose(3, 2, 0, 1), x.transpose(0, 3, 1, 2)
        apply = lambda v, x: lax.conv_general_dilated(x, v["w"], dimension_numbers=NUMBERS[layout], **WAYS[way])
        wanted = apply({"w": dense}, x)
        np.testing.assert_allclose(jax.jit(rewrite(apply))({"w": tensor}, x), wanted, atol=1e-4 * float(jnp.abs(wanted).max()))


def test_convolutions_cost_what_is_said():
    tensor = LowRank((f32(3, 3, 16, 5), f32(5, 24)), (3, 1))
    apply = lambda v, x: lax.conv_general_dilated(x, v["w"], (2, 2), "SAME", dimension_numbers=NUMBERS["NHWC"])
    x = f32(4, 8, 8, 16)
    run = rewrite(apply)
    inside = jax.make_jaxpr(lambda v, x: run(v, x))({"w": tensor}, x)
    assert sum(eqn.primitive.name == "conv_general_dilated" for eqn in inside.eqns) == 2
    macs = 4 * 4 * 4 * 5 * (9 * 16 + 24)
    assert macs_of(lambda t, x: run({"w": t}, x), tensor, x) == macs
    (row,) = run.explain({"w": tensor}, x).rows
    assert row.runs[0].macs == macs and len(row.runs[0].operations) == 2


def test_kernels_that_keep_groups_apart_are_multiplied_first():
    tensor, dense = CASES["channel"][0], jnp.asarray(values(*CASES["channel"]), jnp.float32)
    apply = lambda v, x: lax.conv_general_dilated(
        x, v["w"], (1, 1), "SAME", dimension_numbers=NUMBERS["NHWC"], feature_group_count=2
    )
    x = f32(2, 5, 5, 8)
    np.testing.assert_allclose(rewrite(apply)({"w": tensor}, x), apply({"w": dense}, x), atol=1e-3)
    assert parts.WRITTEN in str(rewrite(apply).explain({"w": tensor}, x))


def test_bfloat16_activations():
    tensor, dense = CASES["matrix"][0], values(*CASES["matrix"])
    x = f32(5, 8).astype(jnp.bfloat16)
    got = products.dot(x, tensor.cast(jnp.bfloat16), (((1,), (0,)), ((), ())))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), np.asarray(x, np.float64) @ dense, atol=0.05 * np.abs(dense).max() * 3)
    assert products.dot(x, tensor, (((1,), (0,)), ((), ())), activations=8) is NotImplemented


def test_lookups_take_rows_of_the_first_factor():
    table_, dense = CASES["matrix"][0], values(*CASES["matrix"])
    ids = jnp.array([[1, 7, 0], [2, 2, 5]])
    run = jax.jit(rewrite(lambda v, ids: jnp.take(v["table"], ids, axis=0) * 2))
    np.testing.assert_allclose(run({"table": table_}, ids), 2 * dense[ids], atol=1e-4)
    assert macs_of(lambda t: t.take(ids, 0).densify(), table_) == 6 * 3 * 6  # no row that is not asked for


# -- sums --------------------------------------------------------------------------------------------------------------


def sums():
    low, dense = CASES["matrix"][0], values(*CASES["matrix"])
    w = f32(8, 6)
    mask = np.asarray(jnp.abs(w) > 1)
    yield Sum(low, codes(w)), dense + np.asarray(codes(w).densify())
    yield Sum(low, Masked.pack(mask, w)), dense + np.where(mask, w, 0)
    yield Sum(low, Masked.pack(mask, codes(w))), dense + np.where(mask, codes(w).densify(), 0)
    yield Sum(Sum(low, codes(w)), low), 2 * dense + np.asarray(codes(w).densify())


@pytest.mark.parametrize("case", range(4))
def test_sums(case):
    tensor, dense = list(sums())[case]
    near(tensor, dense)
    ours, theirs = zip(*list(operations(tensor))[:10])
    made = jax.jit(lambda t: [fn(t).densify() for fn in ours])(tensor)
    for got, fn in zip(made, theirs, strict=True):
        near(got, fn(dense))
    near(tensor.cut(1, [0, 4]), dense[:, [0, 4]])
    assert tensor.cast(jnp.bfloat16).dtype == jnp.bfloat16 and tensor.cast(jnp.int8) is NotImplemented
    assert tensor.nbytes == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tensor))
    x = f32(5, 8)
    apply = lambda v, x: x @ v["w"]
    for v in ({"w": tensor}, prepare({"w": tensor})):
        np.testing.assert_allclose(jax.jit(rewrite(apply))(v, x), x @ dense, atol=1e-3)
    near(prepare(tensor, "tpu"), dense)


def test_what_a_sum_costs_is_what_its_parts_cost():
    low = LowRank((f32(64, 4), f32(4, 32)))
    both = Sum(low, codes(f32(64, 32)))
    (row,) = rewrite(lambda v, x: x @ v["w"]).explain({"w": both}, f32(16, 64)).rows
    assert row.runs[0].macs == 16 * (4 * (64 + 32) + 64 * 32)
    assert both.describe() == "rank 4, float32 plus 8 bits" and both.format == "Sum(LowRank(float32), QTensor int8)"


def test_gradients_of_activations_flow_through():
    tensor, dense = CASES["matrix"][0], values(*CASES["matrix"])
    slope = jax.grad(lambda x: jnp.sum(products.dot(x, tensor, (((1,), (0,)), ((), ())))))(f32(5, 8))
    np.testing.assert_allclose(slope, np.tile(dense.sum(1), (5, 1)), atol=1e-4)
