"""The core type: a transform over parameters, and the one way to lift a per-leaf method to a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_nn.core.arguments import require
from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.model import ModelInfo, Site, StatKey
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.core.tap import Statistic, Tap
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


class State(NamedTuple):
    """State of a transform or a rule: both fields are pytrees.

    ``learnt`` is trained by gradient and owned by the optimizer (LSQ steps, codebooks, thresholds); ``carried`` is
    changed by ``update`` alone (masks, ranges, codes, the PRNG key).

    Example:
      >>> v = {"kernel": jnp.array([[4.0, 1.0], [2.0, 3.0]])}
      >>> method = jn.prune(sparsity=0.5)
      >>> state = method.init(v)
      >>> state.learnt  # nothing to train: the mask is no number
      {'kernel': ()}
      >>> state.carried["kernel"].mask
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """

    learnt: PyTree = ()
    carried: PyTree = ()


class LeafTraits(NamedTuple):
    """What a transform does to one leaf that it takes.

    Attributes:
      packs: ``None`` (values change, nothing is packed), ``"mask"`` (packs a mask, which stands outermost and can hold
        another packed tensor) or ``"codes"`` (packs the values themselves: nothing may change them after).
      keeps_zeros: an entry that is exactly zero stays exactly zero.
      passed: of a chain, each member that leaves the leaf alone, with its reason.
      notes: what else its user should know, as full clauses.

    Example:
      >>> v = {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)}
      >>> method = jn.chain(jn.prune(sparsity=0.5), jn.quantize(4))
      >>> method.traits.takes("kernel", v["kernel"], jn.ModelInfo()).packs
      'codes'
      >>> method.traits.takes("bias", v["bias"], jn.ModelInfo())  # a str is the reason why a leaf is left alone
      'has 1 axes; nothing is contracted over it'
    """

    packs: str | None = None
    keeps_zeros: bool = True
    passed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Facts(NamedTuple):
    """A small table that a method has to tell of a network: what it has cut off, say.

    Attributes:
      title, note: of the table, how to read it.
      header, cells: names of the columns, and lines of words and numbers.

    Example:
      >>> v = {"kernel": jnp.array([[0.5, -2.0], [0.1, 0.3]])}
      >>> method = jn.clip(-1.0, 1.0)
      >>> fact, = method.traits.facts(v, method.init(v))  # what a report says of a clip
      >>> fact.title, fact.header
      ('Clipped weights', ('path', 'min', 'max', 'lo', 'hi', 'clipped, %'))
      >>> fact.cells[0][0], fact.cells[0][-1]
      ('kernel', 25.0)
    """

    title: str
    note: str
    header: tuple[str, ...]
    cells: tuple[tuple[str | float, ...], ...]


def no_facts(params: PyTree, state: State) -> tuple[Facts, ...]:
    """The facts of a method that has nothing to tell."""
    return ()


class Traits(NamedTuple):
    """Static facts about a transform.

    Attributes:
      takes: ``(path, leaf, info) -> LeafTraits | str``: how it treats that leaf, or why it leaves it alone.
      leaf_local: each leaf's result depends on that leaf alone.
      needs: subset of ``{"roles", "couplings", "layers", "branches", "grads", "key"}``; ``layers`` and ``branches`` are stacks
        of layers, in the place of axis groups.
      taps: ``info -> {(member, site, tap): Tap}``: the statistics that ``init`` reads, that ``info`` lacks and that can be
        taken now; of the loss ``{(member, path, name): Probe}``, of layers ``{(member, stack, name): LayerTap}``. Empty where
        none is lacking; ``calibrate`` asks until then.
      seen: ``(params, info) -> params`` with which these are taken: what the members before see (for a single method,
        ``params``).
      passes: how often ``calibrate`` goes over the data.
      pending: ``step -> str | None``: what is left of its schedules after the update of that step, in words; None: nothing.
      name: what messages call it.
      facts: ``(params, state) -> (Facts, ...)``: what a report says of it, beside numbers that all methods have.
      follows: ``(state, cuts) -> State`` for a network that a pass has cut: each array of the state is cut as the leaf that it
        lies beside, or made anew and reported (groups that the cut breaks). None: it has no state, or does not say.
      timed: its plan depends on how long programs take, so that another run may plan otherwise.

    Example:
      >>> traits = jn.prune(sparsity=jn.cubic(0.9, end=100)).traits
      >>> traits.name, sorted(traits.needs)
      ('prune', ['roles'])
      >>> print(traits.pending(50))
      sparsity is at 0.7875 and ends at 0.9
      >>> print(traits.pending(100))
      None
    """

    takes: Callable[[str, Any, ModelInfo], LeafTraits | str]
    leaf_local: bool = True
    needs: frozenset[str] = frozenset()
    taps: Callable[[ModelInfo], Mapping[StatKey, Statistic]] = lambda info: {}
    seen: Callable[[PyTree, ModelInfo], PyTree] = lambda params, info: params
    passes: int = 0
    pending: Callable[[int], str | None] = lambda step: None
    name: str = "a transform"
    facts: Callable[[PyTree, State], tuple[Facts, ...]] = no_facts
    follows: Callable[[State, Cuts], State] | None = None
    timed: bool = False


class Transform(NamedTuple):
    """Pure functions over parameters that keep the tree and the shapes. A new method is a value of this type.

    Attributes:
      init: ``(params, info=ModelInfo()) -> State``.
      update: ``(params, state, *, step, grads=None) -> State``; touches ``carried`` only. ``grads`` is the dense gradient
        at ``view(params, state)``.
      view: ``(params, state) -> params`` that the forward pass sees; differentiable in ``params`` and ``state.learnt``.
      project: ``(params, state) -> (params, learnt)``, after the optimizer's step: back to where they are allowed.
      pack: ``(params, state) -> params`` with compressed tensors; host code over jitted functions.
        Law: ``densify(pack(p, s)) == view(p, s)``.
      traits: static facts.

    Example:
      >>> def view(params, state):  # what the forward pass sees: no weight below zero
      ...     return jax.tree.map(lambda w: jnp.maximum(w, 0), params)
      >>> positive = jn.identity()._replace(view=view, pack=view)
      >>> v = {"kernel": jnp.array([[0.3, -0.9]])}
      >>> positive.view(v, positive.init(v))["kernel"]
      Array([[0.3, 0. ]], dtype=float32)
    """

    init: Callable[..., State]
    update: Callable[..., State]
    view: Callable[[PyTree, State], PyTree]
    project: Callable[[PyTree, State], tuple[PyTree, PyTree]]
    pack: Callable[[PyTree, State], PyTree]
    traits: Traits


def as_transform(value: Any, what: str) -> Transform:
    """``value`` if it is a ``Transform``; ``what`` is what messages call it.

    Raises:
      TypeError: it is something else.
    """
    hint = "a Transform such as quantize(4); a rule goes to Stage(rule=) or Network(rules=), a pass to a Stage of its own"
    return require(value, Transform, what, hint)


def as_state(value: Any, name: str) -> State:
    """``value`` if it is a ``State``; ``name`` is that of its transform.

    Raises:
      TypeError: it is something else.
    """
    return require(value, State, f"{name}: state", "a State: method.init(variables, info), or what update returned")


def as_info(value: Any) -> ModelInfo:
    """``value`` if it is a ``ModelInfo``.

    Raises:
      TypeError: it is something else.
    """
    return require(value, ModelInfo, "info", "a ModelInfo: inspect(apply, variables, *inputs), or nothing")


def keep_state(params: PyTree, state: State, *, step: Any = 0, grads: PyTree | None = None) -> State:
    """An ``update`` that changes nothing."""
    return state


def keep_params(params: PyTree, state: State) -> PyTree:
    """A ``view`` or ``pack`` that changes nothing."""
    return params


def keep_both(params: PyTree, state: State) -> tuple[PyTree, PyTree]:
    """A ``project`` that changes nothing."""
    return params, state.learnt


def followed(method: Transform, state: State, cuts: Cuts) -> State:
    """The state of ``method`` for a network that a pass has cut.

    Raises:
      ValueError: it holds arrays, and the method does not say how they follow.
    """
    if method.traits.follows is not None:
        return method.traits.follows(state, cuts)
    if jax.tree.leaves(state):
        raise ValueError(
            f"{method.traits.name}: does not say how its state follows the leaves that a pass cuts; give it "
            "Traits(follows=(state, cuts) -> State), or make it with leafwise"
        )
    return state


#: What ``identity`` says of each leaf: no remark beside what other members of a chain do.
IDLE = "identity changes nothing"


def identity() -> Transform:
    """The transform that changes nothing, and so takes no leaf: plain training.

    Example:
      >>> v = {"kernel": jnp.ones((4, 2))}
      >>> plain = jn.identity()
      >>> plain.view(v, plain.init(v)) is v
      True
      >>> stage = jn.Stage("float", jn.identity(), epochs=3)  # the float training of a recipe
    """
    return Transform(
        lambda params, info=ModelInfo(): State(), keep_state, keep_params, keep_both, keep_params,
        Traits(lambda path, leaf, info: IDLE, name="identity"),
    )  # fmt: skip


def why_not_float(leaf: Any) -> str | None:
    """Why a method for real numbers leaves ``leaf`` alone, or None."""
    if is_compressed(leaf):
        return "is a compressed tensor already"
    if not hasattr(leaf, "dtype"):
        return f"is a Python {type(leaf).__name__}, no array: wrap it in jnp.asarray"
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return f"{leaf.dtype}: complex numbers stay as they are; make real and imaginary parts leaves of their own"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"dtype {leaf.dtype} is not real floating point"
    if 0 in leaf.shape:
        return f"shape {tuple(leaf.shape)} holds no entry"
    return None


def why_not_matrix(path: str, leaf: Any, info: ModelInfo) -> str | None:
    """Why a method for weight matrices leaves ``leaf`` alone, or None: it takes float leaves that some site contracts.

    Looking up counts: it contracts over the vocabulary. A dot need not contract anything: ``einsum("bi,i->bi")`` scales.
    Without knowledge of the model every float leaf of two or more axes is taken.
    """
    if reason := why_not_float(leaf):
        return reason
    if not info.leaves and not info.roles:
        return None if leaf.ndim >= 2 else f"has {leaf.ndim} axes; nothing is contracted over it"
    roles = info.roles.get(path)
    if roles is None:
        entry = next((entry for entry in info.leaves if entry.path == path), None)
        if entry is None:
            return "is unknown to this ModelInfo"
        return entry.reason or f"no site contracts it: the weight of {', '.join(entry.sites)} is computed with it"
    if not roles.input:
        return "no site contracts it: each of its entries scales one number, or is added to it"
    return None


def no_taps(site: Site) -> Mapping[str, Tap]:
    """The taps of a method that sees nothing of the model's activations."""
    return {}


def explain(method: Transform, variables: PyTree, info: ModelInfo = ModelInfo()) -> Report:
    """Every leaf that ``method`` leaves alone, with the reason, also where only one member of a chain does.

    And every leaf whose roles were assumed, and what else is to be said of those that it takes.

    Args:
      variables: arrays or ``jax.ShapeDtypeStruct``.
      info: of ``inspect`` or ``calibrate``; without it roles are assumed, and said to be.

    Returns:
      A ``Report`` with messages of the kinds ``skipped``, ``partial``, ``assumed`` and ``note``.

    Example:
      >>> def apply(v, x):
      ...     return x @ v["kernel"] * v["gain"]
      >>> v = {"kernel": jnp.ones((64, 64)), "gain": jnp.ones(64)}
      >>> info = jn.inspect(apply, v, jnp.ones((1, 64)))
      >>> print(jn.explain(jn.chain(jn.prune(sparsity=0.5), jn.quantize(4)), v, info))
      skipped  gain  combined with an activation by `mul`
    """
    if not hasattr(method, "traits"):  # a pass has them too
        as_transform(method, "explain: method")
    messages = []
    for path, leaf in leaves_by_path(variables).items():
        verdict = method.traits.takes(path, leaf, info)
        if isinstance(verdict, str):
            messages.append(Message("skipped", path, verdict))
            continue
        messages += [Message("partial", path, reason) for reason in verdict.passed]
        messages += [Message("note", path, reason) for reason in verdict.notes]
        if "roles" in method.traits.needs and path not in info.roles:
            messages.append(
                Message("assumed", path, "roles: last axis is the output, no stack (pass info=inspect(...))")
            )
    return Report(tuple(messages))
