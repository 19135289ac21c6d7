"""Weights over devices: the same answers, a part of the bytes on each, and one sum over devices for each pair of layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_nn as jn
from experiments.models.gpt import GPT
from experiments.models.lenet import LeNet5
from tests.passes.networks import network

P = PartitionSpec


def mesh(n=8, name="model", kind=AxisType.Auto):
    return jax.make_mesh((n,), (name,), axis_types=(kind,), devices=jax.devices()[:n])


def drawn(apply, **shapes):
    rng = np.random.default_rng(0)
    return jn.Network(apply, {path: jnp.asarray(rng.standard_normal(s) / 8, jnp.float32) for path, s in shapes.items()})


def blocks(v, x):
    """Two pairs of columns and rows on a residual stream."""
    for i in "12":
        x = x + jax.nn.gelu(x @ v["up" + i] + v["bias" + i][None]) @ v["down" + i]
    return x


SHAPES = {name + i: shape for i in "12" for name, shape in {"up": (24, 64), "bias": (64,), "down": (64, 24)}.items()}
X = np.random.default_rng(1).standard_normal((5, 24)).astype(np.float32)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_columns_then_rows_and_one_sum_over_devices():
    net = drawn(blocks, **SHAPES)
    spread = jn.shardings(net, mesh(), X)
    assert spread.specs == {name + i: spec for i in "12" for name, spec in {
        "up": P(None, "model"), "bias": P("model"), "down": P("model", None)}.items()}  # fmt: skip
    placed = spread.place(net)
    for path, leaf in placed.variables.items():
        assert {s.data.size for s in leaf.addressable_shards} == {net.variables[path].size // 8}, path
        assert len(leaf.sharding.device_set) == 8
    close(placed(X), net(X))
    text = jax.jit(blocks).lower(placed.variables, X).compile().as_text()
    count = lambda name: len(re.findall(rf" {name}(-start)?\(", text))
    assert count("all-reduce") == 2 and not count("all-gather") and not count("all-to-all") and not count("collective-permute")


def test_heads_and_neurons_of_a_transformer():
    net, _ = gpt()
    tokens = np.random.default_rng(0).integers(0, 40, (2, 6))
    spread = jn.shardings(net, mesh(4), tokens)
    own = spread.specs["params"]["block_0"]
    heads = own["attention"]
    assert heads["query"]["kernel"] == heads["key"]["kernel"] == heads["value"]["kernel"] == P(None, "model")
    assert heads["out"]["kernel"] == P("model", None) and own["down"]["kernel"] == P("model", None)
    assert own["gate"]["kernel"] == own["up"]["kernel"] == P(None, "model")
    said = {m.path: (m.kind, m.reason) for m in spread.report}
    kind, reason = said["params/block_0/mlp_norm/scale"]
    assert kind == "skipped" and "is spread along" in reason
    placed = spread.place(net)
    kernel = placed.variables["params"]["block_1"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (32, 8)
    close(placed(tokens), net(tokens))


def gpt():
    module = GPT(vocabulary=40, width=32, layers=2, heads=8, kv_heads=4, hidden=48)
    tokens = jnp.zeros((2, 6), jnp.int32)
    return jn.linen(module, module.init(jax.random.key(0), tokens)), tokens


def test_what_stays_whole_and_why():
    net = drawn(lambda v, x: jnp.cumsum(jax.nn.relu(x @ v["a"]) @ v["b"], 0) @ v["c"], a=(24, 12), b=(12, 16), c=(16, 4))
    said = {m.path: m.reason for m in jn.shardings(net, mesh(), X).report}
    assert said["a"] == "axis 1: its 12 units are no multiple of 8 devices"
    assert said["b"] == "axis 1 over 'model', 2 of 16 each" and said["c"] == "axis 0 over 'model', 2 of 16 each"
    net, x = network(LeNet5((8, 16), 8), 2, 28, 28, 1)
    spread = jn.shardings(net, mesh(), x)
    assert any("do not lie one behind the other in params/Dense_0/kernel axis 0" in m.reason for m in spread.report)
    close(spread.place(net)(x), net(x))


@pytest.mark.parametrize("bits", [8, 4])
def test_compressed_leaves_lie_by_their_children(bits):
    net = drawn(blocks, **SHAPES)
    method = jn.by_path([("up*", jn.quantize(bits)), ("down*", jn.quantize(bits))])
    packed = net.replace(variables=method.pack(net.variables, method.init(net.variables, jn.inspect(blocks, net.variables, X))))
    spread = jn.shardings(packed, mesh(), X)
    placed = spread.place(packed)
    codes = max(jax.tree.leaves(placed.variables["up1"]), key=lambda leaf: leaf.size)
    assert {s.data.size for s in codes.addressable_shards} == {codes.size // 8}
    close(placed(X), packed(X))
    masked = jn.where("up1", jn.prune(sparsity=0.5))
    pruned = net.replace(variables=masked.pack(net.variables, masked.init(net.variables)))
    said = {m.path: m for m in jn.shardings(pruned, mesh(), X).report}
    assert said["up1"].kind == "skipped" and "can't be parted along axis 1" in said["up1"].reason


def test_beside_a_batch_that_is_split():
    net = drawn(blocks, **SHAPES)
    both = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    placed = jn.shardings(net, both, X).place(net)
    x = jax.device_put(np.tile(X, (2, 1)), NamedSharding(both, P("data")))
    close(placed(x), net(np.tile(X, (2, 1))))


def test_what_does_not_fit():
    net = drawn(blocks, **SHAPES)
    with pytest.raises(ValueError, match=r"shardings\(axis='model'\): the mesh has the axes 'x'; pass one of them"):
        jn.shardings(net, mesh(name="x"), X)
    with pytest.raises(ValueError, match="axis 'model' of the mesh is of type Explicit"):
        jn.shardings(net, mesh(kind=AxisType.Explicit), X)
    with pytest.raises(TypeError, match=r"shardings: mesh is a list; pass jax\.make_mesh"):
        jn.shardings(net, jax.devices(), X)
