"""What cutting must equal: the network whose cut units are zero in every member.

All of it is computed from a plan as plain data, by NumPy: ``plan.layers``, each with ``cut`` (bool), ``size``, ``kept`` (the
units that stay) and ``members``, and a member's ``path``, ``axis``, ``role`` and ``units`` (int, for each entry of the axis the
unit that it belongs to, -1 for none). An axis None stands for a leaf that belongs to one unit as a whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.paths import leaves_by_path

PyTree = Any
#: ``plan -> (apply, variables)`` of the network that was cut.
Execute = Callable[[Any], tuple[Callable[..., PyTree], PyTree]]

#: Of the largest magnitude. Both networks are float32 and add the same numbers but for zeros, in another order, so differ by no
#: more than each from exact arithmetic: over the corpus float32 outputs are at most 6e-7 of the largest off those of float64,
#: gradients 6e-6. A unit that is cut wrongly changes an output by its own order.
OUTPUT = 2e-5
GRADIENT = 1e-4


def staying(shapes: dict[str, tuple[int, ...]], plan: Any, divisors: bool = True) -> dict[str, dict[Any, np.ndarray]]:
    """``{path: {axis: bool}}``: which entries of an axis stay, over all layers that share it; of None whether the leaf does.

    Args:
      divisors: whether members of the role ``divisor`` count.
    """
    stay: dict[str, dict[int, np.ndarray]] = {}
    for layer in plan.layers:
        kept = np.asarray(layer.kept)
        assert layer.cut == (len(kept) < layer.size), f"{layer}: cut is {layer.cut}, {len(kept)} of {layer.size} units stay"
        if not layer.cut:
            continue
        assert len(kept) and np.array_equal(kept, np.unique(kept)) and 0 <= kept[0] and kept[-1] < layer.size, kept
        seen = np.zeros(layer.size, bool)
        for member in layer.members:
            units = np.asarray(member.units)
            where = f"{member.path}, axis {member.axis}"
            shape = () if member.axis is None else (shapes[member.path][member.axis],)
            assert units.shape == shape, f"{where}: {units.size} units for {shapes[member.path]}"
            assert -1 <= units.min() and units.max() < layer.size, f"{where}: units {units} of {layer.size}"
            seen[units[units >= 0]] = True
            if member.role == "divisor" and not divisors:
                continue
            axes = stay.setdefault(member.path, {})
            entries = (units < 0) | np.isin(units, kept)
            axes[member.axis] = axes.get(member.axis, np.ones(shape, bool)) & entries
        assert seen.all(), f"units {np.flatnonzero(~seen)} of {layer.members[0].path} are in no member"
    return stay


def _mapped(variables: PyTree, fun: Callable[[str, np.ndarray], Any]) -> PyTree:
    """``fun(path, leaf)`` of every leaf as a NumPy array."""
    made = [fun(path, np.asarray(x)) for path, x in leaves_by_path(variables).items()]
    return jax.tree.unflatten(jax.tree.structure(variables), made)


def _shapes(variables: PyTree) -> dict[str, tuple[int, ...]]:
    return {path: tuple(np.shape(x)) for path, x in leaves_by_path(variables).items()}


def zeroed(variables: PyTree, plan: Any) -> PyTree:
    """The variables with the entries of the cut units at zero in every member, but for members of the role ``divisor``."""
    stay = staying(_shapes(variables), plan, divisors=False)

    def leaf(path: str, x: np.ndarray) -> jax.Array:
        x = np.array(x)
        for axis, entries in stay.get(path, {}).items():
            (x if axis is None else np.moveaxis(x, axis, 0))[~entries] = 0
        return jnp.asarray(x)

    return _mapped(variables, leaf)


def restricted(tree: PyTree, plan: Any) -> PyTree:
    """A tree of the variables' shapes (a gradient, the variables themselves), without the entries that are cut."""
    stay = staying(_shapes(tree), plan)

    def leaf(path: str, x: np.ndarray) -> np.ndarray | None:
        for axis, entries in stay.get(path, {}).items():
            if axis is None and not entries:
                return None
            x = x if axis is None else np.compress(entries, x, axis=axis)
        return x

    return _mapped(tree, leaf)


def check(model: Any, plan: Any, execute: Execute, gradients: bool = True, larger: bool = True) -> None:
    """Raises AssertionError where the network that a plan makes is not the zeroed network.

    Checked are: the cut leaves, entry by entry; that outputs keep their shapes and types, and have the zeroed network's values;
    the same on a batch twice as large, where the model runs on one; gradients with respect to all that stays, where there are
    any and those of the zeroed network are finite.

    Args:
      model: with ``apply``, ``variables``, ``inputs`` and ``name``.
      plan: as plain data; see the module.
      execute: cuts the network.
      gradients, larger: whether these are compared.
    """
    small_apply, small = execute(plan)
    zero = zeroed(model.variables, plan)
    for (path, wanted), ours in zip(
        leaves_by_path(restricted(model.variables, plan)).items(), leaves_by_path(small).values(), strict=True
    ):
        assert ours.dtype == wanted.dtype and ours.shape == wanted.shape, f"{path}: {ours.shape}, the plan says {wanted.shape}"
        np.testing.assert_array_equal(np.asarray(ours), wanted, err_msg=f"{path}: other entries than those that stay")

    def outputs(inputs: tuple) -> None:
        wanted = jax.jit(model.apply)(zero, *inputs)
        _near(jax.jit(small_apply)(small, *inputs), wanted, OUTPUT, f"{model.name}, output")

    for inputs in _larger(model) if larger else ():
        outputs(inputs)
    try:
        theirs = gradient(model.apply, zero, model.inputs) if gradients else None
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        theirs = None
    if theirs is None:
        outputs(model.inputs)
        return
    ours = gradient(small_apply, small, model.inputs)
    _near(ours[0], theirs[0], OUTPUT, f"{model.name}, output")
    _near(ours[1], restricted(theirs[1], plan), GRADIENT, f"{model.name}, gradient", finite=False)


def gradient(apply: Callable[..., PyTree], variables: PyTree, inputs: tuple) -> tuple[PyTree, PyTree]:
    """The outputs; and the gradient of their sum, each times fixed random numbers, with respect to the floating-point leaves,
    zeros for the others. One program."""

    def loss(floats: list[jax.Array]) -> tuple[jax.Array, PyTree]:
        rest = iter(floats)
        leaves = [next(rest) if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in jax.tree.leaves(variables)]
        outputs = apply(jax.tree.unflatten(jax.tree.structure(variables), leaves), *inputs)
        rng = np.random.default_rng(11)
        total = jnp.float32(0)
        for y in jax.tree.leaves(outputs):
            if jnp.issubdtype(y.dtype, jnp.inexact):
                total += jnp.sum(jnp.real(y) * jnp.asarray(rng.standard_normal(y.shape), jnp.float32))
        return total, outputs

    leaves = jax.tree.leaves(variables)
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    grads, outputs = jax.jit(jax.grad(loss, has_aux=True))(floats)
    made = iter(grads)
    full = [next(made) if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros_like(x) for x in leaves]
    return outputs, jax.tree.unflatten(jax.tree.structure(variables), full)


def _larger(model: Any) -> tuple[tuple[jax.Array, ...], ...]:
    """Inputs of twice the batch, the first axis of all that have as many rows as the first input; none if it does not run."""
    rows = model.inputs[0].shape[0]

    def twice(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.roll(x, 1, axis=-1)]) if x.ndim and x.shape[0] == rows else x

    inputs = tuple(map(twice, model.inputs))
    try:
        outputs = jax.eval_shape(model.apply, model.variables, *inputs)
    except (TypeError, ValueError, AssertionError):
        return ()
    return (inputs,) if jax.tree.leaves(outputs) else ()


def _near(ours: PyTree, theirs: PyTree, tolerance: float, what: str, finite: bool = True) -> None:
    """Equal up to ``tolerance`` of the largest magnitude of each array, compared where theirs is finite."""
    wanted, made = leaves_by_path(theirs), leaves_by_path(ours)
    assert wanted.keys() == made.keys(), f"{what}: {made.keys()} in place of {wanted.keys()}"
    scale = max((_largest(np.asarray(y)) for y in wanted.values()), default=0.0)
    for path, y in wanted.items():
        x, y = np.asarray(made[path]), np.asarray(y)
        assert x.shape == y.shape and x.dtype == y.dtype, f"{what} {path}: {x.dtype}{x.shape} in place of {y.dtype}{y.shape}"
        there = np.isfinite(y)
        assert there.all() or not finite, f"{what} {path}: the zeroed network is not finite; its group must stay pinned"
        # A gradient that is nearly zero is what is left of larger ones: a part of the largest of all is allowed too.
        largest = max(_largest(y), 0 if finite else 0.01 * scale, 1e-6)
        off = float(np.abs(x[there].astype(y.dtype) - y[there]).max(initial=0)) / largest
        assert off <= tolerance, f"{what} {path}: off by {off:.2g} of the largest, {tolerance:g} allowed"


def _largest(y: np.ndarray) -> float:
    """The largest finite magnitude."""
    return float(np.abs(y[np.isfinite(y)]).max(initial=0))
