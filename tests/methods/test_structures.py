"""N:M and blocks against loops over groups; what doesn't go with them; what they weigh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.coding.artifact import load_artifact, save_artifact
from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.model import Member, ModelInfo, Roles
from jaxopt_nn.core.passes import Layer, Plan
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.core.transform import explain
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.criteria.magnitude import energy, magnitude
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.regrowth import rigl
from jaxopt_nn.methods.schedules import cubic
from jaxopt_nn.methods.structures.blocks import blocks
from jaxopt_nn.methods.structures.n_of_m import n_of_m
from jaxopt_nn.tensors.base import densify
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.n_of_m import NofM

RNG = np.random.default_rng(5)


def draw(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def mask_of(method, w, roles=None):
    info = ModelInfo() if roles is None else ModelInfo(roles={"w": roles})
    return np.asarray(method.view({"w": w}, method.init({"w": w}, info))["w"] != 0)


@pytest.mark.parametrize(("n", "m", "axis"), [(2, 4, None), (1, 4, -1), (3, 8, 0), (2, 3, 1)])
def test_n_of_m_is_the_best_support_of_each_group(n, m, axis):
    """Over all supports of n entries the one that keeps most magnitude."""
    w = draw(24, 12)
    found = mask_of(prune(structure=n_of_m(n, m, axis)), w)
    last = np.moveaxis(np.abs(np.asarray(w)), 0 if axis is None else axis, -1).reshape(-1, m)
    best = [max(itertools.combinations(range(m), n), key=lambda s, row=row: sum(row[list(s)])) for row in last]
    expected = np.zeros(last.shape, bool)
    for row, support in zip(expected, best, strict=True):
        row[list(support)] = True
    np.testing.assert_array_equal(np.moveaxis(found, 0 if axis is None else axis, -1).reshape(-1, m), expected)


def test_n_of_m_runs_along_the_input_channels_of_a_convolution():
    w = draw(3, 3, 8, 5)
    found = mask_of(prune(structure=n_of_m(2, 4)), w, Roles((), (0, 1, 2), (3,), (0, 1)))
    assert (found.reshape(3, 3, 2, 4, 5).sum(3) == 2).all()


def test_n_of_m_on_a_schedule_keeps_the_pattern_all_the_way():
    method, params = prune(structure=n_of_m(1, 4), sparsity=optax.linear_schedule(0.0, 0.75, 3)), {"w": draw(8, 3)}
    state, kept = method.init(params), []
    for step in range(4):
        state = jax.jit(lambda s, t: method.update(params, s, step=t))(state, step)
        kept.append(set(np.asarray(state.carried["w"].mask).reshape(2, 4, 3).sum(1).ravel()))
    assert kept == [{4}, {3}, {2}, {1}]


@pytest.mark.parametrize("score", [magnitude, energy])
def test_blocks_go_by_their_mean_score(score):
    """Against a loop, with blocks at the edges that are smaller."""
    w, (b, c) = draw(10, 7), (4, 3)
    found = mask_of(prune(score, structure=blocks(b, c), sparsity=5 / 9), w)
    values = np.asarray(score(w, None, None))
    means = np.array([[values[i : i + b, j : j + c].mean() for j in range(0, 7, c)] for i in range(0, 10, b)])
    kept = means >= np.sort(means.ravel())[5]
    assert kept.sum() == 4
    np.testing.assert_array_equal(found, np.repeat(np.repeat(kept, b, 0)[:10], c, 1)[:, :7])


def test_blocks_of_a_stack_of_heads_and_of_whole_rows():
    w = draw(2, 6, 2, 4)  # a stack of two layers: 6 inputs, 2 heads of width 4
    roles = Roles((0,), (1,), (2, 3))
    found = mask_of(prune(structure=blocks(-1, 2), sparsity=0.25), w, roles)
    tiles = found.reshape(2, 6, 2, 2, 2)
    assert (tiles.all((1, 4)) == tiles.any((1, 4))).all() and (tiles.any((1, 4)).sum((1, 2)) == 3).all()
    whole = mask_of(prune(structure=blocks(1, -1), sparsity=0.5, allocation=global_budget), w, roles)
    assert (whole.all((2, 3)) == whole.any((2, 3))).all() and whole.any((2, 3)).sum() == 6


def test_true_bytes():
    """2:4 in 4 bits: half of the codes, two bits for each, and the scales; blocks: a bit for each block."""
    w = {"w": draw(64, 32)}
    alone = prune(structure=n_of_m(2, 4))
    plain, coded = (m.pack(w, m.init(w))["w"] for m in (alone, chain(alone, quantize(4))))
    assert isinstance(plain, NofM) and plain.nbytes == 1024 * 4 + 1024 * 2 // 8
    assert isinstance(coded, NofM) and coded.nbytes == 1024 // 2 + 1024 * 2 // 8 + 32 * 4
    assert plain.format == "2:4(float32)" and coded.describe() == "2 of 4 kept, 4 bits"
    tiles = prune(structure=blocks(8, 16), sparsity=0.5)
    tensor = tiles.pack(w, tiles.init(w))["w"]
    assert isinstance(tensor, Masked) and tensor.nbytes == 1024 * 4 + 16 // 8 and tensor.block == (8, 16)


def test_layout_operations_move_entries():
    """Transposed, cast, sliced by a scan: as of the dense array."""
    w = {"w": draw(3, 8, 5)}
    method = chain(prune(structure=n_of_m(2, 4)), quantize(4))
    info = ModelInfo(roles={"w": Roles((0,), (1,), (2,))})
    tensor = method.pack(w, method.init(w, info))["w"]
    dense = tensor.densify()
    np.testing.assert_array_equal(tensor.transpose((2, 0, 1)).densify(), dense.transpose(2, 0, 1))
    np.testing.assert_array_equal(tensor.index(1, 0).densify(), dense[1])
    np.testing.assert_array_equal(jax.jit(lambda t, i: t.index(i, 2).densify())(tensor, 3), dense[:, :, 3])
    np.testing.assert_array_equal(tensor.cast(jnp.bfloat16).densify(), dense.astype(jnp.bfloat16))
    _, layers = jax.lax.scan(lambda _, t: (None, t.densify()), None, tensor.leading())
    np.testing.assert_array_equal(layers, dense)
    np.testing.assert_array_equal(tensor.cut(1, [0, 3, 4]).densify(), dense[:, np.array([0, 3, 4])])


def test_what_is_no_pattern_any_more_is_a_plain_mask():
    w = {"w": draw(8, 6)}
    method = chain(prune(structure=n_of_m(2, 4)), prune(sparsity=0.75))
    assert isinstance(method.pack(w, method.init(w))["w"], Masked)


def test_a_cut_that_leaves_no_groups_is_an_error():
    w = draw(16, 6)
    method, entries = prune(structure=n_of_m(2, 4)), np.arange(6)
    layer = Layer("w", 16, entries, (Member("w", 0, "producer", np.arange(16)),))
    remap = Remap(Plan("by hand", {"w": w.shape}, (), (layer,)))
    with pytest.raises(ValueError, match="w: cut, it has 6 entries along axis 0, not a multiple of 4; keep"):
        remap.state(method, method.init({"w": w}), remap.params({"w": w}))


def test_an_artifact_holds_both(tmp_path):
    w = {"a": draw(8, 6), "b": draw(9, 5)}
    made = {p: chain(prune(structure=s, sparsity=0.5), quantize(4)) for p, s in (("a", n_of_m(2, 4)), ("b", blocks(4, 4)))}
    packed = {p: m.pack({p: w[p]}, m.init({p: w[p]}))[p] for p, m in made.items()}
    save_artifact(tmp_path / "artifact", packed)
    found, _ = load_artifact(tmp_path / "artifact")
    assert jax.tree.structure(found) == jax.tree.structure(packed)
    jax.tree.map(np.testing.assert_array_equal, densify(found), densify(packed))


def test_a_leaf_that_does_not_divide_is_left_alone_and_named():
    method = prune(structure=n_of_m(2, 4))
    params = {"w": draw(10, 4)}
    assert not method.init(params).carried
    assert "has 10 entries along axis 0, not a multiple of 4" in str(explain(method, params))


@pytest.mark.parametrize(
    ("structure", "kept", "whole"),
    [
        (n_of_m(2, 4), [0, 1, 2, 3, 8, 9, 10, 11], True),
        (n_of_m(2, 4), [0, 1, 2, 3, 8, 9, 10, 12], False),
        (n_of_m(2, 4), [0, 1, 4, 5], False),
        (blocks(4, 2), [4, 5, 6, 7, 8, 9, 10, 11, 16, 17], True),
        (blocks(4, 2), [1, 2, 3, 4], False),
    ],
)
def test_a_cut_keeps_whole_groups_or_makes_the_mask_anew(structure, kept, whole):
    """Anew: by the criterion, with as many zeros, and said."""
    length = 18 if structure.name.startswith("blocks") else 16
    w = draw(length, 6)
    method, entries = prune(structure=structure, sparsity=0.5), np.array(kept)
    layer = Layer("w", length, entries, (Member("w", 0, "producer", np.arange(length)),))
    remap = Remap(Plan("by hand", {"w": w.shape}, (), (layer,)))
    small = remap.params({"w": w})
    made, report = remap.state(method, method.init({"w": w}), small)
    assert bool(report) != whole
    seen = method.view(small, made)["w"]
    expected = np.asarray(method.view({"w": w}, method.init({"w": w}))["w"])[entries]
    if not whole:
        assert "cut apart" in str(report)
        expected = method.view(small, method.init(small))["w"]
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(method.pack(small, made)["w"].densify(), seen)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: n_of_m(4, 4), "1 <= n < m"),
        (lambda: n_of_m(2, 4.0), "whole numbers"),
        (lambda: blocks(0, 4), "whole numbers from 1"),
        (lambda: prune(structure=n_of_m(2, 4), sparsity=0.9), "makes 0.5 of zeros, and not 0.9"),
        (lambda: prune(structure=n_of_m(2, 4), sparsity=cubic(0.9, end=3)), "makes 0.5 of zeros, and not 0.9"),
        (lambda: prune(structure=n_of_m(2, 4), threshold=0.1), "leave threshold out"),
        (lambda: prune(structure=n_of_m(2, 4), allocation=global_budget), "leave allocation out"),
        (lambda: prune(structure=n_of_m(2, 4), regrow=rigl(end=3)), "breaks the pattern"),
        (lambda: prune(sparsity=cubic(0.9, end=3), regrow=rigl(end=3)), "pass sparsity=0.9, no schedule"),
        (lambda: prune(threshold=0.9, regrow=rigl(end=3)), "pass sparsity, not threshold"),
    ],
)
def test_pairs_without_sense(make, match):
    with pytest.raises(ValueError, match=match):
        make()
