"""Eight host devices, rank promotion an error, reproducible properties; setup.cfg makes warnings errors.

``pytest --budget SECONDS`` skips, by name, the tests that have not begun by then.
"""

import os
import time

START = time.monotonic()
FLAGS = {
    "xla_force_host_platform_device_count": "8",
    # Nearly all programs of the suite run for microseconds: XLA spends as little as it can on compiling them. Tests marked
    # `exact` run once more with the defaults, in a process of their own (`make pytest`).
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
    # Fused reductions give wrong numbers on CPU (convolution on unpacked codes, ReLU, max pooling).
    "xla_cpu_experimental_ynn_fusion_type": "-reduce",
}
# Before JAX is imported; a subprocess of a test inherits all of it. A flag that is set already stays as it is.
os.environ["JAX_PLATFORMS"] = "cpu"
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"--{k}={v}" for k, v in FLAGS.items() if f"--{k}" not in given)])
os.environ["MPLBACKEND"] = "Agg"
# pytest-xdist's workers may hold the TPU compiler at the same time.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("repository", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("repository")


def pytest_addoption(parser):
    parser.addoption("--budget", type=float, metavar="SECONDS", help="skip what has not begun by then")


def pytest_runtest_setup(item):
    budget = item.config.getoption("--budget")
    if budget is not None and time.monotonic() - START > budget:
        pytest.skip(f"not begun within the budget of {budget:.0f} s")


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every test and every run."""
    return np.random.default_rng(0)
