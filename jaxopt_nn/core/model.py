"""What a method knows of a model: sites, the roles of a leaf's axes, statistics.

One table of letters for shapes, used everywhere: ``S`` stack, ``B`` batch, ``T`` tokens, ``I`` input features,
``O`` output features, ``G`` groups, ``K`` codebook size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Container, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_nn.core.matrix import Matrix
from jaxopt_nn.core.report import SCREEN, Report


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which axes of a leaf are stack (scan, vmap, experts), input (contracted) and output, as its site uses them.

    Axes are non-negative and sorted; an axis may stand in none of the three (a bias has no input axis). ``window`` names
    those of the input axes over which a convolution slides (height and width).

    Example:
      >>> v = {"kernel": jnp.ones((3, 3, 1, 8))}
      >>> def apply(v, x):
      ...     return jax.lax.conv_general_dilated(x, v["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> roles = jn.inspect(apply, v, jnp.ones((1, 5, 5, 1))).roles["kernel"]
      >>> roles.input, roles.output, roles.window
      ((0, 1, 2), (3,), (0, 1))
      >>> roles.channel_axes()  # one scale for each index over these
      (3,)
    """

    stack: tuple[int, ...] = ()
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    window: tuple[int, ...] = ()

    def channel_axes(self) -> tuple[int, ...]:
        """The axes along which a per-channel statistic is kept: stack and output."""
        return tuple(sorted((*self.stack, *self.output)))


def assumed_roles(ndim: int) -> Roles:
    """The roles of a leaf of which nothing is known: those of a convolution's kernel ``[..., I, O]``, no stack."""
    return Roles((), tuple(range(ndim - 1)), (ndim - 1,), tuple(range(ndim - 2))) if ndim else Roles()


def _outside(lhs: Any, rhs: Any) -> Any:
    raise TypeError("a site runs inside a rewritten model only; inspect() gives its description")


@dataclasses.dataclass(frozen=True)
class Use:
    """One leaf behind a site's weight.

    Attributes:
      path: of the leaf.
      exact: the weight is this leaf, up to layout and casts, or this leaf concatenated with others; else it is computed from
        it before use (``x @ (w * 2)``).
      roles: of the leaf's axes at this site; None where they can't be told.
      matrix: how the site reads the leaf; where it is not exact, the places of its entries; None where they can't be told.
      reason: why there is no matrix.
      operand: which operand of the site it is behind: where both are computed from leaves, the other one's are uses too.
    """

    path: str
    exact: bool
    roles: Roles | None
    matrix: Matrix | None
    reason: str = ""
    operand: int = 1


@dataclasses.dataclass(frozen=True)
class Site:
    """A dot, convolution or gather of the traced function.

    Its operands have a normal form: the activation is ``[S..., rows..., I]``, the weight ``[S..., I, O]``, the output
    ``[S..., rows..., O]``. ``S`` are the entries of the weight that it keeps apart: layers of a stack, experts, groups of a
    convolution. A lookup's ``I`` is its vocabulary, and its activation the ids ``[S..., rows...]``.

    Attributes:
      name: ``path``, ``path#1`` for a second use, ``@scope#0`` where both operands are activations.
      kind: ``dot``, ``conv`` or ``gather``.
      weight: which operand is the weight (0 left, 1 right), or None.
      uses: the leaves behind the weight, the one that names it first; more than one where it is derived.
      scope: the name stack of the equation.
      shapes, dtypes: of the two operands, as inside the innermost loop.
      inputs, outputs: lengths of ``I`` and ``O``.
      slots: of each stack axis of which the site reads one entry at a time, the address of the loop or index that picks it,
        outermost first. Two activations inside a scan over layers are kept apart by that scan.
      stack: lengths of ``S``: those of the slots, then those that the site keeps apart by itself.
      stacked: batch axes of a dot that are in ``S``, by their place in the dimension numbers.
      rows: for each axis of the rows, the axis of the inputs along which it runs, or None; () where nobody asked.
      reads: equal for two sites that read the same activation in the same way.
      macs: multiply-accumulates of one call of the model; a ``while`` body counts once.
      params: the primitive's static parameters.
      run: ``run(lhs, rhs)`` evaluates the site as it stands, on arrays or compressed tensors.

    Example:
      >>> v = {"kernel": jnp.arange(6.0).reshape(2, 3)}
      >>> info = jn.inspect(lambda v, x: v["kernel"] @ x, v, jnp.ones(3))  # the weight at the left
      >>> site, = info.sites
      >>> site.name, site.inputs, site.outputs, site.weight
      ('kernel', 3, 2, 0)
      >>> site.matrix(v["kernel"])  # [I, O], however the model lays it out
      Array([[0., 3.],
             [1., 4.],
             [2., 5.]], dtype=float32)
      >>> site.put(v["kernel"], jnp.zeros((3, 2))).shape
      (2, 3)
    """

    name: str
    kind: str
    weight: int | None
    uses: tuple[Use, ...]
    scope: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    inputs: int
    outputs: int
    slots: tuple[tuple[int, ...], ...]
    stack: tuple[int, ...]
    macs: int
    stacked: tuple[int, ...] = ()
    rows: tuple[int | None, ...] = ()
    reads: Hashable = dataclasses.field(repr=False, default=None)
    params: Mapping[str, Any] = dataclasses.field(repr=False, default_factory=dict)
    run: Callable[..., Any] = dataclasses.field(repr=False, compare=False, default=_outside)

    @property
    def leaf(self) -> str | None:
        """Path of the leaf that names the site, or None."""
        return self.uses[0].path if self.weight is not None else None

    @property
    def leaves(self) -> tuple[str, ...]:
        """All leaves behind the weight."""
        return tuple(use.path for use in self.uses)

    @property
    def derived(self) -> bool:
        """The weight is computed from its leaves before use, not just moved or concatenated."""
        return not all(use.exact for use in self.uses if use.operand == self.weight)

    @property
    def roles(self) -> Roles | None:
        """Of the axes of ``leaf`` at this site."""
        return self.uses[0].roles if self.weight is not None else None

    def matrix(self, w: Any) -> Any:
        """The leaf ``w`` as ``[S..., I, O]``: ``activation @ matrix`` is the site's output, where the weight is not derived.

        Of leaves that are concatenated before use each has a matrix in ``uses``, zero in the places of the others.
        Works under jit and on abstract arrays, and keeps the dtype.

        Raises:
          ValueError: the site has no weight, or its places in the leaf can't be told; another shape than the leaf's.
        """
        return self._matrix()(w)

    def put(self, w: Any, matrix: Any) -> Any:
        """The leaf ``w`` with the entries that this site reads replaced by ``matrix [S..., I, O]``.

        Raises:
          ValueError: as ``matrix``.
        """
        return self._matrix().put(w, matrix)

    def _matrix(self) -> Matrix:
        use = self.uses[0] if self.weight is not None else None
        if use is None or use.matrix is None:
            reason = "both operands are activations" if use is None else use.reason
            raise ValueError(f"{self.name}: has no matrix, since {reason}; leave the leaf alone, or treat it whole")
        return use.matrix


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of ``variables`` as the model uses it: shape, dtype, its sites, and the reason where it has none.

    ``stack`` holds the axes that a loop or an index takes away before the leaf is used. ``dtype`` is JAX's own: that of a PRNG
    key has no name that NumPy knows.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    sites: tuple[str, ...]
    reason: str | None
    stack: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        out = 1
        for n in self.shape:
            out *= n
        return out

    @property
    def matrix(self) -> bool:
        """Whether a matrix may lie in it: at least two axes, besides the stack, longer than one."""
        return sum(n > 1 for i, n in enumerate(self.shape) if i not in self.stack) >= 2


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An axis of a leaf in an axis group.

    Attributes:
      path, axis: which axis of which leaf; None: the whole leaf belongs to one unit.
      role: ``producer`` (an output axis of a site's weight), ``vector`` (a bias, a norm's scale: combined element by
        element), ``consumer`` (a contracted axis of a site's weight) or ``divisor`` (it divides, so it is cut with the
        others but can't be set to zero); ``layer`` (of which an entry, or the leaf, is a part of a layer).
      units: int ``[length of the axis]``: entry j belongs to unit ``units[j]`` of the group; -1: to none of them. Of a whole
        leaf int ``[]``.

    Example:
      >>> def apply(v, x):  # 2 channels on a 3 by 3 image, flattened: the dense layer reads 18 features
      ...     return jax.nn.relu(jnp.einsum("bhwi,io->bhwo", x, v["up"])).reshape(len(x), -1) @ v["down"]
      >>> v = {"up": jnp.ones((1, 2)), "down": jnp.ones((18, 5))}
      >>> group, _ = jn.axis_groups(apply, v, jnp.ones((1, 3, 3, 1)))
      >>> producer, consumer = group.members
      >>> producer.units, consumer.units[:6]  # cutting channel 1 cuts every second row of the dense layer
      (array([0, 1]), array([0, 1, 0, 1, 0, 1]))
    """

    path: str
    axis: int | None
    role: str
    units: np.ndarray


class Rebuild(NamedTuple):
    """What a module computes that is built anew at fewer units of a group, with the weights of those that stay.

    The network that is cut keeps the numbers of the whole one, such as the divisor of a mean; the module has others.

    Attributes:
      powers: ``(path, p)``: with these leaves times ``(units that stay / units)**p`` it computes the same, up to the epsilon
        that a norm adds; without any it does as it is.
      reason: None, or why no weights make it the same.

    Example:
      >>> def apply(v, x):  # RMSNorm over the hidden units
      ...     h = x @ v["up"]
      ...     return (h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True)) * v["scale"][None]) @ v["down"]
      >>> v = {"up": jnp.ones((4, 8)), "scale": jnp.ones(8), "down": jnp.ones((8, 2))}
      >>> jn.axis_groups(apply, v, jnp.ones((1, 4)))[0].rebuild
      Rebuild(powers=(('scale', -0.5),), reason=None)
    """

    powers: tuple[tuple[str, float], ...] = ()
    reason: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class AxisGroup:
    """Axes that must be cut or sharded together: the units of one layer, and all that reads them.

    Attributes:
      size: number of units.
      members: the axes, the producers first.
      pinned: None, or the reason why no unit may be cut.
      unsharded: None, or the reason why no device may hold a part of the units.
      rebuild: what a module computes that is built anew at fewer units; of a group that may be cut.
      name: of a stack of layers; else "".

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"] + v["bias"]) @ v["down"]
      >>> v = {"up": jnp.ones((4, 8)), "bias": jnp.zeros(8), "down": jnp.ones((8, 2))}
      >>> hidden, out = jn.axis_groups(apply, v, jnp.ones((1, 4)))
      >>> hidden.size, [(m.path, m.axis, m.role) for m in hidden.members]
      (8, [('up', 1, 'producer'), ('bias', 0, 'vector'), ('down', 0, 'consumer')])
      >>> out.pinned
      'reaches an output of `apply`'
    """

    size: int
    members: tuple[Member, ...]
    pinned: str | None = None
    unsharded: str | None = None
    rebuild: Rebuild = Rebuild()
    name: str = ""


class Read(NamedTuple):
    """A site that contracts a group's units, as ``capture`` sees its input ``[..., I]``.

    ``x.reshape(..., *shape)`` has unit ``units[j]`` at entry j of axis ``axis`` (of ``shape``); -1: none of them.
    """

    site: str
    shape: tuple[int, ...]
    axis: int
    units: np.ndarray


class Coupling(NamedTuple):
    """An axis group, and the sites that read it."""

    group: AxisGroup
    reads: tuple[Read, ...]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["stats"], meta_fields=["roles", "matrix"])
@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of one leaf, as a method gets it.

    Attributes:
      roles: of its axes; assumed where nothing is known.
      matrix: how its site reads it; of several sites the first that contracts it, else the first lookup; None: not known.
      stats: ``{tap: statistic [S..., ...]}`` that the method asked for, over all sites that read it as ``matrix`` does.

    Example:
      >>> def small_rows_first(weight, grad, known):  # a criterion: all weights of an input share its score
      ...     matrix = known.matrix(weight)
      ...     return known.matrix.put(weight, jnp.abs(matrix).sum(1, keepdims=True) + 0 * matrix)
      >>> v = {"kernel": jnp.array([[3.0, 3.0], [1.0, 4.0], [2.0, 2.0]])}
      >>> info = jn.inspect(lambda v, x: x @ v["kernel"], v, jnp.ones((1, 3)))
      >>> method = jn.prune(small_rows_first, sparsity=1 / 3)
      >>> method.view(v, method.init(v, info))["kernel"]
      Array([[3., 3.],
             [1., 4.],
             [0., 0.]], dtype=float32)
    """

    roles: Roles
    matrix: Matrix | None = None
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)


#: ``(member of the method, site, tap)``: whose statistic it is. Of a method inside combinators a member is the place in each,
#: outermost first; of a single method ``()``.
StatKey = tuple[tuple[int, ...], str, str]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a model, as data for methods.

    ``ModelInfo()`` knows nothing: then roles are assumed, and the report says so.

    Attributes:
      roles: ``{path: Roles}``, static, from ``inspect``.
      stats: ``{(member, site, tap): statistic}``, arrays, from ``calibrate``.
      sites, leaves, report: as found by ``inspect``; printing the object gives the report's table, cut to a screen.
      couplings: the axis groups with what reads them, from ``calibrate`` for a method that needs them; None: not asked for.

    Example:
      >>> v = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> info = jn.inspect(lambda v, x: x @ v["kernel"] + v["bias"], v, jnp.ones((8, 4)))
      >>> info.roles["kernel"]
      Roles(stack=(), input=(0,), output=(1,), window=())
      >>> [(site.name, site.kind, site.macs) for site in info.sites], info.coverage
      ([('kernel', 'dot', 64)], 1.0)
      >>> [(leaf.path, leaf.reason) for leaf in info.leaves if not leaf.sites]
      [('bias', 'combined with an activation by `add`')]
    """

    roles: Mapping[str, Roles] = dataclasses.field(default_factory=dict)
    stats: Mapping[StatKey, Any] = dataclasses.field(default_factory=dict)
    sites: tuple[Site, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    report: Report = Report()
    couplings: tuple[Coupling, ...] | None = None

    def roles_of(self, path: str, ndim: int) -> Roles:
        """The roles of a leaf, assumed where nothing is known of it."""
        return self.roles.get(path) or assumed_roles(ndim)

    def sites_of(self, path: str) -> list[tuple[Site, Matrix | None]]:
        """The sites that read a leaf, contractions first, each with how it reads it."""
        found = [(site, use.matrix) for site in self.sites for use in site.uses if use.path == path]
        return sorted(found, key=lambda pair: pair[0].kind == "gather")

    def matrix(self, path: str) -> Matrix | None:
        """How the first site that contracts a leaf reads it, else its first lookup; None where that can't be told."""
        return next((matrix for _, matrix in self.sites_of(path) if matrix is not None), None)

    def of_member(self, i: int, paths: Container[str] | None = None) -> ModelInfo:
        """As member ``i`` of a combinator sees it: its own statistics, and of the leaves those of ``paths``."""
        own = {(member[1:], site, tap): x for (member, site, tap), x in self.stats.items() if member[:1] == (i,)}
        leaves = self.leaves if paths is None else tuple(leaf for leaf in self.leaves if leaf.path in paths)
        return dataclasses.replace(self, stats=own, leaves=leaves)

    @property
    def coverage(self) -> float:
        """Share of the parameters in matrix-shaped leaves whose leaf feeds a site (1.0 where there are none)."""
        matrices = [leaf for leaf in self.leaves if leaf.matrix]
        total = sum(leaf.size for leaf in matrices)
        return sum(leaf.size for leaf in matrices if leaf.sites) / total if total else 1.0

    def with_stats(self, stats: Mapping[StatKey, Any]) -> ModelInfo:
        return dataclasses.replace(self, stats=dict(stats))

    def __str__(self) -> str:
        return self.table(SCREEN)

    def table(self, limit: int | None = None) -> str:
        """As printed, with ``limit`` lines of leaves, all of them if None."""
        return f"{self.report.table(limit)}\n{self._covered()}"

    def _covered(self) -> str:
        return f"{self.coverage:.1%} of the parameters in matrices feed a site"
