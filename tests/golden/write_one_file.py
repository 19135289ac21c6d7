"""Writes the golden file of version 1 and its arrays; run once, when the version was made.

    python -m tests.golden.write_one_file
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_nn as jn
from experiments.benchmarks.fuzz_artifact import network

if __name__ == "__main__":
    folder = Path(__file__).parent
    rng = np.random.default_rng(1)
    tree = network() | {
        "shared": jnp.arange(6.0), "again": jnp.arange(6.0),
        "kinds": [jnp.asarray(rng.integers(0, 2, (3, 7)), kind) for kind in ("bool", "int4", "uint2", "int8", "float8_e4m3fn")],
        "large": jnp.asarray(rng.standard_normal(5000), jnp.bfloat16),
    }  # fmt: skip
    recipe = [{"name": "prune", "sparsity": 0.75}]
    jn.save_file(folder / "one_file_v1.jn", tree, recipe=recipe, files={"note": b"hello"}, chunk=64, overwrite=True)
    leaves = {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    raw = {name: np.frombuffer(np.asarray(data(x)).tobytes(), np.uint8) for name, x in leaves.items()}
    np.savez(folder / "one_file_v1.npz", **raw)
