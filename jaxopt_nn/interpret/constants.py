"""Arrays that ``apply`` closes over and a site reads as its weight: forgotten weights, or tables that belong there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxopt_nn.core.report import Message, Report

#: Entries looked at; of trained weights, also in bfloat16 or pruned, nearly all that are not zero differ.
SAMPLE = 256


class KeepsConstants:
    """``__wrapped__``, and nothing else, with the mark."""

    __wrapped__: Callable[..., Any]

    def __init__(self, apply: Callable[..., Any]):
        functools.update_wrapper(self, apply)
        self.keeps_constants = True

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.__wrapped__(*args, **keywords)


def keep_constants(apply: Callable[..., Any]) -> Callable[..., Any]:
    """``apply``, whose constants are meant to be constants: tables, frozen random features, an embedding that is not touched.

    It is taken wherever ``apply`` is (``inspect``, ``rewrite``, ``capture``, ``compress``); what is closed over is listed in
    the report and stays as it is.

    Example:
      >>> table = jnp.ones((64, 64))  # random features, say, that are meant to stay
      >>> v = {"kernel": jnp.ones((64, 2))}
      >>> apply = jn.keep_constants(lambda v, x: (x @ table) @ v["kernel"])
      >>> [site.name for site in jn.inspect(apply, v, jnp.ones((1, 64))).sites]  # the table's site has no path
      ['@#0', 'kernel']
    """
    return KeepsConstants(apply)


def looks_trained(const: Any) -> bool:
    """Whether more than half of the entries that are not zero differ in magnitude, of ``SAMPLE`` evenly spread ones.

    Tables repeat themselves: Clebsch-Gordan coefficients, masks, Fourier bases. What can't be read (the caller's own trace,
    another process's memory) counts as trained.
    """
    if isinstance(const, jax.core.Tracer) or not getattr(const, "is_fully_addressable", True):
        return True
    flat = np.abs(np.asarray(const)).astype(np.float64).ravel()
    flat = flat[flat != 0]
    sample = np.sort(flat[np.linspace(0, flat.size - 1, min(flat.size, SAMPLE)).astype(int)])
    distinct = 1 + np.sum(np.diff(sample) > 1e-5 * sample[1:])  # closer ones are equal but for rounding
    return bool(2 * distinct > sample.size > 0)


def constants_report(
    sites: Mapping[int, Sequence[str]], consts: Sequence[Any], fed: int, *, allowed: bool = False
) -> Report:
    """What is to be said of the constants that sites read as weights.

    Args:
      sites: position of a constant -> names of the sites that read it (``Analysis.constants``).
      consts: of the trace.
      fed: number of entries in the leaves of ``variables`` that feed a site.
      allowed: ``apply`` went through ``keep_constants``.

    Raises:
      ValueError: not ``allowed``, and those that look trained hold more numbers than ``fed``; each is named.
    """
    trained = [i for i in sites if not allowed and looks_trained(consts[i])]
    held = sum(consts[i].size for i in trained)
    if held > fed:
        largest = sorted(trained, key=lambda i: -consts[i].size)
        named = ", ".join(f"{_shown(consts[i])} read by {sites[i][0]}" for i in largest[:5])
        more = f" and {len(largest) - 5} more" if len(largest) > 5 else ""
        raise ValueError(
            f"apply closes over {held:,} numbers that look like weights, against {fed:,} in variables that feed a site: "
            f"{named}{more}. A constant has no path and can't be compressed: pass it in, apply(variables, *inputs), e.g. "
            "jaxopt_nn.nnx(model) or functools.partial turned into an entry of variables; or, where it is meant to stay as "
            "it is, pass jaxopt_nn.keep_constants(apply)"
        )
    return Report(tuple(Message("constant", names[0], _said(consts[i], i in trained)) for i, names in sites.items()))


def _said(const: Any, trained: bool) -> str:
    doubt = "; if it was trained, pass it in variables" if trained else ""
    return f"its weight {_shown(const)} is closed over by apply and stays as it is{doubt}"


def _shown(const: Any) -> str:
    return f"{const.dtype}{list(const.shape)}"
