"""Training with a transform: one state pytree, one jitted step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_nn.core.arguments import check_takes, in_words
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.transform import PyTree, State, Transform, as_transform

if TYPE_CHECKING:
    import optax


#: What messages ask for as the loss of a step.
LOSS = "a function (variables, batch, key) -> (scalar, (metrics, {path: changed leaf})); of nothing to tell, (scalar, ({}, {}))"


class TrainState(NamedTuple):
    """All that training changes, as one pytree, so that sharding, donation and checkpoints come free.

    Attributes:
      params: the whole ``variables``; leaves that are not trained ride along.
      learnt, carried: the transform's state.
      opt: the optimizer's state, over ``{"params", "learnt", "rules"}``, the last what rules learn, by site.
      step: int32 scalar.
      key: PRNG key; step ``t`` uses ``fold_in(key, t)``.
      rules: the states of the rules by site.

    Example:
      >>> import optax
      >>> method, optimizer = jn.prune(sparsity=0.5), optax.adam(1e-3)
      >>> state = jn.init_train_state({"kernel": jnp.ones((2, 2))}, method, optimizer, jax.random.key(0))
      >>> int(state.step), state.carried["kernel"].mask  # ties go by position
      (0, Array([[ True,  True],
             [False, False]], dtype=bool))
      >>> seen = method.view(state.params, state.state)  # state.state: learnt and carried, as the method takes them
    """

    params: PyTree
    learnt: PyTree
    carried: PyTree
    opt: PyTree
    step: jax.Array
    key: jax.Array
    rules: Mapping[str, State] = MappingProxyType({})

    @property
    def state(self) -> State:
        return State(self.learnt, self.carried)


def trained(variables: PyTree, still: Collection[str] = ()) -> PyTree:
    """A tree of bools: which leaves of ``variables`` an optimizer moves: the inexact ones whose path is not in ``still``."""
    return map_with_path(lambda path, x: bool(jnp.issubdtype(x.dtype, jnp.inexact) and path not in still), variables)


def _split(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """(the leaves where ``mask`` is true, the others); None stands for a leaf of the other part."""
    return (
        jax.tree.map(lambda m, x: x if m else None, mask, tree),
        jax.tree.map(lambda m, x: None if m else x, mask, tree),
    )


def _join(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)


def init_train_state(
    params: PyTree,
    method: Transform,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    info: ModelInfo = ModelInfo(),
    state: State | None = None,
    rules: Mapping[str, State] = MappingProxyType({}),
    still: Collection[str] = (),
) -> TrainState:
    """The state before the first step.

    Args:
      state: overrides ``method.init`` (a later stage of a recipe).
      rules: the states of the rules by site (``Network.states``).
      still: paths of the leaves that no optimizer moves: running statistics, constants (``Network.still``).
      params: the whole ``variables``.
      method: the transform that is trained with them.
      optimizer: any optax transformation.
      key: of the training: step ``t`` uses ``fold_in(key, t)``.
      info: what ``method.init`` gets.

    Example:
      >>> import optax
      >>> v = {"kernel": jnp.ones((4, 2)), "mean": jnp.zeros(4)}
      >>> state = jn.init_train_state(v, jn.identity(), optax.adam(1e-3), jax.random.key(0), still=("mean",))
      >>> int(state.step)
      0
      >>> moments = state.opt[0].mu["params"]
      >>> [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(moments)[0]]  # none for "mean"
      ["['kernel']"]
    """
    _check_training(method, optimizer, "init_train_state")
    if not (hasattr(key, "dtype") and key.shape in ((), (2,), (4,))):
        raise TypeError(f"init_train_state: key is {in_words(key)}; pass a PRNG key: jax.random.key(0)")
    state = method.init(params, info) if state is None else state
    moved, _ = _split(params, trained(params, still))
    opt = optimizer.init({"params": moved, "learnt": state.learnt, "rules": _learnt(rules)})
    return TrainState(params, state.learnt, state.carried, opt, jnp.zeros((), jnp.int32), key, dict(rules))


def _check_training(method: Any, optimizer: Any, what: str) -> None:
    """Raises TypeError where there is no transform, or no optax transformation."""
    as_transform(method, f"{what}: method")
    if isinstance(optimizer, Transform) or not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"{what}: optimizer is {in_words(optimizer)}; pass an optax transformation, e.g. optax.sgd(0.1)")


def _learnt(rules: Mapping[str, State]) -> dict[str, PyTree]:
    return {site: state.learnt for site, state in rules.items()}


def _with_learnt(rules: Mapping[str, State], learnt: Mapping[str, PyTree]) -> dict[str, State]:
    return {site: State(learnt[site], state.carried) for site, state in rules.items()}


class Averaged(NamedTuple):
    """State of ``averaging``: the optimizer's, the average (float32 or wider), the number of steps."""

    inner: PyTree
    average: PyTree
    done: jax.Array


def averaging(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """``optimizer``, which also keeps an exponential moving average of what it moves (Polyak and Juditsky 1992).

    ``average = d average + (1 - d) moved`` after each step ``t = 0, 1, ...``, with ``d = min(decay, (1 + t) / (10 + t))``, so
    that a short training forgets its start. The training itself goes on as without; ``averaged`` gives the result.
    """
    import optax

    def init(moved: PyTree) -> Averaged:
        wide = lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32))
        return Averaged(optimizer.init(moved), jax.tree.map(wide, moved), jnp.zeros((), jnp.int32))

    def update(grads: PyTree, state: Averaged, moved: PyTree = None) -> tuple[PyTree, Averaged]:
        updates, inner = optimizer.update(grads, state.inner, moved)
        d = jnp.minimum(decay, (1 + state.done) / (10 + state.done))
        mix = lambda old, new: (d * old + (1 - d) * new).astype(old.dtype)
        average = jax.tree.map(mix, state.average, optax.apply_updates(moved, updates))
        return updates, Averaged(inner, average, state.done + 1)

    return optax.GradientTransformation(init, update)


def averaged(ts: TrainState, method: Transform, *, still: Collection[str] = ()) -> TrainState:
    """The train state of an ``averaging`` optimizer with the averages in their leaves' place, projected by the method.

    Leaves that no optimizer moves, and ``carried`` (masks), stay as they are.
    """
    moved, rest = _split(ts.params, trained(ts.params, still))
    narrow = lambda old, new: new.astype(old.dtype)
    now = {"params": moved, "learnt": ts.learnt, "rules": _learnt(ts.rules)}
    mean = jax.tree.map(narrow, now, ts.opt.average)
    params, learnt = method.project(_join(mean["params"], rest), State(mean["learnt"], ts.carried))
    return ts._replace(params=params, learnt=learnt, rules=_with_learnt(ts.rules, mean["rules"]))


def make_step(
    loss: Callable[..., tuple[jax.Array, tuple[Any, ...]]],
    method: Transform,
    optimizer: optax.GradientTransformation,
    *,
    still: Collection[str] = (),
    gradient_norms: bool = False,
    update_rules: Callable[..., Mapping[str, State]] | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """One training step, pure and jittable (``jax.jit(step, donate_argnums=0)``).

    Args:
      loss: ``(variables, batch, key) -> (scalar, (metrics, changed))``; ``changed`` holds the leaves that the forward pass
        changed, ``{path: new leaf}``, such as running statistics, or nothing. With ``update_rules`` it is
        ``(variables, batch, key, rules) -> (scalar, (metrics, changed, measured))``, on the states of the rules.
      method: what the forward pass sees of the parameters; ``identity()`` for plain training.
      optimizer: any optax transformation, over ``{"params", "learnt", "rules"}``.
      still: paths of the leaves that no optimizer moves.
      gradient_norms: adds ``gradient_norms`` to the metrics, ``{path: Euclidean norm}`` of the gradient that the optimizer
        gets, behind the view: where a method's derivative vanishes, it is zero.
      update_rules: ``(variables, batch, rules, measured, step) -> rules``, after the optimizer's step; changes what is
        ``carried`` (``Rewritten.measure`` and ``update``).

    Returns:
      ``step(train_state, batch) -> (train_state, metrics)``; ``metrics`` gets ``loss`` added.

    Example:
      >>> import optax
      >>> def loss(v, batch, key):
      ...     x, y = batch
      ...     return jnp.square(x @ v["kernel"] - y).mean(), ({}, {})
      >>> method, optimizer = jn.prune(sparsity=0.5), optax.sgd(0.1)
      >>> state = jn.init_train_state({"kernel": jnp.array([[1.0], [2.0]])}, method, optimizer, jax.random.key(0))
      >>> step = jax.jit(jn.make_step(loss, method, optimizer))
      >>> state, metrics = step(state, (jnp.ones((4, 2)), jnp.zeros((4, 1))))
      >>> float(metrics["loss"]), state.params["kernel"].ravel()  # the masked weight got no gradient
      (4.0, Array([1. , 1.6], dtype=float32))
    """
    import optax  # the package imports without it

    check_takes(loss, 3 if update_rules is None else 4, "make_step: loss", LOSS)
    _check_training(method, optimizer, "make_step")
    told, update = (loss, update_rules) if update_rules else (_without_rules(loss), _keep_rules)

    def step(ts: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        moved, rest = _split(ts.params, mask := trained(ts.params, still))

        def view_moved(moved: PyTree, learnt: PyTree) -> tuple[PyTree, PyTree]:
            return _split(method.view(_join(moved, rest), State(learnt, ts.carried)), mask)

        (seen, seen_rest), pull = jax.vjp(view_moved, moved, ts.learnt)

        def objective(seen: PyTree, learnt: Any) -> tuple[jax.Array, tuple[Any, ...]]:
            key, rules = jax.random.fold_in(ts.key, ts.step), _with_learnt(ts.rules, learnt)
            return told(_join(seen, seen_rest), batch, key, rules)

        gradient = jax.value_and_grad(objective, (0, 1), has_aux=True)
        (value, (metrics, changed, measured)), (dense, grad_rules) = gradient(seen, _learnt(ts.rules))
        grad_params, grad_learnt = pull((dense, jax.tree.map(_zero_cotangent, seen_rest)))
        if gradient_norms:
            metrics = {**metrics, "gradient_norms": _norms(grad_params)}
        now = {"params": moved, "learnt": ts.learnt, "rules": _learnt(ts.rules)}
        slopes = {"params": grad_params, "learnt": grad_learnt, "rules": grad_rules}
        updates, opt = optimizer.update(slopes, ts.opt, now)
        new = optax.apply_updates(now, updates)
        params, learnt = method.project(_join(new["params"], rest), State(new["learnt"], ts.carried))
        at_view = _join(dense, jax.tree.map(jnp.zeros_like, rest))
        state = method.update(params, State(learnt, ts.carried), step=ts.step, grads=at_view)
        rules = update(_join(seen, seen_rest), batch, _with_learnt(ts.rules, new["rules"]), measured, ts.step)
        params = map_with_path(lambda path, x: changed.get(path, x), params) if changed else params
        after = TrainState(params, state.learnt, state.carried, opt, ts.step + 1, ts.key, dict(rules))
        return after, {**metrics, "loss": value}

    return step


def _keep_rules(variables: PyTree, batch: Any, rules: Mapping[str, State], measured: Any, step: Any) -> Mapping[str, State]:
    return rules


def _without_rules(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss that knows of no rules, as one that measures nothing for them."""

    def told(variables: PyTree, batch: Any, key: Any, rules: Any) -> tuple[Any, tuple[Any, ...]]:
        given = loss(variables, batch, key)
        pair = given[1] if isinstance(given, tuple) and len(given) == 2 else None
        if not (isinstance(pair, tuple) and len(pair) == 2 and jnp.ndim(given[0]) == 0):
            raise TypeError(f"make_step: loss returned {_shapes(given)}; pass {LOSS}")
        return given[0], (*pair, {})

    return told


def _shapes(tree: PyTree) -> str:
    """What a loss returned, in a few words."""
    return f"({', '.join(map(in_words, tree))})" if isinstance(tree, tuple) else in_words(tree)


def _norms(slopes: PyTree) -> dict[str, jax.Array]:
    """The Euclidean norm of each leaf."""
    return {p: jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)))) for p, g in leaves_by_path(slopes).items()}


def _zero_cotangent(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)
