"""Taps: what is measured at a site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxopt_nn.core.model import Site

PyTree = Any


class Tap(NamedTuple):
    """A streaming statistic of a site, of one entry of its stack at a time.

    A site with a stack ``S`` (layers, experts, groups) has one accumulator for each entry, as leading axes. Two taps are the
    same where their functions are: a factory gives the same functions for the same arguments, so that sites which read one
    activation share one statistic.

    Attributes:
      zero: ``(site) -> accumulator``, a pytree of arrays of fixed shapes; the site has ``inputs`` and ``outputs``.
      add: ``(accumulator, x, weight, site) -> accumulator``. ``x`` is the activation as ``[rows..., I]`` (a convolution's input
        as patches; a lookup's ids as ``[rows...]``), or the output as ``[rows..., O]`` where ``of="output"``. ``weight``: how
        much each row counts, float32, broadcasts against ``[rows...]``; None where all count alike.
      merge: ``(accumulator, accumulator) -> accumulator``, associative; joins batches, devices and shards.
      of: ``"input"``, ``"output"``, or ``"operands"``: then ``x`` is the pair of the site's operands as the model has them, and
        rows are not weighed. Of a product of two activations ``"input"`` shows the left one only.

    Example:
      >>> counts = jn.Tap(  # how many rows each site has seen
      ...     zero=lambda site: jnp.zeros((), jnp.int32),
      ...     add=lambda acc, x, weight, site: acc + x.size // site.inputs,
      ...     merge=lambda a, b: a + b,
      ... )
      >>> v = {"kernel": jnp.ones((4, 2))}
      >>> outputs, stats = jn.capture(lambda v, x: x @ v["kernel"], counts)(v, jnp.ones((3, 5, 4)))
      >>> stats
      {'kernel': Array(15, dtype=int32)}
    """

    zero: Callable[[Site], PyTree]
    add: Callable[[PyTree, Any, Any, Site], PyTree]
    merge: Callable[[PyTree, PyTree], PyTree]
    of: str = "input"
