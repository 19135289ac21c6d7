"""Eight host devices, rank promotion an error, reproducible properties; setup.cfg makes warnings errors.

``pytest --budget SECONDS`` skips, by name, the tests that have not begun by then.
"""

import os
import time

START = time.monotonic()
# Before JAX is imported; a subprocess of a test inherits all of it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
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
