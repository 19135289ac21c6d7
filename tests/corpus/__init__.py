"""Model structures as third parties write them: what cutting is tried on, beside the zoo. None is tuned for it."""

import importlib.util
from collections.abc import Callable

from tests.corpus import (
    attention,
    convnets,
    decoders,
    derivatives,
    mixing,
    mlps,
    positions,
    programs,
    reparametrized,
    sequences,
    transformers,
    vision_transformers,
)
from tests.corpus.base import Model

__all__ = ["CORPUS", "Model"]

_MODULES = [
    mlps, reparametrized, convnets, decoders, attention, positions, transformers, vision_transformers, mixing, sequences,
    programs, derivatives,
]  # fmt: skip
if importlib.util.find_spec("haiku"):
    from tests.corpus import haiku_nets

    _MODULES.append(haiku_nets)
if importlib.util.find_spec("equinox"):
    from tests.corpus import equinox_nets

    _MODULES.append(equinox_nets)

#: Builders by name. A builder is run when called, once a process.
CORPUS: dict[str, Callable[[], Model]] = {build.__name__: build for module in _MODULES for build in module.MODELS}
