"""The digits are scikit-learn's, each in one test fold."""

import numpy as np
import pytest
from sklearn import datasets

from experiments.data.digits import digits
from experiments.models.digits import build
from jaxopt_nn.tensors.base import nbytes


def test_every_image_is_in_one_test_fold_and_in_the_training_of_the_others():
    images, labels = datasets.load_digits(return_X_y=True)
    folds = [digits(fold) for fold in range(5)]
    assert [len(f.test.tree[1]) for f in folds] == [360, 360, 359, 359, 359]
    for f in folds:
        assert len(f.train.tree[1]) + len(f.test.tree[1]) == 1797
        both = np.concatenate([f.train.tree[0], f.test.tree[0]]).reshape(1797, 64)
        assert sorted(map(bytes, both)) == sorted(map(bytes, (images / 16).astype(np.float32)))
    x = np.concatenate([f.test.tree[0] for f in folds]).reshape(1797, 64)
    y = np.concatenate([f.test.tree[1] for f in folds])
    assert sorted(map(bytes, x)) == sorted(map(bytes, (images / 16).astype(np.float32)))
    assert np.bincount(y).tolist() == np.bincount(labels).tolist()
    assert (x.min(), x.max(), x.dtype) == (0, 1, np.float32)


def test_the_split_is_fixed_by_its_seed():
    np.testing.assert_array_equal(digits(2).test.tree[1], digits(2).test.tree[1])
    assert not np.array_equal(digits(2).test.tree[1], digits(2, seed=1).test.tree[1])
    assert digits(0).test.tree[1][:12].tolist() == [0, 6, 3, 8, 1, 8, 4, 1, 5, 8, 9, 7]


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"fold": 5}, {"fold": -1}])
def test_folds_that_are_none(wrong):
    with pytest.raises(ValueError, match="folds of at least 2"):
        digits(**wrong)


def test_folds_that_would_leave_test_parts_without_some_classes():
    assert len(digits(178, folds=179).test.tree[1]) == 10
    with pytest.raises(ValueError, match=r"folds=180\): allowed are 2 to 179, .* 1,797 images as there are classes"):
        digits(folds=180)


def test_the_network_is_lenet_300_100_on_64_inputs():
    network = build(seed=3)
    variables = network.variables
    assert nbytes(variables) == 4 * 50_610
    assert network(*digits().example).shape == (1, 10)
    assert not np.array_equal(variables["params"]["Dense_0"]["kernel"], build(seed=4).variables["params"]["Dense_0"]["kernel"])


@pytest.mark.parametrize("share", [-0.1, 0.6, 1e-5])
def test_a_share_that_is_no_part_of_the_training_data_is_refused(share):
    with pytest.raises(ValueError, match=f"valid={share}.*from 0 to 0.5, of one image at least"):
        digits(valid=share)
