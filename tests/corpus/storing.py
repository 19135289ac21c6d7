"""What holds of every network that is packed: its numbers, its bytes, its report, its runs, its file."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_nn as jn
from jaxopt_nn.core.paths import leaves_by_path
from tests.zoo.base import Model

PyTree = Any
#: How far outputs may be apart, over the largest of them: float32 sums in another order, over all layers.
NEAR = 3e-4
#: Factors multiply to the view within this part of its largest entry.
FACTORS = 1e-5


def packed(model: Model, method: jn.Transform) -> tuple[PyTree, PyTree]:
    """The view, and what is packed; each leaf is one that the method takes, or is listed and is what it was.

    Raises:
      AssertionError: a leaf that is neither.
    """
    info = jn.inspect(model.apply, model.variables, *model.inputs)
    state = method.init(model.variables, info)
    stored = method.pack(model.variables, state)
    skipped = {message.path: message.reason for message in jn.explain(method, model.variables, info).of("skipped")}
    for (path, leaf), held in zip(leaves_by_path(model.variables).items(), leaves_by_path(stored).values(), strict=True):
        if path in skipped:
            assert skipped[path] and held is leaf, path
        else:
            assert jn.is_compressed(held) or not isinstance(method.traits.takes(path, leaf, info), str), path
    return jax.jit(method.view)(model.variables, state), stored


def tolerances(view: PyTree, stored: PyTree) -> dict[str, float]:
    """By path, how far ``densify`` may be from the view: 0 of codes; of a sum, a code may be the next to the view's."""

    def one(x: Any, dense: jax.Array) -> float:
        if isinstance(x, jn.LowRank):
            return FACTORS * float(jnp.abs(dense.astype(jnp.float32)).max(initial=0)) + rounding(x.dtype, dense)
        if isinstance(x, jn.Sum):
            step = 2 * float(jnp.max(x.b.scale)) if isinstance(x.b, jn.QTensor) else 0.0
            return one(x.a, dense) + step
        return 0.0

    dense = leaves_by_path(view)
    return {path: one(x, dense[path]) for path, x in leaves_by_path(stored).items()}


def rounding(dtype: Any, dense: jax.Array) -> float:
    """One unit in the last place of the largest, of narrow types."""
    if jnp.dtype(dtype).itemsize >= 4:
        return 0.0
    return float(jnp.finfo(dtype).eps) * float(jnp.abs(dense.astype(jnp.float32)).max(initial=0))


def near(ours: PyTree, theirs: PyTree, what: str, tolerance: float = NEAR) -> None:
    """Outputs, up to ``tolerance`` of the largest magnitude of each array."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, f"{what}: {a.dtype}{a.shape} in place of {b.dtype}{b.shape}"
        if jnp.issubdtype(b.dtype, jnp.inexact):
            a, b = (np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in (a, b))
            np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance * max(1e-3, np.abs(b).max(initial=0)), err_msg=what
            )


def check(model: Model, method: jn.Transform, folder: pathlib.Path, tolerance: float = NEAR) -> jn.Report:
    """The report of the packed network's run.

    Raises:
      AssertionError: where packing, its bytes, its runs, stored and prepared, or its file is wrong.
    """
    view, stored = packed(model, method)
    densify, dense, within = jax.jit(jn.densify), leaves_by_path(view), tolerances(view, stored)
    tensors = {path: x for path, x in leaves_by_path(stored).items() if jn.is_compressed(x)}
    assert jn.nbytes(stored) == sum(leaf.nbytes for leaf in jax.tree.leaves(stored))
    for path, x in tensors.items():
        assert x.shape == dense[path].shape and x.dtype == dense[path].dtype, path
        assert x.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(x)), path
        assert isinstance(x, jn.Sum) or x.nbytes < dense[path].nbytes, path
    decoded = densify(stored)
    agree(decoded, view, within)
    prepared = {platform: jn.prepare(stored, platform) for platform in ("cpu", "tpu", "gpu")}
    for made in densify(prepared).values():
        agree(made, decoded, within)
    theirs = jax.jit(model.apply)(decoded, *model.inputs)
    run = jn.rewrite(model.apply)
    near(jax.jit(run)(stored, *model.inputs), theirs, "stored", tolerance)
    near(kept(model, stored, folder / "network.jn")(*model.inputs), theirs, "prepared", tolerance)
    return run.explain(stored, *model.inputs)


def agree(ours: PyTree, theirs: PyTree, within: dict[str, float]) -> None:
    """Equal, or within the tolerance of the leaf."""
    wanted = leaves_by_path(theirs)
    for path, a in leaves_by_path(ours).items():
        b, most = wanted[path], within[path]
        if most:
            off = float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0))
            assert a.dtype == b.dtype and off <= most, f"{path}: off by {off:.3g}, {most:.3g} allowed"
        else:
            assert same(a, b), path


def same(a: jax.Array, b: jax.Array) -> bool:
    """Equal to the bit, but that zeros may differ in sign."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return same(jax.random.key_data(a), jax.random.key_data(b))
    return a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b), equal_nan=a.dtype.kind in "fc")


def kept(model: Model, stored: PyTree, path: pathlib.Path) -> jn.Network:
    """What one file brings back: equal to the bit, of the same structure."""
    jn.save(path, jn.Network(model.apply, stored), overwrite=True)
    network = jn.load(path, model.apply)
    assert jax.tree.structure(network.variables) == jax.tree.structure(stored)
    for (where, a), b in zip(leaves_by_path(network.variables).items(), leaves_by_path(stored).values(), strict=True):
        assert all(map(same, jax.tree.leaves(a), jax.tree.leaves(b))), where
    return network
