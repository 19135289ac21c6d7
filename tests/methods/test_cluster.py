"""Clustering: members and their gradients by loops, what weighs what, zeros, scopes, degenerate leaves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_nn as jn
from jaxopt_nn.methods import clusters
from jaxopt_nn.numerics import exact_kmeans, kmeans

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def viewed(method, v, info=jn.ModelInfo()):
    state = method.init(v, info)
    return method.view(v, state), state


def table_of(state, path="w"):
    return np.asarray(state.learnt[path]).reshape(-1)


def test_the_values_are_those_of_k_means():
    v = {"w": normal(20, 12)}
    for options, k in (({"k": 8}, 8), ({"bits": 3}, 8), ({"k": 5, "start": "density"}, 5), ({"k": 5, "zero": False}, 5)):
        seen, state = viewed(jn.cluster(**options), v)
        origin = options.get("zero", True)
        flat = v["w"].reshape(-1)
        wanted = kmeans.fit(flat, k=k, start=options.get("start", "linear"), origin=origin)
        np.testing.assert_array_equal(table_of(state), wanted)
        full = np.append(np.float32(0), wanted) if origin else np.asarray(wanted)
        nearest = np.argmin(np.abs(np.asarray(flat)[:, None] - full), 1)
        np.testing.assert_array_equal(seen["w"].reshape(-1), full[nearest])
        assert len(np.unique(seen["w"])) <= k


def test_shared_values_are_nearer_than_equal_steps_and_the_exact_ones_nearest():
    v = {"w": jnp.asarray(RNG.standard_t(4, (64, 32)), jnp.float32)}
    error = lambda method: float(jnp.sum((viewed(method, v)[0]["w"] - v["w"]) ** 2))
    uniform = jn.quantize(3, granularity="tensor")
    found = [error(m) for m in (jn.cluster(8, exact=True), jn.cluster(8), uniform)]
    assert found[0] <= found[1] < 0.5 * found[2], found
    assert error(jn.cluster(8, zero=False, exact=True)) <= found[0]
    best = exact_kmeans.exact(v["w"], k=8, origin=True)
    np.testing.assert_allclose(found[0], kmeans.cost(v["w"], np.append(best, 0)), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"zero": False}, {"scope": "group", "group": 3}, {"scope": "all"}], ids=str)
def test_the_gradient_of_a_value_is_the_sum_of_its_members(options):
    """Han et al. 2016, eq. 3, by an explicit loop."""
    v = {"u": normal(4, 6), "w": normal(4, 6)}
    v["w"] = v["w"].at[1, 2].set(0.0)
    method = jn.cluster(4, **options)
    state = method.init(v)
    slopes = jax.tree.map(lambda x: normal(*x.shape), v)

    def total(learnt):
        seen = method.view(v, jn.State(learnt, state.carried))
        return sum(jnp.sum(seen[path] * slopes[path]) for path in v)

    found = jax.jit(jax.grad(total))(state.learnt)
    origin = options.get("zero", True)
    wanted = {name: np.zeros(np.shape(x)) for name, x in state.learnt.items()}
    for path in v:
        for at in np.ndindex(4, 6):
            code = int(state.carried[path].codes[at]) - origin
            if code < 0:
                continue
            place = (code,) if "all" in options.values() else (0, at[1] // 3 if "group" in options else 0, code)
            wanted["shared" if "all" in options.values() else path][place] += float(slopes[path][at])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_weights_behind_get_a_gradient_straight_through_if_asked():
    v = {"w": normal(6, 6)}
    slope = normal(6, 6)
    for ste, wanted in (("none", jnp.zeros((6, 6))), ("pass", slope)):
        method = jn.cluster(4, ste=ste)
        state = method.init(v)
        found = jax.grad(lambda p, method=method, state=state: jnp.sum(method.view(p, state)["w"] * slope))(v)
        np.testing.assert_array_equal(found["w"], wanted)


def steps(method, v, loss, n=3):
    """Adam with weight decay on all that is trained."""
    optimizer = optax.adamw(0.05, weight_decay=0.1)
    told = lambda variables, batch, key: (loss(variables), ({}, {}))
    ts, step = jn.init_train_state(v, method, optimizer, jax.random.key(0)), jax.jit(jn.make_step(told, method, optimizer))
    for _ in range(n):
        ts, metrics = step(ts, None)
    return ts, metrics


def test_zero_stays_and_what_is_pruned_stays_pruned():
    v, goal = {"w": normal(16, 8)}, normal(16, 8)
    method = jn.chain(jn.prune(sparsity=0.6), jn.cluster(4))
    ts, _ = steps(method, v, lambda seen: jnp.sum((seen["w"] - goal) ** 2))
    seen, stored = method.view(ts.params, ts.state), method.pack(ts.params, ts.state)["w"]
    pruned = np.asarray(ts.carried[0]["w"].mask) == 0
    assert pruned.sum() == 77 and not np.asarray(seen["w"])[pruned].any()
    values = np.unique(seen["w"])
    assert len(values) == 4 and 0.0 in values and not np.isin(values[values != 0], np.unique(viewed(method, v)[0]["w"])).any()
    assert isinstance(stored, jn.Masked) and isinstance(stored.frame, jn.Codebook)
    np.testing.assert_array_equal(stored.densify(), seen["w"])
    assert stored.nbytes == 16 + -(-51 * 2 // 8) + 3 * 4
    with pytest.raises(ValueError, match=r"w: member 1 of the chain \(cluster\(4\)\) does not keep zeros"):
        jn.chain(jn.prune(sparsity=0.6), jn.cluster(4, zero=False)).init(v)


def test_a_weight_that_becomes_zero_later_is_zero_in_view_and_pack():
    v = {"w": normal(8, 8)}
    method = jn.cluster(6)
    state = method.init(v)
    now = {"w": v["w"].at[:4].set(0.0)}
    seen = method.view(now, state)["w"]
    assert not seen[:4].any() and seen[4:].any()
    np.testing.assert_array_equal(method.pack(now, state)["w"].densify(), seen)


def test_training_moves_values_and_leaves_members():
    v, goal = {"w": normal(12, 10)}, 2 * normal(12, 10)
    method = jn.cluster(6)
    before, state = viewed(method, v)
    loss = lambda seen: jnp.mean((seen["w"] - goal) ** 2)
    ts, _ = steps(method, v, loss, 20)
    np.testing.assert_array_equal(ts.carried["w"].codes, state.carried["w"].codes)
    after = method.view(ts.params, ts.state)
    assert loss(after) < loss(before)
    members = [np.asarray(after["w"])[np.asarray(before["w"]) == value] for value in np.unique(before["w"])]
    assert all(np.ptp(own) == 0 for own in members)


def test_reassigned_to_the_nearest_of_the_moved_values():
    v = {"w": normal(12, 10)}
    method = jn.cluster(6, reassign=True)
    state = method.init(v)
    moved = jn.State({"w": state.learnt["w"] + 0.3}, state.carried)
    new = method.update(v, moved, step=0)
    full = np.append(0.0, np.asarray(moved.learnt["w"]).ravel()).astype(np.float32)
    wanted = full[np.argmin(np.abs(np.asarray(v["w"])[..., None] - full), -1)]
    np.testing.assert_array_equal(method.view(v, new)["w"], wanted)
    assert (np.asarray(new.carried["w"].codes) != np.asarray(state.carried["w"].codes)).any()
    still = jn.cluster(6)
    np.testing.assert_array_equal(still.update(v, moved, step=0).carried["w"].codes, state.carried["w"].codes)


def test_layers_groups_and_leaves_have_the_tables_that_they_would_have_alone():
    v = {"w": normal(3, 8, 6)}
    info = jn.ModelInfo(roles={"w": jn.Roles((0,), (1,), (2,))})
    alone = lambda x: viewed(jn.cluster(4), {"w": x})[0]["w"]
    seen, state = viewed(jn.cluster(4), v, info)
    assert state.learnt["w"].shape == (3, 1, 1, 3)
    for layer, x in zip(seen["w"], v["w"]):
        np.testing.assert_allclose(layer, alone(x), rtol=1e-6)
    seen, state = viewed(jn.cluster(4, scope="group", group=2), v, info)
    assert state.learnt["w"].shape == (3, 1, 3, 3)
    for layer, group in itertools.product(range(3), range(3)):
        part = np.s_[layer, :, 2 * group : 2 * group + 2]
        np.testing.assert_allclose(seen["w"][part], alone(v["w"][part]), rtol=1e-6)


def test_one_table_for_all_leaves():
    v = {"a": normal(8, 6), "b": 3 * normal(5, 10)}
    method = jn.cluster(7, scope="all")
    seen, state = viewed(method, v)
    both = jnp.concatenate([v["a"].ravel(), v["b"].ravel()])
    np.testing.assert_array_equal(state.learnt["shared"], kmeans.fit(both, k=7, origin=True))
    stored = method.pack(v, state)
    assert len(np.unique(np.concatenate([np.ravel(x) for x in seen.values()]))) <= 7
    for path in v:
        np.testing.assert_array_equal(stored[path].densify(), seen[path])
        np.testing.assert_array_equal(stored[path].table.ravel(), state.learnt["shared"])
    assert not method.traits.leaf_local


def test_inputs_weigh_errors_by_what_they_do_to_the_output():
    """The output is nearer, the weights are further off."""
    scale = np.r_[np.full(4, 10.0), np.full(28, 0.1)]
    x = jnp.asarray(RNG.standard_normal((256, 32)) * scale, jnp.float32)
    net = jn.Network(lambda v, x: x @ v["w"], {"w": normal(32, 24).at[:4].multiply(0.3)})
    methods = {"plain": jn.cluster(4), "weighed": jn.cluster(4, weights="inputs")}
    weighed = methods["weighed"]
    info = jn.calibrate(net, weighed, [x[:128], x[128:]])
    found = {}
    for name, method in methods.items():
        seen, _ = viewed(method, net.variables, info)
        output = float(jnp.sum((x @ (seen["w"] - net.variables["w"])) ** 2))
        found[name] = output, float(jnp.sum((seen["w"] - net.variables["w"]) ** 2))
    assert found["weighed"][0] < 0.8 * found["plain"][0] and found["weighed"][1] > found["plain"][1], found
    mass = np.broadcast_to(np.sum(np.asarray(x, np.float64) ** 2, 0)[:, None], (32, 24))
    wanted = kmeans.fit(net.variables["w"].ravel(), jnp.asarray(mass, jnp.float32).ravel(), k=4, origin=True)
    np.testing.assert_allclose(table_of(viewed(weighed, net.variables, info)[1]), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="w: weights='inputs' reads the inputs of the layer; pass info=calibrate"):
        weighed.init(net.variables)


def test_the_fisher_information_weighs_errors_by_what_they_do_to_the_loss():
    x = (RNG.standard_normal((64, 8)) * np.r_[np.full(2, 5.0), np.full(6, 0.2)]).astype(np.float32)
    net = jn.Network(lambda v, x: x @ v["w"], {"w": normal(8, 8)})
    task = jn.regression(train=(x, np.zeros((64, 8), np.float32)), test=(x, np.zeros((64, 8), np.float32)))
    method = jn.cluster(3, weights="fisher")
    info = jn.calibrate(net, method, task)
    slopes = jax.vmap(jax.grad(lambda w, row: jnp.mean((row @ w) ** 2)), (None, 0))(net.variables["w"], jnp.asarray(x))
    squares = jnp.mean(slopes**2, 0)
    known = clusters.known_with("w", 2, info, "fisher")
    np.testing.assert_allclose(known.stats["fisher"] / squares, np.mean(known.stats["fisher"] / squares), rtol=1e-3)
    wanted = kmeans.fit(net.variables["w"].ravel(), squares.ravel(), k=3, origin=True)
    np.testing.assert_allclose(table_of(viewed(method, net.variables, info)[1]), wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="w: the statistic 'fisher' of the loss is missing; pass info=calibrate"):
        method.init(net.variables)


def test_an_input_that_was_never_active_weighs_hardly_anything():
    x = jnp.asarray(RNG.standard_normal((32, 6)), jnp.float32).at[:, :3].set(0.0)
    net = jn.Network(lambda v, x: x @ v["w"], {"w": normal(6, 8)})
    method = jn.cluster(24, weights="inputs")
    _, state = viewed(method, net.variables, jn.calibrate(net, method, [x]))
    assert np.isfinite(table_of(state)).all()


DEGENERATE = {
    "few values": jnp.asarray(np.resize([0.5, -0.25, 0.125], (8, 8)), jnp.float32),
    "zeros": jnp.zeros((8, 8)),
    "constant": jnp.full((8, 8), 0.3),
    "bfloat16": jnp.asarray(np.resize([0.5, -0.25, 3.0], (8, 8)), jnp.bfloat16),
    "one column": jnp.asarray(np.resize([1.0, 2.0], (32, 1)), jnp.float32),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_leaves_of_few_values_lose_nothing(name):
    v = {"w": DEGENERATE[name]}
    for method in (jn.cluster(8), jn.cluster(8, zero=False, start="density"), jn.cluster(4, exact=True)):
        seen, state = viewed(method, v)
        np.testing.assert_array_equal(seen["w"], v["w"])
        assert np.isfinite(table_of(state)).all()
        stored = method.pack(v, state)["w"]
        np.testing.assert_array_equal(stored.densify(), v["w"])
        assert stored.dtype == v["w"].dtype and stored.nbytes < v["w"].nbytes


def test_zero_is_one_of_the_values_also_where_no_weight_is_zero():
    v = {"w": jnp.asarray(np.resize([0.75, -0.5, 1.25], (6, 8)), jnp.float32)}
    for method in (jn.cluster(4), jn.cluster(3, zero=False)):
        np.testing.assert_array_equal(viewed(method, v)[0]["w"], v["w"])
    _, state = viewed(jn.cluster(3), v)
    np.testing.assert_array_equal(table_of(state), [-0.5, 1.0])


METHODS = {
    "linear": jn.cluster(6), "density": jn.cluster(6, start="density", zero=False),
    "kmeans++": jn.cluster(6, start="kmeans++", key=0),
    "exact": jn.cluster(6, exact=True), "all": jn.cluster(6, scope="all"), "vectors": jn.cluster_vectors(6, dim=2, stages=2),
}  # fmt: skip


@pytest.mark.parametrize("power", [124, -73])  # 2e37 and 1e-22
@pytest.mark.parametrize("name", METHODS)
def test_values_go_with_the_weights_at_any_scale(name, power):
    """Of weights times a power of two the values are those of the weights times that, and finite."""
    v, method, large = {"w": normal(32, 16)}, METHODS[name], np.float32(2.0) ** power
    (seen, _), (wide, state) = viewed(method, v), viewed(method, {"w": v["w"] * large})
    np.testing.assert_allclose(wide["w"], np.asarray(seen["w"]) * large, rtol=1e-6)
    np.testing.assert_array_equal(method.pack({"w": v["w"] * large}, state)["w"].densify(), wide["w"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        *[({name: "no"}, f"{name}='no'.: allowed are True and False") for name in ("zero", "exact", "reassign", "biases")],
        ({"exact": 1}, "exact=1.: allowed are True and False"),
        ({"weights": np.ones(3)}, r"weights=an array float64\[3\].: allowed are None, 'inputs' and 'fisher'"),
        ({"scope": ["leaf"]}, "scope=a list.: allowed are 'leaf', 'group' and 'all'"),
        ({"start": None}, "start=None.: allowed are 'linear', 'density', 'random' and 'kmeans..'"),
        ({"ste": "clip"}, "ste='clip'.: allowed are 'none' and 'pass'"),
        ({"k": 4.0}, "k=4.0.: allowed are the whole numbers 2 to 256"),
        ({"k": np.ones(3)}, r"k=an array float64\[3\].: allowed are the whole numbers"),
        ({"scope": "group", "group": True}, "group=True.: allowed are the whole numbers from 1"),
    ],
)
def test_wrong_arguments_are_errors(arguments, said):
    with pytest.raises(ValueError, match=rf"^cluster\({said}"):
        jn.cluster(**{"k": 4, **arguments})


def test_what_is_not_taken_has_a_reason_and_bad_numbers_are_told():
    v = {"one": jnp.ones((1, 1)), "w": normal(16, 8), "b": normal(64), "i": jnp.zeros((8, 8), jnp.int32)}
    report = {m.path: m.reason for m in jn.explain(jn.cluster(16), v).of("skipped")}
    assert report["one"] == "its codes and table would take 61 bytes, no less than the 4 that it has"
    assert report["b"].startswith("has 1 axes") and "int32" in report["i"] and "w" not in report
    asked = {m.path for m in jn.explain(jn.cluster(4, biases=True), v).of("skipped")}
    assert asked == {"one", "i"}
    seen, state = viewed(jn.cluster(4, biases=True), v)
    assert len(np.unique(seen["b"])) == 4
    assert jn.cluster(4, biases=True).pack(v, state)["b"].nbytes == 16 + 12
    for bad in (jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match="w: NaN or Inf among the weights"):
            jn.cluster(4).init({"w": v["w"].at[0, 0].set(bad)})
    _, state = viewed(jn.cluster(4), {"w": v["w"]})
    broken = jn.State(jax.tree.map(lambda x: x * jnp.nan, state.learnt), state.carried)
    with pytest.raises(ValueError, match="w: NaN or Inf among the shared values"):
        jn.cluster(4).pack({"w": v["w"]}, broken)


def test_random_starts_follow_their_key_and_the_path():
    v = {"a": normal(16, 8)}
    v["b"] = v["a"]
    tables = lambda key: viewed(jn.cluster(6, start="random", key=key, iterations=1), v)[1].learnt
    one, again, other = tables(1), tables(jax.random.key(1)), tables(2)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert (one["a"] != other["a"]).any() and (one["a"] != one["b"]).any()


def test_the_best_values_of_all_need_no_start_and_no_key():
    v = {"w": normal(16, 8)}
    best = viewed(jn.cluster(4, exact=True), v)[1]
    for options in ({"start": "random", "key": 0}, {"start": "kmeans++"}, {"key": 0}):
        same = viewed(jn.cluster(4, exact=True, **options), v)[1]
        jax.tree.map(np.testing.assert_array_equal, (same.learnt, same.carried), (best.learnt, best.carried))
    with pytest.raises(ValueError, match="a start that is drawn needs a key"):
        jn.cluster(4, start="random")


# -- vectors -------------------------------------------------------------------------------------------------------------


def test_vectors_are_the_sums_that_the_state_names():
    v = {"w": normal(12, 5)}
    method = jn.cluster_vectors(4, dim=3, stages=2, sweeps=1)
    seen, state = viewed(method, v)
    table, codes = np.asarray(state.learnt["w"])[0, 0], np.asarray(state.carried["w"].codes)
    for run, out in np.ndindex(4, 5):
        wanted = table[0, codes[run, out, 0]] + table[1, codes[run, out, 1]]
        np.testing.assert_array_equal(seen["w"][3 * run : 3 * run + 3, out], wanted)


def test_the_gradient_of_a_vector_is_the_sum_of_its_members():
    v, slope = {"w": normal(12, 5)}, normal(12, 5)
    method = jn.cluster_vectors(4, dim=3, stages=2)
    state = method.init(v)
    found = jax.grad(lambda learnt: jnp.sum(method.view(v, jn.State(learnt, state.carried))["w"] * slope))(state.learnt)
    wanted, codes = np.zeros((2, 4, 3)), np.asarray(state.carried["w"].codes)
    for run, out, stage in np.ndindex(4, 5, 2):
        wanted[stage, codes[run, out, stage]] += np.asarray(slope)[3 * run : 3 * run + 3, out]
    np.testing.assert_allclose(found["w"][0, 0], wanted, rtol=1e-5, atol=1e-6)


def test_correlated_inputs_are_nearer_in_runs_than_alone():
    """At 2 bits a weight; runs of four equal neighbours."""
    v = {"w": jnp.repeat(normal(16, 64), 4, 0) + 0.05 * normal(64, 64)}
    error = lambda method: float(jnp.sum((viewed(method, v)[0]["w"] - v["w"]) ** 2))
    alone, runs = error(jn.cluster(4)), error(jn.cluster_vectors(256, dim=4))
    assert runs < 0.1 * alone
    coarse = error(jn.cluster_vectors(16, dim=4))
    assert error(jn.cluster_vectors(16, dim=4, stages=2)) < coarse
    assert error(jn.cluster_vectors(16, dim=4, stages=2, sweeps=3)) <= error(jn.cluster_vectors(16, dim=4, stages=2))


def test_inputs_weigh_vectors():
    x = jnp.asarray(RNG.standard_normal((128, 16)) * np.tile([8.0, 0.1], 8), jnp.float32)
    net = jn.Network(lambda v, x: x @ v["w"], {"w": normal(16, 40)})
    found = []
    for weights in (None, "inputs"):
        method = jn.cluster_vectors(16, dim=2, weights=weights)
        seen, _ = viewed(method, net.variables, jn.calibrate(net, method, [x]) if weights else jn.ModelInfo())
        off = seen["w"] - net.variables["w"]
        found.append((float(jnp.sum((x @ off) ** 2)), float(jnp.sum(off**2))))
    assert found[1][0] < 0.5 * found[0][0] and found[1][1] > found[0][1], found


def test_runs_lie_along_the_last_input_axis_of_one_layer():
    v = {"w": normal(3, 8, 6), "odd": normal(7, 64)}
    info = jn.ModelInfo(roles={"w": jn.Roles((0,), (1,), (2,)), "odd": jn.Roles((), (0,), (1,))})
    method = jn.cluster_vectors(2, dim=4)
    assert method.traits.takes("odd", v["odd"], info) == "its input axis 0 has 7 entries, not a multiple of dim=4"
    seen, state = viewed(method, {"w": v["w"]}, info)
    assert state.learnt["w"].shape == (3, 1, 1, 1, 2, 4) and state.carried["w"].codes.shape == (3, 2, 6, 1)
    stored = method.pack({"w": v["w"]}, state)["w"]
    np.testing.assert_array_equal(stored.densify(), seen["w"])
    assert stored.nbytes == 3 * 2 * 1 + 3 * 2 * 4 * 4
