"""Dead and weak units against activations computed by hand, and outputs that stay as they are."""

import itertools

import jax
import numpy as np
import pytest

from experiments.models.lenet import LeNet5
from experiments.models.resnet import ResNet
from jaxopt_nn.core.combine import chain, where
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.passes.activity import unit_activity
from jaxopt_nn.passes.masking import prune_neurons
from jaxopt_nn.passes.plans import dead_units, weak_units
from jaxopt_nn.tensors.base import densify
from tests.passes.networks import hidden, made, mlp


def masked(plan, variables):
    method = mask_units(plan.masks)
    return method.view(variables, method.init(variables))


def test_dead_units_are_found_and_masking_them_changes_no_output():
    apply, variables, x = mlp()
    units = dead_units(apply, variables, x, batch_size=16)
    first, second = hidden(variables, x)
    dead = [(first <= 0).all(0), (second <= 0).all(0)]
    assert dead[0][[1, 4]].all() and dead[1][3]
    for layer, expected in zip(units.layers, dead, strict=False):
        np.testing.assert_array_equal(layer.off, expected)
    assert not units.layers[2].off.any() and "output" in units.layers[2].pinned

    seen = masked(units, variables)
    np.testing.assert_allclose(jax.jit(apply)(seen, x), jax.jit(apply)(variables, x), atol=1e-6)
    before, after = leaves_by_path(variables), leaves_by_path(seen)
    for path, axes in {
        "params/Dense_0/kernel": {1: dead[0]},
        "params/Dense_0/bias": {0: dead[0]},
        "params/Dense_1/kernel": {0: dead[0], 1: dead[1]},
        "params/Dense_1/bias": {0: dead[1]},
        "params/Dense_2/kernel": {0: dead[1]},
        "params/Dense_2/bias": {},
    }.items():
        expected = np.array(before[path])
        for axis, off in axes.items():
            expected[(slice(None),) * axis + (off,)] = 0
        np.testing.assert_array_equal(after[path], expected)


def test_fan_out_alone_is_enough_and_so_is_fan_in():
    """A ReLU unit that is dead gives zero either way; the masks of one side touch no leaf of the other."""
    apply, variables, x = mlp()
    keep = dead_units(apply, variables, x).masks
    fan_in = {
        "params/Dense_0/kernel": keep["params/Dense_0/kernel"],
        "params/Dense_0/bias": keep["params/Dense_0/bias"],
    }
    fan_out = {"params/Dense_2/kernel": keep["params/Dense_2/kernel"]}
    for part in (fan_in, fan_out):
        method = mask_units(part)
        seen = method.view(variables, method.init(variables))
        np.testing.assert_allclose(jax.jit(apply)(seen, x), jax.jit(apply)(variables, x), atol=1e-6)
        changed = {p for p, leaf in leaves_by_path(seen).items() if leaf is not leaves_by_path(variables)[p]}
        assert changed == set(part)


def test_masking_a_unit_that_is_alive_changes_outputs():
    apply, variables, x = mlp()
    alive = dead_units(apply, variables, x, threshold=float(np.sort(np.abs(hidden(variables, x)[0]).max(0))[4]))
    assert alive.layers[0].off.sum() == 5
    assert np.abs(apply(masked(alive, variables), x) - apply(variables, x)).max() > 1e-3


def test_the_masks_compose_with_quantization():
    apply, variables, x = mlp()
    method = chain(mask_units(dead_units(apply, variables, x).masks), where("**/Dense_2/kernel", quantize(8)))
    info = inspect(apply, variables, x)
    state = method.init(variables, info)
    packed = method.pack(variables, state)
    jax.tree.map(np.testing.assert_array_equal, densify(packed), method.view(variables, state))
    kernel = packed["params"]["Dense_2"]["kernel"]
    assert kernel.count == 3 * int((hidden(variables, x)[1] > 0).any(0).sum())


def test_batch_norm_keeps_its_outputs():
    """A channel of a residual stage is dead where all that is added to it is; its variance may be masked, beside an epsilon."""
    apply, variables, x = made(ResNet((4, 6), 1), 5, 8, 8, 3)
    norm = variables["params"]["ResidualBlock_0"]["BatchNorm_0"]
    norm["scale"][2], norm["bias"][2] = 0.1, -50
    units = dead_units(apply, variables, x)
    off = {layer.name: layer.off for layer in units.layers}
    assert off["params/ResidualBlock_0/Conv_0/kernel"].tolist() == [False, False, True, False]
    assert "params/ResidualBlock_0/BatchNorm_0/scale" in units.masks
    assert "batch_stats/ResidualBlock_0/BatchNorm_0/var" in units.masks
    np.testing.assert_allclose(jax.jit(apply)(masked(units, variables), x), jax.jit(apply)(variables, x), atol=1e-6)


def test_a_vector_that_divides_is_not_masked():
    v = {"a": np.ones((2, 3), np.float32), "d": np.full(3, 2.0, np.float32), "b": np.ones((3, 1), np.float32)}
    v["a"][:, 1] = -1
    apply = lambda v, x: jax.nn.relu(x @ v["a"] / v["d"].reshape(1, 3)) @ v["b"]
    x = np.ones((4, 2), np.float32)
    units = dead_units(apply, v, x)
    assert set(units.masks) == {"a", "b"} and np.isfinite(apply(masked(units, v), x)).all()
    np.testing.assert_array_equal(units.layers[0].off, [False, True, False])


def test_units_of_a_layer_that_divides_are_left_alone():
    """Masked, they would be 0 / 0, and that times a fan-out of 0 is NaN."""
    rng = np.random.default_rng(2)
    v = {name: np.abs(rng.standard_normal(shape)).astype(np.float32) for name, shape in
         {"a": (5, 6), "b": (5, 6), "c": (6, 2), "d": (2, 3), "e": (3, 1)}.items()}  # fmt: skip
    v["a"][:, :2], v["d"][:, 1] = -1, -1
    apply = lambda v, x: jax.nn.relu((jax.nn.relu(x @ v["a"]) / (x @ v["b"])) @ v["c"] @ v["d"]) @ v["e"]
    x = np.abs(rng.standard_normal((4, 5))).astype(np.float32)
    units = dead_units(apply, v, x)
    assert units.layers[0].pinned == "`div` is not finite at zero"
    assert units.layers[2].off.tolist() == [False, True, False] and set(units.masks) == {"d", "e"}
    np.testing.assert_allclose(apply(masked(units, v), x), apply(v, x), rtol=1e-6)


def test_a_share_takes_the_lowest_scores():
    apply, variables, x = mlp()
    units = weak_units(apply, variables, x, 0.3)
    first, second = hidden(variables, x)
    readers = [variables["params"][name]["kernel"] for name in ("Dense_1", "Dense_2")]
    for layer, h, reader, n in zip(units.layers, (first, second), readers, (4, 2), strict=False):
        score = np.abs(h).mean(0) * np.linalg.norm(reader, axis=1)
        assert set(np.flatnonzero(layer.off)) == set(np.argsort(score, kind="stable")[:n])
    reverse = weak_units(apply, variables, x, 0.3, score=lambda units: -np.arange(units.size))
    assert np.flatnonzero(reverse.layers[0].off).tolist() == [8, 9, 10, 11]
    method = mask_units(weak_units(apply, variables, x, share=0.3).masks)
    np.testing.assert_array_equal(
        method.view(variables, method.init(variables))["params"]["Dense_0"]["bias"] == 0, units.layers[0].off
    )


def test_the_score_weighs_what_a_unit_puts_out_by_its_fan_out():
    """By hand: activations 1, 2, 3 and fan-out norms 5, 2, 1 give 5, 4, 3; activation alone would take unit 0 first."""
    v = {"a": np.float32([[1, 2, 3]]), "b": np.float32([[3, 4], [0, -2], [1, 0]])}
    apply = lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"]
    x = np.ones((4, 1), np.float32)
    for share, off in ((0.3, [False, False, True]), (0.6, [False, True, True])):
        np.testing.assert_array_equal(weak_units(apply, v, x, share).layers[0].off, off)


def test_a_layer_keeps_its_best_unit():
    apply, variables, x = mlp()
    variables["params"]["Dense_1"]["bias"][:] = -50
    units = dead_units(apply, variables, x)
    assert (~units.layers[1].off).sum() == 1
    assert "stays, so that the layer keeps one of its 7" in str(units)
    np.testing.assert_allclose(apply(masked(units, variables), x), apply(variables, x), atol=1e-6)
    assert [int(own.off.sum()) for own in weak_units(apply, variables, x, 0.88).layers] == [11, 6, 0]
    with pytest.raises(ValueError, match=r"share=0.99 of 19 units can't go; at most 17 can"):
        weak_units(apply, variables, x, 0.99)


def test_the_table():
    apply, variables, x = mlp()
    lines = str(dead_units(apply, variables, x)).splitlines()
    stay = [int((h > 0).any(0).sum()) for h in hidden(variables, x)]
    assert lines[0].split() == ["layer", "units", "stay", "rebuilt"]
    assert lines[1].split() == ["params/Dense_0/kernel", "12", str(stay[0]), "equal"] + (
        f"params/Dense_0/kernel axis 1: 12 -> {stay[0]}, params/Dense_0/bias axis 0: 12 -> {stay[0]}, "
        f"params/Dense_1/kernel axis 0: 12 -> {stay[0]}"
    ).split()
    assert lines[3].split() == ["params/Dense_2/kernel", "3", "3", "-", *"reaches an output of `apply`".split()]
    small = sum((i + 1) * o for i, o in itertools.pairwise((5, *stay, 3)))
    assert lines[4] == f"{small} of {6 * 12 + 13 * 7 + 8 * 3} parameters stay"


def test_nothing_dead_is_nothing_masked():
    apply, variables, x = made(LeNet5((3, 4), 5), 4, 28, 28, 1)
    variables["params"]["Dense_0"]["bias"][:] = 50
    units = dead_units(apply, variables, x)
    assert units.masks == {} and all(not layer.off.any() for layer in units.layers[:3])
    assert masked(units, variables)["params"]["Dense_0"]["bias"] is variables["params"]["Dense_0"]["bias"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a, v, x: dead_units(a, v, x, threshold=-1e-3), "threshold=-0.001"),
        (lambda a, v, x: dead_units(a, v, x, threshold=float("nan")), "threshold=nan"),
        (lambda a, v, x: weak_units(a, v, x, 1.0), "fewer units than one"),
        (lambda a, v, x: weak_units(a, v, x, -0.1), "share=-0.1"),
        (lambda a, v, x: weak_units(a, v, x, 0.5, score=lambda units: np.ones(1)), "one for each of 12 units"),
        (lambda a, v, x: dead_units(a, v, x[:0]), "at least 1"),
        (lambda a, v, x: dead_units(a, v, (x, x[1:])), "arrays of one length"),
        (lambda a, v, x: dead_units(a, v, x, batch_size=0), "batch_size=0"),
        (lambda a, v, x: unit_activity(a, v, []), "no batch"),
        (lambda a, v, x: prune_neurons(share=0.5, threshold=0.1), "one of the two"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(*mlp())
