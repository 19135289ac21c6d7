"""Units in another order, by a gather at constant places: an index map, and no pin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxopt_nn as jn
from jaxopt_nn.interpret.flow import dims, extent
from jaxopt_nn.interpret.flow.picks import picked
from tests.interpret.test_groups import A, B, C, X, probe, table

ORDER = np.array([3, 1, 0, 5, 2, 4])
OTHER = np.array([5, 0, 4, 1, 3, 2])
#: Two units change places, one stays, three go round.
CYCLES = np.array([1, 0, 2, 4, 5, 3])
V = {"a": A, "b": B, "c": C, "d": np.concatenate([C, B.T])}
BOTH = lambda v: jnp.concatenate([v["b"], v["c"]])


def layer_norm(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)


def rounds(v, x):
    """Units change places in each turn of a loop."""
    return lax.scan(lambda h, _: (jnp.tanh(h[:, CYCLES]), None), x @ v["a"], None, length=3)[0] @ v["b"]


#: What becomes of the units of ``a``, and how many there are.
ORDERS = {
    "read in another order": (6, lambda v, x: (x @ v["a"])[:, ORDER] @ v["b"]),
    "by take": (6, lambda v, x: jnp.take(x @ v["a"], jnp.asarray(ORDER), axis=1) @ v["b"]),
    "on the other side": (6, lambda v, x: ((x @ v["a"]).T[ORDER].T @ v["b"])),
    "of the weight": (6, lambda v, x: (x @ v["a"][:, ORDER]) @ v["b"]),
    "counted from the end": (6, lambda v, x: (x @ v["a"])[:, ORDER - 6] @ v["b"]),
    "by computed places": (6, lambda v, x: (x @ v["a"])[:, (jnp.arange(6) * 5 + 2) % 6] @ v["b"]),
    "there and back": (6, lambda v, x: jnp.tanh((x @ v["a"])[:, ORDER])[:, np.argsort(ORDER)] @ v["b"]),
    "twice": (6, lambda v, x: jnp.tanh((x @ v["a"])[:, ORDER])[:, OTHER] @ v["b"]),
    "in two orders": (6, lambda v, x: (h := x @ v["a"])[:, ORDER] @ v["b"] + jnp.sin(h[:, OTHER]) @ v["c"]),
    "turned around, then in another order": (6, lambda v, x: (x @ v["a"])[:, ::-1][:, ORDER] @ v["b"]),
    "in another order, then turned around": (6, lambda v, x: (x @ v["a"])[:, ORDER][:, ::-1] @ v["b"]),
    "added to itself": (3, lambda v, x: ((h := x @ v["a"]) + h[:, CYCLES]) @ v["b"]),
    "times another unit's": (3, lambda v, x: (jnp.tanh(h := x @ v["a"])[:, CYCLES] * h[:, CYCLES[CYCLES]]) @ v["b"]),
    "then in two parts": (2, lambda v, x: (lambda p: jnp.sin(p[0] * p[1]) @ v["b"][:2] + p[2] @ v["c"][:2])(
        jnp.split((x @ v["a"])[:, ORDER], 3, axis=1))),
    "then in heads": (3, lambda v, x: jnp.sin((x @ v["a"])[:, ORDER].reshape(2, 3, 2)).sum(-1) @ v["b"][:3]),
    "heads in another order": (3, lambda v, x: jnp.sin((x @ v["a"]).reshape(2, 3, 2)[:, [2, 0, 1]]).reshape(2, 6) @ v["b"]),
    "each twice": (6, lambda v, x: (x @ v["a"])[:, np.repeat(np.arange(6), 2)] @ v["d"]),
    "all, and again": (6, lambda v, x: (x @ v["a"])[:, np.tile(np.arange(6), 2)] @ BOTH(v)),
    "some twice": (6, lambda v, x: (x @ v["a"])[:, [0, 0, 1, 2, 3, 4, 5, 5, 1, 2, 0, 0]] @ v["d"]),
    "twice, in two orders": (6, lambda v, x: (x @ v["a"])[:, [*ORDER, *OTHER]] @ BOTH(v)),
    "twice, tied to each other": (3, lambda v, x: (x @ v["a"])[:, [*ORDER, *CYCLES[ORDER]]] @ jnp.concatenate([v["b"]] * 2)),
    "normalised": (6, lambda v, x: layer_norm((x @ v["a"])[:, ORDER]) @ v["b"]),
    "in a softmax": (6, lambda v, x: jax.nn.softmax((x @ v["a"])[:, ORDER]) @ v["b"]),
    "in a loop": (3, rounds),
    "in a branch": (2, lambda v, x: lax.cond(x[0, 0] > 0, jnp.sin, lambda h: h[:, ORDER] * 2, x @ v["a"]) @ v["b"]),
    "in a checkpoint": (6, lambda v, x: jax.checkpoint(lambda h: jnp.tanh(h[:, ORDER]))(x @ v["a"]) @ v["b"]),
    "for each example": (6, lambda v, x: jax.vmap(lambda x: (x @ v["a"])[ORDER] @ v["b"])(x)),
}  # fmt: skip


@pytest.mark.parametrize("what", ORDERS)
def test_units_in_another_order_are_cut(what):
    size, apply = ORDERS[what]
    group = next(g for g in jn.axis_groups(apply, V, X) if ("a", 1) in {(m.path, m.axis) for m in g.members})
    assert group.pinned is None and group.size == size, group
    probe(apply, V, (X,))


def test_the_map_says_which_entry_is_which_unit():
    group = jn.axis_groups(ORDERS["read in another order"][1], V, X)[0]
    own = table(group)
    made, read = np.array(own["a", 1, "producer"]), np.array(own["b", 0, "consumer"])
    np.testing.assert_array_equal(made[ORDER], read)


@pytest.mark.parametrize("seed", range(8))
def test_orders_are_composed(seed):
    """Random orders one after the other; then two units change places in a sum, so that they are one."""
    rng = np.random.default_rng(seed)
    orders, swap, (i, j) = [rng.permutation(6) for _ in range(3)], np.arange(6), rng.permutation(6)[:2]
    swap[[i, j]] = j, i

    def apply(v, x):
        h = x @ v["a"]
        for order in orders:
            h = jnp.tanh(h[:, order]) * np.linspace(0.5, 1.5, 6, dtype=np.float32)[None]
        return (h + h[:, swap]) @ v["b"]

    group = jn.axis_groups(apply, V, X)[0]
    assert group.pinned is None and group.size == 5
    probe(apply, V, (X,))


def test_places_that_differ_by_turn_or_leave_units_out_are_pinned():
    def turns(v, x):
        body = lambda h, order: (jnp.tanh(h[:, order]), None)
        return lax.scan(body, x @ v["a"], np.stack([ORDER, OTHER]))[0] @ v["b"]

    def turned(v, x):
        body = lambda c, _: ((jnp.tanh(c[0][:, c[1]]), c[1][::-1]), None)
        return lax.scan(body, (x @ v["a"], jnp.asarray(ORDER)), None, length=2)[0][0] @ v["b"]

    fewer = lambda v, x: (x @ v["a"])[:, [3, 1, 0]] @ v["b"][:3]
    traced = lambda v, x: (x @ v["a"])[:, jnp.argsort(x[0])] @ v["b"]
    for apply in (turns, turned, fewer, traced):
        assert jn.axis_groups(apply, V, X)[0].pinned == "`gather` looks its entries up"


@pytest.mark.parametrize("groups", [2, 3])
def test_a_channel_shuffle_is_that_of_a_reshape(groups):
    """Between grouped convolutions: by transposed axes and by places, one plan."""
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=x.shape[-1] // w.shape[2]
    )
    places = np.arange(12).reshape(groups, -1).T.reshape(-1)

    def model(shuffle):
        return lambda v, x: jnp.sin(conv(shuffle(jnp.tanh(conv(x @ v["in"], v["one"]))), v["two"])).mean((1, 2)) @ v["out"]

    transposed = model(lambda h: h.reshape(*h.shape[:3], groups, -1).swapaxes(3, 4).reshape(h.shape))
    gathered = model(lambda h: h[..., places])
    rng = np.random.default_rng(0)
    shapes = {"in": (3, 12), "one": (3, 3, 12 // groups, 12), "two": (1, 1, 12 // groups, 12), "out": (12, 4)}
    v = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32)
    ours, theirs = (jn.axis_groups(f, v, x) for f in (gathered, transposed))
    assert [(g.size, g.pinned, table(g)) for g in ours] == [(g.size, g.pinned, table(g)) for g in theirs]
    probe(gathered, v, (x,))


@pytest.mark.parametrize("seed", range(20))
def test_dims_against_entries(seed):
    """Ties of random maps of two atoms: entries are of one unit where a chain of ties joins them."""
    rng = np.random.default_rng(seed)
    atoms = [dims.Dim(6), dims.Dim(5)]
    one = {(i, k): {(i, k)} for i in range(2) for k in range(atoms[i].size)}
    for _ in range(rng.integers(1, 4)):
        views = []
        for i in rng.permutation(2) if rng.random() < 0.7 else rng.integers(2, size=2):
            index = np.r_[rng.permutation(atoms[i].size), rng.integers(atoms[i].size, size=7 - atoms[i].size)]
            views.append((i, index, picked(atoms[i], index)))
        (i, left, a), (j, right, b) = views
        dims.tie(a, b, "differs")
        for p, q in zip(left, right):
            joint = one[i, p] | one[j, q]
            one |= {place: joint for place in joint}
    for atom in {dims.root(x) for axis in atoms for x in dims.atoms(axis)}:
        assert atom.cut is None
        for k in range(atom.size):
            own = {(i, e) for i in range(2) for e in np.flatnonzero(extent.units(atoms[i], atom) == k).tolist()}
            assert not own or own == set(next(iter([one[place] for place in own])))
