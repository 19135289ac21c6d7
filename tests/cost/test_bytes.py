"""Argument bytes, against those of the arrays themselves."""

import jax
import jax.numpy as jnp
import pytest

from jaxopt_nn.cost.bytes import argument_bytes, memory_analysis


def test_every_argument_counts_used_or_not():
    x, unused = jnp.ones((64, 3)), jax.ShapeDtypeStruct((10, 100), jnp.int16)
    assert argument_bytes(lambda x, u: x + 1, x, {"u": unused}) == 64 * 3 * 4 + 1000 * 2


def test_uint8_codes_weigh_a_byte():
    codes = jax.ShapeDtypeStruct((512, 256), jnp.uint8)
    assert argument_bytes(lambda c: c.astype(jnp.float32).sum(0), codes) == 512 * 256


def test_a_compiler_that_tells_nothing_is_named():
    class Silent:
        def memory_analysis(self):
            return None

    with pytest.raises(RuntimeError, match="no memory sizes"):
        memory_analysis(Silent())
