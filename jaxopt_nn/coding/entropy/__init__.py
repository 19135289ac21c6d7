"""Lossless entropy coding: arrays of symbols or numbers to bytes and back. ``FORMAT.md`` says what each byte means."""

from jaxopt_nn.coding.entropy.arrays import decode_array, encode_array
from jaxopt_nn.coding.entropy.codec import decode, encode

__all__ = ["decode", "decode_array", "encode", "encode_array"]
