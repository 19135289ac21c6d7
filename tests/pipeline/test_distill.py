"""The distillation loss against closed forms, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.pipeline.distill import distillation_loss

RNG = np.random.default_rng(0)
Z, V = (jnp.asarray(3 * RNG.standard_normal((5, 7)), jnp.float32) for _ in range(2))
Y = jnp.asarray(RNG.integers(0, 7, 5))


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(p, q):
    return -(p * np.log(q)).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("hard", [0.0, 0.1, 1.0])
def test_the_formula(temperature, hard):
    """The divergence as cross-entropy less entropy."""
    p, q = softmax(V / temperature), softmax(Z / temperature)
    soft = cross_entropy(p, q) - cross_entropy(p, p)
    labels = -np.log(softmax(Z))[np.arange(5), Y]
    found = jax.jit(lambda z, v, y: distillation_loss(z, v, y, temperature=temperature, hard_weight=hard))(Z, V, Y)
    assert found.shape == (5,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, hard * labels + (1 - hard) * temperature**2 * soft, rtol=2e-4)


def test_hot_targets_are_a_squared_difference_of_centred_logits():
    """Hinton et al., eq. 4: half the mean squared difference, and no dependence on the temperature is left."""
    centred = lambda x: np.asarray(x - x.mean(-1, keepdims=True), np.float64)
    expected = 0.5 * np.mean((centred(Z) - centred(V)) ** 2, -1)
    for temperature, tolerance in ((50.0, 0.2), (200.0, 0.05)):
        found = distillation_loss(Z, V, Y, temperature=temperature, hard_weight=0.0)
        np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert np.abs(distillation_loss(Z, V, Y, temperature=1.0, hard_weight=0.0) / expected - 1).max() > 0.2


def test_the_gradient_by_hand_and_none_into_the_teacher():
    loss = lambda z, v: jnp.sum(distillation_loss(z, v, Y, temperature=3.0, hard_weight=0.25))
    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(Z, V)
    hard = softmax(Z) - np.eye(7)[Y]
    soft = 3.0 * (softmax(Z / 3) - softmax(V / 3))
    np.testing.assert_allclose(to_student, 0.25 * hard + 0.75 * soft, atol=1e-5)
    np.testing.assert_array_equal(to_teacher, np.zeros_like(V))


def test_a_student_like_its_teacher_has_no_soft_loss_and_a_sequence_keeps_its_places():
    tokens = jnp.stack([Z, V])
    np.testing.assert_allclose(distillation_loss(tokens, tokens, jnp.stack([Y, Y]), hard_weight=0.0), 0, atol=1e-5)
    both = distillation_loss(tokens, tokens[::-1], jnp.stack([Y, Y]))
    np.testing.assert_allclose(both[0], distillation_loss(Z, V, Y), rtol=1e-5)


@pytest.mark.parametrize("student_too", [False, True])
def test_a_class_that_the_teacher_masks_has_no_part(student_too):
    """The closed form over the classes that are left: their own softmax, and ``T (q - p)`` as gradient."""
    gone = np.arange(7) >= 5
    v, z = np.where(gone, -np.inf, V), np.where(gone & student_too, -np.inf, Z)
    with np.errstate(divide="ignore"):
        p, q = softmax(v / 3), softmax(z / 3)
    terms = p[:, :5] * np.log(p[:, :5] / q[:, :5])
    loss = lambda z: distillation_loss(z, jnp.asarray(v), Y, temperature=3.0, hard_weight=0.0)
    np.testing.assert_allclose(loss(jnp.asarray(z)), 9 * terms.sum(-1), rtol=1e-4)
    slope = jax.grad(lambda z: loss(z).sum())(jnp.asarray(z))
    np.testing.assert_allclose(slope, 3 * (q - p), atol=1e-5)


def test_a_class_that_the_student_alone_masks_costs_infinitely_much():
    z = Z.at[0, 2].set(-jnp.inf)
    found = distillation_loss(z, V, Y.at[0].set(3))
    assert np.isposinf(found[0]) and np.isfinite(found[1:]).all()
    labels = -np.log(softmax(z)[0, 3])
    np.testing.assert_allclose(distillation_loss(z, V, Y.at[0].set(3), hard_weight=1.0)[0], labels, rtol=1e-5)
    assert np.isfinite(distillation_loss(z, z, Y.at[0].set(2), hard_weight=0.0)).all()


def test_bfloat16_logits_are_computed_in_float32():
    z, v = Z.astype(jnp.bfloat16), V.astype(jnp.bfloat16)
    found = distillation_loss(z, v, Y)
    np.testing.assert_array_equal(found, distillation_loss(z.astype(jnp.float32), v.astype(jnp.float32), Y))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: distillation_loss(Z, V, Y, temperature=0.0), ValueError, "temperature=0.0"),
        (lambda: distillation_loss(Z, V, Y, temperature=float("inf")), ValueError, "finite"),
        (lambda: distillation_loss(Z, V, Y, hard_weight=1.1), ValueError, "hard_weight=1.1"),
        (lambda: distillation_loss(Z, V[:, :5], Y), ValueError, r"student logits \[5, 7\] and teacher logits \[5, 5\]"),
        (lambda: distillation_loss(Z, V, jnp.eye(7)[Y]), TypeError, "no one-hot"),
        (lambda: distillation_loss(Z, V, Y[:3]), ValueError, r"labels \[3\]"),
    ],
)
def test_values_that_are_not_allowed(call, error, match):
    with pytest.raises(error, match=match):
        call()
