"""Level 3: one interpreter over the model's jaxpr; the only home of ``jax.extend``.

``jaxprs`` reads equations (both JAX generations), ``tags`` follows leaves through layout operations, ``analyse`` finds the
sites, ``algebra`` and ``calls`` evaluate with compressed tensors in place; ``inspect``, ``capture`` and ``rewrite`` are
its uses. Axis groups will stand beside ``analyse``, on the same recursion (``jaxprs.bodies``).
"""
