"""Arguments of the wrong kind, told in one way: what was given, what is wanted, what to write."""

from __future__ import annotations

import contextlib
import inspect
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def in_words(value: Any) -> str:
    """A value in a few words, for a message: ``a list``, ``the function tanh``, ``float32[4, 8]``."""
    if value is None or isinstance(value, bool | int | float | str):
        return f"{value!r:.60}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    if inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        return f"the function {getattr(value, '__name__', value)}"
    return f"a {type(value).__name__}"


def is_factory(value: Any) -> bool:
    """Whether ``value`` is a public function of this package: ``quantize`` where ``quantize(4)`` was meant."""
    named = callable(value) and "<" not in getattr(value, "__qualname__", "<")
    return named and value.__module__.startswith("jaxopt_nn.")


def require(value: Any, kind: Any, what: str, example: str, verb: str = "is") -> Any:
    """``value`` if it is of that kind; else "``what`` ``verb`` an array; pass ``example``".

    Raises:
      TypeError: it is not; of a factory that was not called, says so.
    """
    if isinstance(value, kind):
        return value
    if is_factory(value):
        raise TypeError(
            f"{what} {verb} the function {value.__name__} itself; call it, {value.__name__}({_needed(value)}): pass {example}"
        )
    raise TypeError(f"{what} {verb} {in_words(value)}; pass {example}")


def is_number(value: Any) -> bool:
    """Whether it is one real number, of Python or NumPy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_whole(what: str, name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError where the argument ``name`` of ``what`` is no whole number within the bounds."""
    bounds = f"from {least}" if most is None else f"{least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{what}({name}={in_words(value)}): allowed are the whole numbers {bounds}")


def check_flag(what: str, name: str, value: Any) -> None:
    """Raises ValueError where the argument ``name`` of ``what`` is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{what}({name}={in_words(value)}): allowed are True and False")


def check_choice(what: str, name: str, value: Any, allowed: Iterable[str | None]) -> None:
    """Raises ValueError where the argument ``name`` of ``what`` is none of the names that are allowed."""
    names = list(allowed)
    if not (value is None or isinstance(value, str)) or value not in names:
        *others, last = map(repr, names)
        raise ValueError(f"{what}({name}={in_words(value)}): allowed are {', '.join(others)} and {last}")


def as_key(key: Any, what: str) -> jax.Array:
    """A PRNG key, from one or from a seed.

    Raises:
      TypeError: ``key`` is neither.
    """
    if isinstance(key, int) and not isinstance(key, bool):
        return jax.random.key(key)
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == 0 if typed else key.dtype == jnp.uint32 and key.ndim == 1:
            return key
    raise TypeError(f"{what}: key is {in_words(key)}; pass a seed, a whole number, or a key: jax.random.key(0)")


def check_takes(function: Any, n: int, what: str, example: str) -> None:
    """Raises TypeError where a function can't be called with ``n`` arguments."""
    if not callable(function):
        raise TypeError(f"{what} is {in_words(function)}; pass {example}")
    with contextlib.suppress(ValueError):  # of some built-in functions the signature is not known
        signature = inspect.signature(function)
        try:
            signature.bind(*range(n))
        except TypeError:
            raise TypeError(f"{what} is {in_words(function)}{signature}; pass {example}") from None


def _needed(function: Any) -> str:
    """The arguments without which a function can't be called, as a call shows them."""
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(f"{p.name}=..." for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD)
