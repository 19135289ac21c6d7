"""Loops that numba compiles; only the modules of loops import this one, and they are imported at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled without the interpreter's lock, and kept on disk for the next process.

    numba keeps machine code in ``__pycache__`` beside the module, else in the user's cache folder, else where
    ``NUMBA_CACHE_DIR`` says. Where none can be written to, each process compiles anew. numba compiles again when the function's
    own file changes, not when a loop changes that it calls in another file: after such a change remove the folder.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: "no locator available": nowhere to write
        return numba.njit(nogil=True)(function)
