"""From an artifact to answers, with the model's code and without it."""

import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((48, 8)).astype(np.float32)
TASK = jn.classification(train=(X, np.argmax(X[:, :3], 1)), test=(X, np.argmax(X[:, :3], 1)), batch_size=16)
WEIGHTS = {
    "up": jnp.asarray(RNG.standard_normal((8, 12)), jnp.float32).at[:, 3].set(-1.0),
    "layers": jnp.asarray(RNG.standard_normal((2, 12, 12)) / 4, jnp.float32),
    "down": jnp.asarray(RNG.standard_normal((12, 3)), jnp.float32),
}


def apply(v, x):
    h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), jax.nn.relu(x @ v["up"]), v["layers"])
    return h @ v["down"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Pruned, 8 bits, with calibrated ranges, in a scan; with a program for CPU."""
    workdir = tmp_path_factory.mktemp("run")
    method = jn.chain(jn.where("layers", jn.prune(sparsity=0.5)), jn.quantize(8))
    recipe = [jn.Stage("w8a8", method, rule=jn.static_ranges())]
    return jn.compress(jn.Network(apply, WEIGHTS), recipe, TASK, workdir=workdir, latency=False, export=["cpu"]), workdir


def test_a_network_that_is_loaded_is_compiled_as_a_function(tmp_path):
    method = jn.chain(jn.prune(sparsity=0.5), jn.cluster(4))
    network = jn.Network(lambda v, x: x @ v["up"], method.pack(WEIGHTS, method.init(WEIGHTS)))
    jn.save(tmp_path / "x.jn", network)
    loaded = jn.load(tmp_path / "x.jn", network.apply)
    np.testing.assert_allclose(jax.jit(loaded)(X), network(X), rtol=1e-6)
    assert loaded == loaded != network and {loaded: 1}[loaded] == 1


def test_three_lines_in_another_process_without_the_models_code(shipped, tmp_path):
    result, workdir = shipped
    np.save(tmp_path / "x.npy", X)
    lines = [
        "import jaxopt_nn as jn, numpy as np",
        f"network = jn.load({str(workdir / 'network.jn')!r})",
        f"np.save({str(tmp_path / 'y.npy')!r}, network(np.load({str(tmp_path / 'x.npy')!r})))",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), result.network(X), atol=1e-5)


def test_the_program_answers_as_the_code_on_any_batch_and_on_eight_devices(shipped):
    result, workdir = shipped
    network = jn.load(workdir / "network.jn")
    for rows in (1, 5, 48):
        np.testing.assert_allclose(network(X[:rows]), result.network(X[:rows]), atol=1e-5)
    np.testing.assert_allclose(jn.predictor(network, devices=jax.devices()[:8])(X), result.network(X), atol=1e-5)
    assert result.report["artifact"]["bytes"] == (workdir / "network.jn").stat().st_size
    assert jn.load(workdir / "network.jn", apply).states.keys() == {"up", "layers", "down"}


@pytest.mark.parametrize("around", [jn.keep_constants, jax.jit, lambda f: functools.partial(f, scale=2.0)])
def test_a_function_around_that_of_a_cut_network_keeps_its_plans(around, tmp_path):
    whole = lambda v, x, scale=1.0: scale * apply(v, x)
    net, cut = jn.Network(whole, WEIGHTS), jn.cut_units(share=0.5)
    small, _ = cut.execute(net, cut.plan(net, jn.ModelInfo(), X))
    around_small = small.replace(apply=around(small.apply))
    twice, _ = cut.execute(around_small, cut.plan(around_small, jn.ModelInfo(), X))
    for shipped in (around_small, twice):
        jn.save(tmp_path / "small", shipped, overwrite=True)
        for code in (around(whole), around_small.apply):
            np.testing.assert_allclose(jn.load(tmp_path / "small", code)(X), shipped(X), atol=1e-5)


def test_a_function_of_ones_own_around_a_cut_one_is_taken_as_it_is(tmp_path):
    net, cut = jn.Network(apply, WEIGHTS), jn.cut_units(share=0.5)
    small, _ = cut.execute(net, cut.plan(net, jn.ModelInfo(), X))

    @functools.wraps(small.apply)
    def doubled(v, x):
        return 2 * small.apply(v, x)

    jn.save(tmp_path / "small", small.replace(apply=doubled))
    np.testing.assert_allclose(jn.load(tmp_path / "small", doubled)(X), 2 * small(X), atol=1e-5)


def narrow(v, x):
    """Holds its widths, 12, in its code."""
    h = (x @ v["up"]).reshape(-1, 3, 4)
    h = h - h.sum((1, 2), keepdims=True) / 12
    return jax.nn.relu(h).reshape(-1, 12) @ v["down"]


def test_a_network_that_was_cut_runs_from_its_program_and_from_its_models_function(tmp_path):
    """Two cuts, one after the other; with and without the code, for any batch."""
    twice = [jn.Stage(name, jn.cut_units(share=0.3)) for name in ("cut", "again")]
    network = jn.Network(narrow, {k: WEIGHTS[k] for k in ("up", "down")})
    recipe = [*twice, jn.Stage("w4", jn.quantize(4))]
    result = jn.compress(network, recipe, TASK, workdir=tmp_path, latency=False, export=["cpu"])
    assert result.params["up"].shape == (8, 4) and result.params["down"].shape == (4, 3), "of 3 times 4 units"
    for code in (None, narrow, result.network.apply):
        again = jn.load(tmp_path / "network.jn", code)
        for rows in (1, 5, 48):
            np.testing.assert_allclose(again(X[:rows]), result.network(X[:rows]), atol=1e-5)
    assert jn.load_file(tmp_path / "network.jn")[1]["files"].keys() == {"programs/cpu.prepare", "programs/cpu.run"}
    other = jn.Network(apply, WEIGHTS)
    with pytest.raises(ValueError, match="layers"):
        jn.load(tmp_path / "network.jn", other.apply)(X)


def test_what_can_not_be_exported_is_said_and_nothing_is_lost(tmp_path, capsys):
    """A model that needs to know its batch."""

    def fixed(v, x):
        return x @ v["w"] + np.zeros((x.shape[0], 1), np.float32)

    network = jn.Network(fixed, {"w": WEIGHTS["up"][:, :3]})
    small = TASK.replace(train=None, test=(X[:4], np.argmax(X[:4, :3], 1)), batch_size=4)
    result = jn.compress(network, [jn.Stage("w8", jn.quantize(8))], small, workdir=tmp_path, latency=False, export=["cpu"])
    message = "warning: no program for cpu in the artifact: the network can't be exported for a batch of any size"
    assert message in str(result) and message in capsys.readouterr().err
    np.testing.assert_array_equal(jn.load(tmp_path / "network.jn", fixed)(X[:4]), result.network(X[:4]))
    with pytest.raises(ValueError, match=r"network.jn: holds no exported program; pass apply=, its model's function, or write"):
        jn.load(tmp_path / "network.jn")


def test_what_no_optimizer_moves_is_kept_and_platforms_are_checked_first(tmp_path):
    network = jn.Network(apply, WEIGHTS, still={"down"})
    jn.save(tmp_path / "net", network)
    assert jn.load(tmp_path / "net", apply).still == {"down"}
    for wrong in ("cpu", ["cpu", "tpv"]):
        with pytest.raises(ValueError, match="pass a list of some of 'cpu', 'gpu', 'tpu'"):
            jn.compress(network, [jn.Stage("w8", jn.quantize(8), epochs=5)], TASK, export=wrong)


def test_what_is_no_network_or_needs_code_is_named(tmp_path):
    jn.save_artifact(tmp_path / "folder", WEIGHTS)
    jn.save_file(tmp_path / "file", WEIGHTS)
    for code, name in itertools.product((apply, None), ("folder", "file")):
        with pytest.raises(ValueError, match=rf"{name}: holds a tree of arrays and no network; read it with jaxopt_nn.load_fi"):
            jn.load(tmp_path / name, code)
    by_hand = jn.Rule(lambda site, state, lhs, rhs: site.run(lhs, rhs), name="mine")
    network = jn.Network(apply, WEIGHTS, by_hand)
    jn.save(tmp_path / "mine", network)
    with pytest.raises(ValueError, match=r"mine: rule 'mine' was made by hand; pass rules=, or decorate the function"):
        jn.load(tmp_path / "mine", apply)
    np.testing.assert_array_equal(jn.load(tmp_path / "mine", apply, rules=by_hand)(X), network(X))
    with pytest.raises(TypeError, match="network is a dict; pass a Network"):
        jn.save(tmp_path / "none", WEIGHTS)
