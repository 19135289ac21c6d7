"""Sharded inference gives what one device gives, for any batch size, with few compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.combine import where
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.program import complaint
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.parallel.infer import predictor
from tests.zoo import ZOO

FEATURES, CLASSES = 48, 12


def dense(rng):
    return {"w": jnp.asarray(rng.standard_normal((FEATURES, CLASSES)) / 7, jnp.float32), "b": jnp.arange(12.0)}


def apply(variables, x):
    return jnp.tanh(x) @ variables["w"] + variables["b"][None]


def counted(fn):
    """``fn`` and the list of the batch sizes that it was traced for."""
    traces = []

    def traced(variables, x):
        traces.append(len(x))
        return fn(variables, x)

    return traced, traces


def close(a, b):
    """Equal but for the order of sums: to 1e-6 of the largest entry."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(np.abs(b).max(initial=1.0), 1.0))


def test_the_batch_is_split_over_all_devices(rng):
    seen = []

    def spied(variables, x):
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        return apply(variables, x)

    predict = predictor(Network(spied, dense(rng)))
    assert predict.devices == tuple(jax.devices()) and len(predict.devices) == 8
    x = rng.standard_normal((64, FEATURES)).astype(np.float32)
    close(predict(x), np.tanh(x) @ np.asarray(dense(np.random.default_rng(0))["w"]) + np.arange(12.0))
    assert seen[0].shard_shape((64, FEATURES)) == (8, FEATURES) and len(seen[0].device_set) == 8


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 30, 31, 64, 65])
@pytest.mark.parametrize("batch_size", [None, 1, 24, 1000])
def test_any_batch_size_gives_what_one_device_gives(rng, predictors, total, batch_size):
    every, one = predictors
    x = rng.standard_normal((total, FEATURES)).astype(np.float32)
    out = every[batch_size](x)
    assert isinstance(out, np.ndarray) and out.shape == (total, CLASSES) and out.dtype == np.float32
    close(out, one(x))


@pytest.fixture(scope="module")
def predictors():
    variables = dense(np.random.default_rng(0))
    every = {size: predictor(Network(apply, variables), batch_size=size) for size in (None, 1, 24, 1000)}
    return every, predictor(Network(apply, variables), devices=jax.devices()[:1])


@pytest.mark.exact
def test_equal_to_the_bit_where_each_device_runs_the_same_program(rng):
    variables = dense(rng)
    x = rng.standard_normal((80, FEATURES)).astype(np.float32)
    one = predictor(Network(apply, variables), devices=jax.devices()[:1], batch_size=5)
    np.testing.assert_array_equal(predictor(Network(apply, variables), batch_size=40)(x), one(x))


@pytest.mark.exact
def test_integers_are_equal_to_the_bit(rng):
    variables = {"w": jnp.asarray(rng.integers(-128, 128, (300, 7)), jnp.int8)}
    x = rng.integers(-128, 128, (53, 300)).astype(np.int8)

    def product(variables, x):
        return jax.lax.dot(x, variables["w"], preferred_element_type=jnp.int32)

    expected = x.astype(np.int32) @ np.asarray(variables["w"], np.int32)
    for devices in (None, jax.devices()[3:4], jax.devices()[:3]):
        np.testing.assert_array_equal(predictor(Network(product, variables), devices=devices)(x), expected)


def test_a_stream_of_sizes_compiles_once_with_a_batch_size(rng):
    traced, traces = counted(apply)
    predict = predictor(Network(traced, dense(rng)), batch_size=20)
    for total in (1, 20, 33, 24, 100, 2):
        assert len(predict(np.ones((total, FEATURES), np.float32))) == total
    assert predict.batch_size == 24, "rounded up to a multiple of 8 devices"
    assert traces == [48, 24], "once without running it, to see the outputs' shapes"


def test_without_one_it_compiles_for_powers_of_two(rng):
    traced, traces = counted(apply)
    predict = predictor(Network(traced, dense(rng)))
    for total in range(1, 66):
        predict(np.ones((total, FEATURES), np.float32))
    assert sorted(traces) == [8, 16, 32, 64, 128], "16 to see the outputs' shapes, and not once more"


def test_rows_that_pad_are_of_the_same_chunk_and_cut(rng):
    """A statistic over the batch sees no stranger: its largest entry stays what it was."""
    x = np.arange(1.0, 28.0, dtype=np.float32)

    def share(variables, x):
        return x / jnp.max(x) * variables["one"]

    out = predictor(Network(share, {"one": jnp.ones(())}), batch_size=16)(x)
    np.testing.assert_allclose(out, np.concatenate([x[:16] / 16, x[16:] / 27]), rtol=1e-6)


def test_pytrees_in_and_out(rng):
    def model(variables, pair, scale):
        y = pair["a"] @ variables["w"]
        return {"logits": y * scale[:, None], "parts": (pair["n"] + 1, y.astype(jnp.bfloat16))}

    a, n = rng.standard_normal((11, FEATURES)).astype(np.float32), np.arange(11)
    variables = dense(rng)
    out = predictor(Network(model, variables), batch_size=8)({"a": a, "n": n}, np.full(11, 2.0))
    assert out["logits"].dtype == np.float32 and out["parts"][1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(out["parts"][0], n + 1)
    close(out["logits"], 2 * a @ np.asarray(variables["w"]))


def test_no_row_gives_outputs_without_rows(rng):
    def model(variables, x):
        flat = x.reshape(len(x), -1)  # which fails for no rows
        return {"logits": flat @ variables["w"], "classes": jnp.argmax(flat, -1)}

    for size in (None, 16):
        out = predictor(Network(model, dense(rng)), batch_size=size)(np.zeros((0, 6, 8), np.float64))
        assert out["logits"].shape == (0, CLASSES) and out["logits"].dtype == np.float32
        assert out["classes"].shape == (0,) and out["classes"].dtype == np.int32


def test_variables_are_placed_once_and_whole(rng):
    variables = dense(rng)
    predict = predictor(Network(apply, variables))
    variables["w"] = None  # the caller's tree may go
    assert predict(np.ones((3, FEATURES), np.float32)).shape == (3, CLASSES)
    held = jax.tree.leaves(predict.network)
    assert all(leaf.is_fully_replicated and len(leaf.sharding.device_set) == 8 for leaf in held)


@pytest.mark.parametrize("name", ["lenet5", "gpt_scan", "nnx_mlp", "raw_conv"])
def test_models_of_all_kinds(name):
    model = ZOO[name]()
    x = np.concatenate([np.asarray(model.inputs[0])] * 9)[:15]
    out = predictor(Network(model.apply, model.variables), batch_size=16)(x)
    jax.tree.map(close, out, jax.device_get(jax.jit(model.apply)(model.variables, x)))


@pytest.mark.parametrize("rule", [(), arithmetic("w4a8")], ids=["w4", "w4a8"])
def test_stored_weights_run_on_every_device(rng, rule):
    model = ZOO["lenet300"]()
    x = rng.standard_normal((21, *model.inputs[0].shape[1:])).astype(np.float32)
    method = where("**/kernel", quantize(4))
    info = inspect(model.apply, model.variables, x)
    stored = method.pack(model.variables, method.init(model.variables, info))
    run = rewrite(model.apply, rule)
    for weights in (stored, prepare(stored)):
        out = predictor(Network(model.apply, weights, rule), batch_size=16)(x)
        close(out, np.asarray(run(weights, x)))
    assert np.abs(out - np.asarray(model.apply(model.variables, x))).max() > 1e-3, "four bits, not floats"


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"devices": []}, ValueError, "no device; pass some of jax.devices"),
        ({"devices": "twice"}, ValueError, "stands there twice"),
        ({"batch_size": 0}, ValueError, "batch_size=0.: allowed are 1 and more"),
        ({"batch_size": -8}, ValueError, "batch_size=-8"),
        ({"batch_size": 2.5}, TypeError, "pass a whole number of rows"),
        ({"batch_size": True}, TypeError, "pass a whole number of rows"),
    ],
)
def test_what_a_predictor_can_not_be_made_of(rng, arguments, error, said):
    if arguments.get("devices") == "twice":
        arguments = {"devices": jax.devices()[:1] * 2}
    with pytest.raises(error, match=said):
        predictor(Network(apply, dense(rng)), **arguments)


def test_what_can_not_be_predicted(rng):
    predict = predictor(Network(lambda v, x, y=0: x["a"], dense(rng)))
    for inputs, error, said in [
        ((), ValueError, "no input"),
        (({},), ValueError, "no input"),
        (({"a": np.ones(3), "b": np.ones(4)},), ValueError, "different batch sizes: a has 3, b has 4 rows"),
        (({"a": np.ones(3)}, np.ones(5)), ValueError, "0/a has 3, 1 has 5"),
        (({"a": np.float32(1)},), ValueError, "input a: has no axis"),
        (({"a": np.array(["x"])},), TypeError, "input a: dtype <U1 is no number"),
    ]:
        with pytest.raises(error, match=said):
            predict(*inputs)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda v, x: {"mean": jnp.mean(x), "x": x}, r"output mean: float32\[\] for 16 rows"),
        (lambda v, x: v["w"], r"the output: float32\[48, 12\] for 16 rows; its first axis must be the batch"),
    ],
)
def test_an_output_without_the_batch_is_named(rng, fn, said):
    with pytest.raises(ValueError, match=said):
        predictor(Network(fn, dense(rng)))(np.ones((5, FEATURES), np.float32))


def test_nor_is_one_that_has_the_length_of_a_batch_by_accident():
    """Batch statistics of 16 channels, a batch of 16."""
    model = ZOO["nnx_conv"]()
    x = np.concatenate([np.asarray(model.inputs[0])] * 4)
    with pytest.raises(ValueError, match=r"output 1/.*mean: float32\[16\] for 32 rows"):
        predictor(Network(model.apply, model.variables))(x)


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (apply, r"apply fails on inputs float32\[B, 3\]: TypeError: dot_general requires contracting dimensions"),
        (lambda x, v: x @ v["w"], r"TypeError: JAX does not support string indexing.*called as apply\(variables, \*inputs\)"),
    ],
)
def test_inputs_that_the_model_can_not_take_are_named(rng, fn, said):
    with pytest.raises(ValueError, match=said) as caught:
        predictor(Network(fn, dense(rng)))(np.ones((5, 3), np.float32))
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_complaint_is_one_line_without_addresses():
    assert complaint(ValueError("a.b is (3,). (https://x.org/#a.B)\nand more")) == "ValueError: a.b is (3,)"
    assert complaint(KeyError()) == "KeyError"
