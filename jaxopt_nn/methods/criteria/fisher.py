"""Second-order criteria on the diagonal: the empirical Fisher and the Hessian."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.model import Known
from jaxopt_nn.core.tap import Probe
from jaxopt_nn.methods.criteria.base import Criterion, Memory, asking

#: Share that a moving average of squared gradients keeps at each step.
DECAY = 0.99


def _squares(loss: Callable[..., Any], leaves: dict[str, Any], taken: Sequence[str], key: Any) -> dict[str, Any]:
    slopes = jax.grad(loss)(leaves)
    return {path: jnp.square(slopes[path].astype(jnp.float32)) for path in taken}


def _averaged(held: Any, weight: jax.Array, grad: jax.Array) -> Any:
    return DECAY * held + (1 - DECAY) * jnp.square(grad)


@asking(
    probes={"fisher": Probe(_squares, of="example")}, memory={"fisher": Memory(jnp.zeros_like, _averaged)}, gradients=False
)
def fisher(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
    """``w^2 F / 2``, ``F`` the diagonal of the empirical Fisher information (Theis et al. 2018, eq. 9).

    ``F`` is the mean over examples of the squared gradient of the loss of one, ``(w g)^2`` averaged. By ``calibrate`` it is
    measured, one example at a time. On a schedule it goes on as a moving average of the squares of the gradients of
    minibatches (0.99 of the old), which for batches of B examples near a minimum are B times smaller; the order of weights is
    what counts.

    Args:
      weight: float32, the leaf.
      grad: not used.
      known: its ``stats["fisher"]``, float32 of the weight's shape.

    Returns:
      The score, of the weight's shape: the rise of the loss, to second order, in its units.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.array([[2.0], [1.0]])})
      >>> x = np.array([[1.0, 8.0], [1.0, -8.0]], np.float32)
      >>> task = jn.regression(test=(x, np.ones((2, 1), np.float32)))
      >>> method = jn.prune(jn.fisher, sparsity=0.5)
      >>> method.view(net.variables, method.init(net.variables, jn.calibrate(net, method, task)))["kernel"].ravel()
      Array([0., 1.], dtype=float32)
    """
    return 0.5 * jnp.square(weight) * known.stats["fisher"]


def _hessian(probes: int) -> Callable[..., dict[str, Any]]:
    """Hutchinson's estimate of the diagonal of the Hessian: the mean of ``z * (H z)`` over random signs ``z``."""

    def measure(loss: Callable[..., Any], leaves: dict[str, Any], taken: Sequence[str], key: Any) -> dict[str, Any]:
        own = {path: leaves[path].astype(jnp.float32) for path in taken}
        slope = jax.grad(lambda part: loss({**leaves, **part}))

        def add(total: dict[str, Any], key: Any) -> tuple[dict[str, Any], None]:
            keys = dict(zip(own, jax.random.split(key, len(own)), strict=True))
            signs = {path: jax.random.rademacher(keys[path], x.shape, jnp.float32) for path, x in own.items()}
            curved = jax.jvp(slope, (own,), (signs,))[1]
            return jax.tree.map(lambda t, z, h: t + z * h / probes, total, signs, curved), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, own), jax.random.split(key, probes))[0]

    return measure


@functools.cache
def obd(probes: int = 8) -> Criterion:
    """``w^2 H / 2``, ``H`` the diagonal of the Hessian of the loss: Optimal Brain Damage (LeCun et al. 1990, eq. 5).

    ``calibrate`` measures it: of each batch the mean of ``z * (H z)`` over random signs ``z`` (Hutchinson's estimate, exact
    where the Hessian is diagonal). Departure: LeCun et al. propagate second derivatives back through the layers, dropping the
    terms that could be negative; here they stay, and what lies over a maximum goes first.

    Args:
      probes: random signs for each batch; the error falls as ``1 / sqrt(probes * batches)``.

    Returns:
      A criterion; its score is the rise of the loss, to second order, of either sign.

    Raises:
      ValueError: no whole number from 1.

    Example:
      >>> net = jn.Network(lambda v, x: x * v["gain"] @ v["kernel"], {"gain": jnp.ones(2), "kernel": jnp.array([[2.0], [1.0]])})
      >>> x = np.array([[1.0, 8.0], [1.0, -8.0]], np.float32)
      >>> task = jn.regression(test=(x, np.ones((2, 1), np.float32)))
      >>> method = jn.prune(jn.obd(), sparsity=0.5)
      >>> method.view(net.variables, method.init(net.variables, jn.calibrate(net, method, task)))["kernel"].ravel()
      Array([0., 1.], dtype=float32)
    """
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"obd(probes={probes!r}): random signs for each batch; allowed are whole numbers from 1")

    @asking(probes={"hessian": Probe(_hessian(probes))}, gradients=False, signed=True)
    def damage(weight: jax.Array, grad: jax.Array | None, known: Known) -> jax.Array:
        return 0.5 * jnp.square(weight) * known.stats["hessian"]

    return damage
