"""What every transform owes, in one table. A new transform adds a line to TABLE."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.combine import between, by_path, chain, every, frozen, later, where
from jaxopt_nn.core.model import ModelInfo, Roles
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import explain, identity
from jaxopt_nn.methods.clip import clip, clip_percentile, clip_std
from jaxopt_nn.methods.neurons import mask_units
from jaxopt_nn.methods.prune import erk, global_budget, magnitude, prune, saliency
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.schedules import cubic, staircase
from jaxopt_nn.tensors.base import densify, is_compressed

RAMP = optax.linear_schedule(0.0, 0.5, 4)
TABLE = {
    "identity": identity(),
    "clip": clip(-0.5, 0.75),
    "clip, latent weights": clip(-0.5, 0.75, ste="pass", project=False),
    "clip_percentile": clip_percentile(5, 90),
    "clip_percentile(channel)": clip_percentile(20, 80, granularity="channel", ste="pass"),
    "clip_std(channel)": clip_std(0.5, granularity="channel", project=False),
    **{f"quantize({b})": quantize(b) for b in (1, 2, 4, 8)},
    "quantize(8, unsigned, affine)": quantize(8, signed=False, symmetric=False),
    "quantize(5, unsigned)": quantize(5, signed=False),
    "quantize(3, affine)": quantize(3, symmetric=False),
    "quantize(4, group)": quantize(4, group=4),
    "quantize(6, tensor)": quantize(6, granularity="tensor"),
    "quantize(4, pass)": quantize(4, ste="pass"),
    "quantize(4, none)": quantize(4, ste="none"),
    "quantize(4, stochastic)": quantize(4, rounding="stochastic", key=jax.random.key(1)),
    "quantize(1, stochastic)": quantize(1, rounding="stochastic", key=3),
    "quantize(3, stochastic, affine)": quantize(3, signed=False, symmetric=False, rounding="stochastic", key=4),
    "prune": prune(sparsity=0.75),
    "prune to nothing": prune(sparsity=1.0),
    "prune nothing": prune(sparsity=0.0),
    "prune globally": prune(sparsity=0.6, allocation=global_budget),
    "prune by erk": prune(sparsity=0.7, allocation=erk),
    "prune below a threshold": prune(threshold=0.4),
    "prune below a rising threshold": prune(threshold=optax.linear_schedule(0.0, 0.5, 4)),
    "prune for good": prune(sparsity=cubic(0.8, end=3), regrow=False, allocation=erk),
    "prune in rounds": every(2, prune(sparsity=staircase(0.8, rounds=3, end=6)), last=5),
    "prune on a schedule": prune(magnitude, sparsity=RAMP),
    "prune by saliency": between(1, 9, prune(saliency, sparsity=RAMP)),
    "mask_units": mask_units({"params/a/kernel": {1: np.arange(6) != 2}, "params/a/bias": {0: np.arange(6) != 2}}),
    "chain": chain(clip(-1.0, 1.0), prune(sparsity=0.5), quantize(4)),
    "chain of a mask and random codes": chain(prune(sparsity=0.5), quantize(4, rounding="stochastic", key=5)),
    "a mask, then percentiles": chain(prune(sparsity=0.5), clip_percentile(10, 90)),
    "chain of masks": chain(prune(sparsity=0.5), prune(sparsity=0.75), quantize(3, symmetric=False)),
    "a mask, then other values": chain(prune(sparsity=0.5), clip(-0.5, 0.5)),
    "by_path": by_path([("**/a/kernel", quantize(8)), ("**/kernel", prune(sparsity=0.5))]),
    "where": where("**/stack/kernel", quantize(2)),
    "every": every(2, prune(magnitude, sparsity=RAMP)),
    "later": later(3, prune(magnitude, sparsity=RAMP)),
    "frozen": frozen(prune(magnitude, sparsity=RAMP)),
}
RNG = np.random.default_rng(0)
PARAMS = {
    "params": {
        "a": {"kernel": jnp.asarray(RNG.standard_normal((8, 6)), jnp.float32), "bias": jnp.zeros(6)},
        "b": {"kernel": jnp.asarray(RNG.standard_normal((12, 5)), jnp.bfloat16), "steps": jnp.zeros((2, 2), jnp.int32)},
        "stack": {"kernel": jnp.asarray(RNG.standard_normal((3, 4, 7)), jnp.float32)},
        "conv": [jnp.asarray(RNG.standard_normal((3, 3, 4, 5)), jnp.float32)],
    }
}
INFO = ModelInfo(
    roles={
        "params/a/kernel": Roles((), (0,), (1,)),
        "params/b/kernel": Roles((), (0,), (1,)),
        "params/stack/kernel": Roles((0,), (1,), (2,)),
        "params/conv/0": Roles((), (0, 1, 2), (3,)),
    }
)
every_transform = pytest.mark.parametrize("method", TABLE.values(), ids=TABLE.keys())


@every_transform
def test_init_on_abstract_shapes(method):
    abstract = method.init(jax.eval_shape(lambda: PARAMS), INFO)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, jax.eval_shape(lambda: method.init(PARAMS, INFO)))


@every_transform
def test_view_keeps_the_tree_and_leaves_the_others_identical(method):
    state = method.init(PARAMS, INFO)
    seen = method.view(PARAMS, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(seen, PARAMS)
    skipped = {m.path for m in explain(method, PARAMS, INFO).of("skipped")}
    before, after = leaves_by_path(PARAMS), leaves_by_path(seen)
    assert all(after[path] is before[path] for path in skipped)


@every_transform
def test_pack_law(method):
    """``densify(pack(p, s)) == view(p, s)`` to the bit, with the view under jit as training sees it."""
    state = method.init(PARAMS, INFO)
    packed = method.pack(PARAMS, state)
    chex.assert_trees_all_equal(densify(packed), jax.jit(method.view)(PARAMS, state))
    chex.assert_trees_all_equal(densify(packed), method.view(PARAMS, state))
    taken = {p for p, x in leaves_by_path(PARAMS).items() if not isinstance(method.traits.takes(p, x, INFO), str)}
    packs = {p for p in taken if method.traits.takes(p, leaves_by_path(PARAMS)[p], INFO).packs}
    assert {p for p, x in leaves_by_path(packed).items() if is_compressed(x)} == packs


@every_transform
def test_runs_under_jit_and_vmap(method):
    twice = jax.tree.map(lambda x: jnp.stack([x, -x]), PARAMS)
    seen = lambda p: method.view(p, method.init(p, INFO))
    whole, single = jax.jit(jax.vmap(seen))(twice), jax.jit(seen)
    for i in range(2):
        expected = single(jax.tree.map(lambda x, i=i: x[i], twice))
        got = jax.tree.map(lambda x, i=i: x[i], whole)
        chex.assert_trees_all_close(got, expected, rtol=1e-6)


@every_transform
def test_update_keeps_structure_and_learnt_and_compiles_once(method):
    chex.clear_trace_counter()
    state = method.init(PARAMS, INFO)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    update = jax.jit(chex.assert_max_traces(lambda p, s, t: method.update(p, s, step=t, grads=grads), n=1))
    for step in range(3):
        new = update(PARAMS, state, step)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        chex.assert_trees_all_equal(new.learnt, state.learnt)
        state = new


@every_transform
def test_project_is_idempotent_and_keeps_the_view(method):
    state = method.init(PARAMS, INFO)
    once = jax.jit(method.project)(PARAMS, state)
    chex.assert_trees_all_equal(once, method.project(once, state))
    chex.assert_trees_all_equal_shapes_and_dtypes(once, PARAMS)


@every_transform
def test_a_training_step_moves_what_is_trained(method):
    def loss(variables, batch, key):
        return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(variables)), ({}, {})

    optimizer = optax.sgd(0.01)
    ts = init_train_state(PARAMS, method, optimizer, jax.random.key(0), info=INFO)
    step = jax.jit(make_step(loss, method, optimizer))
    new, metrics = step(ts, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, ts)
    chex.assert_tree_all_finite((new.params, metrics))


@every_transform
def test_state_survives_a_checkpoint(method):
    """Arrays out, arrays in: the structure is static and comes from ``init`` on abstract leaves."""
    state = method.init(PARAMS, INFO)
    saved = [np.asarray(x) for x in jax.tree.leaves(state)]
    structure = jax.tree.structure(method.init(jax.eval_shape(lambda: PARAMS), INFO))
    restored = jax.tree.unflatten(structure, saved)
    chex.assert_trees_all_equal(method.view(PARAMS, restored), method.view(PARAMS, state))


@every_transform
def test_shardings_are_kept(method):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = {"params/a/kernel": ("x",), "params/b/kernel": ("x",)}
    shardings = {
        p: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec.get(p, ())))
        for p in leaves_by_path(PARAMS)
    }
    placed = jax.tree.unflatten(
        jax.tree.structure(PARAMS), [jax.device_put(x, shardings[p]) for p, x in leaves_by_path(PARAMS).items()]
    )
    state = method.init(placed, INFO)
    seen = jax.jit(method.view)(placed, state)
    chex.assert_trees_all_close(seen, method.view(PARAMS, method.init(PARAMS, INFO)), rtol=1e-6)
    for path, leaf in leaves_by_path(seen).items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim)
