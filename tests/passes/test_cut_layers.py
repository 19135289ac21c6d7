"""Layers that go: the network without them against one whose layers were never there, written by hand; scores; errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models.gpt import GPT
from experiments.models.resnet import ResNet
from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.passes import Plan
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.transform import State
from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.interpret.groups import axis_groups
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.passes import scores
from jaxopt_nn.passes.allocations import across_layers, per_layer
from jaxopt_nn.passes.cut_layers import cut_layers
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.passes.cutting import planned
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.pipeline.compress import compress
from jaxopt_nn.pipeline.numbers import regression
from jaxopt_nn.pipeline.recipe import Stage
from jaxopt_nn.pipeline.store import load, save
from jaxopt_nn.tensors.base import densify, nbytes
from tests.passes.networks import network
from tests.zoo.base import draw

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
WIDTH, LAYERS = 6, 4


def drawn(seed=0, layers=LAYERS):
    """Weights of residual layers as lists, and inputs: [5, 6]."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)
    made = [{"up": draw(WIDTH, 8), "bias": draw(8), "down": draw(8, WIDTH), "gain": draw(1)[0]} for _ in range(layers)]
    return {"layers": made, "head": draw(WIDTH, 3)}, draw(5, WIDTH)


def branch(w, x):
    return jnp.tanh(x @ w["up"] + w["bias"][None]) @ w["down"] * w["gain"]


def written_out(v, x, only=range(LAYERS)):
    """The layers one by one; ``only`` some of them: what the network is without the others."""
    for i in only:
        x = x + branch(v["layers"][i], x)
    return jnp.sin(x) @ v["head"]


def looped(v, x):
    """The same as a loop over stacked weights."""
    x, _ = jax.lax.scan(lambda x, w: (x + branch(w, x), None), x, v["layers"])
    return jnp.sin(x) @ v["head"]


def stacked(v):
    return {**v, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *v["layers"])}


def unstacked(v):
    return {**v, "layers": [jax.tree.map(lambda x, i=i: x[i], v["layers"]) for i in range(len(v["layers"]["gain"]))]}


def cut(net, x, kept, **options):
    """The network in which only these layers of each stack stay; by a plan that went through JSON."""
    change = cut_layers(scores.random(0), share=0.0, **options)
    plan = change.plan(net, ModelInfo(), x)
    plan = Plan.from_json(plan.replace(dict.fromkeys(plan.kept, kept)).to_json())
    return (*change.execute(net, plan), plan)


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_a_layer_that_goes_adds_nothing(form):
    v, x = drawn()
    net = Network(written_out, v) if form == "written out" else Network(looped, stacked(v))
    small, remap, plan = cut(net, x, [0, 3])
    alone = functools.partial(written_out, only=(0, 3))
    for rows in (1, 5):
        close(small(x[:rows]), alone(v, x[:rows]))
    close(jax.vmap(lambda row: small.apply(small.variables, row[None])[0])(x), alone(v, x))
    loss = lambda apply: lambda v: jnp.sum(jnp.cos(apply(v, x)))
    ours, theirs = jax.grad(loss(small.apply))(small.variables), jax.grad(loss(alone))(v)
    theirs = theirs if form == "written out" else stacked({**theirs, "layers": [theirs["layers"][i] for i in (0, 3)]})
    for path, slope in leaves_by_path(ours).items():
        close(slope, leaves_by_path(theirs)[path], err_msg=path)
    assert sum(leaf.size for leaf in jax.tree.leaves(small.variables)) == plan.sizes[1] == 2 * (2 * 48 + 9) + 18
    if form == "written out":
        assert small.variables["layers"][1] == dict.fromkeys(v["layers"][1])
        assert small.variables["layers"][3]["up"] is v["layers"][3]["up"]
    else:
        assert {leaf.shape[0] for leaf in jax.tree.leaves(small.variables["layers"])} == {2}
    assert "without 1, 2" not in str(plan) and remap.plan is plan


@pytest.mark.parametrize("form", ["plain", "reverse", "a row at a time"])
def test_constants_that_a_loop_goes_along_go_with_its_layers(form):
    """Rates, the number of the layer, a pattern of windows; and what one loop makes of them for the next."""
    v, x = drawn()
    rates, gates = np.linspace(0.5, 1, LAYERS, dtype=np.float32), np.arange(LAYERS * WIDTH).reshape(LAYERS, WIDTH) % 5 / 4

    def apply(v, x):
        def step(x, xs):
            w, rate, i, gate = xs
            return x + rate * branch(w, x * gate[None]) / (1 + i), 2 * rate

        x, twice = jax.lax.scan(step, x, (v["layers"], rates, jnp.arange(LAYERS), gates), reverse=form == "reverse")
        x, _ = jax.lax.scan(lambda x, xs: (x + xs[1] * jnp.sin(x * xs[0]), None), x, (v["layers"]["gain"], twice))
        return x @ v["head"]

    net = Network(apply, stacked(v))
    if form == "a row at a time":
        net = net.replace(apply=lambda v, x: jax.vmap(lambda row: apply(v, row[None])[0])(x))
    small, _, plan = cut(net, x, [1, 3])
    assert plan.layers[0].size == LAYERS and {leaf.shape[0] for leaf in jax.tree.leaves(small.variables["layers"])} == {2}

    @jax.jit
    def alone(x):
        for i in (3, 1) if form == "reverse" else (1, 3):
            x = x + rates[i] * branch(v["layers"][i], x * gates[i][None]) / (1 + i)
        for i in (1, 3):
            x = x + 2 * rates[i] * jnp.sin(x * v["layers"][i]["gain"])
        return x @ v["head"]

    close(small(x[:3]), alone(x[:3]))


def gpt(layers, scan, tokens):
    module = GPT(32, 8, layers, 2, 1, 12, scan=scan)
    return linen(module, draw(jax.eval_shape(module.init, jax.random.key(0), tokens), 0))


@pytest.mark.parametrize("scan", [False, True])
def test_a_transformer_without_layers_is_a_shorter_one(scan):
    tokens = jnp.asarray(np.random.default_rng(0).integers(32, size=(2, 5)))
    small, _, plan = cut(gpt(3, scan, tokens), tokens, [0, 2])
    assert list(plan.kept) == ["params/blocks" if scan else "params/block_*"]
    params = dict(small.variables["params"])
    if not scan:
        assert not jax.tree.leaves(params["block_1"])
        params["block_1"] = params.pop("block_2")
    short = gpt(2, scan, tokens).replace(variables={"params": params})
    close(small(tokens), short(tokens))
    close(small(tokens[:1, :3]), short(tokens[:1, :3]))


def test_attention_and_mlp_go_apart():
    """What a branch puts out last is a product with its last kernel: without the branch, that is zero."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(32, size=(2, 5)))
    net = gpt(3, False, tokens)
    small, _, plan = cut(net, tokens, [0, 1, 3, 4], branches=True)
    assert plan.layers[0].size == 6
    params = jax.tree.map(jnp.asarray, net.variables["params"])
    params["block_1"]["attention"]["out"]["kernel"] *= 0
    params["block_2"]["down"]["kernel"] *= 0
    close(small(tokens), net.replace(variables={"params": params})(tokens))
    gone = {path for path in plan.leaves if path not in leaves_by_path(small.variables)}
    assert {path.split("/")[2] for path in gone if "block_1" in path} == {"attention", "attention_norm"}
    assert {path.split("/")[2] for path in gone if "block_2" in path} == {"down", "gate", "mlp_norm", "up"}
    assert not any("block_0" in path for path in gone)


def test_training_goes_on_without_layers():
    """Statistics of blocks that are gone are neither read nor changed; those of others change as without the blocks."""
    net, x = network(ResNet((3, 4), 3, 5), 4, 8, 8, 1)
    change = cut_layers(scores.random(0), share=0.0)
    plan = change.plan(net, ModelInfo(), x)
    sizes = {name: len(kept) for name, kept in plan.kept.items()}
    assert sizes == {"params/ResidualBlock_*": 3, "params/ResidualBlock_*#1": 2}
    plan = plan.replace({"params/ResidualBlock_*": [0, 2], "params/ResidualBlock_*#1": [1]})
    small, _ = change.execute(net, plan)
    zero = jax.tree.map(np.array, net.variables)
    for block in ("ResidualBlock_1", "ResidualBlock_4"):  # without its last norm a block adds nothing
        for leaf in ("scale", "bias"):
            zero["params"][block]["BatchNorm_1"][leaf][:] = 0
    without = net.replace(variables=zero)
    close(small(x), without(x))
    outputs, changed = small.trained(small.variables, x, key=jax.random.key(0))
    theirs, others = without.trained(zero, x, key=jax.random.key(0))
    close(outputs, theirs)
    stay = {path for path in others if not any(block in path for block in ("Block_1", "Block_4"))}
    assert changed.keys() == stay and small.still == {path for path in net.still if path in stay}
    for path in stay:
        close(changed[path], others[path])


def test_a_branch_may_read_more_in_training():
    """As the key of a dropout, which evaluation does not read, and which no plan knows."""
    v, x = drawn()
    v["keys"] = [jnp.float32(i) for i in range(LAYERS)]

    def trained(v, x, key, only=range(LAYERS)):
        for i in only:
            x = x + branch(v["layers"][i], x) * jnp.cos(v["keys"][i])
        return x @ v["head"], {f"keys/{i}": v["keys"][i] + 1 for i in range(LAYERS)}

    net = Network(written_out, v, training=trained, still={f"keys/{i}" for i in range(LAYERS)})
    small, _, _ = cut(net, x, [1, 2])
    outputs, changed = small.trained(small.variables, x, key=jax.random.key(0))
    close(outputs, trained(v, x, None, only=(1, 2))[0])
    assert {path: float(key) for path, key in changed.items()} == {f"keys/{i}": i + 1 for i in range(LAYERS)}


def test_stacks_are_found_where_they_are():
    v, x = drawn()
    w = v["layers"]
    none = cut_layers(scores.random(0), share=0.0)

    def sizes(apply, v=v):
        try:
            plan = none.plan(Network(apply, v), ModelInfo(), x)
        except ValueError as error:
            assert "no layer can go" in str(error)
            return {}
        return {layer.name: layer.size for layer in plan.layers if layer.pinned is None}

    def side_by_side(v, x):  # two branches of one value
        for one, other in (w := v["layers"])[:2], w[2:]:
            x = x + branch(one, x) + branch(other, x)
        return x @ v["head"]

    def within(v, x):  # a network that adds to its input, in which layers add to theirs
        y = jnp.tanh(x @ v["layers"][0]["up"]) @ v["layers"][0]["down"]
        for one in v["layers"][1:]:
            y = y + branch(one, y)
        return (x + y) @ v["head"]

    def after(v, x):  # a norm after each addition
        for one in v["layers"]:
            x = jax.nn.standardize(x + branch(one, x))
        return x @ v["head"]

    def after_another(v, x):  # two branches a layer, behind a branch of another shape
        x = x + jnp.tanh(x @ v["head"]) @ v["back"]
        for one in v["layers"]:
            x = x + x @ one["up"] @ one["down"]
            x = x + x * one["scale"][None]
        return x

    other = {**v, "back": v["head"].T, "layers": [{**one, "scale": one["down"][0]} for one in w]}
    plan = none.plan(Network(after_another, other), ModelInfo(), x)
    assert [m.path for m in plan.layers[0].members if m.units == 1] == [f"layers/0/{name}" for name in ("down", "scale", "up")]
    assert plan.layers[0].size == 1 + LAYERS
    assert sizes(side_by_side) == {"layers/*": 4} and sizes(after) == {"layers/*": 4} and sizes(within) == {"layers/*": 3}
    assert sizes(jax.checkpoint(written_out)) == {"layers/*": 4}
    assert sizes(lambda v, x: jax.jit(written_out)(v, x) + x.sum()) == {"layers/*": 4}
    nothing = {
        "no branch is computed from the other": lambda v, x: branch(w[0], x) + branch(v["layers"][1], x),
        "one layer": lambda v, x: x + branch(v["layers"][0], x),
        "no weights in the branch": lambda v, x: jax.nn.gelu(jax.nn.gelu(x @ v["head"])),
        "shared by all": lambda v, x: functools.reduce(lambda x, _: x + branch(v["layers"][0], x), range(3), x),
    }
    for what, apply in nothing.items():
        assert not sizes(apply), what
    assert sizes(looped, stacked(v)) == {"layers": 4}
    assert all(group.pinned for group in axis_groups(looped, stacked(v), x) if group.size == LAYERS)


def test_loops_that_do_more_than_add_stay_whole():
    v, x = drawn()
    v = stacked(v)

    def counting(v, x):
        step = lambda c, w: ((c[0] + branch(w, c[0]) * c[1], c[1] + 1.0), None)
        return jax.lax.scan(step, (x, 1.0), v["layers"])[0][0]

    def replacing(v, x):
        return jax.lax.scan(lambda x, w: (branch(w, x), None), x, v["layers"])[0]

    def telling(v, x):
        return jax.lax.scan(lambda x, w: (x + branch(w, x), x.mean()), x, v["layers"])

    def summing(v, x):
        x, aux = jax.lax.scan(lambda x, w: (x + branch(w, x), jnp.cos(w["gain"])), x, v["layers"])
        return x * aux.sum()

    change = cut_layers(scores.random(0), layers=1)
    looped_over, told, summed = "is looped over by `scan`", "reaches an output", "reduce_sum"
    for apply, reason in {counting: looped_over, replacing: looped_over, telling: told, summing: summed}.items():
        with pytest.raises(ValueError, match=rf"no unit can go \(layers: .*{reason}"):
            change.plan(Network(apply, v), ModelInfo(), x)


def test_layers_and_units_one_after_the_other():
    v, x = drawn()
    net = Network(looped, stacked(v))
    shorter, _, _ = cut(net, x, [1, 3])
    units = cut_units(share=0.5)
    narrow, _ = units.execute(shorter, units.plan(shorter, ModelInfo(), x))
    assert narrow.variables["layers"]["up"].shape == (2, 6, 4)
    thin, _ = units.execute(net, again := units.plan(net, ModelInfo(), x))
    both, _, _ = cut(thin, x, [1, 3])
    same, _, _ = cut(units.execute(net, again)[0], x, [1, 3])
    assert both.apply == same.apply and hash(both.apply) == hash(same.apply)
    keep = again.kept["layers/up"]
    w = [{**one, "up": one["up"][:, keep], "bias": one["bias"][keep], "down": one["down"][keep]} for one in v["layers"]]
    close(both(x), written_out({**v, "layers": w}, x, only=(1, 3)))


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_compressed_leaves_go_as_they_are(form):
    v, x = drawn()
    net, method = Network(looped, stacked(v)), chain(prune(sparsity=0.5), quantize(4))
    if form == "written out":
        net = Network(written_out, v)
    packed = net.replace(variables=method.pack(net.variables, method.init(net.variables, inspect(net.apply, net.variables, x))))
    small, _, _ = cut(packed, x, [0, 2])
    dense = densify(packed.variables)
    close(small(x), written_out(dense if form == "written out" else unstacked(dense), x, only=(0, 2)))
    head = nbytes(packed.variables["head"])
    assert nbytes(small.variables) - head == (nbytes(packed.variables) - head) / 2


def test_a_network_without_layers_is_stored(tmp_path):
    v, x = drawn()
    small, _, _ = cut(Network(written_out, v), x, [0, 2])
    again = load(save(tmp_path / "small", small), written_out)
    np.testing.assert_array_equal(again(x), small(x))
    assert again.variables["layers"][1]["up"] is None


def test_what_is_beside_the_leaves_goes_with_them():
    """An optimizer's moments, a method's state: of layers that are written out, and of a loop."""
    v, x = drawn()
    method, tx = prune(sparsity=0.5), optax.adam(1e-2)
    for net in Network(written_out, v), Network(looped, stacked(v)):
        state, opt = method.init(net.variables), tx.init(net.variables)
        grads = jax.grad(lambda v, net=net: jnp.sum(net.apply(v, x) ** 2))(net.variables)
        _, opt = tx.update(grads, opt)
        small, remap, plan = cut(net, x, [0, 3])
        carried, report = remap.state(method, state, small.variables)
        moments, more = remap.opt(opt, tx.init(small.variables))
        assert not len(report) and not len(more)
        wanted = {path: g if path not in plan.cuts else plan.cuts[path].leaf(g) for path, g in leaves_by_path(grads).items()}
        for path, mean in leaves_by_path(moments[0].mu).items():
            close(mean, 0.1 * wanted[path])
        assert leaves_by_path(method.view(small.variables, carried)).keys() == leaves_by_path(small.variables).keys()
        tx.update(remap.params(grads), moments)


def test_moments_of_what_rules_learn_go_with_layers():
    """By site; those of a leaf that all layers share are counted anew, so that none can be told from another."""
    v, x = drawn()
    _, remap, _ = cut(Network(written_out, v), x, [0, 3])
    sites = lambda layers, *shared: [*(f"layers/{i}/up" for i in layers), *shared]
    all_of = lambda variables, names: {
        "params": variables, "learnt": (), "rules": {site: jnp.float32(i + 1) for i, site in enumerate(names)},
    }  # fmt: skip
    old = {"mean": all_of(v, sites(range(4), "shared", "shared#1"))}
    fresh = {"mean": all_of(remap.params(v), sites((0, 3), "shared"))}
    fresh["mean"]["rules"] = dict.fromkeys(fresh["mean"]["rules"], jnp.float32(0))
    new, report = remap.opt(old, fresh)
    assert {site: float(own) for site, own in new["mean"]["rules"].items()} == {
        "layers/0/up": 1.0, "layers/3/up": 4.0, "shared": 0.0,
    }  # fmt: skip
    assert [message.kind for message in report] == ["anew"] and "the rule at shared" in str(report)


@pytest.mark.parametrize("wide", [(), ("bias", "gain")])
def test_a_network_without_layers_is_cast(wide):
    """All of it, or all but vectors: layers that are gone go through no cast, and must be traced as if they had."""
    v, x = drawn()

    def apply(v, x, only=range(LAYERS)):
        for i in only:
            x = x + branch(v["layers"][i], x).astype(x.dtype)
        return x @ v["head"]

    small, _, _ = cut(Network(apply, v), x, [1, 2])
    half = lambda path, leaf: leaf if path.split("/")[-1] in wide else leaf.astype(jnp.bfloat16)
    cast = small.replace(variables=map_with_path(half, small.variables))
    y = cast(x.astype(jnp.bfloat16))
    wanted = apply(map_with_path(half, v), x.astype(jnp.bfloat16), only=(1, 2))
    assert y.dtype == wanted.dtype == jnp.bfloat16
    close(y.astype(jnp.float32), wanted.astype(jnp.float32), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_the_states_of_rules_go_with_layers(form):
    """Each use of a leaf has a factor of its own, also of one that all layers share, whose uses are counted by name."""
    v, x = drawn()
    v["shared"] = v["layers"][0]["down"].T
    factors = np.linspace(0.5, 2, 2 * LAYERS).reshape(LAYERS, 2).astype(np.float32)

    def layer(w, shared, x, factor=(1.0, 1.0)):
        return x + jnp.sin(jnp.tanh(factor[0] * (x @ w["up"])) @ shared.T * factor[1])

    def looped(v, x):
        return jax.lax.scan(lambda x, w: (layer(w, v["shared"], x), None), x, v["layers"])[0]

    def written_out(v, x):
        return functools.reduce(lambda x, w: layer(w, v["shared"], x), v["layers"], x)

    scaling = Rule(
        lambda site, state, lhs, rhs: state.carried * site.run(lhs, rhs),
        lambda site, stats=None: State((), jnp.ones(())),
    )
    if form == "looped":
        net, sites = Network(looped, stacked(v), rules=scaling), {"layers/up": factors[:, 0], "shared": factors[0, 1]}
    else:
        net, numbers = Network(written_out, v, rules=scaling), ["", "#1", "#2", "#3"]
        sites = {f"layers/{i}/up": factors[i, 0] for i in range(LAYERS)}
        sites |= {f"shared{n}": factors[i, 1] for i, n in enumerate(numbers)}
    net = net.replace(states={site: State((), jnp.asarray(own)) for site, own in sites.items()})
    small, _, _ = cut(net, x, [1, 3])
    y = x
    for i in (1, 3):
        y = layer(v["layers"][i], v["shared"], y, (factors[i, 0], factors[0, 1] if form == "looped" else factors[i, 1]))
    close(small(x), y)


# -- scores ------------------------------------------------------------------------------------------------------------


def ends(v, x):
    """The value before each layer and after the last, by NumPy."""
    found = [x]
    for w in v["layers"]:
        found.append(found[-1] + branch(w, found[-1]))
    return [np.asarray(y, np.float64) for y in found]


def cosine(a, b):
    return np.mean(np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


@pytest.mark.parametrize("form", ["written out", "looped", "backwards"])
def test_block_influence_is_what_it_says(form):
    v, x = drawn()
    run = {"written out": written_out, "looped": looped}.get(form, lambda v, x: jax.lax.scan(
        lambda x, w: (x + branch(w, x), None), x, v["layers"], reverse=True)[0] @ v["head"])  # fmt: skip
    net = Network(run, v if form == "written out" else stacked(v))
    change = cut_layers(layers=1)
    info = calibrate(net, change, [x[:2], x[2:]])
    (name,) = (key[1] for key in info.stats)
    order = slice(None, None, -1 if form == "backwards" else 1)
    values = ends({"layers": v["layers"][order]}, x)
    wanted = np.array([1 - cosine(a, b) for a, b in itertools.pairwise(values)])[order]
    gone = int(np.argmin(wanted))
    assert change.plan(net, info, x).layers[0].off.tolist() == [i == gone for i in range(LAYERS)]
    measured = info.stats[(), name, "similarity"]
    close(1 - np.diagonal(measured["sum"]) / measured["rows"], wanted)


def test_the_best_block_goes_whole():
    v, x = drawn(layers=5)
    net = Network(functools.partial(written_out, only=range(5)), v)
    values = ends(v, x)
    for n in (1, 2, 3):
        change = cut_layers(scores.angular_distance(n), layers=n)
        plan = change.plan(net, calibrate(net, change, [x]), x)
        angles = [np.arccos(cosine(values[i], values[i + n])) for i in range(6 - n)]
        first = int(np.argmin(angles))
        assert np.flatnonzero(plan.layers[0].off).tolist() == list(range(first, first + n))


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_removal_loss_is_the_loss_without_the_layer(form):
    v, x = drawn()
    net = Network(written_out, v) if form == "written out" else Network(looped, stacked(v))
    y = np.asarray(net(x)) + 0.1
    task = regression(test=(np.asarray(x), y))
    mean = lambda out: np.mean((np.asarray(out) - y) ** 2)
    wanted = [mean(written_out(v, x, [i for i in range(LAYERS) if i != gone])) - mean(net(x)) for gone in range(LAYERS)]
    found = {}

    def score(own):
        found["here"] = scores.removal_loss(own)
        return found["here"]

    score.probes = scores.removal_loss.probes
    change = cut_layers(score, layers=2)
    plan = change.plan(net, calibrate(net, change, task), x)
    close(found["here"], wanted)
    assert set(np.flatnonzero(plan.layers[0].off)) == set(np.argsort(wanted)[:2])


def test_a_stack_that_is_protected_is_not_measured():
    """A loop in a loop, which nobody can look into; the other stack is measured all the same."""
    v, x = drawn()
    both = {**v, "nested": jnp.full((2, 2, WIDTH), 0.1)}

    def apply(v, x):
        within = lambda x, rows: jax.lax.scan(lambda x, row: (x + jnp.sin(x * row[None]), None), x, rows)
        return jax.lax.scan(lambda x, rows: (within(x, rows)[0], None), written_out(v, x), v["nested"])[0]

    net, change = Network(apply, {**both, "head": jnp.eye(WIDTH)}), cut_layers(layers=1)
    with pytest.raises(ValueError, match=r"nested#1: its loop over layers lies in another .*\(protect='nested#1'\)"):
        calibrate(net, change, [x])
    change = cut_layers(layers=1, protect="nested*")
    plan = change.plan(net, calibrate(net, change, [x]), x)
    plain = Network(written_out, v)
    change = cut_layers(layers=1)
    np.testing.assert_array_equal(plan.kept["layers/*"], change.plan(plain, calibrate(plain, change, [x]), x).kept["layers/*"])
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"nested": 2, "nested#1": 2, "layers/*": 3}


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_taylor_is_the_slope_along_a_layer(form):
    v, x = drawn()
    net = Network(written_out, v) if form == "written out" else Network(looped, stacked(v))
    y = np.asarray(net(x)) + 0.1
    change = cut_layers(scores.taylor, layers=1)
    info = calibrate(net, change, regression(test=(np.asarray(x), y)))

    def loss(scale, x, y):
        layers = [jax.tree.map(lambda leaf, i=i: leaf * scale[i], w) for i, w in enumerate(v["layers"])]
        return jnp.mean((written_out({**v, "layers": layers}, x[None])[0] - y) ** 2)

    slopes = jax.vmap(jax.grad(loss), (None, 0, 0))(jnp.ones(LAYERS), x, y)
    gone = int(np.argmin(np.mean(np.square(slopes), 0)))
    assert np.flatnonzero(change.plan(net, info, x).layers[0].off).tolist() == [gone]
    (found,) = info.stats.values()
    close(*found.values(), np.mean(np.square(slopes), 0))


def test_scores_of_weights_see_all_of_a_layer():
    v, x = drawn()
    squares = [sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(w)) for w in v["layers"]]
    for net in Network(written_out, v), Network(looped, stacked(v)):
        plan = cut_layers(scores.l2_norm, layers=1).plan(net, ModelInfo(), x)
        assert np.flatnonzero(plan.layers[0].off).tolist() == [int(np.argmin(squares))]
        with pytest.raises(ValueError, match="its layers have no producer; pass a score of whole layers"):
            cut_layers(scores.norm_product, layers=1).plan(net, ModelInfo(), x)


# -- budgets, recipes, errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", [per_layer, across_layers])
def test_as_many_layers_go_as_are_asked_for(allocation):
    """Also where stacks tie: all have the same weights, and a share of one is a share of all."""
    v, x = drawn(layers=3)
    v = {name: v["layers"] for name in "abc"}

    def apply(v, x):
        for name in "abc":
            for w in v[name]:
                x = x + branch(w, x)
            x = x[1:]
        return x

    def stay(count):
        change = cut_layers(scores.l2_norm, layers=count, allocation=allocation)
        return {name[0]: len(kept) for name, kept in change.plan(Network(apply, v), ModelInfo(), x).kept.items()}

    assert [9 - sum(stay(count).values()) for count in range(1, 7)] == [*range(1, 7)]
    assert stay(3) == {"a": 2, "b": 2, "c": 2} and stay(4) == {"a": 2, "b": 2, "c": 1}
    with pytest.raises(ValueError, match="layers=7 can't go; at most 6 of 9 can"):
        stay(7)


@pytest.mark.parametrize("form", ["written out", "looped"])
def test_multiply_accumulates_are_those_of_the_small_network(form):
    v, x = drawn()
    net = Network(written_out, v) if form == "written out" else Network(looped, stacked(v))
    macs = lambda n: sum(site.macs for site in inspect(n.apply, n.variables, x).sites)
    layer = 2 * 5 * 6 * 8
    assert macs(net) == 4 * layer + 5 * 18
    for share, stay in ((0.2, 3), (0.23, 3), (0.25, 2), (0.7, 1)):
        change = cut_layers(scores.l2_norm, macs=share)
        small, _ = change.execute(net, plan := change.plan(net, ModelInfo(), x))
        assert len(plan.layers[0].kept) == stay and macs(small) == stay * layer + 90
    with pytest.raises(ValueError, match=r"macs=0.8 of 2,010 can't go; at the least 570 stay"):
        cut_layers(scores.l2_norm, macs=0.8).plan(net, ModelInfo(), x)


def test_a_recipe_takes_layers_out():
    v, x = drawn()
    rng = np.random.default_rng(3)
    x = rng.standard_normal((32, WIDTH)).astype(np.float32)
    net = Network(written_out, v)
    task = regression(train=(x, np.asarray(net(x))), test=(x, np.asarray(net(x))), batch_size=8)
    recipe = [
        Stage("prune", prune(sparsity=0.3)),
        Stage("depth", cut_layers(scores.removal_loss, layers=1), epochs=2, learning_rate=1e-2),
    ]
    result = compress(net, recipe, task, latency=())
    first, last = result.stages
    (gone,) = (i for i, w in enumerate(result.params["layers"]) if w["up"] is None)
    assert last["bytes"] < 0.8 * first["bytes"] and last["facts"][0]["cells"][0][:3] == ["layers/*", 4, 3]
    assert last["facts"][0]["cells"][0][3] == f"without {gone}"
    kept = next(i for i in range(LAYERS) if i != gone)
    assert float((result.params["layers"][kept]["up"] == 0).mean()) == pytest.approx(0.3, abs=0.03)  # its mask holds
    assert float(np.sqrt(np.mean((result(x) - net(x)) ** 2))) == pytest.approx(last["metrics"]["rmse"], rel=1e-4)


def test_mistakes():
    v, x = drawn()
    net = Network(written_out, v)
    with pytest.raises(ValueError, match=r"how many layers go. pass one of layers, share, params"):
        cut_layers()
    with pytest.raises(ValueError, match=r"cut_layers\(layers=0\): allowed are the whole numbers from 1"):
        cut_layers(layers=0)
    with pytest.raises(ValueError, match="layers=4 can't go; at most 3 of 4 can, since each stack keeps its least"):
        cut_layers(scores.l2_norm, layers=4).plan(net, ModelInfo(), x)
    with pytest.raises(ValueError, match="block_influence needs the values of units on data; pass info=calibrate"):
        cut_layers(layers=1).plan(net, ModelInfo(), x)
    with pytest.raises(ValueError, match=r"mean_activation.: is of what a site reads, and no site reads a whole layer"):
        cut_layers(scores.mean_activation, layers=1)
    with pytest.raises(ValueError, match=r"angular_distance\(layers=9\): layers/\* has 4 layers"):
        change = cut_layers(scores.angular_distance(9), layers=1)
        change.plan(net, calibrate(net, change, [x]), x)
    small, _, plan = cut(net, x, [0, 1])
    with pytest.raises(ValueError, match=r"layers/2/bias is \[8\], and the plan of cut_layers leaves no leaf"):
        small.apply(v, x)
    with pytest.raises(ValueError, match="go with all of their leaves, which no mask can say"):
        _ = plan.masks
    other = Network(lambda v, x: written_out(v, x) + v["layers"][3]["gain"], v)
    with pytest.raises(ValueError, match="layers/3/gain is read still on these inputs, or in this mode, and is"):
        planned(plan).execute(other, plan)
    with pytest.raises(ValueError, match="NaN or Inf in the statistic 'similarity'"):
        calibrate(net, cut_layers(layers=1), [x * np.nan])
    same = cut_layers(scores.l2_norm, share=0.5, allocation=per_layer).plan(net, ModelInfo(), x)
    assert len(same.layers[0].kept) == 2
