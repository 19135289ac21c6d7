"""Networks that are cut as they are stored: half of the weights pruned, the others of 4 bits; read again by NumPy alone."""

import math

import jax
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.core.paths import leaves_by_path
from tests.corpus import oracle
from tests.corpus.cutting import planned
from tests.zoo import ZOO
from tests.zoo.base import Model

#: Cheap ones: rows, and layers of a stack.
FAST = ("raw_conv", "ensemble")
PRUNED, ROUNDED = jn.prune(sparsity=0.5), jn.quantize(4)


class Read:
    """A masked tensor's numbers from its bytes, as the layout says; in the weight's order of axes.

    Attributes:
      mask: bool. codes: int, zero where the mask is False. scale: of one entry, or all, along each axis. layers: its stack.
    """

    def __init__(self, tensor: jn.Masked):
        stack, bits = tensor.stack, tensor.frame.bits
        order = [*stack, *(a for a in range(tensor.ndim) if a not in stack)]
        lengths = [tensor.shape[a] for a in order]
        self.layers, size = math.prod(lengths[: len(stack)]), math.prod(lengths[len(stack) :])
        rows = lambda x: np.unpackbits(np.asarray(x), axis=-1, bitorder="little").reshape(self.layers, -1)
        mask = rows(tensor.mask)[:, :size].astype(bool)
        stream = rows(tensor.kept)[:, : tensor.count * bits].reshape(self.layers, tensor.count, bits)
        numbers = (stream * 2 ** np.arange(bits)).sum(-1) - 2 ** (bits - 1)
        codes = np.zeros(mask.shape, int)
        for row, keep, own in zip(codes, mask, numbers):
            row[keep] = own[: keep.sum()]
        back = lambda x: x.reshape(lengths).transpose(np.argsort(order))
        self.mask, self.codes = back(mask), back(codes)
        self.scale = np.asarray(tensor.frame.scale).transpose(np.argsort(order))
        self.stack = stack
        assert tensor.frame.zero is None

    @property
    def dense(self) -> np.ndarray:
        return np.where(self.mask, self.codes * self.scale, 0).astype(np.float32)

    @property
    def nbytes(self) -> int:
        """A bit for each weight, 4 for as many as the fullest layer keeps, and float32 scales."""
        rows = np.moveaxis(self.mask, self.stack, range(len(self.stack))).reshape(self.layers, -1)
        return self.layers * (-(-rows.shape[1] // 8) + -(-int(rows.sum(1).max()) * 4 // 8)) + 4 * self.scale.size


def stays(tree, plan):
    """``(path, array) -> `` what of it stays; along axes of one entry that entry."""
    shapes = {path: tuple(x.shape) for path, x in leaves_by_path(tree).items()}
    stay = oracle.staying(shapes, plan)

    def cut(path, x):
        for axis, entries in stay.get(path, {}).items():
            x = x if x.shape[axis] == 1 else np.compress(entries, x, axis=axis)
        return x

    return cut


def checked(name, share=0.4):
    model = ZOO[name]()
    info = jn.inspect(model.apply, model.variables, *model.inputs)
    method = jn.chain(PRUNED, ROUNDED)
    stored = method.pack(model.variables, method.init(model.variables, info))
    packed = Model(name, model.apply, stored, model.inputs, "")
    plan, execute = planned(packed, share)
    apply, small = execute(plan)
    densify = jax.jit(jn.densify)  # all leaves in one program
    cut, dense, made = stays(stored, plan), densify(stored), leaves_by_path(densify(small))
    wanted = {path: cut(path, np.asarray(x)) for path, x in leaves_by_path(dense).items()}
    coded = 0
    for (path, before), after in zip(leaves_by_path(stored).items(), leaves_by_path(small).values(), strict=True):
        np.testing.assert_array_equal(made[path], wanted[path], err_msg=path)
        assert type(after) is type(before)
        if not isinstance(before, jn.Masked) or before.frame is None:
            continue
        coded += 1
        old, new = Read(before), Read(after)
        np.testing.assert_array_equal(new.dense, wanted[path], err_msg=path)
        for part in ("mask", "codes", "scale"):
            np.testing.assert_array_equal(getattr(new, part), cut(path, getattr(old, part)), err_msg=f"{path}: {part}")
        assert not np.asarray(made[path])[~new.mask].any()
        assert after.nbytes == new.nbytes == sum(x.nbytes for x in jax.tree.leaves(after)), path
        assert 0.4 < old.mask.mean() <= 0.51 and not (new.mask.size < old.mask.size and after.nbytes >= before.nbytes)
    assert coded, "no leaf of it was pruned and rounded"
    if any(layer.cut for layer in plan.layers):
        ours, theirs = (jax.tree.leaves(jax.jit(f)(v, *model.inputs)) for f, v in (
            (apply, densify(small)), (model.apply, oracle.zeroed(dense, plan))))  # fmt: skip
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=oracle.OUTPUT * max(np.abs(b).max(initial=0), 1e-6))


@pytest.mark.parametrize("name", FAST)
def test_stored_networks_are_cut(name):
    checked(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_stored_network_is_cut(name):
    """Codes of what stays are what they were, zeros stay zeros; bytes fall to mask, kept codes and scales."""
    checked(name)


def cut_between(name, share=0.4):
    """Pruned, cut, then rounded: the masks go with the leaves, and what is stored is that of the small network."""
    model = ZOO[name]()
    network = jn.Network(model.apply, model.variables)
    info = jn.inspect(model.apply, model.variables, *model.inputs)
    state = PRUNED.init(model.variables, info)
    network = network.replace(variables=PRUNED.view(model.variables, state))
    plan, _ = planned(Model(name, model.apply, network.variables, model.inputs, ""), share)
    small, remap = jn.cut_units(share=0.5).execute(network, plan)
    own = jn.inspect(small.apply, small.variables, *model.inputs)
    carried, report = remap.state(PRUNED, state, small.variables, own)
    assert not report, report
    rounded = ROUNDED.init(PRUNED.view(small.variables, carried), own)
    both, states = jn.chain(PRUNED, ROUNDED), jn.State((carried.learnt, rounded.learnt), (carried.carried, rounded.carried))
    stored, view = both.pack(small.variables, states), both.view(small.variables, states)
    cut, before, dense = stays(model.variables, plan), leaves_by_path(network.variables), jax.jit(jn.densify)(stored)
    coded = 0
    for path, leaf in leaves_by_path(stored).items():
        np.testing.assert_array_equal(leaves_by_path(dense)[path], leaves_by_path(view)[path], err_msg=path)
        if not isinstance(leaf, jn.Masked) or leaf.frame is None:
            continue
        coded += 1
        read = Read(leaf)
        np.testing.assert_array_equal(read.mask, cut(path, np.asarray(before[path])) != 0, err_msg=path)
        np.testing.assert_array_equal(read.dense, leaves_by_path(dense)[path])
        assert leaf.nbytes == read.nbytes, path
    assert coded


@pytest.mark.parametrize("name", FAST)
def test_networks_are_cut_between(name):
    cut_between(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_network_is_cut_between(name):
    cut_between(name)


def test_groups_are_cut_whole_or_not_at_all():
    """Codes that share a scale along the axis that is cut: whole groups go; one that is cut apart is an error that names it."""
    model = ZOO["tuple_list"]()
    method = jn.quantize(4, group=4)
    stored = method.pack(model.variables, method.init(model.variables, jn.inspect(model.apply, model.variables, *model.inputs)))
    network, cut = jn.Network(model.apply, stored), jn.cut_units(share=0.0)
    plan = cut.plan(network, jn.ModelInfo(), *model.inputs)
    name = next(layer.name for layer in plan.layers if layer.pinned is None)
    whole = plan.replace({name: np.r_[0:4, 12:32]})
    small, _ = cut.execute(network, whole)
    keep = stays(stored, whole)
    for (path, before), after in zip(leaves_by_path(stored).items(), leaves_by_path(small.variables).values(), strict=True):
        np.testing.assert_array_equal(jn.densify(after), keep(path, np.asarray(jn.densify(before))))
    with pytest.raises(ValueError, match=r"^1/0: 4 bits.* its groups along axis 0 are cut apart; cut the network first"):
        cut.execute(network, plan.replace({name: np.r_[0:3, 12:32]}))
