"""What units are worth, by the definition."""

import numpy as np

from jaxopt_nn.core.model import AxisGroup, Member
from jaxopt_nn.passes.scores import unit_norms

RNG = np.random.default_rng(0)
LEAVES = {
    "a/kernel": RNG.standard_normal((3, 4)).astype(np.float32),
    "a/bias": np.arange(1.0, 5.0),
    "b/kernel": RNG.standard_normal((8, 2)).astype(np.float32),
}


def test_norms_of_units_by_the_definition():
    group = AxisGroup(
        4,
        (
            Member("a/kernel", 1, "producer", np.arange(4)),
            Member("a/bias", 0, "vector", np.arange(4)),
            Member("b/kernel", 0, "consumer", np.tile(np.arange(4), 2)),
        ),
    )
    fan_in, fan_out = (unit_norms(group, LEAVES, role) for role in ("producer", "consumer"))
    out = np.asarray(LEAVES["b/kernel"], np.float64)
    for u in range(4):
        np.testing.assert_allclose(fan_in[u], np.linalg.norm(np.asarray(LEAVES["a/kernel"])[:, u]), rtol=1e-6)
        np.testing.assert_allclose(fan_out[u], np.linalg.norm(out[[u, u + 4]]), rtol=1e-6)
