"""Steps of the flow table against the operations themselves: on arrays, on compressed tensors, and on what lies behind axes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.interpret import algebra, jaxprs, tags
from jaxopt_nn.interpret.flow.table import PRIMITIVES
from jaxopt_nn.methods.quantize import quantize

W = jnp.asarray(np.random.default_rng(0).standard_normal((4, 1, 6)), jnp.float32)
CASES = {
    "transpose": lambda w: lax.transpose(w, (2, 0, 1)),
    "squeeze": lambda w: lax.squeeze(w, (1,)),
    "broadcast_in_dim": lambda w: lax.broadcast_in_dim(w, (4, 5, 1, 6), (0, 2, 3)),
    "reshape": lambda w: lax.reshape(w, (2, 2, 6)),
    "reshape across axes": lambda w: lax.reshape(w, (2, 12)),
    "reshape in another order": lambda w: lax.reshape(w, (6, 4), (2, 0, 1)),
    "slice": lambda w: lax.slice(w, (1, 0, 1), (3, 1, 6), (1, 1, 2)),
    "rev": lambda w: lax.rev(w, (0, 2)),
    "split": lambda w: lax.split(w, (1, 3), 0),
    "tile": lambda w: lax.tile(w, (2, 3, 1)),
    "copy": lambda w: lax.copy_p.bind(w),
    "optimization_barrier": lambda w: lax.optimization_barrier(w),
}  # fmt: skip
#: Of what quantized tensors do without being made dense.
DENSE = {"broadcast_in_dim", "reshape across axes", "tile"}


def equation(function, *operands):
    (eqn,) = jaxprs.opened(jax.make_jaxpr(function)(*(operands or (W,)))).jaxpr.eqns
    return eqn


@pytest.mark.parametrize("name", CASES)
def test_the_steps_do_what_the_operation_does(name):
    eqn = equation(CASES[name])
    moves = PRIMITIVES[eqn.primitive.name].moves(eqn)
    wanted = jax.tree.leaves(CASES[name](W))
    assert len(moves) == len(wanted)
    for (operand, steps), out in zip(moves, wanted, strict=True):
        made, behind, shape = W, tuple(frozenset({i}) for i in range(3)), W.shape
        for step in steps:
            made, behind, shape = step.apply(made, 0), tags.carried(behind, shape, step), step.result(shape)
        assert operand == 0 and shape == made.shape == out.shape
        np.testing.assert_array_equal(made, out)
        check_behind(behind, steps)


def check_behind(behind, steps):
    """An axis of the result has behind it exactly the leaf's axes along which a step of it moves."""
    place = jnp.stack(jnp.meshgrid(*map(jnp.arange, W.shape), indexing="ij"), -1)
    where = [place[..., i] for i in range(3)]
    for step in steps:
        where = [step.apply(x, 0) for x in where]
    for axis, i in itertools.product(range(len(behind)), range(3)):
        if W.shape[i] > 1:
            varies = bool(jnp.any(jnp.diff(where[i], axis=axis)))
            assert not varies or i in behind[axis], (axis, i)
            # one that is merged with others is behind all of the pieces
            assert varies or i not in behind[axis] or where[0].shape[axis] == 1 or len(behind[axis]) > 1, (axis, i)


@pytest.mark.parametrize("name", CASES)
def test_a_compressed_tensor_does_the_same_steps(name):
    eqn, method = equation(CASES[name]), quantize(8)
    tensor = method.pack(W, method.init(W))
    outs = algebra.apply(eqn, [tensor])
    if name in DENSE:
        assert outs is None
        return
    for made, wanted in zip(outs, jax.tree.leaves(CASES[name](tensor.densify())), strict=True):
        np.testing.assert_array_equal(made.densify(), wanted)


@pytest.mark.parametrize("join", [lambda *x: lax.concatenate(x, 0), lambda *x: lax.concatenate(x, 2)])
def test_what_holds_its_operands_one_behind_the_other(join):
    eqn = equation(join, W, W + 1)
    axis, steps = PRIMITIVES[eqn.primitive.name].joins(eqn)
    assert steps == ((), ())
    np.testing.assert_array_equal(jnp.concatenate([W, W + 1], axis), join(W, W + 1))


def test_what_changes_values_moves_nothing():
    """A cast to whole numbers is no move, and a compressed tensor is rounded by none of them."""
    whole = equation(lambda w: lax.convert_element_type(w, jnp.int32))
    assert PRIMITIVES["convert_element_type"].moves(whole) is None
    rounded = equation(lambda w: lax.reduce_precision(w, 5, 2))
    method = quantize(8)
    assert PRIMITIVES["reduce_precision"].moves(rounded) and algebra.apply(rounded, [method.pack(W, method.init(W))]) is None
