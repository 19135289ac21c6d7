"""Paths, patterns and their near misses."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxopt_nn.core import paths

TREE = {
    "params": {
        "encoder": {"mlp": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}},
        "layers": [(np.ones(1), np.ones(2))],
    }
}


def test_paths_are_full_addresses_in_tree_order():
    assert list(paths.leaves_by_path(TREE)) == [
        "params/encoder/mlp/bias",
        "params/encoder/mlp/kernel",
        "params/layers/0/0",
        "params/layers/0/1",
    ]


def test_value_of_an_nnx_variable_is_no_part_of_the_path():
    keys = (jax.tree_util.DictKey("kernel"), jax.tree_util.GetAttrKey("value"))
    assert paths.path_of(keys) == "kernel"
    inner = (jax.tree_util.GetAttrKey("value"), jax.tree_util.DictKey("x"))
    assert paths.path_of(inner) == "value/x"


def test_two_leaves_of_one_path_are_an_error():
    with pytest.raises(ValueError, match="a/b: two leaves"):
        paths.leaves_by_path({"a/b": np.ones(1), "a": {"b": np.ones(1)}})


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**/kernel", "params/a/kernel", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "params/a/kernel2", False),
        ("**/kernel", "params/mykernel", False),
        ("params/*/kernel", "params/a/kernel", True),
        ("params/*/kernel", "params/a/b/kernel", False),
        ("params/**", "params/a/b/kernel", True),
        ("params/**/kernel", "params/kernel", True),
        ("**", "a", True),
        ("a", "a/b", False),
        ("**/Dense_[01]/kernel", "params/Dense_1/kernel", True),
        ("**/Dense_[01]/kernel", "params/Dense_2/kernel", False),
        ("a.b", "aXb", False),
        ("linear/w[0,1] 8x0e", "linear/w[0,1] 8x0e", True),  # as e3nn names its weights
        ("**/w[0,1] 8x0e", "linear/w[0,1] 8x0e", True),
        ("linear/w[01]", "linear/w1", True),
    ],
)
def test_globs(pattern, path, expected):
    assert paths.matches(pattern, path) is expected


def _oracle(pattern: list[str], path: list[str]) -> bool:
    """Brute force over the segments that each ``**`` may swallow."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_oracle(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return (
        bool(path) and bool(re.fullmatch(pattern[0].replace("*", "[^/]*"), path[0])) and _oracle(pattern[1:], path[1:])
    )


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "*", "a*", "**"]), min_size=1, max_size=4),
    st.lists(st.sampled_from(["a", "b", "ab", "abb"]), min_size=1, max_size=4),
)
def test_globs_against_brute_force(pattern, path):
    assert paths.matches("/".join(pattern), "/".join(path)) is _oracle(pattern, path)


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(ValueError, match="params/encoder/mlp/kernel"):
        paths.require_match("**/mpl/kernal", paths.leaves_by_path(TREE))


@given(st.data())
def test_the_first_match_of_many_is_found_as_if_they_were_tried_in_turn(data):
    segment = st.sampled_from(["a", "b", "*", "**", "a*b", "[ab]", "?", "a.b", "(a|b)", "*b*a*"])
    patterns = data.draw(st.lists(st.lists(segment, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6))
    path = "/".join(
        data.draw(
            st.lists(st.sampled_from(["a", "b", "ab", "aab", "a.b", "axb", "(a|b)", "bba"]), min_size=1, max_size=3)
        )
    )
    expected = next((i for i, pattern in enumerate(patterns) if paths.matches(pattern, path)), None)
    assert paths.first_match(patterns)(path) == expected
