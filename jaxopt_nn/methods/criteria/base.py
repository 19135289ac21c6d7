"""What a criterion is, and what it may ask for beside the weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from jaxopt_nn.core.model import Known, Site
from jaxopt_nn.core.tap import Probe, Tap
from jaxopt_nn.core.transform import no_taps

#: ``(weight float32, gradient float32 or None, known) -> score`` of the weight's shape; the lowest scores go first. ``known``
#: has the leaf's roles and matrix, and in ``known.stats`` what the criterion asks for by attributes (``Asked``).
Criterion = Callable[[jax.Array, jax.Array | None, Known], jax.Array]
Function = TypeVar("Function", bound=Callable[..., Any])


class Memory(NamedTuple):
    """What a criterion keeps of a leaf while the network trains; it finds it in ``known.stats``.

    Attributes:
      zero: ``(weight) -> arrays`` before the first step. Where a probe of the same name was measured, that takes its place.
      add: ``(memory, weight, gradient) -> memory``, at each ``update``, before weights are scored; float32.

    Example:
      >>> def steady(weight, grad, known):  # the largest gradient seen so far
      ...     return known.stats["steepest"]
      >>> steady.memory = {"steepest": jn.Memory(jnp.zeros_like, lambda held, w, g: jnp.maximum(held, jnp.abs(g)))}
      >>> method = jn.prune(steady, sparsity=jn.cubic(0.5, end=2))
      >>> v = {"kernel": jnp.ones((2, 2))}
      >>> state = method.init(v)
      >>> for step, slopes in enumerate(([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]])):
      ...     state = method.update(v, state, step=step, grads={"kernel": jnp.array(slopes)})
      >>> state.carried["kernel"].mask
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """

    zero: Callable[[Any], Any]
    add: Callable[[Any, jax.Array, jax.Array], Any]


class Asked(NamedTuple):
    """What criteria and allocations ask for, by attributes of these names.

    Attributes:
      taps: ``site -> {name: Tap}``: statistics of the sites of a leaf.
      probes: ``{name: Probe}``: statistics of the loss, by leaf.
      memory: ``{name: Memory}``.
      key: a PRNG key or a seed; ``known.stats["key"]`` is then a key of the leaf.
      gradients: True: it reads the gradient, which there is in ``update`` alone; False: it does not; None: it may.
      signed: scores may be negative, so that their squares say nothing.
    """

    taps: Callable[[Site], Mapping[str, Tap]] = no_taps
    probes: Mapping[str, Probe] = {}
    memory: Mapping[str, Memory] = {}
    key: Any = None
    gradients: bool | None = None
    signed: bool = False


def asking(**attributes: Any) -> Callable[[Function], Function]:
    """Gives a function the attributes of ``Asked``."""

    def with_attributes(function: Function) -> Function:
        for name, value in Asked(**attributes)._asdict().items():
            if name in attributes:
                setattr(function, name, value)
        return function

    return with_attributes


def asked(*criteria: Any, allocation: Any = None) -> Asked:
    """What the parts of a pruning ask for together; an allocation sees no gradients."""
    parts = (*criteria, allocation)
    own = [Asked(**{name: getattr(part, name) for name in Asked._fields if hasattr(part, name)}) for part in parts]
    tapping = [each.taps for each in own if each.taps is not no_taps]
    gradients = [each.gradients for each in own[:-1]]
    return Asked(
        no_taps if not tapping else tapping[0] if len(tapping) == 1 else _all_taps(tapping),
        {name: probe for each in own for name, probe in each.probes.items()},
        {name: memory for each in own for name, memory in each.memory.items()},
        next((each.key for each in own if each.key is not None), None),
        True if True in gradients else None if None in gradients else False,
        any(each.signed for each in own),
    )


def _all_taps(tapping: list[Callable[[Site], Mapping[str, Tap]]]) -> Callable[[Site], Mapping[str, Tap]]:
    return lambda site: {name: tap for taps in tapping for name, tap in taps(site).items()}
