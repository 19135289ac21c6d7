"""Lossless entropy coding: arrays of symbols or numbers to bytes and back. ``FORMAT.md`` says what each byte means.

Example:
  >>> codes = np.zeros((64, 64), np.uint8)
  >>> codes[5] = 3  # one row of 64 is not zero
  >>> data = jn.entropy.encode(codes, alphabet=4)
  >>> len(data) < 32, codes.size * 2 // 8  # packed at two bits
  (True, 1024)
  >>> bool((jn.entropy.decode(data, codes.shape, alphabet=4) == codes).all())
  True
"""

from jaxopt_nn.coding.entropy.arrays import decode_array, encode_array
from jaxopt_nn.coding.entropy.codec import decode, encode

__all__ = ["decode", "decode_array", "encode", "encode_array"]
