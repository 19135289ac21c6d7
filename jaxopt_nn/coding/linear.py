"""A linear layer's weight as the ``compressed-tensors`` package lays it out, from a ``QTensor`` and back.

The package packs codes, less the smallest of their range, as one stream of bits along the inputs into int32 words, least
significant first: the bytes of ``numerics.packing`` along that axis, filled up to words. Widths that do not divide 32 are
the exception: its versions before 0.18 let no code cross a word, so that readers disagree on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.numerics import affine, packing
from jaxopt_nn.tensors import encode
from jaxopt_nn.tensors.base import PyTree, Tensor
from jaxopt_nn.tensors.qtensor import QTensor

WIDTHS = (1, 2, 4, 8)
PARTS = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=list(PARTS),
    meta_fields=["bits", "turned", "signed", "float_dtype", "rounding", "axis", "scale_shape", "has_zero"],
)
@dataclasses.dataclass(frozen=True)
class Linear(Tensor):
    """The parts of one layer by the names that the format has for them; ``tensor`` is the weight again.

    Attributes:
      weight: int8 codes ``[out, in]`` of 8 bits; or floats, and all other parts None.
      weight_packed: int32 ``[out, words]``, narrower codes; weight_shape: int64 ``[2]``, their ``[out, in]``.
      weight_scale: ``[out, groups]``.
      weight_zero_point: None, or of 8 bits int8 ``[out, groups]``, of fewer int32 ``[words, groups]``, packed along ``out``.
      bits: of a code; None: floats.
      turned: whether the weight is ``[in, out]``.
      signed, float_dtype, rounding, axis, scale_shape: the weight's, which the format does not keep; has_zero: whether it has
        zero points (the format has none for symmetric codes, and needs them for unsigned ones).
    """

    weight: Any
    weight_packed: Any = None
    weight_scale: Any = None
    weight_zero_point: Any = None
    weight_shape: Any = None
    bits: int | None = None
    turned: bool = False
    signed: bool = True
    float_dtype: str = "float32"
    rounding: str | None = None
    axis: int | None = None
    scale_shape: tuple[int, ...] | None = None
    has_zero: bool = False

    @classmethod
    def of(cls, weight: QTensor, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> Linear:
        """The layout of a matrix whose ``refusal`` is None.

        Args:
          weight: for all but its values, which are ``codes``, ``scale`` and ``zero``, each ``[in, out]`` or ``[out, in]``.
        """
        turned, half = is_turned(codes.shape, scale.shape), 0 if weight.signed else 1 << (weight.bits - 1)
        empty = cls(
            None, bits=weight.bits, turned=turned, signed=weight.signed, float_dtype=weight.float_dtype,
            rounding=weight.rounding, axis=weight.axis, scale_shape=scale.shape, has_zero=zero is not None,
        )  # fmt: skip
        zero = np.zeros_like(scale, np.int8) if zero is None and half else zero
        codes, scale = (x.T if turned else x for x in (codes, scale))
        rows = (codes.shape[0], scale.shape[1])
        scale, codes = np.ascontiguousarray(np.broadcast_to(scale, rows)), _shifted(codes, -half)
        if zero is not None:
            zero = _shifted(np.broadcast_to(zero.T if turned else zero, rows), -half)
        if weight.bits == 8:
            return dataclasses.replace(empty, weight=codes, weight_scale=scale, weight_zero_point=zero)
        packed = None if zero is None else np.ascontiguousarray(to_words(zero.T, weight.bits).T)
        return dataclasses.replace(
            empty, weight_packed=to_words(codes, weight.bits), weight_scale=scale, weight_zero_point=packed,
            weight_shape=np.array(codes.shape, np.int64),
        )  # fmt: skip

    @property
    def dtype(self) -> np.dtype:
        return jnp.dtype(self.float_dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.weight.shape if self.weight_shape is None else map(int, np.asarray(self.weight_shape)))
        return shape[::-1] if self.turned else shape

    def densify(self) -> Array:
        if self.bits is None:
            return self.weight.T if self.turned else self.weight
        return self.tensor().densify()

    def tensor(self) -> QTensor:
        """The weight with codes, ``[in, out]`` if ``turned``, in stored form."""
        codes, scale, zero = self.values()
        assert self.bits is not None
        half = 0 if self.signed else 1 << (self.bits - 1)
        turn = lambda x: x.T if self.turned else x
        whole = tuple(slice(n) for n in self.scale_shape or scale.shape)
        weight = QTensor.from_codes(
            jnp.asarray(turn(codes.astype(np.int16) + half)), jnp.asarray(turn(scale)[whole]),
            None if zero is None or not self.has_zero else turn(zero.astype(np.int16) + half)[whole],
            bits=self.bits, signed=self.signed, dtype=self.float_dtype, axis=self.axis,
        )  # fmt: skip
        return dataclasses.replace(weight, rounding=self.rounding)

    def values(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """``(codes [out, in], scale [out, groups], zero [out, groups] or None)``, codes and zero int8."""
        assert self.bits is not None
        scale, zero = np.asarray(self.weight_scale), self.weight_zero_point
        if self.bits == 8 and self.weight_packed is None:
            return np.asarray(self.weight), scale, None if zero is None else np.asarray(zero)
        rows, columns = map(int, np.asarray(self.weight_shape))
        codes = of_words(np.asarray(self.weight_packed), self.bits, columns)
        if zero is not None:
            zero = of_words(np.ascontiguousarray(np.asarray(zero).T), self.bits, rows).T
        return codes, scale, zero


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Layers(Tensor):
    """A weight ``[S, ...]`` as one layer for each entry of its first axis."""

    layers: tuple[Linear, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.layers[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.layers), *self.layers[0].shape)

    def densify(self) -> Array:
        return self.tensor().densify()

    def tensor(self) -> QTensor:
        """The weight as it was before it was taken apart."""
        parts = [layer.tensor() for layer in self.layers]
        return jax.tree.map(lambda *each: jnp.asarray(np.stack(each)), *parts)


def laid_out(weight: QTensor) -> Linear | Layers:
    """The layout of a tensor whose ``refusal`` is None."""
    codes, scale = np.asarray(weight.elementwise()), np.asarray(weight.scale)
    zero = None if weight.zero is None else np.asarray(weight.zero)
    if weight.ndim == 2:
        return Linear.of(weight, codes, scale, zero)
    each = zip(codes, scale, [None] * len(codes) if zero is None else zero)
    return Layers(tuple(Linear.of(weight, *layer) for layer in each))


def restored(tree: PyTree) -> PyTree:
    """The tree with each layer as the weight that it stands for: codes as ``QTensor``, floats as arrays."""
    if not any(isinstance(leaf, Linear | Layers) for leaf in leaves_by_path(tree).values()):
        return tree  # with its keys in their order

    def weight(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Layers) or (isinstance(leaf, Linear) and leaf.bits is not None):
            return leaf.tensor()
        return leaf.densify() if isinstance(leaf, Linear) else leaf

    return map_with_path(weight, tree)


def refusal(weight: Any) -> str | None:
    """Why a compressed tensor does not fit the format; None if it does."""
    if not isinstance(weight, QTensor):
        return f"is a {weight.format}, and the format has integer codes with scales alone"
    if weight.platform is not None:
        return f"is prepared for {weight.platform}; pass the variables that pack or compress gave"
    if weight.bits not in WIDTHS:
        return f"has codes of {weight.bits} bits, which readers of the format pack in different ways; allowed are {WIDTHS}"
    layers = weight.ndim == 3 and weight.scale.shape[0] == weight.shape[0] and weight.axis != -3  # a stack is never packed
    if weight.ndim != 2 and not layers:
        return f"has shape {list(weight.shape)}, and the format has matrices, or a stack of them with scales for each layer"
    rows, groups = weight.shape[-2:], weight.scale.shape[-2:]
    if not (groups[0] in (1, rows[0]) or groups[1] in (1, rows[1])):
        return f"has scales {list(groups)} for {list(rows)}: groups along two axes"
    return _zero_refusal(weight)


def _zero_refusal(weight: QTensor) -> str | None:
    if weight.zero is None:
        return None
    if not jnp.issubdtype(weight.zero.dtype, jnp.integer):
        return "has zero points between the codes"
    if weight.zero.shape != weight.scale.shape:
        return f"has zero points {list(weight.zero.shape)} beside scales {list(weight.scale.shape)}"
    low, high = affine.code_range(weight.bits, weight.signed)
    zero = np.asarray(weight.zero)
    if zero.min() < low or zero.max() > high:
        return f"has zero points {zero.min()} to {zero.max()} outside the codes, {low} to {high}"
    return None


def is_turned(shape: Sequence[int], groups: Sequence[int]) -> bool:
    """Whether a matrix with scales of shape ``groups`` is ``[in, out]``: the outputs have a scale each, the inputs share."""
    return groups[1] == shape[1] or (groups[1] == 1 and groups[0] != shape[0])


def _shifted(codes: np.ndarray, by: int) -> np.ndarray:
    """Codes as int8, moved by the half of their range where they are unsigned."""
    return np.ascontiguousarray((codes.astype(np.int16) + by if by else codes).astype(np.int8))


def to_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes ``[rows, n]`` as int32 words ``[rows, ceil(n * bits / 32)]``."""
    stream = np.asarray(encode.stored(jnp.asarray(codes), bits, True, 1))
    stream = np.pad(stream, [(0, 0), (0, -stream.shape[1] % 4)])
    return np.ascontiguousarray(stream).view("<i4").astype(np.int32, copy=False)


def of_words(words: np.ndarray, bits: int, n: int) -> np.ndarray:
    """The ``n`` int8 codes of each row that ``to_words`` packed."""
    stream = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)[:, : packing.packed_length(n, bits)]
    codes = packing.unpack_bits(jnp.asarray(stream), bits, n, 1)
    return np.asarray(encode.signed_codes(codes, bits, True))
