"""What every rule and every pass owes, in two tables. A new rule or pass adds a line to its own."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.rule import identity_rule
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.groups import axis_groups
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.rewrite import capture, rewrite
from jaxopt_nn.methods.arithmetic import arithmetic, fake_quant_activations
from jaxopt_nn.methods.binary import binarize
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.ranges import moving_ranges, static_ranges
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.methods.xnor import xnor
from jaxopt_nn.passes.allocations import across_layers
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.passes.scores import l2_norm, largest_activation, mean_activation
from jaxopt_nn.pipeline.calibrate import calibrate

RNG = np.random.default_rng(0)


def weight(*shape):
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


VARIABLES = {
    "table": weight(11, 8),
    "layers": weight(2, 8, 8),
    "conv": weight(3, 8, 6),
    "up": weight(6, 12),
    "bias": weight(12),
    "down": weight(12, 3),
}
IDS = jnp.asarray(RNG.integers(11, size=(4, 5)), jnp.int32)


def apply(variables, ids):
    """A lookup, a scan over layers, a product of two activations, a convolution and two dots."""
    x = variables["table"][ids]
    x, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, variables["layers"])
    x = x + jnp.einsum("bts,bsd->btd", jnp.einsum("btd,bsd->bts", x, x), x)
    x = jax.lax.conv_general_dilated(x, variables["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return jax.nn.relu(x @ variables["up"] + variables["bias"][None, None]) @ variables["down"]


RULES = {
    "identity": identity_rule(),
    **{name: arithmetic(name) for name in ("w8a8", "w4a8", "w4a4", "w8a16", "w4a16", "w8a32")},
    "fake_quant_activations(8)": fake_quant_activations(8),
    "fake_quant_activations(4, pass)": fake_quant_activations(4, ste="pass"),
    "w8a8, static ranges": static_ranges("w8a8"),
    "w4a8, moving ranges of decay 0.99": moving_ranges("w4a8"),
    "w8a8, static ranges, in float": static_ranges("w8a8").training,
    "xnor": xnor(),
    "xnor, unscaled": xnor(scales=False),
    "xnor, in float": xnor().training,
}
#: What a rule's outputs are compared with in the place of the float network: signs are far from what they are of.
TWINS = {name: RULES[name].training for name in ("xnor", "xnor, unscaled")}
#: Of the largest output, how far a rule's may lie from the float network of the same weights: activations of 8 and 4 bits.
NEAR = {
    "w8a8": 0.05,
    "w4a8": 0.05,
    "w4a4": 0.6,
    "fake_quant_activations(8)": 0.05,
    "fake_quant_activations(4, pass)": 0.6,
    "w8a8, static ranges": 0.05,
    "w4a8, moving ranges of decay 0.99": 0.05,
    "w8a8, static ranges, in float": 0.05,
    "xnor, in float": 2.0,
}


@functools.cache
def stored(bits):
    method = quantize(bits) if bits > 1 else binarize()
    state = method.init(VARIABLES, inspect(apply, VARIABLES, IDS))
    return jax.jit(method.view)(VARIABLES, state), method.pack(VARIABLES, state)


@pytest.mark.parametrize("name", RULES)
def test_laws_of_a_rule(name):
    rule, trains = RULES[name], "fake" in name or "in float" in name
    view, packed = stored(1 if name.startswith("xnor") else 4 if name.startswith("w4") else 8)
    variables = prepare(packed, activations=rule.width) if name.startswith(("w", "xnor")) and not trains else view
    plain = rewrite(apply, rule)
    assert rule.name in (name, name.replace(", pass", ""))
    states = inits_alike_on_abstract_leaves(plain, variables, view)
    assert bool(states) == ("ranges" in name)
    run = functools.partial(plain, states=states)
    keeps_the_outputs_near(name, run, variables, view)
    runs_mapped_and_compiles_once(run, variables)
    names_every_site_it_leaves(rule, plain, variables, states)
    if not name.startswith(("w", "xnor")) or trains:
        has_gradients(run, view)


def keeps_the_outputs_near(name, run, variables, view):
    plain, out = jax.jit(rewrite(apply, TWINS.get(name, ())))(view, IDS), run(variables, IDS)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, plain)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(run, variables, IDS), out)
    atol = NEAR.get(name, 1e-5) * float(jnp.abs(plain).max())
    np.testing.assert_allclose(out, plain, rtol=0, atol=atol)
    assert (name in NEAR) == bool(jnp.abs(out - plain).max() > 1e-4 * jnp.abs(plain).max()), "it rounds, or it doesn't"


def inits_alike_on_abstract_leaves(run, variables, view):
    """The states, from the statistics that the rule asks for."""
    taps = run.taps(variables, IDS)
    stats = capture(apply, lambda site: taps.get(site.name, {}))(view, IDS)[1] if taps else {}
    concrete = run.init(variables, IDS, stats=stats)
    abstract = jax.eval_shape(lambda stats: run.init(variables, IDS, stats=stats), stats)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, concrete)
    return concrete


def runs_mapped_and_compiles_once(run, variables):
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(lambda v, x: run(v, x), n=1))
    alone = [once(variables, ids) for ids in (IDS, IDS[::-1])]
    mapped = jax.jit(jax.vmap(run, (None, 0)))(variables, jnp.stack([IDS, IDS[::-1]]))
    for i, expected in enumerate(alone):
        np.testing.assert_allclose(mapped[i], expected, rtol=1e-5, atol=1e-5)


def names_every_site_it_leaves(rule, run, variables, states):
    info = inspect(apply, VARIABLES, IDS)
    report = run.explain(variables, IDS, states=states)
    mixed = {site.name for site in info.sites if site.weight is None}
    assert mixed and {run.site for run in report.activations if run.reason} == (set() if rule.activations else mixed)
    assert not report.of("float")


def has_gradients(run, view):
    energy = lambda v: jnp.sum(jnp.square(run(v, IDS)))
    for path, slope in leaves_by_path(jax.jit(jax.grad(energy))(view)).items():
        assert jnp.all(jnp.isfinite(slope)) and jnp.any(slope != 0), path


NETWORK = Network(apply, VARIABLES)
PASSES = {
    "cut_units": cut_units(share=0.5),
    "cut_units, by layer": cut_units(widths={"up": 4}),
    "cut_units, all stay": cut_units(share=0.0),
    "cut_units, dead": cut_units(largest_activation, threshold=0.0),
    "cut_units, on data": cut_units(mean_activation, share=0.5),
    "cut_units, macs across layers": cut_units(l2_norm, macs=0.3, allocation=across_layers),
}
#: What changes no output; a unit of the model is dead on these ids.
EXACT = {"cut_units, all stay", "cut_units, dead"}


@pytest.mark.parametrize("name", PASSES)
def test_laws_of_a_pass(name):
    cut = PASSES[name]
    info = calibrate(NETWORK, cut, [IDS]) if cut.traits.passes else ModelInfo()
    before = jax.tree.map(np.asarray, VARIABLES)
    plan = cut.plan(NETWORK, info, IDS)
    small, remap = cut.execute(NETWORK, plan)
    chex.assert_trees_all_equal(VARIABLES, before)
    assert cut.traits.name == plan.name and name.startswith(plan.name)
    is_data(cut, plan, info, small)
    touches_what_it_says(name, plan, small, remap)
    gives_the_network_with_these_units_at_zero(name, plan, small)
    carries_what_lies_beside(plan, small, remap)


def is_data(cut, plan, info, small):
    """The same each time; written, read and carried out again it gives the same; another network is refused."""
    assert cut.plan(NETWORK, info, jax.ShapeDtypeStruct(IDS.shape, IDS.dtype)).to_json() == plan.to_json()
    again = cut.execute(NETWORK, Plan.from_json(plan.to_json()))[0]
    chex.assert_trees_all_equal(again.variables, small.variables)
    with pytest.raises(ValueError, match="a plan of another network"):
        cut.execute(NETWORK.replace(variables={**VARIABLES, "bias": jnp.zeros(11)}), plan)


def touches_what_it_says(name, plan, small, remap):
    groups = axis_groups(apply, VARIABLES, IDS)
    pinned = [g for g in groups if g.pinned is not None]
    assert len(plan.layers) == len(groups) and len(plan.report.of("skipped")) >= len(pinned) > 0
    assert bool(plan.cuts) == (name != "cut_units, all stay") and plan.cuts.keys() <= VARIABLES.keys()
    for path, leaf in small.variables.items():
        old = VARIABLES[path]
        assert leaf.dtype == old.dtype and leaf.shape == (plan.cuts[path].small if path in plan.cuts else old.shape)
        assert path in plan.cuts or leaf is old
    chex.assert_trees_all_equal(remap.params(VARIABLES), small.variables)


def gives_the_network_with_these_units_at_zero(name, plan, small):
    method = mask_units(plan.masks)
    zeroed = method.view(VARIABLES, method.init(VARIABLES))
    np.testing.assert_allclose(small(IDS), NETWORK.replace(variables=zeroed)(IDS), rtol=1e-5, atol=1e-5)
    assert np.allclose(small(IDS), NETWORK(IDS), rtol=1e-5, atol=1e-5) == (name in EXACT)


def carries_what_lies_beside(plan, small, remap):
    """A mask, and the moments of a step: as the small network's own."""
    method, optimizer = prune(threshold=0.1), optax.adam(0.1)
    state, report = remap.state(method, method.init(VARIABLES), small.variables)
    chex.assert_trees_all_equal(
        {path: own.mask for path, own in state.carried.items()},
        {path: own.mask for path, own in method.init(small.variables).carried.items()},
    )
    moments = lambda slopes: optimizer.update(slopes, optimizer.init(slopes))[1]
    made, more = remap.opt(moments(VARIABLES), optimizer.init(small.variables))
    chex.assert_trees_all_equal(made, moments(small.variables))
    assert not report + more
