"""Names are imported at first use; a process that has used one name alone can do with it whatever it could do with all."""

import subprocess
import sys
from pathlib import Path

import pytest

import jaxopt_nn

GOLDEN = Path(__file__).parent / "golden" / "one_file_v1.jn"


def printed(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_a_file_loads_in_a_process_that_has_used_nothing_else():
    code = f"import jaxopt_nn as jn; print(*sorted({{type(x).__name__ for x in jn.load_file({str(GOLDEN)!r})[0].values()}}))"
    assert printed(code) == sorted({type(x).__name__ for x in jaxopt_nn.load_file(GOLDEN)[0].values()})


def test_the_package_alone_imports_no_array_library():
    assert printed("import jaxopt_nn, sys; print('jax' in sys.modules, 'numpy' in sys.modules)") == ["False", "False"]


def test_an_unknown_name_is_told_as_python_tells_it():
    with pytest.raises(AttributeError, match="module 'jaxopt_nn' has no attribute 'qunatize'"):
        _ = jaxopt_nn.qunatize
    assert set(jaxopt_nn.__all__) <= set(dir(jaxopt_nn))
