"""Exported programs answer as the network does, without its code; they hold no weights and unpack nothing when they run."""

import dataclasses
import functools
import importlib.util
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.transform import State, identity
from jaxopt_nn.cost.aot import compile_for
from jaxopt_nn.export.exported import exported
from jaxopt_nn.export.imported import imported
from jaxopt_nn.export.programs import Programs, as_files, deserialized, of_files, serialized
from jaxopt_nn.formulations import cpu
from jaxopt_nn.formulations.labels import MANY
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.formulations.table import choices
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.parallel.infer import predictor
from tests.zoo.compressed import network as zoo
from tests.zoo.compressed import quantized

tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler installed")
S = jax.ShapeDtypeStruct
WIDTH, HIDDEN, TOKENS = 32, 64, 6


@pytest.fixture(autouse=True)
def on_codes(monkeypatch):
    """Networks as small as these would be held decoded on CPU."""
    monkeypatch.setattr(cpu, "SMALL", 0)


def mlp(v, x):
    hidden = jax.nn.relu(x @ v["up"] + v["bias"])
    return {"logits": hidden @ v["down"], "hidden": (hidden,)}


def text(v, ids):
    """A lookup, attention and a gated layer in a scan, a tied head."""

    def layer(x, w):
        q, k, a = (jnp.tanh(x @ w[name]) for name in ("q", "k", "a"))
        x = x + jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k)) @ a
        return x + jax.nn.silu(x @ w["up"]) @ w["down"], None

    x, _ = jax.lax.scan(layer, v["table"][ids], v["layers"])
    return x @ v["table"].T


def weights(seed=0, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[-2]), jnp.float32)
    own = {"up": draw(WIDTH, hidden), "down": draw(hidden, WIDTH)}
    layers = {name: jnp.stack([draw(WIDTH, WIDTH)] * 2) for name in "qka"}
    return (
        {**own, "bias": jnp.linspace(-1, 1, hidden)[None]},
        {"table": draw(48, WIDTH), "layers": {**layers, **{k: jnp.stack([w, w[::-1]]) for k, w in own.items()}}},
    )


FLOATS = jnp.asarray(np.random.default_rng(1).standard_normal((32, WIDTH)), jnp.float32)
IDS = jnp.asarray(np.random.default_rng(2).integers(48, size=(32, TOKENS)), jnp.int32)
METHODS = {
    "float": (identity(), ()),
    "w8a8": (quantize(8), arithmetic("w8a8")),
    "w4a16 in groups": (quantize(4, group=16), arithmetic("w4a16")),
    "mask over 4 bits": (chain(prune(sparsity=0.5), quantize(4)), ()),
}


@functools.cache
def net(apply, name, hidden=HIDDEN):
    method, rules = METHODS[name]
    variables, x = (weights(hidden=hidden)[0], FLOATS) if apply is mlp else (weights()[1], IDS)
    return Network(apply, method.pack(variables, method.init(variables, inspect(apply, variables, x))), rules)


def inputs(apply, rows=2):
    return ((FLOATS if apply is mlp else IDS)[:rows],)


@functools.cache
def programs(apply, name):
    return exported(net(apply, name), inputs(apply))


def same(got, wanted, rtol=0.0):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(jnp.abs(b).max()))


CASES = [(mlp, name) for name in METHODS] + [(text, "w8a8")]


cases = pytest.mark.parametrize(("apply", "name"), CASES, ids=lambda x: getattr(x, "__name__", x))


@cases
def test_answers_are_those_of_the_network(apply, name):
    """To the bit; with activations of 16 bits to their last bit: of many rows a CPU that multiplies bfloat16 rounds them."""
    own = net(apply, name)
    back = imported(programs(apply, name), own.variables)
    ready = own.replace(variables=prepare(own.variables))
    for rows in (1, 3, 32):
        x = inputs(apply, rows)
        rounded = 2**-8 if "bf16" in cpu.features() else 1e-4 if rows == 1 else 0.0
        same(back(*x), ready(*x), rounded if "a16" in name else 0.0)


@pytest.mark.exact
@pytest.mark.slow
@cases
def test_answers_are_those_of_the_network_as_xla_compiles_by_default(apply, name):
    test_answers_are_those_of_the_network(apply, name)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["float", "w8a8", "w4a16"])
@pytest.mark.parametrize("model", ["mlp", "resnet", "gpt_scan", "vit", "lstm", "encdec", "moe", "nnx_scan", "dropout_mha"])
def test_models_of_the_zoo(model, rule):
    own = zoo(model)
    variables = own.variables if rule == "float" else quantized(model, int(rule[1])).stored
    whole = Network(own.apply, variables, () if rule == "float" else arithmetic(rule))
    back = imported(exported(whole, own.inputs, ("cpu",)), variables)
    ready = whole.replace(variables=prepare(variables))
    for rows in (1, 3, 32):
        x = jax.tree.map(lambda a, rows=rows: jnp.resize(a, (rows, *a.shape[1:])) if a.shape else a, own.inputs)
        same(back(*x), ready(*x), 1e-4)


def test_files_are_named_by_platform():
    made = programs(mlp, "float")
    assert list(as_files(made)) == [f"programs/{p}.{name}" for p in ("cpu", "tpu") for name in ("prepare", "run")]
    assert of_files({**as_files(made), "other": b""}) == made


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", ["w4a16 in groups", "mask over 4 bits"])
def test_only_the_program_that_prepares_unpacks(platform, name):
    prepares, runs = (deserialized(data).mlir_module() for data in programs(mlp, name)[platform])
    assert "shift_right_logical" in prepares and "ui8" in prepares
    assert "shift_right" not in runs and "ui8" not in runs
    codes = "xi4>" if platform == "tpu" else "xi8>"
    main = next(line for line in runs.splitlines() if "@main(" in line)
    assert main.split(" -> ")[0].count(codes) == 2


def test_programs_hold_no_weights_and_no_folder_of_this_machine():
    sizes = []
    for hidden in (HIDDEN, 16 * HIDDEN):
        made = exported(net(mlp, "w4a16 in groups", hidden), inputs(mlp), ("cpu",))["cpu"]
        sizes.append(sum(map(len, made)))
        assert not [data for data in made if b"test_programs" in zlib.decompress(data)]
    assert abs(sizes[1] - sizes[0]) < 0.05 * sizes[0] and sizes[0] < 6_000


@tpu
def test_on_a_tpu_the_arguments_have_the_stored_width():
    layers, rows, columns = 3, 256, 256
    apply = lambda v, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["layers"])[0]
    variables = {"layers": jnp.asarray(np.random.default_rng(0).standard_normal((layers, rows, columns)), jnp.float32)}
    method, x = METHODS["mask over 4 bits"][0], S((8, rows), jnp.float32)
    stored = method.pack(variables, method.init(variables, inspect(apply, variables, x)))
    prepares, runs = map(deserialized, exported(Network(apply, stored), [x], ("tpu",))["tpu"])
    assert [a.dtype.name for a in prepares.out_avals] == ["int4", "float32"]
    ready = jax.tree.unflatten(prepares.out_tree, [S(a.shape, a.dtype) for a in prepares.out_avals])
    compiled = compile_for(lambda v, x: runs.call(v, {}, (x,)), ready, [x])
    codes, scales = layers * rows * columns // 2, 4 * layers * columns
    assert codes <= compiled.argument_bytes - 4 * 8 * rows <= codes + 8 * scales + 4096
    assert compiled.fits and not compiled.float_copies()


@pytest.mark.parametrize(("apply", "name"), [(mlp, "w4a16 in groups"), (text, "w8a8")])
def test_a_program_for_a_tpu_holds_for_any_batch(apply, name):
    """The same operations, as this machine runs them."""
    own = net(apply, name)
    moved = [dataclasses.replace(deserialized(data), platforms=("cpu",)) for data in programs(apply, name)["tpu"]]
    back = imported({"cpu": Programs(*map(serialized, moved))}, own.variables)
    ready = own.replace(variables=prepare(own.variables, "tpu"))
    for rows in (1, 32):
        x = inputs(apply, rows)
        same(back(*x), jax.jit(lambda network, x: network(*x))(ready, x), 1e-6)


def test_a_single_row_of_integers_is_padded_on_a_cpu_and_more_are_not():
    """As the network's own programs do: by themselves, once the compiler knows the batch."""
    run = deserialized(programs(mlp, "w8a8")["cpu"].run)
    for rows, padded in ((1, 2), (3, 3)):
        like = [S([n if isinstance(n, int) else rows for n in a.shape], a.dtype) for a in run.in_avals]
        args, _ = jax.tree.unflatten(run.in_tree, like)
        found = re.findall(r"s32\[(\d+),\d+\]\S* dot\(", jax.jit(run.call).lower(*args).compile().as_text())
        assert found == [str(padded)] * 2


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_program_is_chosen_for_many_rows(platform):
    own = net(mlp, "w4a16 in groups").replace(apply=lambda v, x: mlp(v, x))  # not traced before
    with choices() as chosen:
        exported(own, inputs(mlp), (platform,))
    assert {choice.rows for choice in chosen} == {MANY} and "any number of rows" in str(chosen[0])
    narrow = "bfloat16" if "bf16" in cpu.features() else "float32"
    assert {c.program for c in chosen} == {{"cpu": f"{narrow}, groups in turn", "tpu": "float, scaled weight"}[platform]}


def test_many_devices_share_a_batch():
    own = net(mlp, "w8a8")
    got = predictor(imported(programs(mlp, "w8a8"), own.variables), devices=jax.devices()[:4])(FLOATS[:30])
    same(jax.tree.map(jnp.asarray, got), own.replace(variables=prepare(own.variables))(FLOATS[:30]), 1e-6)


def test_states_of_rules_are_arguments():
    shift = Rule(
        lambda site, state, lhs, rhs: site.run(lhs, rhs) * state.learnt["by"] + state.carried,
        init=lambda site, stats: State({"by": jnp.ones(())}, jnp.zeros(())),
        name="shift",
    )
    own = Network(mlp, weights()[0], shift).initialized(FLOATS)
    made = exported(own, inputs(mlp), ("cpu",))
    for states in (own.states, {"up": State({"by": jnp.array(2.0)}, jnp.array(-1.0)), "down": own.states["down"]}):
        same(imported(made, own.variables, states)(FLOATS), own.replace(states=states)(FLOATS))
    with pytest.raises(ValueError, match="state of a rule at down: is nothing, the exported program takes float32"):
        imported(made, own.variables, {"up": own.states["up"]})


def test_inputs_of_many_kinds():
    """Dicts, a scalar, a key, whole numbers, outputs without the batch, None and an untouched weight."""

    def apply(v, x, scale, key):
        noise = jax.random.normal(key, (4,))[None]
        return [x["a"] @ v * scale + noise, None, (x["b"].sum(), v)]

    variables = quantize(8).pack({"w": jnp.eye(4)}, quantize(8).init({"w": jnp.eye(4)}))["w"]
    x = {"a": jnp.arange(8.0).reshape(2, 4), "b": np.arange(2, dtype=np.int64)}
    own = Network(lambda v, *x: apply(v, *x), variables)
    back = imported(exported(own, (x, 2.0, jax.random.key(0)), ("cpu",)), variables)
    got, wanted = back(x, 3.0, jax.random.key(1)), jax.jit(apply)(variables.densify(), x, 3.0, jax.random.key(1))
    same(got, wanted, 1e-6)


def test_lengths_may_be_open_by_name():
    b, t = jax.export.symbolic_shape("b, t")
    own = Network(lambda v, ids, shift: jnp.cumsum(v[ids], axis=1) + shift[:, None, None], jnp.arange(144.0).reshape(48, 3))
    back = imported(exported(own, [S((b, t), jnp.int32), S((b,), jnp.float32)], ("cpu",)), own.variables)
    for rows, length in ((2, 3), (3, TOKENS)):
        ids = IDS[:rows, :length]
        same(back(ids, jnp.ones(rows)), own(ids, jnp.ones(rows)))
    with pytest.raises(ValueError, match=r"input 1: float32\[3\]; .* takes float32\[b\], where b is 2, t is 6"):
        back(IDS[:2], jnp.ones(3))


def test_a_batch_of_one_size_gets_its_own_program():
    own, (x,) = net(mlp, "w4a16 in groups"), inputs(mlp, 1)
    back = imported(exported(own, inputs(mlp), ("cpu",), batch=1), own.variables)
    same(back(x), own.replace(variables=prepare(own.variables))(x))
    with pytest.raises(ValueError, match=r"input 0: float32\[2, 32\]; the exported program takes float32\[1, 32\]"):
        back(FLOATS[:2])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((FLOATS[:, :3],), r"input 0: float32\[32, 3\]; the exported program takes float32\[b, 32\]"),
        ((FLOATS[:0],), r"float32\[0, 32\]; the exported program takes float32\[b, 32\], where a letter is 1 or more"),
        ((FLOATS.astype(jnp.bfloat16),), r"input 0: bfloat16\[32, 32\]; the exported program takes float32"),
        ((FLOATS, FLOATS), "inputs of structure PyTreeDef"),
        (({"x": FLOATS},), "inputs of structure PyTreeDef"),
    ],
)
def test_inputs_that_do_not_fit_are_named(given, said):
    with pytest.raises(ValueError, match=said):
        imported(programs(mlp, "float"), net(mlp, "float").variables)(*given)


def test_inputs_of_several_batch_sizes_are_named():
    own = Network(lambda v, x, y: (x + y[:, None]) @ v, jnp.eye(4))
    x, y = jnp.ones((2, 4)), jnp.ones(3)
    with pytest.raises(ValueError, match=r"input 0 has 2, input 1 has 3 rows.*symbolic_shape"):
        exported(own, [x, y])
    back = imported(exported(own, [x, y[:2]], ("cpu",)), jnp.eye(4))
    with pytest.raises(ValueError, match=r"input 1: float32\[3\]; the exported program takes float32\[b\], where b is 2"):
        back(x, y)


def test_another_platform_is_named_when_loading():
    made, variables = programs(mlp, "float"), net(mlp, "float").variables
    with pytest.raises(ValueError, match=r"exported for tpu, and JAX runs on cpu here: .*'cpu'"):
        imported({"tpu": made["tpu"]}, variables)
    with pytest.raises(ValueError, match="exported for none"):
        imported({}, variables)


DAMAGE = [lambda x: x[:-20], lambda x: x[:40] + b"?" + x[41:], lambda x: b"", lambda x: zlib.compress(b"?")]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_programs_are_refused(damage):
    made, variables = programs(mlp, "w8a8")["cpu"], net(mlp, "w8a8").variables
    for name in made._fields:
        broken = {"cpu": made._replace(**{name: damage(getattr(made, name))})}
        with pytest.raises(ValueError, match=rf"cpu.{name}: .*(damaged|can't read)"):
            imported(broken, variables)


def test_a_program_of_a_newer_jax_is_refused():
    """Its operations are unknown here."""
    newer = dataclasses.replace(deserialized(programs(mlp, "float")["cpu"].run), mlir_module_serialized=b"MLxR?")
    with pytest.raises(ValueError, match=r"cpu.run: JAX .* can't read it \(.*by newer ones"):
        imported({"cpu": programs(mlp, "float")["cpu"]._replace(run=serialized(newer))}, net(mlp, "float").variables)


def test_programs_of_another_network_are_refused():
    variables = net(mlp, "w8a8").variables
    with pytest.raises(ValueError, match=r"stored tensor down: is .*, the exported program takes uint8"):
        imported(programs(mlp, "w4a16 in groups"), variables)
    with pytest.raises(ValueError, match=r"leaf bias: is nothing, the exported program takes float32\[1, 64\]"):
        imported(programs(mlp, "w8a8"), {k: x for k, x in variables.items() if k != "bias"})


def test_what_can_not_be_exported_says_why():
    own, x = net(mlp, "w8a8"), FLOATS[:2]
    with pytest.raises(ValueError, match="up: is prepared for cpu"):
        exported(own.replace(variables=prepare({"up": own.variables["up"]})), [x])
    with pytest.raises(ValueError, match=r"export for \('cuda',\): pass a list of some of 'cpu', 'gpu'"):
        exported(own, [x], ("cuda",))
    with pytest.raises(ValueError, match="batch=0"):
        exported(own, [x], batch=0)
    with pytest.raises(ValueError, match=r"fails on inputs float32\[B, 3\]"):
        exported(own, [x[:, :3]])
    odd = Network(lambda v, x: x.reshape(2, -1, 4) @ v, jnp.eye(4))
    with pytest.raises(ValueError, match=r"batch of any size: .*Pass batch="):
        exported(odd, [jnp.ones((2, 4))])
    fixed = exported(odd, [jnp.ones((2, 4))], ("cpu",), batch=4)
    same(imported(fixed, odd.variables)(jnp.ones((4, 4))), jnp.ones((2, 2, 4)))
    with pytest.raises(ValueError, match=r"batch of 4 rows: .*"):
        exported(Network(lambda v, x: jnp.ones((2, 4)) + x @ v, jnp.eye(4)), [jnp.ones((2, 4))], batch=4)


@pytest.mark.parametrize("outputs", [lambda y: Programs(y, y), lambda y: {0: y}])
def test_containers_that_a_program_can_not_hold_are_named(outputs):
    own = Network(lambda v, x: outputs(x @ v), jnp.eye(4))
    with pytest.raises(ValueError, match=r"outputs of the network hold a container .*(Programs|key 0).*Wrap apply"):
        exported(own, [jnp.ones((2, 4))], ("cpu",))
