"""Parts of an axis that are read or written at constant places: parts of the units, and no pin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxopt_nn as jn
from tests.interpret.test_groups import A, B, C, X, probe

V = {"a": A, "b": B, "c": C}
#: How many groups may be cut with units of ``a``, and what becomes of these.
WINDOWS = {
    "a dynamic slice": (2, lambda v, x: lax.dynamic_slice_in_dim(x @ v["a"], 1, 3, 1) @ v["b"][:3] + (x @ v["a"])[:, :1]),
    "one past the end": (2, lambda v, x: lax.dynamic_slice_in_dim(x @ v["a"], 5, 3, 1) @ v["b"][:3]),
    "a computed place": (2, lambda v, x: lax.dynamic_slice_in_dim(x @ v["a"], jnp.arange(3)[1] * 2, 2, 1) @ v["b"][:2]),
    "set": (2, lambda v, x: (x @ v["a"]).at[:, :4].set(jnp.tanh(x @ v["c"])[:, :4]) @ v["b"]),
    "set to what it was": (2, lambda v, x: (h := jnp.tanh(x @ v["a"])).at[:, :4].set(h[:, :4] * 2) @ v["b"]),
    "added to": (2, lambda v, x: (x @ v["a"]).at[:, 2:].add((x @ v["c"])[:, 2:]) @ v["b"]),
    "scaled": (2, lambda v, x: (x @ v["a"]).at[:, 2:5].multiply(3.0) @ v["b"]),
    "moved within itself": (2, lambda v, x: (h := x @ v["a"]).at[:, :3].add(h[:, 3:]) @ v["b"]),
    "written over": (2, lambda v, x: lax.dynamic_update_slice(x @ v["a"], jnp.sin(x @ v["c"])[:, :2], (0, 3)) @ v["b"]),
    "written by turns": (1, lambda v, x: lax.fori_loop(
        0, 2, lambda i, h: h.at[:, :3].set(jnp.tanh(h[:, 3:])), x @ v["a"]) @ v["b"]),
}  # fmt: skip


def free(apply):
    """The groups with units of ``a`` that may be cut."""
    groups = jn.axis_groups(apply, V, X)
    return [g for g in groups if g.pinned is None and ("a", 1) in {(m.path, m.axis) for m in g.members}]


@pytest.mark.parametrize("what", WINDOWS)
def test_parts_at_constant_places_are_cut(what):
    count, apply = WINDOWS[what]
    groups = free(apply)
    assert len(groups) >= min(count, 1), jn.axis_groups(apply, V, X)
    probe(apply, V, (X,))


def test_constants_that_are_written_are_cut_where_a_weight_reads_them():
    """They are not zero in cut units: what sums them by itself keeps that part, the other may go."""
    read = lambda v, x: (x @ v["a"]).at[:, :2].set(1.0) @ v["b"]
    summed = lambda v, x: x * (x @ v["a"]).at[:, :2].set(jnp.array([1.0, 2.0])).sum(1, keepdims=True)
    assert [g.size for g in free(read)] == [2, 4] and [g.size for g in free(summed)] == [4]
    probe(read, V, (X,))
    probe(summed, V, (X,))


@pytest.mark.parametrize(
    "apply",
    [
        lambda v, x: lax.dynamic_slice_in_dim(x @ v["a"], x[0, 0].astype(int), 3, 1) @ v["b"][:3],
        lambda v, x: lax.dynamic_update_slice(x @ v["a"], x[:, :2], (0, x[0, 0].astype(int))) @ v["b"],
        lambda v, x: (x @ v["a"]).at[:, np.array([0, 3])].set(0.0) @ v["b"],
        lambda v, x: lax.fori_loop(0, 2, lambda i, h: lax.dynamic_update_slice(h, h[:, :1], (0, i)), x @ v["a"]) @ v["b"],
    ],
    ids=["read at a traced place", "written at one", "at several", "at one that moves"],
)
def test_places_that_are_not_one_are_pinned(apply):
    assert not free(apply)


def test_partial_convolution():
    """FasterNet: a part of the channels is convolved, and written back."""
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply(v, x):
        h = jax.nn.relu(conv(x, v["stem"]))
        h = h + conv(jax.nn.relu(conv(h.at[..., :4].set(conv(h[..., :4], v["part"])), v["up"])), v["down"])
        return h.mean((1, 2)) @ v["out"]

    shapes = {"stem": (3, 3, 2, 12), "part": (3, 3, 4, 4), "up": (1, 1, 12, 16), "down": (1, 1, 16, 12), "out": (12, 3)}
    rng = np.random.default_rng(0)
    v = {k: (rng.standard_normal(s) / np.sqrt(np.prod(s[:-1]))).astype(np.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((2, 5, 5, 2)), jnp.float32)
    assert sorted(g.size for g in jn.axis_groups(apply, v, x) if g.pinned is None) == [4, 8, 16]
    probe(apply, v, (x,))


@pytest.mark.parametrize(
    "body",
    [
        lambda x, v: jax.nn.relu(x @ v["a"]).at[:, 3:5].set(0.0) @ v["b"],
        lambda x, v: (x @ v["a"] + lax.dynamic_index_in_dim(v["c"], lax.axis_index("d"), 0, keepdims=False)[None]) @ v["b"],
    ],
    ids=["a window of zeros", "a place of the device's own"],
)
def test_what_is_computed_of_a_mesh_axis_is_not_known(body):
    """It is no constant: the axis is bound in the shards alone."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec())
    apply = lambda v, x: jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=specs[0])(x, v)
    v = {"a": A, "b": B, "c": C}
    assert jn.axis_groups(apply, v, X)
    net, cut = jn.Network(apply, v), jn.cut_units(jn.scores.random(0), share=0.0)
    plan = cut.plan(net, jn.ModelInfo(), X)
    plan = plan.replace({layer.name: range(1, layer.size) for layer in plan.layers if layer.pinned is None})
    off = lambda path, w: w * np.prod([
        np.expand_dims(own, [a for a in range(w.ndim) if a != axis]) for axis, own in plan.masks.get(path, {}).items()
    ] or 1, axis=0)  # fmt: skip
    small, _ = cut.execute(net, plan)
    np.testing.assert_allclose(small(X), apply({path: off(path, w) for path, w in v.items()}, X), atol=1e-5)
