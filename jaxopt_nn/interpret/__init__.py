"""Level 3: one interpreter over the model's jaxpr; the only home of ``jax.extend``.

``jaxprs`` reads equations (both JAX generations), ``tags`` follows leaves through layout operations, ``analyse`` finds the
sites, ``algebra`` and ``calls`` evaluate with compressed tensors in place; ``inspect``, ``capture`` and ``rewrite`` are
its uses. ``flow`` follows axes and residual branches, for ``groups`` (what may be narrower) and ``layers`` (what may
be shorter).
"""
