"""What is measured on data: taps at a site or of layers, probes of the loss."""

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


class Probe(NamedTuple):
    """A statistic of the loss, or of the outputs, by leaf: what a criterion must know that no site shows.

    Attributes:
      measure: ``(function, leaves, taken, key) -> {path: pytree of arrays}``. ``function(leaves) -> float32 scalar``;
        ``leaves`` are all float leaves by path, ``taken`` the paths of those that the method changes, of which it measures.
      of: ``"loss"``: the function is the task's mean loss over a batch, and the statistic the mean over batches, weighed by
        their examples. ``"example"``: likewise, of one example at a time. ``"outputs"``: the sum of all outputs where each
        input is one; no data.

    Example:
      >>> def measure(loss, leaves, taken, key):
      ...     slopes = jax.grad(loss)(leaves)
      ...     return {path: slopes[path] for path in taken}
      >>> def by_slope(weight, grad, known):
      ...     return jnp.abs(known.stats["slope"])
      >>> by_slope.probes = {"slope": jn.Probe(measure)}
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((2, 1))})
      >>> task = jn.regression(test=(np.array([[1.0, 3.0]], np.float32), np.zeros((1, 1), np.float32)))
      >>> method = jn.prune(by_slope, sparsity=0.5)
      >>> method.init(net.variables, jn.calibrate(net, method, task)).carried["kernel"].mask.ravel()
      Array([False,  True], dtype=bool)
    """

    measure: Callable[..., dict[str, PyTree]]
    of: str = "loss"


class LayerTap(NamedTuple):
    """A streaming statistic of a stack of layers: of the value that they add to, before and after each.

    Attributes:
      zero: ``(layers) -> accumulator``, a pytree of arrays of fixed shapes; how many layers there are.
      add: ``(accumulator, before, after) -> accumulator``; both ``[layers, ...]``, as the model has them.
      alone: each branch is a layer of its own, as in ``cut_layers(branches=True)``.

    Example:
      >>> growth = jn.LayerTap(  # the summed norm of what each layer adds
      ...     zero=lambda layers: jnp.zeros(layers),
      ...     add=lambda acc, before, after: acc + jnp.linalg.norm(after - before, axis=-1).sum(range(1, before.ndim - 1)),
      ... )
      >>> def by_growth(layers):  # a score
      ...     return layers.stats["growth"][layers.name]
      >>> by_growth.layer_taps = {"growth": growth}
      >>> apply = lambda v, x: jax.lax.scan(lambda x, w: (x + x * w, None), x, v["w"])[0]
      >>> net = jn.Network(apply, {"w": jnp.array([3.0, 0.1, 1.0])})
      >>> cut = jn.cut_layers(by_growth, layers=1)
      >>> x = jnp.ones((2, 4))
      >>> cut.plan(net, jn.calibrate(net, cut, [x]), x).kept["w"]
      array([0, 2])
    """

    zero: Callable[[int], PyTree]
    add: Callable[[PyTree, Any, Any], PyTree]
    alone: bool = False


#: What a method may ask to be measured.
Statistic = Tap | Probe | LayerTap
