"""Tokens weighed by attention, and weights by site, against sums by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxopt_nn.core.combine import where
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.rewrite import capture
from jaxopt_nn.methods import taps
from jaxopt_nn.methods.sparsegpt import sparsegpt
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.attention import attention_weights
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.pipeline.numbers import regression
from jaxopt_nn.pipeline.recipe import Calibration, Stage
from jaxopt_nn.tensors.base import densify

HEADS = 2


def block(x, w):
    """Causal attention of two heads, and what each token gets, ``[B, T]``."""
    heads = lambda k: (x @ w[k]).reshape(*x.shape[:2], HEADS, -1)
    scores = jnp.einsum("bthd,bshd->bhts", heads("query"), heads("key"))
    causal = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None, None]
    attention = jax.nn.softmax(jnp.where(causal, scores, -1e30))
    mixed = jnp.einsum("bhts,bshd->bthd", attention, heads("value")).reshape(x.shape)
    return x + jnp.tanh(mixed @ w["out"]), attention.sum((1, 2)) / HEADS


def scanned(v, x):
    return lax.scan(lambda x, w: (block(x, w)[0], None), x, v)[0]


def unrolled(v, x):
    for i in range(3):
        x, _ = block(x, v[f"{i}"])
    return x


@pytest.fixture
def example(rng):
    v = {k: jnp.asarray(rng.standard_normal((3, 8, 8)), jnp.float32) / 2 for k in ("query", "key", "value", "out")}
    x = jnp.asarray(rng.standard_normal((4, 6, 8)), jnp.float32)
    layers, reads, now = [], [], x
    for i in range(3):
        reads.append(np.asarray(now, np.float64))
        now, got = block(now, {k: w[i] for k, w in v.items()})
        layers.append(np.asarray(got))
    return v, x, np.stack(layers), reads


def test_tokens_count_by_the_attention_that_they_get(example):
    v, x, layers, _ = example
    apart = {f"{i}": {k: w[i] for k, w in v.items()} for i in range(3)}
    for net in (Network(scanned, v), Network(unrolled, apart)):
        np.testing.assert_allclose(attention_weights(net)(x), layers.mean(0), rtol=1e-4)
    by_site = attention_weights(Network(scanned, v), "value")(x)
    np.testing.assert_allclose(by_site["value"], layers, rtol=1e-4)
    own = attention_weights(Network(unrolled, apart), "*/value")(x)
    np.testing.assert_allclose([own[f"{i}/value"] for i in range(3)], layers, rtol=1e-4)


def test_each_layer_of_a_scan_is_weighed_by_its_own(example):
    """The values' Gram matrices are weighed; queries and keys, which read the same, are not."""
    v, x, layers, reads = example
    net = Network(scanned, v)
    info = calibrate(net, sparsegpt(0.5), [x[:2], x[2:]], weights=attention_weights(net, "value"))
    plain = calibrate(net, sparsegpt(0.5), [x])
    for i, rows in enumerate(reads):
        wanted = np.einsum("bti,bt,btj->ij", rows, layers[i].astype(np.float64), rows)
        np.testing.assert_allclose(info.stats[(), "value", "gram"][i], wanted, rtol=1e-3, atol=1e-3)
    for site in ("query", "key", "out"):
        np.testing.assert_allclose(info.stats[(), site, "gram"], plain.stats[(), site, "gram"], rtol=1e-3, atol=1e-3)
    gap = np.abs(info.stats[(), "value", "gram"] - plain.stats[(), "value", "gram"]).max()
    assert gap > 1 and not info.report.of("note")
    turn = calibrate(net, where("value", sparsegpt(0.5)), [x], weights=attention_weights(net, "value"), sequential=True)
    np.testing.assert_allclose(turn.stats[(0,), "value", "gram"][0], info.stats[(), "value", "gram"][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_stage_and_a_config_weigh_tokens(example, sequential):
    """As ``calibrate`` does by hand; a run of another calibration has another fingerprint."""
    v, x, _, _ = example
    net, method = Network(scanned, v), where("value", sparsegpt(0.5))
    info = calibrate(net, method, [x], weights=attention_weights(net, "value"), sequential=sequential)
    wanted = method.view(v, method.init(v, info))["value"]
    how = {"weights": {"name": "attention", "values": "value"}, "sequential": sequential}
    fields = {"name": "sparse", "method": "sparsegpt", "sparsity": 0.5, "where": "value"}
    weighed, plain = (registry.stages([{**fields, **own}]) for own in ({"calibration": how}, {}))
    by_hand = [Stage("sparse", method, calibration=Calibration(partial(attention_weights, values="value"), sequential))]
    task = regression(train=(np.asarray(x), np.asarray(x)), test=(np.asarray(x), np.asarray(x)), batch_size=4)
    results = [Compressor(made)(net, task, latency=False, sensitivity=False) for made in (weighed, by_hand, plain)]
    seen = [np.asarray(densify(result.network.variables)["value"]) for result in results]
    np.testing.assert_allclose(seen[0], wanted, atol=1e-5)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.abs(seen[0] - seen[2]).max() > 1e-2
    prints = [Compressor(made).fingerprint(net, task, None, 0) for made in (weighed, plain)]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"weights": "atention"}, "weights 'atention' is unknown; nearest: attention"),
        ({"weights": {"values": "value"}}, "a mapping needs 'name', one of attention"),
        ({"weights": {"name": "attention", "value": "value"}}, "weights 'attention' has no 'value'; nearest: values"),
        ({"weighs": "attention"}, "calibration has no 'weighs'; nearest: weights"),
    ],
)
def test_what_is_mistyped_in_a_calibration(how, said):
    with pytest.raises(ValueError, match=said):
        registry.stages([{"name": "sparse", "method": "sparsegpt", "sparsity": 0.5, "calibration": how}])


def test_what_is_no_attention_is_told(example):
    v, x, _, _ = example
    dense = Network(lambda v, x: x @ v["w"], {"w": jnp.ones((8, 2))})
    with pytest.raises(ValueError, match="is an attention over 6 tokens"):
        attention_weights(dense)(x)
    with pytest.raises(ValueError, match=r"shape \[4\] have no axis of tokens"):
        attention_weights(dense)(jnp.ones(4))
    with pytest.raises(ValueError, match="matches no site"):
        attention_weights(Network(scanned, v), "**/values")(x)
    with pytest.raises(ValueError, match=r"4 sites \(.*\) for 1 attentions"):
        attention_weights(Network(scanned, v), "*")(x)


def test_weights_by_site_of_a_wrong_name_or_shape(example):
    v, x, _, _ = example
    capturing = capture(scanned, taps.gram())
    with pytest.raises(ValueError, match=r"weights\['valeu'\]: no such site; nearest: value"):
        capturing(v, x, weights={"valeu": jnp.ones((3, 4, 6))})
    with pytest.raises(ValueError, match=r"shape \[4, 6\]; give \[3\] entries"):
        capturing(v, x, weights={"value": jnp.ones((4, 6))})
