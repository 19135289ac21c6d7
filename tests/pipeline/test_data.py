"""Data is checked when it is made."""

import numpy as np
import pytest

from jaxopt_nn.pipeline.data import Data

X, Y = np.zeros((4, 3), np.float32), np.array([0, 1, 2, 1])


def test_keeps_what_it_is_given():
    data = Data((X, Y), (X[:2], [1, 0]))
    assert data.test[1].tolist() == [1, 0] and data.train[0] is X and data.example.shape == (1, 3)
    data.check_labels(3)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ((X[:0], Y[:0]), (X, Y), "Data.train: no examples"),
        ((X, Y), (X[:0], Y[:0]), "Data.test: no examples"),
        ((X, Y[:3]), (X, Y), r"Data.train: inputs have shape \[4, 3\], labels \[3\]"),
        ((X, Y), (X, np.eye(4, dtype=int)), r"train labels are int64\[\] each, test labels int64\[4\]"),
        ((X, Y), (X, np.int32(3)), "Data.test: labels have no axis"),
        ((X, Y), (X, -Y), "Data.test: label -2"),
        ((X / np.array([1, 1, np.inf], np.float32) + np.nan, Y), (X, Y), "Data.train: NaN or Inf"),
        ((X, Y), (X[:, :2], Y), r"train inputs are float32\[3\] each, test inputs float32\[2\]"),
        ((X, Y), (X.astype(np.float64), Y), "test inputs float64"),
    ],
)
def test_bad_data_is_named(train, test, said):
    with pytest.raises(ValueError, match=said):
        Data(train, test)


def test_labels_are_integers():
    with pytest.raises(TypeError, match="labels are float64"):
        Data((X, Y.astype(float)), (X, Y))


def test_labels_have_a_logit():
    with pytest.raises(ValueError, match=r"Data.train: label 2 at 2, but apply gives 2 logits: allowed are 0 to 1"):
        Data((X, Y), (X, Y % 2)).check_labels(2)
    with pytest.raises(ValueError, match=r"but the teacher gives 2 logits: .* or give the teacher as many outputs"):
        Data((X, Y), (X, Y % 2)).check_labels(2, "the teacher")


def test_labels_of_a_language_model_and_its_metric():
    tokens = np.zeros((4, 5), int)
    data = Data((X, tokens), (X, tokens + 1), metric="bits/byte")
    data.check_labels(2)
    with pytest.raises(ValueError, match=r"Data.test: label 1 at 0, 0, but apply gives 1 logits"):
        data.check_labels(1)
    with pytest.raises(ValueError, match=r"Data\(metric='f1'\): allowed are accuracy, bits/byte"):
        Data((X, Y), (X, Y), metric="f1")
