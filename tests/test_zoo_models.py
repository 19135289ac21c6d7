"""The zoo itself: every model builds, runs, differentiates, and is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import gpt, lenet, mlp, resnet, vit
from tests.zoo import FORWARD_ONLY, ZOO

#: Matrices without a gradient, and why.
IDLE = {
    "cond": {"['choices'][0]", "['choices'][2]", "['otherwise']"},  # the branches that are not taken
    "untouched_leaf": {"['unused']"},
    "while_loop": {"['halt']"},  # only decides how often
}


def leaves(tree):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def energy(model):
    """`(variables, *inputs) -> (mean square of the float outputs, outputs)`."""

    def loss(variables, *inputs):
        outputs = model.apply(variables, *inputs)
        floats = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.mean(x**2) for x in floats), outputs

    return loss


def derivative(model):
    """A jitted `(variables, *inputs) -> ((energy, outputs), gradient)`."""
    loss = energy(model)
    if model.name not in FORWARD_ONLY:
        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    def forward(variables, *inputs):
        """The derivative along each matrix, put where its gradient would be."""
        primal = loss(variables, *inputs)
        zero = jax.tree.map(jnp.zeros_like, variables)

        def along(name):
            tangent = zero | {name: variables[name]}
            return jax.jvp(lambda v: loss(v, *inputs)[0], (variables,), (tangent,))[1]

        return primal, {name: along(name) for name in variables}

    return jax.jit(forward)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_model_runs_and_differentiates(name):
    model = ZOO[name]()
    assert model.name == name
    assert model.note.endswith(".") and "\n" not in model.note
    run = derivative(model)
    (_, outputs), gradient = first = run(model.variables, *model.inputs)
    assert jax.tree.leaves(outputs)
    for path, x in leaves(outputs).items():
        assert x.dtype == jnp.float32 or (name, x.dtype) == ("while_loop", jnp.int32), path
        assert np.isfinite(x).all(), path

    assert jax.tree.structure(gradient) == jax.tree.structure(model.variables)
    for path, x in leaves(gradient).items():
        assert np.isfinite(x).all(), path
    matrices = {path for path, x in leaves(model.variables).items() if x.ndim >= 2 and min(x.shape[-2:]) > 1}
    assert matrices
    assert {path for path in matrices if not np.any(leaves(gradient)[path])} == IDLE.get(name, set())

    again = run(model.variables, *model.inputs)
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize("name", ZOO)
def test_a_model_is_the_same_each_time_and_its_arrays_are_fresh(name):
    model, rebuilt = ZOO[name](), ZOO[name].__wrapped__()
    _, variables, inputs = rebuilt
    jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
    size = sum(x.size for x in jax.tree.leaves(variables))
    assert 500 <= size <= 60_000
    for path, x in leaves(model.variables).items():
        assert x.dtype in (jnp.float32, jnp.complex64), path
        assert np.ptp(np.abs(x)) > 0, f"{path} is constant"
    for x in jax.tree.leaves((model.variables, model.inputs)):
        x.delete()
    assert not any(x.is_deleted() for x in jax.tree.leaves((ZOO[name]().variables, ZOO[name]().inputs)))
    assert len(inputs) == len(model.inputs)


def count(module, *shape):
    """Trainable parameters of a module on one float32 input."""
    abstract = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    return sum(x.size for x in jax.tree.leaves(abstract["params"]))


def test_default_sizes_are_the_published_ones():
    assert count(mlp.lenet300(), 1, 28, 28, 1) == 266_610
    assert count(lenet.LeNet5(), 1, 28, 28, 1) == 431_080
    assert count(resnet.ResNet(), 1, 32, 32, 3) == 269_722 + (16 * 32 + 32 * 64) + 2 * (32 + 64)
    assert count(vit.ViT(), 1, 224, 224, 3) == 5_717_416


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 16)).astype(np.float32)
    q, k = (gpt.rotary(jnp.asarray(np.repeat(x, 6, axis=1)))[0, :, 0] for x in (query, key))
    scores = np.asarray(q @ k.T)
    for distance in range(-5, 6):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(scores[0, 0], (query * key).sum(), rtol=1e-5)
    assert np.ptp(scores[0]) > 0.1


def test_the_grouped_query_attention_is_that_of_jax():
    model = gpt.Attention(heads=4, kv_heads=2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 32)), jnp.float32)
    variables = {"params": ZOO["gpt"]().variables["params"]["block_0"]["attention"]}

    @jax.jit
    def reference(variables, x):
        kernel = {name: sub["kernel"] for name, sub in variables["params"].items()}
        q, k, v = ((x @ kernel[name]).reshape(2, 6, -1, 8) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(gpt.rotary(q), gpt.rotary(k), v, is_causal=True)
        return attended.reshape(2, 6, 32) @ kernel["out"]

    ours = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(ours, reference(variables, x), rtol=1e-4, atol=1e-5)


def test_the_scanned_transformer_is_the_unrolled_one():
    plain, scanned = ZOO["gpt"](), ZOO["gpt_scan"]()
    params = dict(plain.variables["params"])
    blocks = [params.pop(f"block_{layer}") for layer in range(2)]
    params["blocks"] = jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)
    ours = jax.jit(scanned.apply)({"params": params}, *plain.inputs)
    theirs = jax.jit(plain.apply)(plain.variables, *plain.inputs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_nnx_twin_is_the_linen_network():
    twin = ZOO["nnx_mlp"]()
    layers = twin.variables["layers"]
    network = mlp.MLP((64, 32, 16))
    ours = network.apply({"params": {f"Dense_{i}": layers[i] for i in range(3)}}, *twin.inputs)
    np.testing.assert_allclose(ours, twin.apply(twin.variables, *twin.inputs), rtol=1e-6, atol=1e-6)


def test_experts_are_mixed_by_their_gates():
    model = ZOO["moe"]()
    (x,), params = model.inputs, model.variables["params"]
    expected = np.array(x)
    filled = np.zeros(4, int)
    for row, token in zip(expected.reshape(-1, 32), np.asarray(x).reshape(-1, 32), strict=True):
        gates = np.asarray(jax.nn.softmax(token @ params["router"]["kernel"]))
        kept = np.argsort(-gates)[:2]
        for expert in kept:
            if filled[expert] < 6:
                y = np.asarray(jax.nn.gelu(token @ params["up"][expert]) @ params["down"][expert])
                row += gates[expert] / gates[kept].sum() * y
            filled[expert] += 1
    np.testing.assert_allclose(jax.jit(model.apply)(model.variables, x), expected, rtol=1e-4, atol=1e-5)
    assert filled.sum() == 16


def test_the_sharded_network_is_the_dense_one():
    model = ZOO["shard_map"]()
    (x,), v = model.inputs, model.variables
    expected = jnp.tanh(x @ v["up"] + v["bias"][None]) @ v["down"] @ v["replicated"]
    np.testing.assert_allclose(jax.jit(model.apply)(v, x), expected, rtol=1e-5, atol=1e-5)


def test_dropout_follows_its_key():
    model = ZOO["dropout_mha"]()
    run = jax.jit(model.apply)
    x, key = model.inputs
    assert not np.allclose(run(model.variables, x, key), run(model.variables, x, jax.random.key(8)))
