"""Axis groups as a picture: which edges have which colour, and how much of a tile stays."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import jaxopt_nn as jn
from jaxopt_nn.reporting.drawing import COLOURS, EDGE, FEW, PINNED, TILE, height


def apply(v, x):
    return jax.nn.relu(jax.nn.relu(x @ v["up"] + v["bias"][None]) @ v["mix"]) @ v["down"]


V = {"up": jnp.ones((4, 64)), "bias": jnp.ones(64), "mix": jnp.ones((64, 16)), "down": jnp.ones((16, 3))}


def boxes(plan=None):
    """Per colour the boxes of the drawing: left, lower end, width, height."""
    axes = jn.draw_groups(Figure().add_subplot(), jn.axis_groups(apply, V, jnp.ones((1, 4))), V, plan)
    found = {}
    for patch in axes.patches:
        found.setdefault(to_hex(patch.get_facecolor()), []).append((*patch.get_xy(), patch.get_width(), patch.get_height()))
    return axes, found


def test_edges_of_one_colour_are_cut_together():
    axes, found = boxes()
    assert [len(found[colour]) for colour in (*COLOURS[:2], PINNED)] == [3, 2, 1], "up, bias, mix; mix, down; down"
    flat = lambda box: box[2] > box[3]
    assert sorted(map(flat, found[COLOURS[0]])) == [False, True, True], "the rows of what reads the units"
    assert {text.get_text() for text in axes.texts} >= {"up", "bias", "mix", "down", "4 x 64", "64 x 16"}
    tall = lambda box: max(box[2:])
    assert max(map(tall, found[COLOURS[0]])) > max(map(tall, found[COLOURS[1]]))


def test_what_stays_is_filled():
    plan = jn.cut_units(widths={"up": 16}).plan(jn.Network(apply, V), jn.ModelInfo(), jnp.ones((1, 4)))
    axes, found = boxes(plan)
    _, before = boxes()
    shares = sorted(a[2] * a[3] / (b[2] * b[3]) for a, b in zip(found[TILE], before[TILE], strict=True))
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.25, 1.0], rtol=1e-6)
    assert axes.get_legend().get_texts()[0].get_text() == "up: 16 of 64 units stay"
    assert "16 x 16" in {text.get_text() for text in axes.texts}


def test_leaves_that_go_are_empty():
    def residual(v, x):
        for w in v["layers"]:
            x = x + jnp.tanh(x @ w["up"]) @ w["down"]
        return x

    v = {"layers": [{"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))} for _ in range(3)]}
    x = jnp.ones((1, 4))
    plan = jn.cut_layers(jn.scores.l2_norm, layers=1).plan(jn.Network(residual, v), jn.ModelInfo(), x)
    axes = jn.draw_groups(Figure().add_subplot(), jn.axis_groups(residual, v, x), v, plan)
    stays = [patch.get_width() * patch.get_height() for patch in axes.patches if to_hex(patch.get_facecolor()) == TILE]
    assert [bool(area) for area in stays] == [True] * 4 + [False] * 2
    assert [text.get_text() for text in axes.texts].count("gone") == 2


def test_many_leaves_and_odd_names():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(FEW):
                x = nn.relu(nn.Dense(8, name=f"layer${i}")(x))
            return x

    x = jnp.ones((1, 3))
    v = Deep().init(jax.random.key(0), x)
    groups = jn.axis_groups(Deep().apply, v, x)
    figure = Figure()
    axes = jn.draw_groups(figure.add_subplot(), groups, v)
    figure.canvas.draw()
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"{FEW - 1 - len(COLOURS)} more" in said and f"{FEW} leaves left out" in said, "no vectors beside so many matrices"
    assert 0 < height(groups, v) < 2 and EDGE < 1


@pytest.mark.parametrize("tree", [{}, {"w": jnp.ones(())}])
def test_nothing_to_draw(tree):
    assert jn.draw_groups(Figure().add_subplot(), (), tree).get_legend() is not None
