"""A traced model: the jaxpr of ``apply`` on dense leaves, its sites, and what is to be said of every leaf."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.model import Leaf, ModelInfo, Roles, Site, assumed_roles
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.interpret import jaxprs, tags
from jaxopt_nn.interpret.analyse import Analysis
from jaxopt_nn.interpret.constants import constants_report
from jaxopt_nn.interpret.leaves import as_it_stands, told
from jaxopt_nn.interpret.tags import Key
from jaxopt_nn.tensors.base import is_compressed

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """``apply``, traced on abstract dense leaves.

    Attributes:
      jaxpr: open jaxpr over the flat leaves of ``(variables, *inputs)``, a compressed tensor counting as one leaf.
      consts: its constants. out_tree: structure of what ``apply`` returns.
      sites, behind, conditions: as found by ``Analysis``. info: what ``inspect`` returns.
    """

    jaxpr: Any
    consts: tuple[Any, ...]
    out_tree: Any
    sites: dict[Key, Site]
    info: ModelInfo
    behind: dict[Key, tuple[tuple[str, ...], ...]]
    conditions: frozenset[Key] = frozenset()


def flatten(variables: PyTree, inputs: tuple[PyTree, ...]) -> tuple[list[Any], Any]:
    """The flat leaves of ``(variables, *inputs)``, a compressed tensor counting as one, and their structure."""
    return jax.tree.flatten((variables, *inputs), is_leaf=is_compressed)


def dense_like(leaf: Any) -> Any:
    """The abstract dense array that a leaf stands for."""
    if is_compressed(leaf) or isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.typeof(leaf)


def check_apply(apply: Any) -> None:
    """Raises TypeError where ``apply`` is no pure function ``(variables, *inputs)``: a module, a network, variables."""
    how = "pass a pure function (variables, *inputs) first, then its variables"
    if not callable(apply):
        raise TypeError(f"apply is {in_words(apply)}; {how}")
    if hasattr(apply, "apply") or any(kind.__module__.startswith("flax.") for kind in type(apply).__mro__):
        raise TypeError(
            f"apply is {in_words(apply)}, no function; {how}: net.apply, net.variables of a Network; for a Flax "
            "module first net = jaxopt_nn.linen(model, variables), or jaxopt_nn.nnx(model)"
        )


def check_numbers(variables: PyTree, inputs: tuple[PyTree, ...]) -> None:
    """Raises TypeError where a leaf of the variables or of the inputs is no array of numbers."""
    for what, tree in (("variables", variables), ("inputs", inputs)):
        for path, leaf in leaves_by_path(tree).items():
            numbers = not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "OSU"
            if not (numbers and (hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex))):
                raise TypeError(f"{what}: {path} is {in_words(leaf)}; pass an array of numbers, e.g. jnp.asarray(...)")


def complaint(error: BaseException) -> str:
    """The first line of what a model said, without web addresses; of an error with a cause, the cause's."""
    error = error.__cause__ or error
    said = next(iter(str(error).strip().splitlines()), "")
    said = re.sub(r"\s*\(?https?://\S+", "", said)[:300].rstrip(" .:")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def fails_on(what: str, inputs: tuple[PyTree, ...], error: BaseException, *, batch: bool = False) -> str:
    """What to say of a model that fails on its inputs; with ``batch`` the first axis is called ``B``."""
    leaves = leaves_by_path(inputs)
    each = ", ".join(_said(path, x, batch) for path, x in list(leaves.items())[:4]) or "none"
    each += f" and {len(leaves) - 4} more (a list counts each number: pass arrays)" if len(leaves) > 4 else ""
    return (
        f"{what} fails on inputs {each}: {complaint(error)}; it is called as apply(variables, *inputs), with inputs as in its "
        "training"
    )


def _said(path: str, x: Any, batch: bool) -> str:
    """``float32[B, 8]`` of an input that is an array, ``image float32[B, 8]`` of one within a dict."""
    name = path.partition("/")[2]
    shape = ("B", *x.shape[1:]) if batch else x.shape
    return f"{name}{' ' if name else ''}{x.dtype}[{', '.join(map(str, shape))}]"


def _traced(apply: Callable[..., PyTree], variables: PyTree, inputs: tuple[PyTree, ...]) -> tuple[Any, Any]:
    """The closed jaxpr of ``apply`` on abstract arguments, and the abstract outputs."""
    try:
        return jax.make_jaxpr(apply, return_shape=True)(variables, *inputs)
    except Exception as error:
        raise ValueError(fails_on("apply", inputs, error)) from error


def trace_model(
    apply: Callable[..., PyTree], variables: PyTree, inputs: tuple[PyTree, ...], rows: tuple[int, ...] = ()
) -> Program:
    """Traces and analyses ``apply``; nothing is run.

    Args:
      rows: the leading lengths of the inputs whose axes are followed to the sites (``Site.rows``).

    Raises:
      TypeError: ``apply`` is no function, a leaf or an input no array. ValueError: ``variables`` holds no array, ``apply``
        fails on its arguments, or most of the weights are closed over by it.
    """
    check_apply(apply)
    check_numbers(variables, inputs)
    paths = leaves_by_path(variables)
    if not paths:
        raise ValueError("variables holds no array: pass the whole pytree that apply takes, e.g. model.init(...)")
    flat, tree = flatten(variables, inputs)
    abstract = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=getattr(a, "weak_type", False)) for a in map(dense_like, flat)
    ]
    args = jax.tree.unflatten(tree, abstract)
    closed, out_shape = _traced(apply, args[0], args[1:])
    body = jaxprs.opened(closed)
    shapes = dict(zip(paths, abstract, strict=False))
    in_tags = [tags.of_leaf(path, a.shape) for path, a in shapes.items()]
    in_tags += [_input_tag(a.shape, rows) for a in abstract[len(paths) :]]
    const_tags = [
        tags.Tag(consts=frozenset({i})) if _weightlike(c) else tags.CONSTANT for i, c in enumerate(body.consts)
    ]
    sizes = {path: a.size for path, a in shapes.items()}
    found = Analysis(body.jaxpr, in_tags, sizes, const_tags)
    fed = sum(sizes[path] for path in {path for site in found.sites.values() for path in site.leaves})
    allowed = getattr(apply, "keeps_constants", False)
    report = found.recorder.report() + constants_report(found.constants, body.consts, fed, allowed=allowed)
    info = _model_info(found, shapes, report)
    out_tree = jax.tree.structure(out_shape)
    return Program(
        body.jaxpr, tuple(body.consts), out_tree, found.sites, info, found.behind, frozenset(found.conditions)
    )


def _input_tag(shape: tuple[int, ...], rows: tuple[int, ...]) -> tags.Tag:
    """An input; its leading axes are named by their place where they are as long as ``rows``."""
    if not rows or shape[: len(rows)] != rows:
        return tags.ACTIVATION
    return tags.ACTIVATION._replace(rows=tuple(frozenset({i}) if i < len(rows) else tags.NONE for i in range(len(shape))))


def _weightlike(const: Any) -> bool:
    return jnp.issubdtype(const.dtype, jnp.inexact) and const.ndim >= 2


def _model_info(found: Analysis, shapes: dict[str, Any], report: Report) -> ModelInfo:
    sites_of: dict[str, list[str]] = {path: [] for path in shapes}
    roles: dict[str, Roles] = {}
    others: dict[str, Roles] = {}  # of lookups, derived weights, scalings: the roles of a contraction go first
    messages: list[Message] = []
    for site in found.sites.values():
        if site.derived or len(site.uses) > 1:
            messages.append(
                Message("derived", site.name, f"the weight is computed from {', '.join(site.leaves)} before use")
            )
        for use in site.uses:
            sites_of[use.path].append(site.name)
            own = use.roles
            if own is None and len(shapes[use.path].shape) >= 2:
                own = assumed_roles(len(shapes[use.path].shape))
                messages.append(Message("assumed", use.path, f"its roles: it {_lost(use.reason, use.path)}"))
            if own is None or (not use.exact and not own.input):
                continue
            known = (roles if use.exact and own.input and site.kind != "gather" else others).setdefault(use.path, own)
            if known != own and use.exact:
                messages.append(Message("note", site.name, f"uses the axes as {own}; {use.path} keeps {known}"))
    leaves = []
    for path, a in shapes.items():
        reason = None if sites_of[path] else _reason(found.uses.get(path, []))
        names = tuple(dict.fromkeys(sites_of[path]))
        leaves.append(Leaf(path, tuple(a.shape), a.dtype, names, reason, tuple(sorted(found.stacks[path]))))
        if reason is not None and leaves[-1].matrix:
            messages.append(Message("no site", path, reason))
    info = ModelInfo({**others, **roles}, {}, tuple(found.sites.values()), tuple(leaves), report + messages)
    runs = {site.name: as_it_stands(site) for site in info.sites}
    return dataclasses.replace(info, report=told(info, shapes, info.report, runs))


def _lost(reason: str, path: str) -> str:
    return reason.removeprefix(f"{path} ")


def _reason(uses: list[str]) -> str:
    return "; ".join(uses[:2]) if uses else "is not read by apply"
