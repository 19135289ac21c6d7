"""Every model is cut: what is left is the network with the cut units at zero, and so are its gradients."""

import zlib

import pytest

from tests.corpus import CORPUS, oracle
from tests.corpus.cutting import alone, differences, one, planned
from tests.zoo import FORWARD_ONLY, ZOO

MODELS = {**ZOO, **CORPUS}
#: Cheap ones, one for each of: rows, convolutions, states of a loop, a custom derivative, a collective.
FAST = ("mlp_relu", "lenet_transposed", "min_gru", "maxout", "shard_map")


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def check(name: str, share: float) -> None:
    """Units of all groups at once, with gradients and, for a third of the models, on a larger batch; for another third no
    gradients, but a group alone too. Models with derivatives of their own have them compared."""
    model, seed = MODELS[name](), seed_of(name)
    plan, execute = planned(model, share, seed)
    cut = [layer.name for layer in plan.layers if layer.cut]
    alone = seed % 3 == 1 and len(cut) > 1 and not name.startswith("custom")
    oracle.check(model, plan, execute, gradients=not alone and name not in FORWARD_ONLY, larger=seed % 3 == 0)
    if alone:
        oracle.check(model, one(plan, cut[seed % len(cut)]), execute, gradients=False, larger=False)


@pytest.mark.parametrize("name", FAST)
def test_units_are_cut(name):
    check(name, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_cut(name):
    check(name, 0.3 if seed_of(name) % 2 else 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_each_group_alone(name):
    model = MODELS[name]()
    plans = alone(planned(model, 0.6 if seed_of(name) % 2 else 0.3, 1)[0])
    off = dict(zip(plans, differences(model, list(plans.values()))))
    assert all(x <= oracle.OUTPUT for x in off.values()), off
