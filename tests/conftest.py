"""Eight host devices, rank promotion an error, reproducible properties; setup.cfg makes warnings errors.

``pytest --budget SECONDS`` skips, by name, the tests that have not begun by then.
"""

import importlib.metadata
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
given = os.environ.get("XLA_FLAGS", "")
if importlib.metadata.version("jaxlib") < "0.11" and "xla_backend_optimization_level" not in given:
    # Half of what compiling a small program costs. Newer versions have no such flag, and abort on it.
    FLAGS["xla_cpu_use_fusion_emitters"] = "false"
# Before JAX is imported; a subprocess of a test inherits all of it. A flag that is set already stays as it is.
os.environ["JAX_PLATFORMS"] = "cpu"
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


#: Long cases whose like run at every change: they run with the slow tests, so that `make test` stays under seven minutes.
LONG = {
    "tests/experiments/test_compress.py::test_a_student_learns_from_its_teacher[changes1-12     3  up axis 1: 12 -> 3]",
    "tests/experiments/test_configs.py::test_a_config_runs[bytes_lm_ptq]",
    "tests/experiments/test_configs.py::test_a_config_runs[fashion_lenet5]",
    "tests/experiments/test_configs.py::test_a_sweep_trains_each_float_network_once",
    "tests/experiments/test_sweep.py::test_a_real_sweep_from_the_command_line",
    "tests/formulations/test_programs.py::test_all_widths[1]",
    "tests/formulations/test_programs.py::test_all_widths[2]",
    "tests/formulations/test_programs.py::test_any_axes[experts]",
    "tests/formulations/test_programs.py::test_any_axes[heads joined]",
    "tests/formulations/test_programs.py::test_any_axes[weight at the left, groups]",
    "tests/formulations/test_programs.py::test_blocks_with_a_rest[1-scale_shape1]",
    "tests/interpret/test_matrix.py::test_zoo[encdec]",
    "tests/interpret/test_on_zoo.py::test_four_bit_weights_run_and_equal_their_view[gpt_scan]",
    "tests/interpret/test_third_party.py::test_sites_rewriting_and_integers[equinox_mixture]",
    "tests/interpret/test_third_party.py::test_sites_rewriting_and_integers[haiku_transformer]",
    "tests/tensors/test_masked.py::test_a_stack_that_does_not_lead[stack1-float]",
    "tests/tensors/test_masked.py::test_a_stack_that_does_not_lead[stack1-int4]",
    "tests/tensors/test_masked.py::test_a_stack_that_does_not_lead[stack1-uint3 with zero]",
    "tests/tensors/test_masked.py::test_a_stack_that_does_not_lead[stack2-float]",
    "tests/tensors/test_masked.py::test_stacks[float]",
    "tests/test_conformance.py::test_laws_of_programs[chain of masks]",
    "tests/test_conformance_rules.py::test_laws_of_a_pass[shrink_widths, by layer]",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    found = {item.nodeid: item for item in items}
    for name in LONG & found.keys():
        found[name].add_marker(pytest.mark.slow)
    files = {name.partition("::")[0] for name in found}
    missing = {name for name in LONG - found.keys() if name.partition("::")[0] in files}
    whole = importlib.metadata.version("jaxlib") < "0.11" and not any("::" in argument for argument in config.args)
    if missing and whole:  # newer Pythons may lack a library, and with it a case
        raise pytest.UsageError(f"tests/conftest.py: LONG names no test: {', '.join(sorted(missing))}")


def pytest_runtest_setup(item):
    budget = item.config.getoption("--budget")
    if budget is not None and time.monotonic() - START > budget:
        pytest.skip(f"not begun within the budget of {budget:.0f} s")


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every test and every run."""
    return np.random.default_rng(0)
