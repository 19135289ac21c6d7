"""Every pair of parts of a pruning, from names: it runs, or is an error that says why; and the parts of one's own."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.benchmarks import pruning_pairs
from experiments.benchmarks.pruning_pairs import PARTS, Pair, pairs, recipe, refusal
from experiments.config import plain
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.regrowth import Regrowth
from jaxopt_nn.methods.structures.base import single_weights
from jaxopt_nn.pipeline import registry
from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.tensors.base import densify

V = {"a": {"kernel": jnp.ones((16, 12))}, "b": {"kernel": jnp.ones((12, 8))}}
X = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
APPLY = lambda v, x: jnp.tanh(x @ v["a"]["kernel"]) @ v["b"]["kernel"]
INFO = inspect(APPLY, V, X[:1])
DYNAMIC = {"rigl", "set"}
#: Pairs without sense.
NONE = {
    *itertools.product(["saliency", "movement"], {"at once", "constant", "staircase", "threshold", "rewound"}),
    *itertools.product(["movement", "obd", "grasp"], ["lamp"]),
    *itertools.product(["1:4"], {"per_output", "global_budget", "erk", "lamp", "by_sensitivity", "threshold"} | DYNAMIC),
    *itertools.product({"per_output", "global_budget", "erk", "lamp", "by_sensitivity"}, ["threshold"]),
    *itertools.product(["per_output"], DYNAMIC),
    *itertools.product(["sparsegpt"], {"4x4", *PARTS["allocation"], *PARTS["schedule"]} - {"at once", "rewound"}),
}


def run(fields):
    """A config's method on abstract values: init, update, view."""
    method = recipe(fields)[-1].method(100)
    stats = {}
    while wanted := method.traits.taps(INFO.with_stats(stats)):
        for key, one in wanted.items():
            shape = (5,) if key[2] == "rises" else V[key[1][0]]["kernel"].shape
            site = next((site for site in INFO.sites if site.name == key[1]), None)
            stats[key] = one.zero(site) + jnp.eye(site.inputs) if isinstance(one, Tap) and key[2] == "gram" else (
                one.zero(site) + 1 if isinstance(one, Tap) else jnp.ones(shape)
            )  # fmt: skip
    state = jax.eval_shape(lambda v: method.init(v, INFO.with_stats(stats)), V)
    after = jax.eval_shape(lambda v, s: method.update(v, s, step=3, grads=v), V, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(np.shape, jax.eval_shape(method.view, V, after)) == jax.tree.map(np.shape, V)


def test_those_without_sense_are_known():
    found = {pair.names for pair in pairs() if not pair.units and refusal(pair.fields) is not None}
    assert found == NONE
    assert not [pair for pair in pairs() if pair.units and refusal(pair.fields) is not None]


@pytest.mark.parametrize("kinds", [*itertools.combinations(PARTS, 2)], ids=" x ".join)
def test_each_pair_runs_or_says_why(kinds):
    for names in itertools.product(*(PARTS[kind] for kind in kinds)):
        fields = Pair(kinds, names).fields
        if names in NONE:
            assert pruning_pairs.why(refusal(fields))
        else:
            run(fields)


@pytest.mark.slow
def test_all_four_at_once():
    """What no pair forbids runs."""
    for parts in itertools.product(*(each.items() for each in PARTS.values())):
        names, fields = zip(*parts)
        if not any(pair in NONE for pair in itertools.combinations(names, 2)):
            run({key: x for own in fields for key, x in own.items()})


def test_the_tables_are_those_of_the_parts():
    """The README's to the letter; of the figures the parts and which pairs are errors."""
    text = pruning_pairs.README.read_text()
    assert pruning_pairs.updated(text, pruning_pairs.overview()) == text, "run: python -m experiments.benchmarks.pruning_pairs"
    known = {pair: {"error": ""} if refusal(pair.fields) else {"accuracy, %": 0.0} for pair in pairs()}
    table = pruning_pairs.BENCHMARKS.read_text().split(pruning_pairs.START)[1].split(pruning_pairs.STOP)[0]
    verdicts = lambda text: [re.sub(r"\| \d+\.\d(?= \|)", "| yes", line) for line in text.splitlines() if line.startswith("|")]
    assert verdicts(table) == verdicts(pruning_pairs.figures(known))


def heaviest_last(weight, grad, known):
    """A criterion: large weights go first."""
    return -jnp.abs(weight)


def all_but_the_last(scores, known, sparsity):
    """An allocation: the last leaf stays whole, each other loses as many of its lowest as it is told."""
    *others, last = sorted(scores)
    ranks = {path: jnp.argsort(jnp.argsort(scores[path].ravel())).reshape(scores[path].shape) for path in others}
    return {last: jnp.ones(scores[last].shape, bool)} | {
        path: rank >= jnp.round(sparsity * rank.size).astype(int) for path, rank in ranks.items()
    }


def rows(least):
    """A structure: whole rows of matrices with at least so many."""
    return single_weights._replace(
        name="rows",
        takes=lambda shape, roles: None if shape[0] >= least else "has too few rows",
        entries=lambda score, roles: score.sum(1, keepdims=True),
        spread=lambda mask, shape, roles: jnp.broadcast_to(mask, shape),
        pack=lambda mask, leaf, roles: single_weights.pack(jnp.broadcast_to(mask, leaf.shape), leaf, roles),
    )


def steps(height, at):
    """A schedule."""
    return lambda step: jnp.where(step >= at, height, 0.0)


def uphill(share):
    """A regrowth."""
    return Regrowth("uphill", by=heaviest_last, share=lambda step: jnp.where(step < 1, share, 0.0))


def first_row_alone(network):
    """Weights of examples, of the network."""
    return lambda x: jnp.where(jnp.arange(len(x)) == 0, 1.0, 0.0)


OWN = {
    "criterion": {"criterion": f"{__name__}:heaviest_last"},
    "allocation": {"allocation": f"{__name__}:all_but_the_last"},
    "structure": {"structure": {"name": f"{__name__}:rows", "least": 14}},
    "schedule": {"sparsity": {"schedule": f"{__name__}:steps", "height": 0.5, "at": 1}},
    "regrowth": {"regrow": {"name": f"{__name__}:uphill", "share": 0.25}},
    "weights": {"criterion": "wanda", "calibration": {"weights": f"{__name__}:first_row_alone"}},
}


def shipped(fields):
    """What a config makes of a small network: its first weights, which are not zero in the end, and the masks."""
    stage = {"name": "own", "method": "prune", "where": "**/kernel", "sparsity": 0.5, "epochs": 1, **fields}
    draw = np.random.default_rng(1).standard_normal
    variables = jax.tree.map(lambda x: jnp.asarray(draw(x.shape), jnp.float32), V)
    labels = X[:, :8].argmax(1).astype(np.int32)
    task = classification(train=(X, labels), test=(X, labels), batch_size=32)
    made = registry.stages(plain(ConfigDict({"stages": [stage]}))["stages"])
    result = Compressor(made)(Network(APPLY, variables), task, latency=False, sensitivity=False)
    masks = [np.asarray(x) for x in jax.tree.leaves(result.state.carried) if x.dtype == bool]
    return variables, jax.tree.map(lambda x: np.asarray(x) != 0, densify(result.network.variables)), masks


@pytest.mark.parametrize("part", OWN)
def test_a_part_of_ones_own_from_a_config(part):
    variables, kept, masks = shipped(OWN[part])
    a, b = kept["a"]["kernel"], kept["b"]["kernel"]
    size = np.abs(variables["a"]["kernel"])
    if part == "allocation":
        assert b.all() and a.sum() == 96
    elif part == "structure":
        assert (a.all(1) == a.any(1)).all() and a.any(1).sum() == 8 and b.all()
    else:
        assert sorted(mask.sum() for mask in masks) == [48, 96]
    if part == "criterion":
        assert size[a].max() < size[~a].min()
    if part in ("allocation", "schedule"):
        assert size[a].mean() > size[~a].mean()
    if part == "weights":
        score = size * np.abs(X[:1].T)
        assert score[a].min() > score[~a].max()
    if part == "regrowth":
        (mask,) = (mask for mask in masks if mask.shape == a.shape)
        gone = np.sort(np.argsort(size, axis=None)[:96])  # which are zero, and return by position
        assert mask.ravel()[gone[:24]].all() and not mask.ravel()[gone[24:]].any()
