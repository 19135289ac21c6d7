"""What users are told: no raw error of JAX, Flax, NumPy or Orbax, and in each message what to do."""

import pathlib
import subprocess
import sys

import pytest

from tests.mistakes.commands import COMMANDS
from tests.mistakes.library import GROUPS
from tests.mistakes.setting import names
from tests.mistakes.told import INSTRUCTION, told

CASES = [case for cases in GROUPS.values() for case in cases]
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "how-to" / "messages.md"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return names(tmp_path_factory.mktemp("mistakes"))


def test_there_are_sixty_mistakes():
    assert len({code for code, *_ in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0][:60])
def test_a_mistake_is_told(given, case):
    code, kind, *parts = case
    error = told(code, given)
    assert type(error) is kind, f"{code}: {error!r}"
    assert all(part in str(error) for part in parts), f"{code}: {error}"
    assert INSTRUCTION.search(str(error)), f"{code}: does not say what to do: {error}"
    assert "\n" not in str(error) and "https://" not in str(error) and " at 0x" not in str(error)


def test_the_page_has_all_of_them():
    """Written by ``python -m tests.mistakes``; what JAX itself says within a message differs between its versions."""
    text = " ".join(PAGE.read_text().split())
    for code, kind, *parts in CASES:
        _, found, below = text.partition(f">>> {' '.join(code.split())} {kind.__name__}: ")
        assert found, f"{code}: not on the page; write it anew"
        assert all(" ".join(part.split()) in below.partition(">>> ")[0] for part in parts), f"{code}: other words on the page"


@pytest.mark.slow
def test_commands_end_with_the_message_alone():
    root = PAGE.parent.parent.parent
    done = subprocess.run([sys.executable, "-m", "tests.mistakes.commands"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    found = dict(part.partition("\n")[::2] for part in done.stdout.removeprefix("$ jaxopt ").split("\n\n$ jaxopt "))
    for line, *parts in COMMANDS:
        said = found[line]
        assert "exit status 1" in said and "Traceback" not in said, f"{line}: {said}"
        assert all(part in said for part in parts), f"{line}: {said}"
