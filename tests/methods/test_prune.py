"""Pruning against sorted scores, under ties, stacks and schedules."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.gates import every
from jaxopt_nn.core.model import Known, ModelInfo, Roles
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.methods.allocations.base import kept
from jaxopt_nn.methods.allocations.erk import erk
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.allocations.lamp import lamp
from jaxopt_nn.methods.allocations.per_leaf import per_leaf
from jaxopt_nn.methods.criteria.magnitude import magnitude
from jaxopt_nn.methods.criteria.saliency import saliency
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.schedules import cubic

PARAMS = {"a": jnp.asarray(np.random.default_rng(0).standard_normal((8, 6)), jnp.float32), "b": jnp.full((4, 5), 0.3)}


def masks(method, params=PARAMS, info=ModelInfo()):
    return {p: np.asarray(c.mask) for p, c in method.init(params, info).carried.items()}


@settings(max_examples=12)
@given(st.floats(0, 1), st.integers(0, 2**31), st.booleans())
def test_exactly_the_smallest_go(sparsity, seed, ties):
    w = np.random.default_rng(seed).standard_normal((7, 5)).astype(np.float32)
    w = np.round(w) if ties else w
    mask = masks(prune(sparsity=sparsity), {"w": jnp.asarray(w)})["w"]
    kept = 35 - round(sparsity * 35)
    order = np.argsort(-np.abs(w).ravel(), kind="stable")
    expected = np.zeros(35, bool)
    expected[order[:kept]] = True
    np.testing.assert_array_equal(mask.ravel(), expected)


def test_a_global_budget_takes_from_the_leaf_with_the_smaller_scores():
    found = masks(prune(sparsity=0.5, allocation=global_budget))
    scores = np.concatenate([np.abs(PARAMS["a"]).ravel(), np.abs(PARAMS["b"]).ravel()])
    kept = np.concatenate([found["a"].ravel(), found["b"].ravel()])
    assert kept.sum() == 34 and scores[kept].min() >= scores[~kept].max()
    assert found["b"].mean() != found["a"].mean()


def test_each_layer_of_a_stack_is_pruned_alike():
    w = jnp.stack([PARAMS["a"], 100 * PARAMS["a"]])
    info = ModelInfo(roles={"w": Roles((0,), (1,), (2,))})
    mask = masks(prune(sparsity=0.5), {"w": w}, info)["w"]
    np.testing.assert_array_equal(mask[0], mask[1])
    np.testing.assert_array_equal(mask[0], masks(prune(sparsity=0.5))["a"])


def test_a_stack_that_is_not_the_leading_axis():
    w = jnp.stack([PARAMS["a"], 100 * PARAMS["a"]], axis=1)
    mask = masks(prune(sparsity=0.5), {"w": w}, ModelInfo(roles={"w": Roles((1,), (0,), (2,))}))["w"]
    np.testing.assert_array_equal(mask[:, 0], masks(prune(sparsity=0.5))["a"])


def test_a_schedule_reaches_its_target_at_its_last_step():
    method = prune(sparsity=optax.polynomial_schedule(0.0, 0.8, 3, 10))
    state = method.init(PARAMS)
    assert all(np.asarray(c.mask).all() for c in state.carried.values())
    shares = []
    for step in range(11):
        state = method.update(PARAMS, state, step=step)
        shares.append(1 - np.asarray(state.carried["a"].mask).mean())
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.8, abs=1 / 48)


def test_pruned_weights_get_no_gradient():
    method = prune(sparsity=0.5)
    state = method.init(PARAMS)
    slope = jax.grad(lambda p: jnp.sum(method.view(p, state)["a"] * 2))(PARAMS)["a"]
    np.testing.assert_array_equal(slope, 2.0 * np.asarray(state.carried["a"].mask))


def test_saliency_is_the_product_with_the_gradient():
    """Largest weights with no gradient go; magnitude would keep them."""
    w = {"w": jnp.array([[10.0, 9.0], [0.1, 0.2]])}
    g = {"w": jnp.array([[0.0, 0.0], [5.0, -5.0]])}
    method = prune(saliency, sparsity=optax.linear_schedule(0.0, 0.5, 1))
    state = method.update(w, method.init(w), step=1, grads=g)
    np.testing.assert_array_equal(state.carried["w"].mask, [[False, False], [True, True]])
    with pytest.raises(ValueError, match="saliency needs gradients"):
        prune(saliency, sparsity=0.5)


def test_a_criterion_and_an_allocation_of_ones_own():
    smallest_first = lambda w, g, known: -jnp.abs(w)
    only_a = lambda scores, known, share: {
        p: s > -1.0 if p == "a" else jnp.ones(s.shape, bool) for p, s in scores.items()
    }
    found = masks(prune(smallest_first, sparsity=0.5, allocation=only_a))
    np.testing.assert_array_equal(found["a"], np.abs(PARAMS["a"]) < 1.0)
    assert found["b"].all()


def test_empty_selections_and_bad_weights():
    method = prune(sparsity=0.5)
    biases = {"bias": jnp.ones(3)}
    assert method.init(biases).carried == {} and method.pack(biases, method.init(biases)) == biases
    bad = {"w": PARAMS["a"].at[0, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match="w: NaN or Inf"):
        method.pack(bad, method.init(bad))


def test_allocations_agree_on_one_leaf():
    one = {"w": PARAMS["a"]}
    a, b = (masks(prune(magnitude, sparsity=0.3, allocation=f), one)["w"] for f in (per_leaf, global_budget))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "w", [PARAMS["a"], jnp.stack([PARAMS["a"], 3 * PARAMS["a"]]), PARAMS["a"].astype(jnp.bfloat16)]
)
def test_a_threshold_takes_what_lies_below_it(w):
    wide = np.abs(np.asarray(w, np.float32))
    level = float(wide.ravel()[7])
    found = masks(prune(threshold=level), {"w": w})["w"]
    np.testing.assert_array_equal(found, wide >= np.float32(level))
    assert found.ravel()[7] and 0 < found.mean() < 1


def test_thresholds_of_another_score_of_nothing_and_on_a_schedule():
    square = lambda w, g, known: w * w
    np.testing.assert_array_equal(masks(prune(square, threshold=0.25))["a"], np.abs(PARAMS["a"]) >= 0.5)
    assert masks(prune(threshold=0.0), {"w": jnp.zeros((2, 2))})["w"].all()
    method = prune(threshold=optax.linear_schedule(0.0, 0.3, 10))
    state = method.init(PARAMS)
    assert np.asarray(state.carried["b"].mask).all()
    below = [method.update(PARAMS, state, step=t).carried["a"].mask for t in (0, 5, 10)]
    np.testing.assert_array_equal(below, [np.abs(PARAMS["a"]) >= np.float32(t) for t in (0, 0.15, 0.3)])


def reference_erk(layers, sparsity):
    """Densities as RigL's ``get_sparsities_erdos_renyi`` finds them: a loop over sets of dense layers."""
    dense = set()
    while True:
        wanted = (1 - sparsity) * sum(np.prod(d) for d in layers.values())
        wanted -= sum(np.prod(layers[p]) for p in dense)
        raw = {p: sum(d) / np.prod(d) for p, d in layers.items() if p not in dense}
        if not raw:
            return dict.fromkeys(layers, 1.0)
        epsilon = wanted / sum(r * np.prod(layers[p]) for p, r in raw.items())
        if epsilon * max(raw.values()) <= 1:
            return {p: 1.0 if p in dense else epsilon * raw[p] for p in layers}
        dense |= {p for p, r in raw.items() if r == max(raw.values())}


LENETS = {
    "300-100": {"a": (784, 300), "b": (300, 100), "c": (100, 10)},
    "caffe": {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "fc1": (800, 500), "fc2": (500, 10)},
    "equal": {p: (4, 6) for p in "abcde"},
    "thin": {"a": (3, 2), "b": (40, 30), "c": (1, 7), "d": (2, 2, 5, 6)},
}


@pytest.mark.parametrize("layers", LENETS.values(), ids=LENETS)
def test_erk_is_the_authors_loop_with_an_exact_total(layers):
    total = sum(np.prod(d) for d in layers.values())
    scores = {p: jnp.zeros(d) for p, d in layers.items()}
    allocate = jax.jit(lambda s: erk(scores, dict.fromkeys(layers, Known(Roles())), s))
    for sparsity in (0.0, 0.3, 0.5, 0.9, 0.98, 0.999, 1.0):
        counts = {p: int(m.sum()) for p, m in allocate(sparsity).items()}
        assert sum(counts.values()) == total - round(sparsity * total)
        for p, density in reference_erk(layers, sparsity).items():
            assert abs(counts[p] - density * np.prod(layers[p])) <= 1.5, (p, sparsity)
    if len(layers) == 3:  # LeNet-300-100 at 90 %: the head stays dense, unlike a uniform sparsity
        counts = {p: int(m.sum()) for p, m in allocate(0.9).items()}
        assert counts["c"] == 1000 and counts["a"] / 235200 < 0.1 < counts["b"] / 30000


@settings(max_examples=8)
@given(
    st.lists(st.sampled_from([(2, 3), (8, 5), (1, 9), (3, 3, 2, 4), (30, 20)]), min_size=1, max_size=4), st.floats(0, 1)
)
def test_erk_keeps_exactly_as_many_as_asked(shapes, sparsity):
    layers = {str(i): d for i, d in enumerate(shapes)}
    scores = {p: jnp.zeros(d) for p, d in layers.items()}
    found = erk(scores, dict.fromkeys(layers, Known(Roles())), sparsity)
    total = sum(np.prod(d) for d in shapes)
    assert sum(int(m.sum()) for m in found.values()) == total - round(sparsity * total)


def test_erk_sees_a_matrix_whatever_axes_it_is_laid_out_in():
    """Heads make no thinner layer; a convolution's window stands by itself."""
    other, dot = jnp.zeros((64, 128)), Roles((), (0,), (1,))
    counts = []
    for shape, roles in [
        ((64, 64), dot), ((64, 4, 16), Roles((), (0,), (1, 2))), ((4, 16, 64), Roles((), (0, 1), (2,))),
    ]:  # fmt: skip
        found = erk({"q": jnp.zeros(shape), "f": other}, {"q": Known(roles), "f": Known(dot)}, 0.9)
        counts.append(int(found["q"].sum()))
        assert abs(counts[-1] - 4096 * reference_erk({"q": (64, 64), "f": (64, 128)}, 0.9)["q"]) <= 1
    assert len(set(counts)) == 1

    def apply(variables, x):
        x = jax.lax.conv_general_dilated(
            x, variables["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.einsum("bhwc,cnd->bnd", x, variables["heads"])

    shapes = {"conv": (5, 3, 8, 16), "heads": (16, 4, 16)}
    params = {p: jnp.ones(d) for p, d in shapes.items()}
    info = inspect(apply, params, jnp.ones((1, 6, 6, 8)))
    density = reference_erk({"conv": (5, 3, 8, 16), "heads": (16, 64)}, 0.8)
    for path, mask in masks(prune(sparsity=0.8, allocation=erk), params, info).items():
        assert abs(mask.sum() - params[path].size * density[path]) <= 1


@pytest.mark.parametrize(
    ("size", "sparsity"),
    [
        (365_887, 0.801),
        (1_780_548, 0.623),
        (50_000_001, 0.9),
        (16_777_217, 1.0),
        (2**31 - 1, 0.999),
        (5, 0.5),
        (7, 0.5),
        (9, 0),
    ],
)
def test_counts_are_exact_at_any_size(size, sparsity):
    """As a number, and as the float32 of a schedule under jit."""
    expected = size - round(Fraction(str(sparsity)) * size)
    assert int(kept(size, sparsity)) == expected
    assert int(jax.jit(lambda s: kept(size, s))(jnp.float32(sparsity))) == expected
    with pytest.raises(ValueError, match="use allocation=per_leaf"):
        kept(2**31, 0.5)


def test_erk_and_thresholds_on_a_stack():
    """Each layer of a stack keeps equally many, as if it stood alone; a leaf without a stack makes up for the rest."""
    rng = np.random.default_rng(0)
    params = {
        "flat": jnp.asarray(rng.standard_normal((9, 7)), jnp.float32),
        "stack": jnp.asarray(rng.standard_normal((6, 5, 4)), jnp.float32),
    }
    info = ModelInfo(roles={"flat": Roles((), (0,), (1,)), "stack": Roles((1,), (0,), (2,))})
    alone = {"flat": (9, 7), **{f"stack{i}": (6, 4) for i in range(5)}}
    for sparsity in (0.1, 0.5, 0.77, 0.9):
        found = masks(prune(sparsity=sparsity, allocation=erk), params, info)
        each = found["stack"].sum((0, 2))
        assert len(set(each)) == 1 and found["flat"].sum() + each.sum() == 183 - round(183 * sparsity)
        density = reference_erk(alone, sparsity)
        assert abs(each[0] - 24 * density["stack0"]) <= 1 and abs(found["flat"].sum() - 63 * density["flat"]) <= 3
        scores, kept = np.abs(params["stack"])[:, 2], found["stack"][:, 2]
        assert scores[kept].min() > scores[~kept].max(initial=0)


def shrunk(method, steps=12):
    """Masks of ``a`` while the weight that was the largest shrinks and the smallest grows."""
    state, found = method.init(PARAMS), []
    order = np.argsort(np.abs(PARAMS["a"]).ravel())
    for step in range(steps):
        flat = PARAMS["a"].ravel()
        if step >= 4:
            flat = flat.at[order[0]].set(10.0).at[order[-1]].set(1e-3)
        params = {**PARAMS, "a": flat.reshape(8, 6)}
        state = method.update(params, state, step=step)
        found.append(np.asarray(state.carried["a"].mask).ravel())
    return np.stack(found), order


@pytest.mark.parametrize(
    "amount", [{"sparsity": cubic(0.7, end=10)}, {"threshold": optax.linear_schedule(0.0, 0.8, 8)}]
)
def test_a_pruned_weight_returns_or_not(amount):
    back, order = shrunk(prune(**amount))
    assert not back[3, order[0]] and back[-1, order[0]] and not back[-1, order[-1]]
    gone, _ = shrunk(prune(**amount, regrow=False))
    assert not gone[-1, order[0]] and not gone[-1, order[-1]]
    assert (np.diff(gone.astype(int), axis=0) <= 0).all()
    if "sparsity" in amount:
        assert gone[-1].sum() == back[-1].sum() == 48 - round(0.7 * 48)


@pytest.mark.parametrize("allocation", [per_leaf, global_budget, erk])
def test_pruning_for_good_still_reaches_its_target(allocation):
    method = every(3, prune(sparsity=cubic(0.85, end=10), allocation=allocation, regrow=False), last=10)
    state = method.init(PARAMS)
    update = jax.jit(lambda s, t: method.update(PARAMS, s, step=t))
    for step in range(11):
        state = update(state, step)
    kept = sum(int(c.mask.sum()) for c in state.carried.values())
    assert kept == (48 - round(48 * 0.85) + 20 - 17 if allocation is per_leaf else 68 - round(68 * 0.85))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: prune(), "give one of them"),
        (lambda: prune(sparsity=0.5, threshold=0.1), "give one of them"),
        (lambda: prune(threshold=0.1, allocation=erk), "leave allocation out"),
        (lambda: prune(threshold=-0.1), r"threshold=-0.1\): a finite score"),
        (lambda: prune(threshold=np.inf), "finite score"),
        (lambda: prune(sparsity=1.01), r"sparsity=1.01\): a share of zeros"),
        (lambda: prune(sparsity=np.nan), "a share of zeros"),
        (lambda: prune(sparsity=lambda step: step - 1.0), r"sparsity=-1.0 at step 0\)"),
        (lambda: prune(sparsity=optax.linear_schedule(2.0, 0.5, 10)), "2.0 at step 0"),
        (lambda: prune(threshold=optax.linear_schedule(-1.0, 0.5, 10)), r"threshold=-1.0 at step 0\)"),
    ],
)
def test_values_that_are_not_allowed(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: prune("magnitude", sparsity=0.5), "criterion is 'magnitude'; pass the function itself: magnitude"),
        (lambda: prune(sparsity=0.5, allocation="erk"), "allocation is 'erk'; pass the function itself"),
        (lambda: prune(sparsity="0.5"), "sparsity='0.5'.: pass one number, or a schedule"),
        (lambda: prune(sparsity=[0.5, 0.9]), "pass one number"),
        (lambda: prune(threshold=True), "threshold=True"),
    ],
)
def test_what_is_no_number_or_function(make, match):
    with pytest.raises(TypeError, match=match):
        make()


def test_init_compiles_for_each_shape_once_whatever_the_number_of_leaves():
    """And not at all where another transform has pruned such leaves: only the criterion is traced, by shape and dtype."""
    traced = []

    def largest(weight, grad, known):
        traced.append(weight.shape)
        return jnp.abs(weight)

    params = {f"layer_{i}": jnp.asarray(np.full((6, 4 + i % 2), i), jnp.float32) for i in range(12)}
    for sparsity in (0.5, 0.75):
        for allocation in (per_leaf, erk, global_budget):
            prune(largest, sparsity=sparsity, allocation=allocation).init(params)
    assert sorted(traced) == [(6, 4), (6, 5)]


@pytest.mark.parametrize("allocation", [per_leaf, global_budget, erk, lamp])
def test_neither_init_nor_pack_compiles_for_each_leaf(allocation):
    """Leaves of one shape that keep different numbers of weights: three cost no more programs than two."""
    compiled: list[str] = []
    listener = lambda name, *_, **__: compiled.append(name)
    jax.monitoring.register_event_duration_secs_listener(listener)
    rng = np.random.default_rng(1)
    method = chain(prune(sparsity=0.5, allocation=allocation), quantize(4))

    def programs(count):
        draw = lambda i: (1 + i) * rng.standard_normal((11, 13), np.float32) ** (1 + 2 * i)
        params = {f"layer_{i}": jax.device_put(draw(i)) for i in range(count)}
        compiled.clear()
        packed = method.pack(params, method.init(params))
        kept = {x.count for x in packed.values()}
        assert allocation in (per_leaf, erk) or len(kept) == count
        return compiled.count("/jax/core/compile/backend_compile_duration")

    programs(2)
    assert programs(5) <= 2, "but for what an allocation compiles for their number"
