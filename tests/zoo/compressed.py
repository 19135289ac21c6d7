"""What several tests compute of a model of the zoo, once a process: its structure, and its weights rounded."""

import functools
from typing import NamedTuple

import jax

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.methods.quantize import quantize
from tests.zoo import ZOO
from tests.zoo.base import Model, PyTree


class Quantized(NamedTuple):
    """``view`` dense, ``stored`` packed, ``prepared`` for this backend: one network. No test may donate them."""

    view: PyTree
    stored: PyTree
    prepared: PyTree


@functools.cache
def network(name: str) -> Model:
    """The model, with the same arrays for all tests: no test may donate or delete them."""
    return ZOO[name]()


@functools.cache
def structure(name: str) -> ModelInfo:
    """``inspect`` of the model on its own inputs."""
    model = network(name)
    return inspect(model.apply, model.variables, *model.inputs)


@functools.cache
def quantized(name: str, bits: int) -> Quantized:
    """The model's matrices rounded to ``bits``, by channel."""
    model, method = network(name), quantize(bits)
    state = method.init(model.variables, structure(name))
    stored = method.pack(model.variables, state)
    return Quantized(jax.jit(method.view)(model.variables, state), stored, prepare(stored))
