"""Entropy-penalised training: gradients against finite differences and loops, the pack law, and that bits do go down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.model import ModelInfo
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import State
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.rate_quantization import rate_quantize
from jaxopt_nn.numerics import rate
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.pipeline.calibrate import calibrate
from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.grade import evaluate
from jaxopt_nn.pipeline.numbers import regression
from jaxopt_nn.tensors.base import densify


def weights(seed=0, rows=24, columns=16):
    rng = np.random.default_rng(seed)
    return {"kernel": jnp.asarray(rng.standard_normal((rows, columns)) * rng.exponential(size=(rows, 1)), jnp.float32)}


def bits_of(view, state):
    """Of a kernel's codes, in bits."""
    codes = jnp.round(view["kernel"] / jnp.exp(state.learnt["kernel"]))
    return float(rate.code_bits(codes, rate.prices(codes)).sum())


def test_the_push_is_the_price_of_a_bit():
    """Beside the task's gradient each weight gets penalty * d bits / d w, of lengths that are linear between two codes."""
    v, penalty = weights(), 1e-2
    method = rate_quantize(penalty)
    state = method.init(v)
    step, costs = float(jnp.exp(state.learnt["kernel"]).squeeze()), state.carried["kernel"].costs
    upstream = np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32)
    slope = jax.grad(lambda v: (method.view(v, state)["kernel"] * upstream).sum())(v)["kernel"]
    w = np.asarray(v["kernel"], np.float64)
    low = np.floor(np.abs(w) / step)
    length = lambda size: np.asarray(rate.code_bits(size.astype(np.float32), costs), np.float64)
    per_bit = np.clip(length(low + 1) - length(low), np.where(low == 0, rate.CHEAPEST, 0), np.where(low == 0, rate.DEAREST, 99))
    np.testing.assert_allclose(slope, upstream + penalty * per_bit * np.sign(w) / step, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_the_step_is_that_of_lsq():
    v = weights(2)
    method = rate_quantize(1e-3)
    state = method.init(v)
    upstream = np.random.default_rng(3).standard_normal((24, 16)).astype(np.float32)
    loss = lambda learnt: (method.view(v, State(learnt, state.carried))["kernel"] * upstream).sum()
    slope = float(jax.grad(loss)(state.learnt)["kernel"].squeeze())
    step, w = float(jnp.exp(state.learnt["kernel"]).squeeze()), np.asarray(v["kernel"], np.float64)
    by_loop = sum(g * (round(x / step) - x / step) for g, x in zip(upstream.ravel(), w.ravel(), strict=True))
    np.testing.assert_allclose(slope, step * by_loop / np.sqrt(w.size), rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("step", [0.05, 3.0])
def test_it_packs_what_it_shows_in_the_fewest_bits(dtype, step):
    v = {"kernel": weights(4)["kernel"].astype(dtype), "bias": jnp.linspace(-1, 1, 16, dtype=dtype)}
    method = rate_quantize(1e-3, step=step, vectors=True)
    state = method.init(v)
    stored = method.pack(v, state)
    for path, view in method.view(v, state).items():
        np.testing.assert_array_equal(densify(stored[path]), view)
        assert view.dtype == dtype
    tensor = stored["kernel"]
    size = int(jnp.abs(jnp.round(method.view(v, state)["kernel"].astype(jnp.float32) / tensor.scale)).max())
    assert 2 ** (tensor.bits - 2) <= size < 2 ** (tensor.bits - 1)


@pytest.mark.slow
def test_a_higher_price_gives_fewer_bits_and_more_loss():
    """On a loss that wants the weights as they are, the bits of their codes go down as the price goes up."""
    target, bits, losses = weights(5)["kernel"], [], []
    square = lambda v: jnp.square(v["kernel"] - target).sum()
    optimizer = optax.adam(3e-3)
    for penalty in (0.0, 0.1, 1.0):
        method = rate_quantize(penalty, step=0.5)
        train = make_step(lambda v, batch, key: (square(v), ({}, {})), method, optimizer)
        state = init_train_state({"kernel": target}, method, optimizer, jax.random.key(0))
        for _ in range(300):
            state, _ = train(state, None)
        view = method.view(state.params, state.state)
        bits.append(bits_of(view, state.state))
        losses.append(float(square(view)))
    assert bits[0] > 1.1 * bits[1] > 1.2 * bits[2]
    assert losses[0] < losses[1] < losses[2]


def test_a_schedule_sets_the_price_at_each_update():
    v = weights(6)
    method = rate_quantize(lambda step: 1e-3 * step)
    state = method.init(v)
    assert float(state.carried["kernel"].penalty) == 0
    moved = {"kernel": 3 * v["kernel"]}
    new = method.update(moved, state, step=jnp.int32(4))
    assert float(new.carried["kernel"].penalty) == pytest.approx(4e-3)
    codes = jnp.round(moved["kernel"] / jnp.exp(state.learnt["kernel"]))
    np.testing.assert_allclose(new.carried["kernel"].costs.row, rate.prices(codes).row, rtol=1e-6)


def test_codes_chosen_by_the_inputs_keep_the_outputs():
    """At about as many bits the output's error is less than that of codes that know nothing of the inputs."""
    rng = np.random.default_rng(7)
    v = {"kernel": jnp.asarray(rng.standard_normal((64, 32)), jnp.float32)}
    x = (rng.standard_normal((256, 64)) * np.geomspace(0.03, 3, 64)).astype(np.float32)
    network = Network(lambda v, x: x @ v["kernel"], v)
    task = regression(test=(x, np.zeros((256, 32), np.float32)))

    def tried(method, info):
        state = method.init(v, info)
        view = method.view(v, state)
        error = lambda a: float(np.square(a).sum())
        off = np.asarray(view["kernel"] - v["kernel"])
        return bits_of(view, state), error(off), error(x @ off)

    knowing = rate_quantize(2e-3, step=0.4, importance="inputs")
    with pytest.raises(ValueError, match="kernel: importance='inputs' reads the inputs of the layers"):
        knowing.init(v)
    bits, weight_error, output_error = tried(knowing, calibrate(network, knowing, task))
    blind = rate_quantize(0.0, step=0.9)
    other_bits, other_weight_error, other_output_error = tried(blind, inspect(network.apply, v, x))
    assert bits < other_bits
    assert weight_error > other_weight_error and output_error < 0.7 * other_output_error


def test_codes_chosen_by_the_fisher_information_keep_the_loss():
    """At about as many bits the loss rises by less, and each code is the best of all by the sum that is minimised."""
    rng = np.random.default_rng(8)
    scales = np.geomspace(0.03, 3, 40)
    x = (rng.standard_normal((512, 40)) * scales[rng.permutation(40)]).astype(np.float32)
    v = {"kernel": jnp.asarray(rng.standard_normal((40, 6)), jnp.float32)}
    network = Network(lambda v, x: x @ v["kernel"], v)
    labels = np.argmax(x @ np.asarray(v["kernel"]) + rng.gumbel(size=(512, 6)), 1)
    task = classification(train=(x, labels), test=(x, labels))
    knowing = rate_quantize(2e-2, step=0.4, importance="fisher")
    with pytest.raises(ValueError, match="kernel: the statistic 'fisher' of the loss is missing"):
        knowing.init(v, inspect(network.apply, v, x))
    info = calibrate(network, knowing, task)

    def tried(method):
        state = method.init(v, info)
        view = method.view(v, state)
        return bits_of(view, state), evaluate(network.replace(variables=view), task)["loss"], state

    bits, loss, state = tried(knowing)
    other_bits, other_loss, _ = tried(rate_quantize(0.0, step=0.85))
    assert bits < other_bits and loss < other_loss

    fisher, own = np.asarray(info.stats[(), "kernel", "fisher"]), state.carried["kernel"]
    width = np.exp(np.asarray(state.learnt["kernel"]).item())
    best = np.full(fisher.shape, np.inf)
    for code in range(-9, 10):
        lengths = rate.code_bits(jnp.full(fisher.shape, code), own.costs)
        best = np.minimum(best, fisher / fisher.mean() * (v["kernel"] - width * code) ** 2 + 2e-2 * lengths)
    codes = jnp.round(knowing.view(v, state)["kernel"] / width)
    ours = fisher / fisher.mean() * (v["kernel"] - width * codes) ** 2 + 2e-2 * rate.code_bits(codes, own.costs)
    np.testing.assert_allclose(ours, best, rtol=1e-4, atol=1e-6)


def test_statistics_are_counted_of_what_stays_after_a_cut():
    rng = np.random.default_rng(9)
    v = {path: jnp.asarray(rng.standard_normal(shape), jnp.float32) for path, shape in {"a": (12, 8), "b": (8, 3)}.items()}
    network = Network(lambda v, x: jnp.maximum(x @ v["a"], 0) @ v["b"], v)
    x = rng.standard_normal((4, 12)).astype(np.float32)
    method, info = rate_quantize(1e-3, step=0.5), inspect(network.apply, v, x)
    state = method.init(v, info)
    state = state._replace(learnt={path: step + 0.3 for path, step in state.learnt.items()})
    cut = cut_units(share=0.5)
    small, remap = cut.execute(network, cut.plan(network, info, x))
    made, report = remap.state(method, state, small.variables, inspect(small.apply, small.variables, x))
    assert not report.of("anew")
    for path, leaf in small.variables.items():
        assert leaf.shape != v[path].shape
        np.testing.assert_array_equal(made.learnt[path], state.learnt[path])
        codes = jnp.round(leaf / jnp.exp(state.learnt[path]))
        jax.tree.map(np.testing.assert_array_equal, made.carried[path].costs, rate.prices(codes))


def test_a_step_of_zeros_and_one_that_trains():
    """A bias of zeros has a step all the same, which is trained as soon as the bias is not zero."""
    v = {"bias": jnp.zeros(5), "kernel": jnp.zeros((4, 5))}
    method = rate_quantize(1e-3, vectors=True)
    state = method.init(v)
    for path, view in method.view(v, state).items():
        np.testing.assert_array_equal(view, v[path])
    np.testing.assert_array_equal(densify(method.pack(v, state))["kernel"], 0)


def test_leaves_that_would_grow_are_left_alone():
    """A step alone takes 4 bytes, as much as two numbers of 16 bits do."""
    v = {"gain": jnp.ones(2, jnp.bfloat16), "bias": jnp.ones(5, jnp.bfloat16)}
    method = rate_quantize(1e-4, vectors=True)
    packed = method.pack(v, method.init(v))
    assert packed["gain"] is v["gain"] and packed["bias"].nbytes < v["bias"].nbytes
    assert "would take 6 bytes, no less than the 4" in method.traits.takes("gain", v["gain"], ModelInfo())
    assert "would take 5 bytes, no less than the 4" in method.traits.takes("gain", jnp.ones(1), ModelInfo())


def test_nan_and_wrong_arguments_are_errors():
    v = weights(8)
    method = rate_quantize(1e-3)
    with pytest.raises(ValueError, match="kernel: NaN or Inf among the weights"):
        method.pack({"kernel": v["kernel"].at[0, 0].set(jnp.nan)}, method.init(v))
    state = method.init(v)
    broken = State({"kernel": state.learnt["kernel"] * jnp.nan}, state.carried)
    with pytest.raises(ValueError, match="kernel: NaN or Inf among the steps; find the step that diverged"):
        method.pack(v, broken)


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"penalty": -1.0}, ValueError, "penalty=-1.0.: what a bit adds to the loss, a number from 0"),
        ({"penalty": "x"}, TypeError, "penalty='x'.: what a bit adds to the loss"),
        ({"penalty": None}, TypeError, "penalty=None"),
        ({"penalty": True}, TypeError, "penalty=True"),
        ({"penalty": np.ones(3)}, TypeError, r"penalty=an array float64\[3\]"),
        ({"penalty": np.nan}, ValueError, "penalty=nan"),
        ({"penalty": lambda step: -1.0}, ValueError, "penalty=-1.0 at step 0.: what a bit adds to the loss, a number from 0"),
        ({"penalty": lambda step: jnp.ones(3)}, ValueError, r"penalty=an array float32\[3\] at step 0"),
        ({"penalty": lambda step: None}, ValueError, "penalty=None at step 0"),
        ({"step": 0.0}, ValueError, "step=0.0.: the first step in root mean squares, above 0"),
        ({"step": "x"}, ValueError, "step='x'.: the first step in root mean squares"),
        ({"step": True}, ValueError, "step=True"),
        ({"bits": 1}, ValueError, "bits=1.: allowed are the whole numbers 2 to 8"),
        ({"bits": 4.0}, ValueError, "bits=4.0.: allowed are the whole numbers 2 to 8"),
        ({"importance": "rows"}, ValueError, "importance='rows'.: allowed are None, 'inputs' and 'fisher'"),
        ({"importance": np.ones(3)}, ValueError, r"importance=an array float64\[3\]"),
        ({"vectors": "no"}, ValueError, "vectors='no'.: allowed are True and False"),
    ],
)
def test_wrong_arguments_are_errors(arguments, error, said):
    with pytest.raises(error, match=rf"^rate_quantize\({said}"):
        rate_quantize(**{"penalty": 1e-6, **arguments})


@pytest.mark.parametrize("importance", [None, "inputs"])
@pytest.mark.parametrize("power", [66, -73, 120])  # 1e20, 1e-22 and 1e36
def test_codes_are_those_of_the_weights_at_any_scale(power, importance):
    """The step goes with the weights: of weights times a power of two it is the step times that, and codes are equal."""
    v, large = weights(11), np.float32(2.0) ** power
    network = lambda v: Network(lambda v, x: x @ v["kernel"], v)
    x = np.random.default_rng(12).standard_normal((64, 24), np.float32)
    x[:, 3] = 0  # of no importance
    method = rate_quantize(0.0, step=0.4, importance=importance)
    codes = []
    for own in (v, {"kernel": v["kernel"] * large}):
        info = calibrate(network(own), method, [x]) if importance else inspect(network(own).apply, own, x)
        state = method.init(own, info)
        stored = method.pack(own, state)["kernel"]
        np.testing.assert_array_equal(stored.densify(), method.view(own, state)["kernel"])
        codes.append((np.asarray(stored.elementwise()), float(stored.scale.squeeze())))
    np.testing.assert_array_equal(codes[0][0], codes[1][0])
    assert np.abs(codes[0][0]).max() > 2
    np.testing.assert_allclose(codes[1][1], codes[0][1] * float(large), rtol=1e-4)


def test_a_price_that_is_still_rising_is_pending():
    traits = rate_quantize(optax.linear_schedule(0.0, 2e-6, 10)).traits
    assert traits.pending(5) == "penalty is at 1e-06 and ends at 2e-06"
    assert traits.pending(10) is None and rate_quantize(1e-6).traits.pending(0) is None
