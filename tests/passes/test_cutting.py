"""Units that are taken out: the network without them against the one in which they are zero, and errors."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.lenet import LeNet5
from experiments.models.mlp import MLP
from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.transform import State, explain
from jaxopt_nn.frameworks.nnx import nnx as nnx_network
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.structures.n_of_m import n_of_m
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.passes.plans import dead_units, weak_units
from jaxopt_nn.passes.scores import largest_activation, mean_activation
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.tensors.base import densify, is_compressed, nbytes
from tests.passes.networks import network

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def masked(net, plan):
    """The network with the plan's units at zero."""
    method = mask_units(plan.masks)
    return net.replace(variables=method.view(net.variables, method.init(net.variables)))


def mlp():
    """A Linen MLP of 12 and 7 hidden units, some of them dead on its inputs."""
    net, x = network(MLP((12, 7, 3)), 50, 5)
    net.variables["params"]["Dense_0"]["bias"][[1, 4]] = -50
    net.variables["params"]["Dense_1"]["bias"][3] = -50
    return net, x


def test_dead_units_go_and_the_outputs_stay():
    net, x = mlp()
    cut = cut_units(largest_activation, threshold=0.0)
    info = calibrate(net, cut, [x[:20], x[20:]])
    plan = cut.plan(net, info, x)
    same = dead_units(net.apply, net.variables, x)
    jax.tree.map(np.testing.assert_array_equal, plan.kept, same.kept)
    assert plan.layers[0].off[[1, 4]].all() and plan.layers[1].off[3]
    small, remap = cut.execute(net, plan)
    close(small(x), net(x))
    n, m = (len(plan.layers[i].kept) for i in range(2))
    assert sum(v.size for v in jax.tree.leaves(small.variables)) == plan.sizes[1] == 6 * n + (n + 1) * m + (m + 1) * 3
    assert small.apply is not net.apply and remap.plan is plan
    built, _ = network(MLP((n, m, 3)), 1, 5)
    close(built.replace(variables=small.variables)(x), small(x))  # a module built with these widths is the same
    again, _ = cut.execute(net, Plan.from_json(plan.to_json()))
    jax.tree.map(np.testing.assert_array_equal, again.variables, small.variables)
    fewer, _ = cut.execute(net, plan.replace({"params/Dense_0/kernel": [0, 2]}))
    close(fewer(x), masked(net, plan.replace({"params/Dense_0/kernel": [0, 2]}))(x))
    skipped = {m.path for m in explain(cut, net.variables, info).of("skipped")}
    assert skipped == {"params/Dense_2/bias"}


def test_channels_of_a_flattened_convolution():
    net, x = network(LeNet5((3, 4), 5), 6, 28, 28, 1)
    cut = cut_units(mean_activation, share=0.4)
    plan = cut.plan(net, calibrate(net, cut, [x]), x)
    jax.tree.map(np.testing.assert_array_equal, plan.kept, weak_units(net.apply, net.variables, x, 0.4).kept)
    small, _ = cut.execute(net, plan)
    close(small(x), masked(net, plan)(x))
    assert plan.cuts["params/Dense_0/kernel"].shape == (64, 5) and plan.cuts["params/Dense_0/kernel"].small == (32, 3)


class Small(nnx.Module):
    """Reads its widths off its variables, as NNX layers do."""

    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(2, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.hidden, self.dropout = nnx.Linear(6 * 16, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1)
        return self.head(self.dropout(nnx.relu(self.hidden(x))))


def test_a_network_is_trained_on_as_it_was():
    net = nnx_network(Small(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 2))
    shrink = cut_units(widths={"conv/*": 4, "hidden/*": 0.5})
    plan = shrink.plan(net, ModelInfo(), jax.ShapeDtypeStruct(x.shape, x.dtype))
    small, _ = shrink.execute(net, plan)
    close(small(x), masked(net, plan)(x))
    assert small.still == net.still
    outputs, changed = small.trained(small.variables, x, key=jax.random.key(1))
    assert outputs.shape == (4, 3) and {v.shape for p, v in changed.items() if p.startswith("norm")} == {(4,)}


def stacked(v, x):
    """A scan over layers, whose axes are left alone, and two experts, whose units go in both."""
    x, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, v["layers"])
    x = jnp.einsum("ebi,eio->ebo", jnp.broadcast_to(x, (2, *x.shape)), v["experts"])
    return jnp.einsum("ebi,eio->ebo", jax.nn.gelu(x), v["mix"]).sum(0)


def test_a_stack_is_cut_in_all_of_its_layers():
    shapes = {"layers": (3, 5, 5), "experts": (2, 5, 6), "mix": (2, 6, 3)}
    rng = np.random.default_rng(0)
    net = Network(stacked, {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()})
    x = jnp.asarray(rng.standard_normal((4, 5)), jnp.float32)
    cut = cut_units(mean_activation, share=0.5)
    plan = cut.plan(net, calibrate(net, cut, [x]), x)
    small, _ = cut.execute(net, plan)
    assert {p: v.shape for p, v in small.variables.items()} == {"layers": (3, 5, 5), "experts": (2, 5, 3), "mix": (2, 3, 3)}
    assert small.variables["layers"] is net.variables["layers"]
    close(small(x), masked(net, plan)(x))
    assert np.abs(small(x) - net(x)).max() > 1e-2


def plain(width=6):
    """A function whose code holds its width where ``fixed`` says so."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, width), "b": (width, 3)}
    variables = {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()}
    return Network(lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"], variables), jnp.ones((2, 4))


def test_batches_of_other_sizes_derivatives_and_a_second_cut():
    net, x = mlp()
    shrink = cut_units(share=0.5)
    plan = shrink.plan(net, ModelInfo(), x)
    small, _ = shrink.execute(net, plan)
    whole = masked(net, plan)
    for rows in (1, 7, 50):
        close(small(x[:rows]), whole(x[:rows]))
    close(jax.vmap(lambda row: small.apply(small.variables, row[None])[0])(x), whole(x))
    loss = lambda n: lambda v: jnp.sum(jnp.sin(n.apply(v, x)))
    cut = {path: plan.cuts[path].leaf(g) for path, g in leaves_by_path(jax.grad(loss(whole))(whole.variables)).items()
           if path in plan.cuts}  # fmt: skip
    for path, g in leaves_by_path(jax.grad(loss(small))(small.variables)).items():
        close(g, cut[path] if path in cut else g)
    again = cut_units(widths={"**/Dense_0/kernel": 2})
    smaller, _ = again.execute(small, second := again.plan(small, ModelInfo(), x))
    assert smaller.variables["params"]["Dense_0"]["kernel"].shape == (5, 2)
    close(smaller(x), masked(small, second)(x))
    same, _ = shrink.execute(net, plan)
    assert same.apply == small.apply and hash(same.apply) == hash(small.apply) and smaller.apply != small.apply


def test_a_function_for_training_that_couples_other_axes():
    net, x = plain()
    shrink = cut_units(share=0.5)
    turned = net.replace(training=lambda v, x, key: ((lambda h: (h + h[:, ::-1]) @ v["b"])(x @ v["a"]), {}))
    with pytest.raises(ValueError, match=r"the function for training fails on the cut variables .*6 units are not those of a"):
        shrink.execute(turned, shrink.plan(turned, ModelInfo(), x))


def test_what_training_mode_or_another_batch_sums_over_is_refused():
    net, x = plain()
    shrink = cut_units(share=0.5)
    other = net.replace(training=lambda v, x, key: (jnp.cumprod(1.5 - jax.nn.relu(x @ v["a"]), -1) @ v["b"], {}))
    with pytest.raises(ValueError, match=r"the function for training fails .* must keep all of its 6 units: it `cumprod` runs"):
        shrink.execute(other, shrink.plan(other, ModelInfo(), x))
    flat = net.replace(apply=lambda v, x: jnp.cumprod(jnp.exp(x @ v["a"]), 0 if len(x) == 1 else 1) @ v["b"])
    small, _ = shrink.execute(flat, shrink.plan(flat, ModelInfo(), x[:1]))
    assert small(x[:1]).shape == (1, 3)
    with pytest.raises(ValueError, match="must keep all of its 6 units: it `cumprod` runs along it"):
        small(x)


def test_a_sum_over_units_and_the_batch_is_completed_for_every_batch():
    net, x = plain()
    net = net.replace(apply=lambda v, x: jnp.exp(x @ v["a"]).reshape(-1).sum() * jnp.tanh(x @ v["a"]) @ v["b"])
    shrink = cut_units(share=0.5)
    small, _ = shrink.execute(net, plan := shrink.plan(net, ModelInfo(), x[:1]))
    method = mask_units(plan.masks)
    zeroed = net.replace(variables=method.view(net.variables, method.init(net.variables)))
    close(small(x), zeroed(x))


def test_a_plan_that_was_edited_against_its_couplings():
    net, x = plain()
    shrink = cut_units(share=0.5)
    text = shrink.plan(net, ModelInfo(), x).to_json()
    other = json.loads(text)
    other["layers"][0]["members"] = other["layers"][0]["members"][:1]
    with pytest.raises(ValueError, match="keeps all entries of b axis 0, and by the units of the other leaves 3 entries stay"):
        shrink.execute(net, Plan.from_json(json.dumps(other)))
    small, _ = shrink.execute(net, Plan.from_json(text))
    with pytest.raises(ValueError, match=r"a is \[4, 6\], and the plan of cut_units leaves \(4, 3\)"):
        small.apply(net.variables, x)


def test_what_does_not_fit():
    net, x = plain()
    other, _ = plain(8)
    cut, shrink = cut_units(largest_activation, threshold=0.0), cut_units(share=0.5)
    plan = shrink.plan(net, ModelInfo(), x)
    with pytest.raises(ValueError, match=r"a plan of another network: a has shape \[4, 8\] here"):
        shrink.execute(other, plan)
    with pytest.raises(TypeError, match="plan is a str; pass the Plan"):
        shrink.execute(net, plan.to_json())
    with pytest.raises(TypeError, match="network is a dict; pass a Network"):
        shrink.plan(net.variables, ModelInfo(), x)
    with pytest.raises(ValueError, match=r"cut_units: largest_activation needs the values of units on data; pass info="):
        cut.plan(net, inspect(net.apply, net.variables, x), x)
    with pytest.raises(ValueError, match="a has another shape in info than in the network"):
        shrink.plan(net, inspect(other.apply, other.variables, x), x)
    with pytest.raises(ValueError, match=r"pass one of share, params, .*; got share=0.5, threshold=0.1"):
        cut_units(threshold=0.1, share=0.5)
    with pytest.raises(ValueError, match="weighs leaves against each other"):
        calibrate(net, cut, [x], sequential=True)


METHODS = {
    "8 bits": quantize(8), "4 bits": quantize(4),
    "masked": prune(sparsity=0.5), "masked 4 bits": chain(prune(sparsity=0.5), quantize(4)), "2:4": prune(
        structure=n_of_m(2, 4), sparsity=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_compressed_leaves_are_cut_as_they_are(name):
    """The codes of what stays are what they were; it weighs less."""
    net, x = plain(8)
    method = METHODS[name]
    packed = net.replace(variables=method.pack(net.variables, method.init(net.variables, inspect(net.apply, net.variables, x))))
    cut = cut_units(share=0.5)
    plan = cut.plan(packed, ModelInfo(), x)
    small, _ = cut.execute(packed, plan)
    wanted = {path: plan.cuts[path].leaf(densify(leaf)) for path, leaf in packed.variables.items()}
    jax.tree.map(np.testing.assert_array_equal, densify(small.variables), wanted)
    assert all(map(is_compressed, small.variables.values())) and nbytes(small.variables) < 0.75 * nbytes(packed.variables)
    close(small(x), net.replace(variables=densify(mask_units(plan.masks).view(densify(packed.variables), mask_units(
        plan.masks).init(net.variables))))(x))  # fmt: skip


def test_groups_that_are_cut_apart_are_named():
    net, x = plain(8)
    method = quantize(4, group=4)
    packed = net.replace(variables={**net.variables, "b": method.pack(net.variables, method.init(net.variables))["b"]})
    cut = cut_units(widths={"a": 3})
    with pytest.raises(ValueError, match=r"of shape \[8, 3\]: its groups along axis 0 are cut apart; cut the network first"):
        cut.execute(packed, cut.plan(packed, ModelInfo(), x))
    for wrong in {"reconstruct": True, "share": 0.5}, {"nbytes": 0.5}:
        with pytest.raises(ValueError, match="b is a compressed tensor; pass another budget without reconstruct"):
            cut_units(**wrong).plan(packed, ModelInfo(), x)



def test_states_of_rules_stay_where_they_are_a_number_a_site():
    net, x = plain()
    runs = lambda site, state, lhs, rhs: site.run(lhs, rhs)
    state = lambda shape: Rule(runs, lambda site, stats=None: State((), jnp.ones(shape(site))))
    shrink = cut_units(share=0.5)
    plan = shrink.plan(net, ModelInfo(), x)
    ranged = net.replace(rules=state(lambda site: ())).initialized(x)
    small, _ = shrink.execute(ranged, plan)
    assert small.states.keys() == {"a", "b"} and small(x).shape == (2, 3)
    each = net.replace(rules=state(lambda site: (site.inputs,))).initialized(x)
    with pytest.raises(ValueError, match="cut_units: the rule at a has a state of more than a number"):
        shrink.execute(each, plan)
