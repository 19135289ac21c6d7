"""The interpreter on every model of the zoo."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.rule import identity_rule
from jaxopt_nn.core.tap import Tap
from jaxopt_nn.interpret.rewrite import capture, rewrite
from jaxopt_nn.methods.arithmetic import arithmetic, fake_quant_activations
from jaxopt_nn.tensors.base import is_compressed
from tests.zoo import FORWARD_ONLY, ZOO
from tests.zoo.compressed import network, quantized, structure

NAMES = list(ZOO)
COUNT = Tap(lambda site: jnp.zeros(()), lambda acc, x, weight, site: acc + x.size, lambda a, b: a + b)

#: Matrices of the zoo that feed no site: a pattern for their paths, and the true reason. No other may lack a site.
NO_SITE: dict[str, dict[str, str]] = {
    "vit": {"**/{key,query,value}/bias": "by `add`", "params/positions": "by `add`"},
    "encdec": {"**/{key,query,value}/bias": "by `add`", "params/positions": "by `add`"},
    "vit_token": {"params/pos_embed": "by `add`"},
    "dropout_mha": {"**/{key,query,value}/bias": "by `add`"},
    "ensemble": {"bias": "by `add`"},
    "modulated_conv": {"kernel": "combined with an activation by `mul`"},
    "untouched_leaf": {"returned": "reaches an output", "unused": "is not read by apply"},
}

#: Leaves of the zoo that a use densifies.
DENSIFIED: dict[str, set[str]] = {
    "weight_norm": {"direction", "doubled"},
}


def text(fun, *args):
    return re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(fun)(*args)))


def arrays(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_rewrite_gives_the_same_program(name):
    m = network(name)
    plain = text(m.apply, m.variables, *m.inputs)
    assert text(rewrite(m.apply), m.variables, *m.inputs) == plain
    entering = rewrite(m.apply, identity_rule())
    if not entering.explain(m.variables, *m.inputs).of("derivative"):
        assert text(entering, m.variables, *m.inputs) == plain
    ours, theirs = entering(m.variables, *m.inputs), jax.jit(m.apply)(m.variables, *m.inputs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_feeds_a_site_or_is_listed(name):
    m = network(name)
    info = structure(name)
    listed = {message.path: message.reason for message in info.report.of("no site")}
    expected = [(_braces(pattern), word) for pattern, word in NO_SITE.get(name, {}).items()]
    for path, reason in listed.items():
        assert any(pattern.fullmatch(path) and word in reason for pattern, word in expected), (path, reason)
    for pattern, _ in expected:
        assert any(map(pattern.fullmatch, listed))
    matrices = {leaf.path for leaf in info.leaves if leaf.matrix}
    assert matrices and {leaf.path for leaf in info.leaves if leaf.sites} >= matrices - listed.keys()
    assert set(info.roles) <= set(leaves_by_path(m.variables))


@pytest.mark.parametrize("name", NAMES)
def test_four_bit_weights_run_and_equal_their_view(name):
    m = network(name)
    info = structure(name)
    view, stored, _ = quantized(name, 4)
    assert sum(map(is_compressed, leaves_by_path(stored).values())) == len(info.roles.keys() & _floats(m.variables))
    new = rewrite(m.apply)
    _near(new(stored, *m.inputs), jax.jit(m.apply)(view, *m.inputs), 2e-4)
    assert {x.path for x in new.explain(stored, *m.inputs).of("densified")} == DENSIFIED.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_integers_run_and_equal_their_float_twin(name):
    m = network(name)
    info = structure(name)
    view, stored, prepared = quantized(name, 8)
    integers = rewrite(m.apply, arithmetic("w8a8"))
    messages = integers.explain(stored, *m.inputs)
    left = {x.path for x in messages.of("float")}
    assert {run.site for run in messages.activations} == {s.name for s in info.sites if s.weight is None}
    assert all("takes weights only" in run.reason for run in messages.activations)
    same = [(name, identity_rule()) for name in left]  # float here, so float there
    twin = rewrite(m.apply, [*same, ("**", fake_quant_activations(8))])
    ours, theirs = integers(prepared, *m.inputs), twin(view, *m.inputs)
    _near(ours, theirs, 1e-3)  # a last bit may move one activation to the next integer, for which the outputs differ
    off = np.concatenate(
        [np.ravel(np.abs(a - b) / max(1e-3, np.abs(b).max())) for a, b in zip(arrays(ours), arrays(theirs))]
    )
    assert np.quantile(off, 0.25) <= 1e-5
    real = _floats(m.variables)
    derived = {s.name for s in info.sites if s.derived} if messages.of("densified") else set()
    taken = {s.name for s in info.sites if s.weight is not None and set(s.leaves) <= real} - derived
    weights = {s.name for s in info.sites if s.weight is not None and s.kind != "gather"}
    assert left == weights - taken


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_network(name):
    m = network(name)
    new = rewrite(m.apply, identity_rule())
    if new.explain(m.variables, *m.inputs).of("derivative"):
        new = rewrite(m.apply)
    trained = {p: x for p, x in leaves_by_path(m.variables).items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def loss(fun, part):
        leaves = [part.get(p, x) for p, x in leaves_by_path(m.variables).items()]
        outs = fun(jax.tree.unflatten(jax.tree.structure(m.variables), leaves), *m.inputs)
        return sum(jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(outs) if jnp.issubdtype(x.dtype, jnp.inexact))

    if name not in FORWARD_ONLY:
        ours = jax.jit(jax.grad(functools.partial(loss, new)))(trained)
        theirs = jax.jit(jax.grad(functools.partial(loss, m.apply)))(trained)
        _near(ours, theirs, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_of_every_site(name):
    m = network(name)
    capturing = capture(m.apply, COUNT)
    _, stats = capturing(m.variables, *m.inputs)
    info = structure(name)
    unmeasured = {x.path for x in capturing.explain(m.variables, *m.inputs).of("note")}
    assert unmeasured == ({"halt"} if name == "while_loop" else set())
    assert set(stats) == {s.name for s in info.sites} - unmeasured
    assert all(np.shape(stats[s.name]) == s.stack for s in info.sites if s.name in stats)


def _braces(pattern):
    """A glob with alternatives, as a regular expression."""
    text = pattern.replace("**/", ".*").replace("{", "(").replace("}", ")").replace(",", "|")
    return re.compile(text)


def _floats(variables):
    return {p for p, x in leaves_by_path(variables).items() if jnp.issubdtype(x.dtype, jnp.floating)}


def _near(ours, theirs, tolerance):
    """Equal up to ``tolerance`` of the largest magnitude of each output."""
    for a, b in zip(arrays(ours), arrays(theirs), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1e-3, float(np.abs(b).max(initial=0))))


@pytest.mark.parametrize("name", NAMES)
def test_mapped_over_networks_it_is_the_same_program(name):
    m = network(name)
    stack = jax.tree.map(lambda x: jnp.stack([x, x]), m.variables)
    axes = (0, *(None for _ in m.inputs))
    plain = text(jax.vmap(m.apply, axes), stack, *m.inputs)
    assert text(jax.vmap(rewrite(m.apply), axes), stack, *m.inputs) == plain
    entering = rewrite(m.apply, identity_rule())
    if not entering.explain(m.variables, *m.inputs).of("derivative"):
        assert text(jax.vmap(entering, axes), stack, *m.inputs) == plain
