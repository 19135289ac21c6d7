"""The documentation's picture holds each recipe at its bytes and its mean accuracy."""

import numpy as np

from experiments import docs_pictures


def test_each_recipe_stands_at_its_bytes_and_mean_accuracy():
    points = {("float", ""): [(1000, 0.9), (1000, 1.0)]}
    for line, recipes in docs_pictures.RECIPES.items():
        points |= {(line, name): [(100 * at, 0.8), (100 * at, 0.9)] for at, name in enumerate(recipes, 1)}
    (axes,) = docs_pictures.drawn(points).axes
    lines = {bars.get_label(): bars.lines[0].get_xydata() for bars in axes.containers}
    assert set(lines) == set(docs_pictures.RECIPES)
    for line, recipes in docs_pictures.RECIPES.items():
        assert np.allclose(lines[line], [(100 * at, 85) for at in range(1, len(recipes) + 1)])
