"""The models that everything is tested on: small, but real in structure, each for a mechanism of its own."""

from collections.abc import Callable

from tests.zoo import control, coupled, linen, nnx, raw
from tests.zoo.base import Model
from tests.zoo.control import FORWARD_ONLY
from tests.zoo.third_party import third_party

__all__ = ["FORWARD_ONLY", "ZOO", "Model"]

#: Builders by name, in the order in which tests list them. A builder is run when called, once a process.
ZOO: dict[str, Callable[[], Model]] = {
    build.__name__: build for module in (linen, nnx, raw, control, coupled) for build in module.MODELS
} | third_party()
