"""An artifact as an engine: several requests in one call, each with its own outputs, and nothing compiled later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.serving.engine import Engine, opened
from experiments.serving.wire import Field
from jaxopt_nn.export.exported import exported
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.store import load, save

COMPILED = "/jax/core/compile/backend_compile_duration"


def two_and_two(rng):
    """A network of two inputs and two outputs, one of each in a type that NumPy has not."""

    def apply(variables, batch):
        hidden = variables["table"][batch["id"]] + batch["x"].astype(jnp.float32) @ variables["w"]
        return {"hidden": hidden, "sign": (hidden.sum(-1) > 0).astype(jnp.bfloat16)}

    table, w = rng.standard_normal((10, 4)), rng.standard_normal((3, 4))
    return Network(apply, {"table": jnp.asarray(table, jnp.float32), "w": jnp.asarray(w, jnp.float32)})


def example(rows=2):
    one = lambda shape, dtype: jax.ShapeDtypeStruct((rows, *shape), dtype)
    return ({"id": one((), jnp.int32), "x": one((3,), jnp.bfloat16)},)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    network = two_and_two(np.random.default_rng(0))
    directory = tmp_path_factory.mktemp("served") / "artifact"
    save(directory, network, programs=exported(network, example(), ("cpu",)))
    return directory


def test_requests_get_their_own_outputs_and_nothing_is_compiled_later(artifact, rng):
    engine, facts = opened(artifact, 40)
    assert engine.inputs == [Field("id", (), np.dtype("int32")), Field("x", (3,), np.dtype("float32"))]
    assert engine.outputs == [Field("hidden", (4,), np.dtype("float32")), Field("sign", (), np.dtype("float32"))]
    assert engine.sizes == [8, 16, 32, 64] and facts["runs"] == "exported program" and len(facts["version"]) == 8
    warm, compiled = [], []
    engine.warm_up(warm.append)
    assert warm == engine.sizes
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    direct = load(artifact)
    for rows in ([1], [3, 1, 4], [40], [8, 31, 1]):
        ids = [rng.integers(10, size=n).astype(np.int32) for n in rows]
        xs = [rng.standard_normal((n, 3)).astype(np.float32) for n in rows]
        del compiled[:]
        answers = engine([[i, x] for i, x in zip(ids, xs)])
        assert COMPILED not in compiled
        for i, x, (hidden, sign) in zip(ids, xs, answers, strict=True):
            wanted = direct({"id": i, "x": x.astype(jnp.bfloat16)})
            np.testing.assert_allclose(hidden, wanted["hidden"], atol=1e-5)
            np.testing.assert_array_equal(sign, wanted["sign"])
    assert COMPILED in compiled, "the direct prediction compiles, so a compilation would have been seen"


@pytest.mark.slow
def test_the_model_of_the_config_where_there_is_no_program(tmp_path):
    from tests.experiments.test_predict import own_model, saved, tiny

    engine, facts = opened(saved(tmp_path / "artifact", {"config": tiny()}), 8)
    assert facts["runs"] == "model of the config"
    x = np.ones((2, 4, 4), np.float32)
    np.testing.assert_allclose(engine([[x]])[0][0], own_model(0)(x), atol=0.1)


def test_what_can_not_be_served_is_refused_at_the_start(artifact, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        opened(tmp_path / "nothing", 8)
    network = two_and_two(np.random.default_rng(0))
    save(tmp_path / "bare", network)
    with pytest.raises(ValueError, match="does not name the model"):
        opened(tmp_path / "bare", 8)
    save(tmp_path / "fixed", network, programs=exported(network, example(4), ("cpu",), batch=4))
    with pytest.raises(ValueError, match="batches of 4 only; export it for a batch of any size"):
        opened(tmp_path / "fixed", 8)
    batch, length = jax.export.symbolic_shape("b, t")
    text = Network(lambda v, x: x.sum(1), {"w": jnp.ones(1)})
    programs = exported(text, (jax.ShapeDtypeStruct((batch, length), jnp.float32),), ("cpu",))
    save(tmp_path / "open", text, programs=programs)
    with pytest.raises(ValueError, match="axis of open length beside the batch"):
        opened(tmp_path / "open", 8)
    for name, dtype, apply in (
        ("inputs", jnp.complex64, lambda v, x: jnp.abs(x) @ v["w"]),
        ("outputs", jnp.float32, lambda v, x: jax.lax.complex(x, x @ v["w"])),
    ):
        waves = Network(apply, {"w": jnp.eye(3)})
        with pytest.raises(ValueError, match=rf"{name}: is complex64\[3\]; a server takes and gives floats"):
            Engine(waves, (jax.ShapeDtypeStruct((1, 3), dtype),), 8)
    with pytest.raises(ValueError, match="the model fails on inputs"):
        Engine(network, ({"x": example()[0]["x"]},), 8)
