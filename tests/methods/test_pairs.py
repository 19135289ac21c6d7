"""Every pair of parts of a pruning, from names: it runs, or is an error that says why."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.pruning_pairs import PARTS, recipe
from jaxopt_nn.interpret.inspect import inspect

V = {"a": {"kernel": jnp.ones((16, 12))}, "b": {"kernel": jnp.ones((12, 8))}}
INFO = inspect(lambda v, x: jnp.tanh(x @ v["a"]["kernel"]) @ v["b"]["kernel"], V, jnp.ones((1, 16)))
DYNAMIC = {"rigl", "sparse_evolution"}
EARLY = {"at once", "constant", "staircase", "rewound"} | DYNAMIC
#: Pairs without sense.
NONE = {
    *itertools.product(["saliency", "movement"], EARLY),
    *itertools.product(["movement", "obd", "grasp"], ["lamp"]),
    *itertools.product(["1:4"], {"global_budget", "erk", "lamp", "by_sensitivity"} | DYNAMIC),
}


def run(fields):
    """A config's method on abstract values: init, update, view."""
    method = recipe(fields)[-1].method(100)
    stats = {}
    while wanted := method.traits.taps(INFO.with_stats(stats)):
        stats |= {key: jnp.ones(5 if key[2] == "rises" else V[key[1][0]]["kernel"].shape) for key in wanted}
    state = jax.eval_shape(lambda v: method.init(v, INFO.with_stats(stats)), V)
    after = jax.eval_shape(lambda v, s: method.update(v, s, step=3, grads=v), V, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.map(np.shape, jax.eval_shape(method.view, V, after)) == jax.tree.map(np.shape, V)


@pytest.mark.parametrize("kinds", [*itertools.combinations(PARTS, 2)], ids=" x ".join)
def test_each_pair_runs_or_says_why(kinds):
    for (a, own), (b, other) in itertools.product(*(PARTS[kind].items() for kind in kinds)):
        if (a, b) in NONE:
            with pytest.raises(ValueError, match=r"prune.*(pass|leave)"):
                run({**own, **other})
        else:
            run({**own, **other})


@pytest.mark.slow
def test_all_four_at_once():
    """What no pair forbids runs."""
    for parts in itertools.product(*(each.items() for each in PARTS.values())):
        names, fields = zip(*parts)
        if not any(pair in NONE for pair in itertools.combinations(names, 2)):
            run({key: x for own in fields for key, x in own.items()})
