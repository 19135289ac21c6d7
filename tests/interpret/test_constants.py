"""Which closed-over arrays are refused, and how a user says that they are meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.interpret.constants import constants_report, keep_constants, looks_trained

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((32, 48)).astype(np.float32)


def coupling(n: int) -> np.ndarray:
    """Coefficients ``[2n+1, 3, 2n+1]`` of the angular momentum operators, as Clebsch-Gordan tables of one unit have them."""
    m = np.arange(-n, n + 1)
    table = np.zeros((2 * n + 1, 3, 2 * n + 1))
    up = np.sqrt(n * (n + 1) - m[:-1] * (m[:-1] + 1)) / np.sqrt(2)
    table[m[1:] + n, 0, m[:-1] + n] = -up
    table[m + n, 1, m + n] = m
    table[m[:-1] + n, 2, m[1:] + n] = up
    return table / np.sqrt(n * (n + 1))


@pytest.mark.parametrize(
    ("const", "expected"),
    [
        (WEIGHT, True),
        (jnp.asarray(WEIGHT, jnp.bfloat16), True),
        (np.where(RNG.uniform(size=WEIGHT.shape) < 0.9, 0, WEIGHT), True),
        (0.02 * RNG.standard_normal((512, 512)).astype(np.float16), True),
        (coupling(4), False),
        (coupling(9), False),
        (np.eye(64), False),
        (np.tril(np.ones((64, 64))), False),
        (np.zeros((64, 64)), False),
        (np.cos(np.pi / 64 * (np.arange(64)[:, None] + 0.5) * np.arange(64)), False),
        (np.fft.fft(np.eye(64)).astype(np.complex64), False),
    ],
    ids=["weight", "bf16", "pruned", "f16", "coupling", "large coupling", "eye", "mask", "zeros", "cosines", "Fourier"],
)
def test_weights_are_told_from_tables(const, expected):
    assert looks_trained(const) is expected


def test_a_value_of_the_callers_trace_counts_as_trained():
    seen = []
    jax.jit(lambda x: seen.append(looks_trained(x)) or x)(jnp.zeros((2, 2)))
    assert seen == [True]


def test_weights_are_refused_by_name_and_tables_are_listed():
    consts, sites = [coupling(9), WEIGHT, WEIGHT[:4]], {0: ["@scan#0"], 1: ["@dense#0"], 2: ["@dense#1"]}
    with pytest.raises(ValueError, match=r"1,728 numbers .* 10 in variables") as error:
        constants_report(sites, consts, 10)
    assert "float32[32, 48] read by @dense#0, float32[4, 48] read by @dense#1." in str(error.value)
    assert "@scan" not in str(error.value) and "jaxopt_nn.keep_constants(apply)" in str(error.value)
    listed = constants_report({0: ["@scan#0"]}, consts, 10).messages
    assert [m.path for m in listed] == ["@scan#0"] and "trained" not in listed[0].reason
    doubtful = constants_report(sites, consts, 1728).messages
    assert [m.path for m in doubtful if "if it was trained" in m.reason] == ["@dense#0", "@dense#1"]


def test_told_to_go_on_all_are_listed_and_none_is_refused():
    said = constants_report({0: ["@a#0"]}, [WEIGHT], 0, allowed=True)
    assert [(m.kind, m.path) for m in said] == [("constant", "@a#0")]


def test_a_marked_function_computes_what_it_did():
    kept = keep_constants(lambda v, x, *, scale=1.0: scale * (x @ v))
    assert kept.keeps_constants and not hasattr(jnp.dot, "keeps_constants")
    np.testing.assert_array_equal(kept(np.eye(2), np.ones((1, 2)), scale=2.0), [[2.0, 2.0]])
