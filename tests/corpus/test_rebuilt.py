"""What plans say of modules built anew, on every model that runs at the widths which are left.

Functions that read their widths off their weights do so as they are; Flax Linen's layers do where nobody checks the shapes of
their weights. What holds a width, a number of heads or of groups in its code is another module then, and is left out.
"""

import jax
import numpy as np
import pytest
from flax.core import scope

from jaxopt_nn.core.paths import map_with_path
from tests.corpus import CORPUS
from tests.corpus.cutting import planned
from tests.zoo import ZOO

MODELS = {**ZOO, **CORPUS}
FAST = ("rmsnorm_mlp", "tuple_list")
#: The code holds how many heads or groups there are, or how wide a head is.
COUNTED = ("qkv_reshape", "retnet", "unet")
#: Random numbers for fewer units are others, which verdicts don't say.
DRAWN = ("dropout_on",)


@pytest.fixture
def unchecked(monkeypatch):
    """Linen modules take weights of any shape."""
    checked = scope.Scope.param

    def param(self, name, init_fn, *init_args, **how):
        if not self.has_variable("params", name):
            return checked(self, name, init_fn, *init_args, **how)
        self.reserve(name, "params")
        return self.get_variable("params", name)

    monkeypatch.setattr(scope.Scope, "param", param)


def check(name):
    model = MODELS[name]()
    plan, execute = planned(model, 0.4, 1)
    same = {layer: width.verdict != "different" for layer, width in plan.widths().items()}
    plan = plan.replace({layer.name: None for layer in plan.layers if layer.cut and not same[layer.name]})
    small, variables = execute(plan)
    factors = {}
    for width in plan.widths().values():
        for path, factor in width.factors.items():
            factors[path] = factors.get(path, 1.0) * factor
    rescaled = map_with_path(lambda path, x: x * factors[path] if path in factors else x, variables)
    try:
        outs = jax.jit(model.apply)(rescaled, *model.inputs)
    except Exception as error:
        pytest.skip(f"it holds its widths: {type(error).__name__}")
    for out, wanted in zip(jax.tree.leaves(outs), jax.tree.leaves(jax.jit(small)(variables, *model.inputs)), strict=True):
        if out.shape != wanted.shape:
            pytest.skip("it holds its widths")
        np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-4 * float(np.abs(wanted).max(initial=1e-3)))


@pytest.mark.parametrize("name", FAST)
def test_a_module_built_anew(unchecked, name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {*COUNTED, *DRAWN, *FAST}))
def test_every_module_built_anew(unchecked, name):
    check(name)
