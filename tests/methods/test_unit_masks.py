"""Masks over whole units, written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.transform import explain
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.tensors.base import densify
from jaxopt_nn.tensors.masked import Masked

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": jnp.asarray(RNG.standard_normal((3, 4)), jnp.float32), "bias": jnp.arange(1.0, 5.0)},
    "b": {"kernel": jnp.asarray(RNG.standard_normal((8, 2)), jnp.bfloat16)},
}
STAY = np.array([True, False, True, False])
KEEP = {"a/kernel": {0: [True, True, False], 1: STAY}, "a/bias": {0: STAY}, "b/kernel": {0: np.tile(STAY, 2)}}


def test_slices_become_zero_and_nothing_else_changes():
    method = mask_units(KEEP)
    seen = jax.jit(method.view)(PARAMS, method.init(PARAMS))
    kernel = np.array(PARAMS["a"]["kernel"])
    kernel[2] = 0
    kernel[:, [1, 3]] = 0
    np.testing.assert_array_equal(seen["a"]["kernel"], kernel)
    np.testing.assert_array_equal(seen["a"]["bias"], [1, 0, 3, 0])
    other = np.array(PARAMS["b"]["kernel"])
    other[1::2] = 0
    np.testing.assert_array_equal(np.array(seen["b"]["kernel"]), other)


def test_matrices_pack_into_masks_and_vectors_stay_dense():
    method = mask_units(KEEP)
    state = method.init(PARAMS)
    packed = method.pack(PARAMS, state)
    assert packed["a"]["kernel"].count == 4 and packed["b"]["kernel"].count == 8
    assert isinstance(packed["b"]["kernel"], Masked) and isinstance(packed["a"]["bias"], jax.Array)
    jax.tree.map(np.testing.assert_array_equal, densify(packed), method.view(PARAMS, state))
    again = explain(method, packed).of("skipped")
    assert {m.reason for m in again} == {"is a compressed tensor already"}


def test_gradients_reach_the_units_that_stay():
    method = mask_units(KEEP)
    state = method.init(PARAMS)
    slope = jax.grad(lambda p: jnp.sum(method.view(p, state)["a"]["bias"] * 2))(PARAMS)
    np.testing.assert_array_equal(slope["a"]["bias"], [2, 0, 2, 0])
    assert method.update(PARAMS, state, step=3) is state


def test_layers_of_a_stack_are_packed_each_for_itself():
    w = {"w": jnp.asarray(RNG.standard_normal((2, 3, 4)), jnp.float32)}
    method = mask_units({"w": {2: STAY}})
    packed = method.pack(w, method.init(w, ModelInfo(roles={"w": Roles((0,), (1,), (2,))})))
    assert packed["w"].stack == (0,) and packed["w"].count == 6
    np.testing.assert_array_equal(densify(packed)["w"], np.where(STAY, w["w"], 0))


def test_leaves_without_masks_are_named_and_left_alone():
    method = mask_units({"a/bias": {0: STAY}})
    assert {m.path for m in explain(method, PARAMS).of("skipped")} == {"a/kernel", "b/kernel"}
    assert method.view(PARAMS, method.init(PARAMS))["a"]["kernel"] is PARAMS["a"]["kernel"]
    nothing = mask_units({})
    assert nothing.view(PARAMS, nothing.init(PARAMS))["a"]["bias"] is PARAMS["a"]["bias"]


@pytest.mark.parametrize(
    "keep, message",
    [
        ({"a/bias": {0: np.zeros(4, bool)}}, "keeps none of 4 units, fewer than one"),
        ({"a/bias": {0: np.ones(4)}}, "a bool for each entry"),
        ({"a/bias": {0: STAY[:3]}}, "a mask of 3 units for axis 0 of shape"),
        ({"a/bias": {1: STAY}}, "for axis 1 of shape"),
        ({"a/bais": {0: STAY}}, "is no leaf of 3; nearest: a/bias"),
    ],
)
def test_bad_masks(keep, message):
    with pytest.raises(ValueError, match=message):
        mask_units(keep).init(PARAMS)
