"""Level 3: one interpreter over the model's jaxpr; the only home of ``jax.extend``.

``jaxprs`` reads equations (both JAX generations). ``flow/table`` says once what is known of a primitive: ``tags`` follows
leaves by it, ``flow/ties`` and ``flow/zeros`` find axis groups, ``flow/residuals`` what a network runs without, ``flow/shrink``
evaluates on smaller arrays. ``analyse`` finds the sites, ``algebra`` and ``calls`` evaluate with compressed tensors in place;
``inspect``, ``capture``, ``rewrite``, ``groups`` and ``layers`` are its uses.
"""
