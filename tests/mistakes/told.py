"""Makes a mistake, and gives what a user is told."""

import pathlib
import re
import traceback
import warnings

import jaxopt_nn

PACKAGE = str(pathlib.Path(jaxopt_nn.__file__).parent)
#: Words with which a message says what to do, or what there is to choose from.
INSTRUCTION = re.compile(
    r"\b(pass|name|leave|call|called as|use|give|let|put|run|return|wrap|lower|find|clean|read|write|copy|convert|bring|need|"
    r"rename|allowed|did you mean|nearest|must|densify)\b|e\.g\.|0 to 1|in \[0, 1\)"
)


def told(code: str, given: dict) -> Warning | Exception:
    """The error, or else the warning, of a line of Python.

    Raises:
      AssertionError: there is neither, or the error was raised by another package.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            exec(code, dict(given))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            assert last.filename.startswith(PACKAGE), f"{code}: raw, from {last.filename}: {error!r}"
            return error
    raise AssertionError(f"{code}: nothing is said")
