"""Commands turn off XLA's reduce fusion on CPU, unless the user has said otherwise."""

import os
import subprocess
import sys

import pytest

import experiments


@pytest.mark.parametrize(
    ("given", "release", "expected"),
    [
        ("", "0.10.2", experiments.SAFE),
        ("--xla_a=1", "0.12.0.1", f"--xla_a=1 {experiments.SAFE}"),
        ("--xla_cpu_experimental_ynn_fusion_type=-dot", "0.10.2", "--xla_cpu_experimental_ynn_fusion_type=-dot"),
        ("--xla_a=1", "0.13.0", "--xla_a=1"),
    ],
)
def test_the_users_flags_stay(given, release, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr("importlib.metadata.version", lambda name: release)
    experiments.set_safe_flags()
    assert os.environ["XLA_FLAGS"] == expected


def test_commands_start_with_it():
    code = "import experiments.compress, jax, os; jax.devices(); print(os.environ['XLA_FLAGS'])"
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert experiments.SAFE in out.stdout
