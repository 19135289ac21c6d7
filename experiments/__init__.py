"""Runnable experiments: thin mains, their data and their models."""

import os

#: XLA on CPU gives wrong numbers where a convolution on codes unpacked in the program meets ReLU and max pooling; off, it
#: doesn't. Releases that know the flag: another would stop at one that it doesn't know.
SAFE = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
KNOWN = ("0.10.", "0.11.", "0.12.")


def set_safe_flags() -> None:
    """Adds ``SAFE`` to ``XLA_FLAGS`` unless the user has set that flag; read when JAX first uses a device."""
    from importlib.metadata import version

    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib").startswith(KNOWN) and SAFE.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {SAFE}".strip()


set_safe_flags()  # `python -m experiments.NAME` comes here before anything else
