"""What a pass carries over to the network that it has cut: gradients, masks, optimizer moments, every method's state."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxopt_nn.core.cuts import Cuts
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path, map_with_path, near_misses, path_of
from jaxopt_nn.core.report import Recorder, Report
from jaxopt_nn.core.transform import PyTree, State, Transform, followed, identity


@dataclasses.dataclass(frozen=True, eq=False)
class Remap:
    """Carries what belongs to a network over to the network that a plan makes of it.

    What can't be carried is made anew and named in the report (kind ``anew``).

    Example:
      >>> def apply(v, x):
      ...     return jax.nn.relu(x @ v["up"]) @ v["down"]
      >>> net = jn.Network(apply, {"up": jnp.arange(32.0).reshape(4, 8), "down": jnp.ones((8, 2))})
      >>> cut = jn.cut_units(widths={"up": 2})
      >>> small, remap = cut.execute(net, cut.plan(net, jn.ModelInfo(), jnp.ones((1, 4))))
      >>> remap.leaf("up", jnp.arange(32).reshape(4, 8))[0]  # a gradient, a moment: cut as the leaf is
      Array([6, 7], dtype=int32)
      >>> state, report = remap.state(jn.prune(sparsity=0.5), jn.prune(sparsity=0.5).init(net.variables), small.variables)
      >>> state.carried["down"].mask.shape, len(report)
      ((2, 2), 0)
    """

    plan: Plan

    def leaf(self, path: str, x: Any) -> Any:
        """An array of the shape of the leaf at ``path`` (its gradient, its mask), cut as the leaf is; None if that is gone.

        Raises:
          ValueError: no such leaf (near misses are named), or another shape.
        """
        leaves = self.plan.leaves
        if path not in leaves:
            near = near_misses(path, leaves) or list(leaves)[:3]
            raise ValueError(f"remap: {path!r} is no leaf of {len(leaves)}; nearest: {', '.join(near) or 'none'}")
        if tuple(x.shape) != leaves[path]:
            raise ValueError(f"remap: {path} has shape {list(x.shape)}, the leaf of the plan {list(leaves[path])}")
        return self.plan.cuts[path].leaf(x, path) if path in self.plan.cuts else x

    def params(self, tree: PyTree) -> PyTree:
        """A tree of the parameters' structure, or of a part of it: variables, gradients, masks.

        Raises:
          ValueError: as ``leaf``.
        """
        return map_with_path(self.leaf, tree)

    def state(
        self, method: Transform, state: State, params: PyTree, info: ModelInfo = ModelInfo()
    ) -> tuple[State, Report]:
        """The state of ``method``, as its ``traits.follows`` says.

        Args:
          params: of the network that was cut.
          info: what is known of that network; with the statistics that ``method.init`` needs where some are made anew.

        Raises:
          ValueError: a method that does not say how its state follows, or whose ``init`` fails on the cut leaves (groups that
            no longer divide an axis); a state of another network.
        """
        recorder = Recorder()
        made = followed(method, state, Cuts(self.plan.cuts, params, info, recorder))
        try:
            seen = jax.eval_shape(method.view, params, made)
            fits = jax.tree.map(lambda a, b: a.shape == b.shape, seen, params)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{method.traits.name}: its state does not fit the network that was cut: {error}") from error
        if not jax.tree.all(fits):
            raise ValueError(f"{method.traits.name}: its view has other shapes than the network that was cut")
        return made, recorder.report()

    def opt(
        self, opt: PyTree, fresh: PyTree, method: Transform = identity(), state: State = State()
    ) -> tuple[PyTree, Report]:
        """The state of an optimizer, of any optax transformation over ``{"params", "learnt", "rules"}`` or parameters alone.

        A part that ends in a parameter's path and has its shape is cut. What lies there in another shape is made anew: a
        factored moment is a mean over what was cut. All else (counts, rates) stays where it has the shape that it has in
        ``fresh``. Moments of what a method learns go as that goes.

        Args:
          opt: before the cut.
          fresh: as the optimizer's ``init`` gives it for the network that was cut, with ``method``'s state carried over.
          method, state: whose ``learnt`` the optimizer moves: the method, and its state before the cut.

        Raises:
          ValueError: ``fresh`` is of another optimizer.
        """
        recorder = Recorder()
        moved = partial(_is_moved, leaves=self.plan.leaves, learnt=leaves_by_path(state.learnt).keys())
        olds, shape = jax.tree_util.tree_flatten_with_path(opt, is_leaf=moved)
        olds = [(keys, old) for keys, old in olds if moved(old) or not self._gone(path_of(keys))]
        news, structure = jax.tree_util.tree_flatten_with_path(fresh, is_leaf=moved)
        if [keys for keys, _ in olds] != [keys for keys, _ in news]:
            raise ValueError(f"remap: fresh is the state of another optimizer: {structure} where {shape} is to be carried")
        made = []
        for (keys, old), (_, new) in zip(olds, news, strict=True):
            place = path_of(keys)
            if moved(old):
                part = lambda path, x, y, place=place: self._part(f"{place}/params/{path}", x, y, recorder)
                stay = map_with_path(lambda path, x: None if self._gone(path) else x, old["params"])
                params = map_with_path(part, stay, new["params"])
                learnt = self._learnt(old["learnt"], new["learnt"], method, state, recorder)
                rules = self._rules(place, old["rules"], new["rules"], recorder)
                made.append({"params": params, "learnt": learnt, "rules": rules})
            else:
                made.append(self._part(place, old, new, recorder))
        return jax.tree.unflatten(structure, made), recorder.report()

    def _gone(self, place: str) -> bool:
        """Whether it belongs to a parameter that is in the tree no longer."""
        cut = self.plan.cuts.get(_parameter(place, self.plan.leaves)[0])
        return cut is not None and cut.gone

    def _part(self, place: str, old: Any, new: Any, recorder: Recorder) -> Any:
        """One array of an optimizer's state."""
        path, rest = _parameter(place, self.plan.leaves)
        cut = self.plan.cuts.get(path)
        if old.shape == new.shape and (cut is None or not old.shape):  # a count is no part of a parameter
            return old
        if cut is not None and not rest and (old.shape, new.shape) == (cut.shape, cut.small):
            return cut.leaf(old)
        if old.shape != new.shape or not np.array_equal(old, new):
            shape = f"{list(new.shape)} on the network that was cut" if cut is None else f"{list(cut.shape)} as the leaf"
            recorder.add("anew", path or place, f"the optimizer's {place} has shape {list(old.shape)}, not {shape}: made anew")
        return new

    def _learnt(self, old: PyTree, new: PyTree, method: Transform, state: State, recorder: Recorder) -> PyTree:
        """An optimizer's moments of what a method learns."""
        if not jax.tree.leaves(old):
            return new
        cuts = Cuts(self.plan.cuts, (), ModelInfo(), recorder, moments=new)
        return followed(method, State(old, state.carried), cuts).learnt

    def _rules(self, place: str, old: PyTree, new: PyTree, recorder: Recorder) -> PyTree:
        """An optimizer's moments of what rules learn, by site; of layers that are gone there are none."""
        ruled = partial(self._ruled, place, recorder)
        if not isinstance(new, dict) or old.keys() == new.keys():
            return jax.tree.map(ruled, old, new)
        leaf = lambda site: site.partition("#")[0]
        before, after = (Counter(map(leaf, sites)) for sites in (old, new))  # uses of a leaf are counted anew when some go
        made = {}
        for site, own in new.items():
            if site in old and before[leaf(site)] == after[leaf(site)]:
                own = jax.tree.map(ruled, old[site], own)
            elif jax.tree.leaves(own):
                recorder.add("anew", place, f"the optimizer's moment of what the rule at {site} learns: made anew")
            made[site] = own
        return made

    def _ruled(self, place: str, recorder: Recorder, old: Any, new: Any) -> Any:
        """An optimizer's moment of what a rule learns: along no leaf."""
        if old.shape == new.shape:
            return old
        shapes = f"{list(old.shape)}, on the network that was cut {list(new.shape)}"
        recorder.add("anew", place, f"the optimizer's moment of what a rule learns has shape {shapes}: made anew")
        return new


def _is_moved(tree: PyTree, leaves: Mapping[str, Any], learnt: Collection[str]) -> bool:
    """Whether it is what an optimizer keeps of all that it moves: by parameters, and by what a method learns."""
    if not (isinstance(tree, dict) and tree.keys() == {"params", "learnt", "rules"}):
        return False
    own = leaves_by_path(tree["learnt"]).keys()
    starts = lambda path: any("/".join(path.split("/")[: n + 1]) in leaves for n in range(path.count("/") + 1))
    return all(path in learnt for path in own) and all(map(starts, leaves_by_path(tree["params"])))


def _parameter(place: str, leaves: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The parameter whose path ends nearest to the end of ``place``, the longest of several, and what follows it; else ""."""
    parts = place.split("/")
    for end in range(len(parts), 0, -1):
        for start in range(end):
            if (path := "/".join(parts[start:end])) in leaves:
                return path, parts[end:]
    return "", parts
