"""Students cut out of teachers: the module of the new widths takes them, and a cut of dead units changes nothing."""

import itertools

import jax
import numpy as np
import pytest

from experiments.models.lenet import LeNet5
from experiments.models.mlp import MLP
from experiments.models.resnet import ResNet
from experiments.models.vit import ViT
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.passes.activity import unit_activity
from jaxopt_nn.passes.cut_units import cut_units
from tests.passes.networks import made


def shrunk(apply, variables, x, widths, **arguments):
    """The variables that a plan makes, whatever module takes them; and its report."""
    how = {"widths": widths} if isinstance(widths, dict) else {"share": 1 - widths}
    plan = cut_units(**how, **arguments).plan(Network(apply, variables), ModelInfo(), x)
    return Remap(plan).params(variables), plan.report


def same_shapes(module, small, x):
    expected = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), small) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)


def dead(tree, axis_last=()):
    """Units of a layer (its bias and weights' last axis) at zero."""
    for x in tree.values():
        x[..., list(axis_last)] = 0


def test_an_mlp_is_cut_by_the_norms_by_hand():
    teacher, variables, x = made(MLP((8, 6, 3)), 4, 5)
    small, report = shrunk(teacher, variables, x, 0.5)
    p = variables["params"]
    w = [p[f"Dense_{i}"]["kernel"] for i in range(3)]
    stay = [
        np.sort(np.argsort(-np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1))[: a.shape[1] // 2])
        for a, b in itertools.pairwise(w)
    ]
    np.testing.assert_array_equal(small["params"]["Dense_0"]["kernel"], w[0][:, stay[0]])
    np.testing.assert_array_equal(small["params"]["Dense_0"]["bias"], p["Dense_0"]["bias"][stay[0]])
    np.testing.assert_array_equal(small["params"]["Dense_1"]["kernel"], w[1][stay[0]][:, stay[1]])
    np.testing.assert_array_equal(small["params"]["Dense_2"]["kernel"], w[2][stay[1]])
    assert small["params"]["Dense_2"]["bias"] is p["Dense_2"]["bias"]
    same_shapes(MLP((4, 3, 3)), small, x)
    notes = {m.path: m.reason for m in report.of("note")}
    assert notes["params/Dense_0/kernel"].startswith("4 of 8 units stay; cut: params/Dense_0/kernel axis 1")
    (head,) = report.of("skipped")
    assert head.path == "params/Dense_2/kernel" and "keeps its 3 units: reaches an output" in head.reason


def test_relu_units_that_are_dead_are_cut_without_loss():
    """Zero activations need not have small weights: importance by activity keeps the function."""
    teacher, variables, x = made(MLP((8, 6, 3)), 30, 5)
    variables["params"]["Dense_0"]["bias"][[0, 3, 4, 7]] = -50
    variables["params"]["Dense_1"]["bias"][[1, 2, 5]] = -50
    seen = unit_activity(teacher, variables, [x])
    small, _ = shrunk(teacher, variables, x, 0.5, score=lambda units: seen[units.name])
    student = linen(MLP((4, 3, 3)), small).apply
    np.testing.assert_allclose(jax.jit(student)(small, x), jax.jit(teacher)(variables, x), atol=1e-6)
    by_norm, _ = shrunk(teacher, variables, x, 0.5)
    assert np.abs(student(by_norm, x) - teacher(variables, x)).max() > 1e-3


def test_flattened_channels_are_cut_at_every_place():
    teacher, variables, x = made(LeNet5((4, 6), 10), 3, 28, 28, 1)
    dead(variables["params"]["Conv_0"], (0, 2))
    dead(variables["params"]["Conv_1"], (1, 2, 5))
    dead(variables["params"]["Dense_0"], (0, 4, 5, 8, 9))
    small, _ = shrunk(teacher, variables, x, 0.5)
    module = LeNet5((2, 3), 5)
    same_shapes(module, small, x)
    rows = np.arange(96).reshape(4, 4, 6)[..., [0, 3, 4]].reshape(-1)
    expected = variables["params"]["Dense_0"]["kernel"][rows][:, [1, 2, 3, 6, 7]]
    np.testing.assert_array_equal(small["params"]["Dense_0"]["kernel"], expected)
    np.testing.assert_allclose(jax.jit(module.apply)(small, x), jax.jit(teacher)(variables, x), atol=1e-6)


def test_a_residual_network_with_its_statistics():
    teacher, variables, x = made(ResNet((4, 6), 1), 3, 8, 8, 3)
    # channels that are zero all along the stage: convolutions, shifts and means
    off = {"stage 0": [1, 2], "stage 1": [0, 3, 5]}
    for path, leaf in leaves_by_path(variables).items():
        if leaf.shape[-1] != 10 and path.split("/")[-1] != "var" and "Dense" not in path:
            leaf[..., off["stage 0" if leaf.shape[-1] == 4 else "stage 1"]] = 0
    small, report = shrunk(teacher, variables, x, 0.5)
    module = ResNet((2, 3), 1)
    same_shapes(module, small, x)
    np.testing.assert_array_equal(
        small["batch_stats"]["BatchNorm_0"]["var"], variables["batch_stats"]["BatchNorm_0"]["var"][[0, 3]]
    )
    np.testing.assert_allclose(jax.jit(module.apply)(small, x), jax.jit(teacher)(variables, x), atol=1e-6)
    assert len(report.of("note")) == 4


def test_heads_and_hidden_units_of_a_transformer():
    """Half of the heads and of the hidden units, which write nothing, go; the residual stream and the heads' width stay."""
    teacher, variables, x = made(ViT(4, 8, 2, 4, 12, 5), 2, 8, 8, 3)
    for block in ("block_0", "block_1"):
        variables["params"][block]["attention"]["out"]["kernel"][[1, 3]] = 0
        variables["params"][block]["down"]["kernel"][::2] = 0
    heads = {f"params/block_{i}/attention/query/kernel axis 1": 0.5 for i in range(2)}
    small, report = shrunk(teacher, variables, x, {"**/up/kernel": 0.5, **heads})
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(small).items()}
    assert shapes["params/block_1/attention/value/kernel"] == (8, 2, 2)
    assert shapes["params/block_1/attention/out/kernel"] == (2, 2, 8)
    assert shapes["params/block_0/up/kernel"] == (8, 6) and shapes["params/positions"] == (1, 5, 8)
    assert len(report.of("note")) == 4
    kept = small["params"]["block_0"]["down"]["kernel"]
    np.testing.assert_array_equal(kept, variables["params"]["block_0"]["down"]["kernel"][1::2])


def test_widths_by_pattern():
    teacher, variables, x = made(MLP((8, 6, 3)), 4, 5)
    small, report = shrunk(teacher, variables, x, {"**/Dense_0/kernel": 3})
    same_shapes(MLP((3, 6, 3)), small, x)
    assert {m.path: m.reason for m in report.of("skipped")}["params/Dense_1/kernel"] == "keeps its 6 units: no pattern"
    small, _ = shrunk(teacher, variables, x, {"**/Dense_0/kernel": 1, "**/Dense_1/*": 0.5})
    same_shapes(MLP((1, 3, 3)), small, x)
    small, _ = shrunk(teacher, variables, x, {"**/kernel": 1.0})
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, small, variables))


def test_a_score_of_ones_own_and_ties():
    teacher, variables, x = made(MLP((6, 3)), 4, 5)
    last = shrunk(teacher, variables, x, 0.5, score=lambda units: np.arange(units.size))[0]
    np.testing.assert_array_equal(last["params"]["Dense_0"]["bias"], variables["params"]["Dense_0"]["bias"][3:])
    for kind in (np.uint8, bool):  # which NumPy can't negate, or turns round
        some = shrunk(teacher, variables, x, 0.5, score=lambda units, kind=kind: np.arange(6).astype(kind))[0]
        first = 3 if kind is np.uint8 else 1
        np.testing.assert_array_equal(
            some["params"]["Dense_0"]["bias"], variables["params"]["Dense_0"]["bias"][first : first + 3]
        )
    ties = shrunk(teacher, variables, x, 0.5, score=lambda units: np.ones(units.size))[0]
    np.testing.assert_array_equal(ties["params"]["Dense_0"]["bias"], variables["params"]["Dense_0"]["bias"][:3])


@pytest.mark.parametrize(
    "widths, message",
    [
        (0.0, r"share=1.0: of the units, in \[0, 1\)"),
        (1.5, "share=-0.5"),
        (float("nan"), "share=nan"),
        (0.05, r"share=0.95 of 14 units can't go; at most 12 can \(0.857\)"),
        ({"**/Dense_0/kernel": 0.05}, "share 0.05 of 8 units is fewer units than one; pass at least 0.125"),
        ({"**/Dense_0/kernel": 0}, "0 units, fewer units than one"),
        ({"**/Dense_0/kernel": -2}, "fewer units than one"),
        ({"**/Dense_0/kernel": 9}, "more than there are; allowed are 1 to 8"),
        ({"**/Dense_0/kernel": "half"}, "width 'half'"),
        ({"**/Dens_0/kernel": 0.5}, "matches no layer"),
        ({"**/Dense_0/*": 0.5, "**/kernel": 0.5}, "params/Dense_0/kernel: matched by two patterns"),
        ({"**/Dense_2/kernel": 0.5}, "pinned layers only: params/Dense_2/kernel reaches an output"),
    ],
)
def test_bad_widths(widths, message):
    teacher, variables, x = made(MLP((8, 6, 3)), 4, 5)
    with pytest.raises(ValueError, match=message):
        shrunk(teacher, variables, x, widths)


def test_bad_trees_and_scores():
    teacher, variables, x = made(MLP((8, 6, 3)), 4, 5)
    with pytest.raises(ValueError, match="1 of 8 scores are NaN"):
        shrunk(teacher, variables, x, 0.5, score=lambda units: [np.nan, *range(units.size - 1)])
    with pytest.raises(ValueError, match="pass one for each of 8 units"):
        shrunk(teacher, variables, x, 0.5, score=lambda units: np.ones(3))
