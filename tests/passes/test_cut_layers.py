"""Layers that go: the network without them against one whose layers were never there, written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models.gpt import GPT
from experiments.models.resnet import ResNet
from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.model import ModelInfo
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
from jaxopt_nn.passes.cut_layers import cut_layers
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.pipeline.store import load, save
from jaxopt_nn.tensors.base import densify, nbytes
from tests.passes.layers import LAYERS, WIDTH, branch, close, cut, drawn, looped, stacked, unstacked, written_out
from tests.passes.networks import network
from tests.zoo.base import draw


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
