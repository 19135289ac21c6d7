"""Eight host devices, rank promotion an error, reproducible properties; setup.cfg makes warnings errors.

``pytest --budget SECONDS`` skips, by name, the tests that have not begun by then. What ``tests/long.txt`` names runs with the
slow tests; ``pytest -m "not slow and not exact" --list-long 0.5`` measures and writes it anew.
"""

import gc
import importlib.metadata
import os
import pathlib
import time

START = time.monotonic()
SECONDS: dict[str, float] = {}
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
    parser.addoption("--list-long", type=float, metavar="SECONDS", help="write tests/long.txt: what took more CPU time")


#: Tests that take long, by CPU time: they run with the slow ones, so that `make test` stays under seven minutes.
LONG = pathlib.Path(__file__).with_name("long.txt")
CPU, BEGUN = "CPU seconds", pytest.StashKey[float]()
#: Tests since compiled programs were counted.
SINCE = [0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("--list-long") is not None:
        return  # all of them run, and are measured
    long = set(LONG.read_text().splitlines())
    found = {item.nodeid: item for item in items}
    for name in long & found.keys():
        found[name].add_marker(pytest.mark.slow)
    files = {name.partition("::")[0] for name in found}
    missing = {name for name in long - found.keys() if name.partition("::")[0] in files}
    whole = importlib.metadata.version("jaxlib") < "0.11" and not any("::" in argument for argument in config.args)
    if missing and whole:  # newer Pythons may lack a library, and with it a case
        raise pytest.UsageError(f"tests/long.txt names no test: {', '.join(sorted(missing))}; take it out")


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[BEGUN] = cpu_seconds()
    return (yield)


def pytest_runtest_teardown(item, nextitem):
    item.user_properties.append((CPU, cpu_seconds() - item.stash[BEGUN]))
    SINCE[0] += 1
    if nextitem is None or nextitem.path != item.path or SINCE[0] >= 20:
        drop_programs()
        SINCE[0] = 0


def drop_programs(most: int = 20_000) -> None:
    """Drops compiled programs before the operating system refuses to map more of them (65,530): XLA crashes then."""
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > most:
        jax.clear_caches()
        gc.collect()


def pytest_runtest_logreport(report):
    """Runs where all reports meet, also those of other processes."""
    if report.when == "teardown":
        SECONDS[report.nodeid] = dict(report.user_properties).get(CPU, 0.0)


def pytest_sessionfinish(session):
    least = session.config.getoption("--list-long")
    if least is not None and not hasattr(session.config, "workerinput"):
        LONG.write_text("".join(f"{name}\n" for name, seconds in sorted(SECONDS.items()) if seconds > least))


def pytest_runtest_setup(item):
    budget = item.config.getoption("--budget")
    if budget is not None and time.monotonic() - START > budget:
        pytest.skip(f"not begun within the budget of {budget:.0f} s")


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every test and every run."""
    return np.random.default_rng(0)
