"""Distillation: a student learns a teacher's softened outputs beside the labels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array


def distillation_loss(
    student_logits: Array, teacher_logits: Array, labels: Array, *, temperature: float = 4.0, hard_weight: float = 0.1
) -> Array:
    """The soft loss against a teacher, mixed with the hard loss against labels (Hinton, Vinyals & Dean 2015, section 2).

    ``h CE(y, softmax(z)) + (1 - h) T^2 KL(softmax(v / T) || softmax(z / T))`` for student logits ``z``, teacher logits
    ``v``, labels ``y``, ``h = hard_weight``, ``T = temperature``. The paper writes the cross-entropy where this has the
    divergence; they differ by the teacher's entropy, a constant, so that here a student equal to its teacher has loss 0.

    Why ``T^2``: the divergence has the gradient ``(softmax(z / T) - softmax(v / T)) / T`` in ``z``. For ``T`` large against
    the logits, ``softmax(z / T)_i`` is ``1 / N + (z_i - mean z) / (N T)`` up to terms in ``1 / T^2``, so the gradient is
    ``((z_i - mean z) - (v_i - mean v)) / (N T^2)`` (eq. 4): it shrinks as ``1 / T^2``. Times ``T^2`` the balance with the
    hard loss stays as ``T`` changes, and for large ``T`` the soft loss is half the mean squared difference of centred logits.

    Args:
      student_logits: floats ``[..., classes]``.
      teacher_logits: floats of that shape; no gradient flows into them. A class at -inf has probability 0 and no part
        in the divergence, wherever the student has it; one that the student alone has at -inf makes it inf.
      labels: integers ``[...]`` below ``classes``.
      temperature: above 0.
      hard_weight: share of the hard loss, 0 to 1.

    Returns:
      The loss of each example, float32 ``[...]``, whatever the logits' dtype.

    Raises:
      ValueError: an argument outside the above: another number of classes, or labels of another shape.
      TypeError: labels that are no integers.

    Example:
      >>> teacher = jnp.array([[4.0, 0.0, 0.0]])
      >>> labels = jnp.array([0])
      >>> jn.distillation_loss(teacher, teacher, labels, hard_weight=0.0)  # a student equal to its teacher
      Array([0.], dtype=float32)
      >>> float(jn.distillation_loss(jnp.zeros((1, 3)), teacher, labels, hard_weight=0.0)[0]) > 0
      True
    """
    import optax  # the package imports without it

    _check_mix(temperature, hard_weight)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"distillation_loss: student logits {list(student_logits.shape)} and teacher logits "
            f"{list(teacher_logits.shape)} differ; both are [..., classes] over the same classes and examples"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"distillation_loss: labels are {labels.dtype}; class numbers are integers (no one-hot)")
    if labels.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"distillation_loss: labels {list(labels.shape)} for logits {list(student_logits.shape)}; one class number for "
            f"each example, {list(student_logits.shape[:-1])}"
        )
    student = student_logits.astype(jnp.float32)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(student, labels)
    soft = divergence(jax.nn.log_softmax(teacher / temperature), jax.nn.log_softmax(student / temperature))
    mixed = ((hard_weight, hard), ((1 - hard_weight) * temperature**2, soft))
    return sum((weight * loss for weight, loss in mixed if weight), jnp.zeros_like(hard))  # 0 times inf would be NaN


def divergence(log_p: Array, log_q: Array) -> Array:
    """``KL(p || q) = sum p log(p / q)`` over the last axis; a term with p = 0 is 0, and its gradient, for any q."""
    p = jnp.exp(log_p)
    return jnp.sum(p * jnp.where(p > 0, log_p - log_q, 0.0), -1)


def _check_mix(temperature: float, hard_weight: float) -> None:
    """Raises ValueError for a temperature that is not above 0 and finite, or a ``hard_weight`` outside [0, 1]."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature}: a finite number above 0, e.g. 4.0")
    if not 0 <= hard_weight <= 1:
        raise ValueError(f"hard_weight={hard_weight}: the share of the hard loss, 0 to 1")
