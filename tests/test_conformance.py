"""What every transform owes, in one table. A new transform adds a line to TABLE.

Two tests a transform, each computing init, view and pack once: the laws that hold to the bit, and those of training.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_nn.core.combine import by_path, chain, where
from jaxopt_nn.core.gates import between, every, frozen, later
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.model import Member, ModelInfo, Roles
from jaxopt_nn.core.passes import Layer, Plan
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.core.residual import residual
from jaxopt_nn.core.train import init_train_state, make_step
from jaxopt_nn.core.transform import LeafTraits, State, explain, identity, why_not_matrix
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.methods.allocations.erk import erk
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.allocations.per_output import per_output
from jaxopt_nn.methods.binary import binarize
from jaxopt_nn.methods.clip import clip, clip_percentile, clip_std
from jaxopt_nn.methods.cluster import cluster
from jaxopt_nn.methods.cluster_vectors import cluster_vectors
from jaxopt_nn.methods.criteria.magnitude import energy, magnitude
from jaxopt_nn.methods.criteria.random import random_scores
from jaxopt_nn.methods.criteria.saliency import saliency
from jaxopt_nn.methods.criteria.wanda import ria, wanda
from jaxopt_nn.methods.learnt_threshold import learnt_threshold
from jaxopt_nn.methods.low_rank import low_rank
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.rate_quantization import rate_quantize
from jaxopt_nn.methods.regrowth import rigl, sparse_evolution
from jaxopt_nn.methods.schedules import cubic, staircase
from jaxopt_nn.methods.sparsegpt import obs, sparsegpt
from jaxopt_nn.methods.structures.blocks import blocks
from jaxopt_nn.methods.structures.n_of_m import n_of_m
from jaxopt_nn.methods.ternary import ternarize
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.pipeline.checkpoints import Checkpoints
from jaxopt_nn.tensors.base import densify, is_compressed
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.n_of_m import NofM

RAMP = optax.linear_schedule(0.0, 0.5, 4)


def matrices(path, leaf, info):
    return why_not_matrix(path, leaf, info) or LeafTraits()


def learnt_gain():
    """One learnt parameter a leaf, and one that `update` counts: the leaf times a gain."""
    return leafwise(
        matrices,
        lambda path, leaf, known: (jnp.float32(1.25), jnp.int32(0)),
        lambda leaf, gain, count: (leaf.astype(jnp.float32) * gain).astype(leaf.dtype),
        update=lambda leaf, gain, count, step, grad: count + 1,
    )


def learnt_range():
    """Two learnt parameters a leaf, as a soft clip between thresholds that are trained has them."""
    return leafwise(
        matrices,
        lambda path, leaf, known: ({"low": jnp.float32(-0.5), "high": jnp.float32(0.75)}, ()),
        lambda leaf, to, _: jnp.clip(leaf.astype(jnp.float32), to["low"], to["high"]).astype(leaf.dtype),
    )


def learnt_step():
    """A learnt step that the projection keeps above a floor, and its leaf inside a box of so many steps."""
    box = lambda leaf, step: jnp.clip(leaf.astype(jnp.float32), -4 * step, 4 * step).astype(leaf.dtype)
    return leafwise(
        matrices,
        lambda path, leaf, known: (jnp.float32(0.25), ()),
        lambda leaf, step, _: box(leaf, step),
        project=lambda leaf, step, _: (box(leaf, jnp.maximum(step, 0.125)), jnp.maximum(step, 0.125)),
    )


#: With learnt state.
LEARNT = {
    "learnt threshold": learnt_threshold(0.3, decay=0.01),
    "learnt threshold of blocks": learnt_threshold(0.6, structure=blocks(2, 2)),
    "learnt gain": learnt_gain(),
    "learnt range": learnt_range(),
    "learnt range and a mask": chain(learnt_range(), prune(sparsity=0.5)),
    "learnt gain of some": by_path([("**/a/kernel", learnt_gain()), ("**/kernel", quantize(4))]),
    "learnt gain, every other step": every(2, learnt_gain()),
    "learnt step": learnt_step(),
    "rate_quantize": rate_quantize(1e-4),
    "rate_quantize, at a rising price": every(2, rate_quantize(optax.linear_schedule(0.0, 1e-3, 4), step=0.3, bits=5)),
    "rate_quantize by inputs": rate_quantize(1e-3, step=0.3, importance="inputs"),
    "prune, then rate_quantize": chain(prune(sparsity=0.5), rate_quantize(1e-4, step=0.2)),
    "learnt steps of some, masked": chain(by_path([("**/a/*", learnt_step()), ("**", learnt_gain())]), prune(sparsity=0.5)),
    "cluster": cluster(6),
    "cluster(2), no zero": cluster(2, zero=False, start="density"),
    "cluster(group)": cluster(3, scope="group", group=1, start="kmeans++", key=0),
    "cluster(all), straight through": cluster(bits=3, scope="all", ste="pass", reassign=True),
    "cluster, exactly": cluster(5, exact=True),
    "a mask, then cluster": chain(prune(sparsity=0.5), cluster(4)),
    "cluster, every other step": every(2, cluster(5, reassign=True, ste="pass")),
    "cluster_vectors": cluster_vectors(3, dim=2),
    "cluster_vectors, added": cluster_vectors(2, dim=2, stages=2, sweeps=2, ste="pass"),
    "low rank": low_rank(2),
    "low rank by energy": low_rank(energy=0.3),
    "low rank of codes": low_rank(share=0.7, factors=quantize(8)),
    "Tucker": low_rank(share=0.7, form="tucker"),
    "whitened low rank": low_rank(2, whiten="inputs"),
    "low rank and what it leaves": residual(low_rank(2), prune(sparsity=0.5)),
    "ternarize(ttq)": ternarize("ttq"),
    "ternarize(ttq, channel)": ternarize("ttq", threshold=0.3, scale="channel"),
    "a mask, then ternarize(ttq)": chain(prune(sparsity=0.5), ternarize("ttq")),
}
#: What reads statistics of the layers' inputs.
CALIBRATED = {
    "prune by wanda": prune(wanda, sparsity=0.5, allocation=per_output),
    "prune by ria": prune(ria, sparsity=0.5),
    "sparsegpt": sparsegpt(0.5, block=4),
    "sparsegpt(2:4)": sparsegpt(structure=n_of_m(2, 4)),
    "obs": obs(0.5),
    "whitened low rank": LEARNT["whitened low rank"],
    "rate_quantize by inputs": LEARNT["rate_quantize by inputs"],
}
TABLE = {
    **CALIBRATED,
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
    "binarize": binarize(),
    "binarize(layer, scaled)": binarize("layer", "scaled"),
    "binarize(0.25)": binarize(0.25),
    "binarize, stochastic": binarize(None, rounding="stochastic", key=6),
    "ternarize": ternarize(),
    "ternarize(channel)": ternarize("twn", threshold=0.4, scale="channel"),
    "a mask, then ternarize": chain(prune(sparsity=0.5), ternarize()),
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
    "prune 2:4": prune(structure=n_of_m(2, 4)),
    "prune 1:3 of outputs, in steps": prune(structure=n_of_m(1, 3, axis=-1), sparsity=optax.linear_schedule(0.0, 2 / 3, 3)),
    "2:4, then codes": chain(prune(structure=n_of_m(2, 4)), quantize(4)),
    "prune blocks": prune(energy, structure=blocks(4, 3), sparsity=0.5, allocation=global_budget),
    "blocks, then codes": chain(prune(structure=blocks(2, -1), sparsity=0.5), quantize(3, symmetric=False)),
    "prune at random": prune(random_scores(7), sparsity=0.5),
    "rigl": every(2, prune(sparsity=0.6, allocation=erk, regrow=rigl(end=4, start=random_scores(1)))),
    "sparse evolution of blocks": prune(structure=blocks(2, 2), sparsity=0.5, regrow=sparse_evolution(2)),
    "mask_units": mask_units({"params/a/kernel": {1: np.arange(6) != 2}, "params/a/bias": {0: np.arange(6) != 2}}),
    "chain": chain(clip(-1.0, 1.0), prune(sparsity=0.5), quantize(4)),
    "chain of a mask and random codes": chain(prune(sparsity=0.5), quantize(4, rounding="stochastic", key=5)),
    "a mask, then percentiles": chain(prune(sparsity=0.5), clip_percentile(10, 90)),
    "chain of masks": chain(prune(sparsity=0.5), prune(sparsity=0.75), quantize(3, symmetric=False)),
    "a mask, then other values": chain(prune(sparsity=0.5), clip(-1.0, 1.0)),
    "by_path": by_path([("**/a/kernel", quantize(8)), ("**/kernel", prune(sparsity=0.5))]),
    "where": where("**/stack/kernel", quantize(2)),
    "every": every(2, prune(magnitude, sparsity=RAMP)),
    "later": later(3, prune(magnitude, sparsity=RAMP)),
    "frozen": frozen(prune(magnitude, sparsity=RAMP)),
    "frozen learnt step": later(2, frozen(learnt_step())),
    **LEARNT,
}
#: No gradient passes: by the derivative of rounding, because nothing is left, or because factors or shared values are trained.
STILL = {
    "quantize(4, none)", "prune to nothing", "cluster", "cluster(2), no zero", "cluster(group)", "cluster, exactly",
    "a mask, then cluster", "cluster_vectors", "low rank", "low rank by energy", "low rank of codes", "Tucker",
    "whitened low rank",
}  # fmt: skip
#: Packed into factors: the view to a tolerance, 1e-6 of the largest entry, and of bfloat16 one rounding.
FACTORS = {name for name in LEARNT if "low rank" in name or name == "Tucker"}
#: One of each kind of arithmetic, to be run eagerly too: that costs three times as much as a compiled view.
EAGER = ("clip_std(channel)", "quantize(3, affine)", "quantize(1, stochastic)", "chain", "learnt gain of some")
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


def network(v, x):
    """A network that reads the matrices of ``PARAMS``."""
    p = v["params"]
    rows = lambda n: jnp.broadcast_to(x, (2, n))
    conv = jax.lax.conv_general_dilated(
        jnp.broadcast_to(x, (1, 5, 5, 4)), p["conv"][0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    stack = jnp.einsum("bi,sio->sbo", rows(4), p["stack"]["kernel"])
    return rows(8) @ p["a"]["kernel"] + p["a"]["bias"][None], rows(12) @ p["b"]["kernel"].astype(x.dtype), stack, conv


def calibrated() -> ModelInfo:
    """The network's info with Gram matrices of random inputs."""
    info, stats = inspect(network, PARAMS, jnp.ones((1, 1))), {}
    for site in info.sites:
        x = RNG.standard_normal((*site.stack, 4 * site.inputs, site.inputs)).astype(np.float32)
        gram = np.swapaxes(x, -1, -2) @ x
        stats |= {((), site.name, "gram"): gram, ((), site.name, "square_sum"): np.diagonal(gram, axis1=-2, axis2=-1)}
    return info.with_stats(jax.tree.map(jnp.asarray, stats))


SEEN = calibrated()


class Case(NamedTuple):
    """A transform with all that its laws compare; `view` and `project` are compiled."""

    info: ModelInfo
    method: Any
    state: State
    view: Any
    project: Any
    seen: Any
    packed: Any


@functools.cache
def case(name) -> Case:
    method, info = TABLE[name], SEEN if name in CALIBRATED else INFO
    state = method.init(PARAMS, info)
    view, project = jax.jit(method.view), jax.jit(method.project)
    return Case(info, method, state, view, project, view(PARAMS, state), method.pack(PARAMS, state))


def verdicts(method, info):
    """What becomes of each leaf, by path: traits, or the reason."""
    return {path: method.traits.takes(path, x, info) for path, x in leaves_by_path(PARAMS).items()}


#: Random codes, whose generator compiles for seconds with XLA's defaults: one of them stands for all but in `make slow`.
LONG = {
    "quantize(1, stochastic)", "quantize(3, stochastic, affine)", "chain of a mask and random codes", "binarize, stochastic",
} & set(TABLE)  # fmt: skip


def shortened(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


@pytest.mark.exact
@pytest.mark.parametrize("name", shortened(TABLE))
def test_laws_to_the_bit(name):
    info, method, state, view, project, seen, packed = case(name)
    keeps_the_tree_and_leaves_the_others_identical(info, method, state, seen)
    obeys_the_pack_law(info, method, seen, packed)
    projects_once(view, project, state)


def keeps_the_tree_and_leaves_the_others_identical(info, method, state, seen):
    chex.assert_trees_all_equal_shapes_and_dtypes(seen, PARAMS)
    skipped = {m.path for m in explain(method, PARAMS, info).of("skipped")}
    assert skipped == {path for path, verdict in verdicts(method, info).items() if isinstance(verdict, str)}
    program = jax.make_jaxpr(method.view)(PARAMS, state).jaxpr
    paths = list(leaves_by_path(PARAMS))
    given, made = dict(zip(paths, program.invars)), dict(zip(paths, program.outvars, strict=True))
    assert all(made[path] is given[path] for path in skipped)


def obeys_the_pack_law(info, method, seen, packed):
    """``densify(pack(p, s)) == view(p, s)`` to the bit, with the view under jit as training sees it."""
    for own, wanted in zip(jax.tree.leaves(densify(packed)), jax.tree.leaves(seen), strict=True):
        tolerance = 0.0
        if any(method is TABLE[name] for name in FACTORS):
            tolerance = float(jnp.abs(wanted).max()) * (1e-6 if wanted.dtype == jnp.float32 else 2**-8)
        chex.assert_trees_all_close(own, wanted, rtol=0, atol=tolerance)
        assert own.dtype == wanted.dtype
    packs = {p for p, verdict in verdicts(method, info).items() if not isinstance(verdict, str) and verdict.packs}
    assert {p for p, x in leaves_by_path(packed).items() if is_compressed(x)} == packs


def projects_once(view, project, state):
    once, learnt = project(PARAMS, state)
    chex.assert_trees_all_equal((once, learnt), project(once, State(learnt, state.carried)))
    chex.assert_trees_all_equal_shapes_and_dtypes((once, learnt), (PARAMS, state.learnt))


@pytest.mark.exact
@pytest.mark.parametrize("name", shortened(EAGER))
def test_views_are_the_same_run_eagerly(name):
    _, method, state, *_, seen, _ = case(name)
    chex.assert_trees_all_equal(method.view(PARAMS, state), seen)


@pytest.mark.parametrize("name", TABLE)
def test_laws_of_programs(name):
    info, method, state, view, _, seen, _ = case(name)
    inits_on_abstract_shapes(info, method, state)
    tolerance = 1e-2 if name in FACTORS else 0.0
    runs_mapped(info, method, view, seen, tolerance)
    keeps_shardings(info, method, state, view, seen, tolerance)


def inits_on_abstract_shapes(info, method, state):
    abstract = method.init(jax.eval_shape(lambda: PARAMS), info)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)


def runs_mapped(info, method, view, seen, tolerance):
    negative = jax.tree.map(lambda x: -x, PARAMS)
    twice = jax.tree.map(lambda x, y: jnp.stack([x, y]), PARAMS, negative)
    whole = jax.jit(jax.vmap(lambda p: method.view(p, method.init(p, info))))(twice)
    for i, expected in enumerate((seen, view(negative, method.init(negative, info)))):
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], whole), expected, rtol=1e-6, atol=tolerance)


def keeps_shardings(info, method, state, view, seen, tolerance):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = {"params/a/kernel": ("x",), "params/b/kernel": ("x",)}
    leaves = leaves_by_path(PARAMS)
    shardings = {p: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec.get(p, ()))) for p in leaves}
    placed = jax.tree.unflatten(
        jax.tree.structure(PARAMS), [jax.device_put(x, shardings[p]) for p, x in leaves.items()]
    )
    got = view(placed, method.init(placed, info))
    chex.assert_trees_all_close(got, seen, rtol=1e-6, atol=tolerance)
    for path, leaf in leaves_by_path(got).items():
        assert leaf.sharding.is_equivalent_to(shardings[path], leaf.ndim)


#: One of each kind of state: each leaf's view can be told from its own entries and state.
FOLLOWING = (
    "clip_percentile(channel)", "quantize(4, group)", "prune for good",
    "prune 2:4", "learnt threshold", "rigl", "mask_units", "chain", "by_path", "every",
    "frozen learnt step", "learnt steps of some, masked", "sparsegpt", "cluster", "cluster(group)",
    "cluster(all), straight through", "cluster_vectors", "low rank", "low rank of codes", "binarize",
    "low rank by energy", "Tucker", "low rank and what it leaves", "ternarize(channel)", "ternarize(ttq, channel)",
    "rate_quantize",
)  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWING)
def test_the_state_follows_a_cut(name):
    """The view of what was cut is what was cut of the view; arrays are laid out as on a network that starts so."""
    info, method, state, *_, seen, _ = case(name)
    entries = {path: np.arange(0, n, 2) for path, n in (("params/a/kernel", 6), ("params/stack/kernel", 7))}
    members = [Member(path, x.ndim - 1, "producer", np.arange(x.shape[-1])) for path, x in leaves_by_path(PARAMS).items()]
    layers = [Layer(m.path, len(m.units), entries[m.path], (m,)) for m in members if m.path in entries]
    layers[0] = dataclasses.replace(layers[0], members=(*layers[0].members, Member("params/a/bias", 0, "vector", np.arange(6))))
    shapes = {path: x.shape for path, x in leaves_by_path(PARAMS).items()}
    remap = Remap(Plan("by hand", shapes, (), tuple(layers)))
    small = remap.params(PARAMS)
    made, report = remap.state(method, state, small, info)
    assert not report.of("anew")
    chex.assert_trees_all_close(jax.jit(method.view)(small, made), remap.params(seen), rtol=1e-6)
    if name not in ("mask_units", "sparsegpt", *FACTORS):  # made for the large one
        chex.assert_trees_all_equal_shapes_and_dtypes(made, jax.eval_shape(lambda: method.init(small, INFO)))


@pytest.mark.parametrize("name", TABLE)
def test_laws_of_training(name, tmp_path):
    before, after, step = trained(name)
    a_training_step_moves_what_is_trained(name, before, after)
    update_touches_carried_alone_and_compiles_once(*case(name)[1:3])
    state_survives_a_checkpoint(name, after, step, tmp_path)


#: A leaf that no optimizer moves, and the gradient at the view, by the same rule for every transform.
HELD = "params/conv/0"
RATE = 0.0625
GRADS = jax.tree.map(lambda x: jnp.asarray(RNG.standard_normal(x.shape), x.dtype), PARAMS)


def along_grads(variables, without=()):
    """A loss whose gradient is ``GRADS``, wherever it is taken; zero on the paths ``without``."""
    floats = {p: x for p, x in leaves_by_path(variables).items() if jnp.issubdtype(x.dtype, jnp.floating)}
    slopes = leaves_by_path(GRADS)
    return sum(jnp.sum((x * slopes[p]).astype(jnp.float32)) for p, x in floats.items() if p not in without)


def trained(name):
    """The train state before and after a step of gradient descent along ``GRADS``, and the step, compiled."""
    loss = lambda variables, batch, key: (along_grads(variables), ({}, {}))
    method, optimizer = TABLE[name], optax.sgd(RATE)
    ts = init_train_state(PARAMS, method, optimizer, jax.random.key(0), state=case(name).state, still=(HELD,))
    step = jax.jit(make_step(loss, method, optimizer, still=(HELD,)))
    after, metrics = step(ts, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, ts)
    chex.assert_tree_all_finite((after.params, after.learnt, metrics))
    return ts, after, step


def a_training_step_moves_what_is_trained(name, before, after):
    """Parameters and learnt state by the rate times the gradient pulled back through the view; nothing else."""
    info, method, state, _, project, _, packed = case(name)
    was, now, slopes = (leaves_by_path(tree) for tree in (before.params, after.params, GRADS))
    taken = {path for path, verdict in verdicts(method, info).items() if not isinstance(verdict, str)}
    projected = leaves_by_path(project(PARAMS, state)[0])
    for path, old in was.items():
        if path == HELD or not jnp.issubdtype(old.dtype, jnp.floating):
            chex.assert_trees_all_equal(now[path], projected[path])
        elif path in taken:
            assert (name in STILL) != bool(jnp.any(now[path] != projected[path])), path
        else:
            chex.assert_trees_all_close(now[path], (old - RATE * slopes[path]).astype(old.dtype), rtol=1e-6, atol=1e-7)
    pulled, pulled_learnt = jax.jit(pull_back(method))(PARAMS, state)
    stepped = jax.tree.map(lambda p, g: p - jnp.asarray(RATE * g, p.dtype), PARAMS, pulled)
    stepped_learnt = jax.tree.map(lambda x, g: x - RATE * g, state.learnt, pulled_learnt)
    wanted, wanted_learnt = project(stepped, State(stepped_learnt, state.carried))
    wanted = leaves_by_path(wanted)
    for path in taken - {HELD}:
        tolerance = 1e-2 if was[path].dtype == jnp.bfloat16 else 1e-6
        chex.assert_trees_all_close(now[path], wanted[path], rtol=tolerance, atol=tolerance)
    masked_entries_stay(packed, projected, now)
    assert bool(jax.tree.leaves(state.learnt)) == (name in LEARNT)
    for (keys, old), new in zip(*pairs(state.learnt, after.learnt), strict=True):
        assert jnp.any(new != old) != (HELD in jax.tree_util.keystr(keys)), "what belongs to a held leaf is held"
    chex.assert_trees_all_close(after.learnt, wanted_learnt, rtol=1e-5)


def pairs(before, after):
    return jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)


def pull_back(method):
    """The gradient at the view, pulled back to parameters (zero for those that are no floats) and learnt state."""

    def run(params, state):
        energy = lambda params, learnt: along_grads(method.view(params, State(learnt, state.carried)), {HELD})
        slopes, learnt = jax.grad(energy, argnums=(0, 1), allow_int=True)(params, state.learnt)
        return jax.tree.map(lambda g, p: g if g.dtype == p.dtype else jnp.zeros_like(p), slopes, params), learnt

    return run


def masked_entries_stay(packed, projected, now):
    """Under a mask no gradient passes: what is off moves by projection alone."""
    for path, x in leaves_by_path(packed).items():
        if isinstance(x, Masked | NofM):
            off = ~np.asarray(x.keep())
            np.testing.assert_array_equal(np.asarray(now[path])[off], np.asarray(projected[path])[off])


def update_touches_carried_alone_and_compiles_once(method, state):
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(lambda p, s, t: method.update(p, s, step=t, grads=GRADS), n=1))
    for step in range(3):
        new = update(PARAMS, state, step)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        chex.assert_trees_all_equal(new.learnt, state.learnt)
        state = new


def state_survives_a_checkpoint(name, after, step, directory):
    """To disk and back, into a structure that ``init`` makes of other parameters; the next step is the same."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    blank = init_train_state(zeros, TABLE[name], optax.sgd(RATE), jax.random.key(9), info=case(name).info, still=(HELD,))
    checkpoints = Checkpoints(directory, seconds=0.0)
    checkpoints.save(1, after, {"name": name})
    at, found, meta = checkpoints.restore(blank)
    assert (at, meta) == (1, {"name": name}) and jax.tree.structure(found) == jax.tree.structure(after)
    chex.assert_trees_all_equal(found, after)
    chex.assert_trees_all_equal(step(found, None)[0], step(after, None)[0])
