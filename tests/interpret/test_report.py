"""What the report says of leaves: each case was untrue or missing before there was a row a leaf."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxopt_nn.core.combine import chain, where
from jaxopt_nn.core.leaf_rows import LeafRow, Operation, Run
from jaxopt_nn.core.report import SCREEN, Message, Report
from jaxopt_nn.core.transform import explain
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.rewrite import rewrite
from jaxopt_nn.methods.arithmetic import arithmetic
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize

X = jnp.ones((4, 8))


def random(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def packed(variables, bits=4, **options):
    method = quantize(bits, **options)
    return method.pack(variables, method.init(variables))


def row_of(report, path):
    return next(row for row in report.rows if row.path == path)


def test_leaves_of_two_axes_that_feed_no_site_are_printed():
    def apply(v, x):
        h = jnp.concatenate([v["token"], (x @ v["w"] + v["positions"])[None]], 1)
        return h * v["gain"][None]

    shapes = {"token": (1, 1, 6), "w": (8, 6), "positions": (4, 6), "gain": (1, 6), "spare": (2, 2)}
    info = inspect(apply, {name: random(*shape) for name, shape in shapes.items()}, X)
    assert {row.path: row.role for row in info.report.rows} == {
        "token": "no site", "w": "dot [I, O]", "positions": "added", "gain": "scales", "spare": "not read",
    }  # fmt: skip
    assert all(name in str(info) for name in shapes)


def test_vectors_behind_a_derived_weight_are_in_its_site():
    variables = {"w": random(8, 5), "g": random(5)}
    apply = lambda v, x: x @ (v["w"] * v["g"][None])
    info = inspect(apply, variables, X)
    said = {m.path: m.reason for m in explain(quantize(4), variables, info).of("skipped")}
    assert said == {"g": "no site contracts it: the weight of w is computed with it"}
    report = rewrite(apply, arithmetic("w8a8")).explain(variables, X)
    assert row_of(report, "g").sites == row_of(report, "w").sites == ("w",)
    for path in variables:
        reasons = row_of(report, path).reasons
        assert "the weight is computed from w, g before use" in reasons
        assert any("rule w8a8 does not take float32 x float32" in reason for reason in reasons)


def test_every_part_of_a_concatenated_weight_has_the_row_of_its_site():
    variables = {name: random(8, n) for name, n in (("k", 5), ("q", 6), ("v", 4))}
    apply = lambda v, x: x @ jnp.concatenate([v["q"], v["k"], v["v"]], 1)
    report = rewrite(apply, arithmetic("w8a8")).explain(variables, X)
    (message,) = report.of("float")
    assert all(path in message.reason for path in variables)
    (run,) = {row.runs for row in report.rows}
    assert run[0].operations == (Operation("dot", ("float32[4, 8]", "float32[8, 15]")),)


@pytest.mark.parametrize(
    ("use", "how"),
    [
        (lambda w, x: x @ (w * 2), "`mul`"),
        (lambda w, x: lax.fori_loop(0, 2, lambda i, c: (c[0] * 2, c[1] @ c[0]), (w, x))[1], "`scan` carries it"),
        (lambda w, x: lax.while_loop(lambda c: c[2] < 2, lambda c: (c[0] + 1, c[1] @ c[0], c[2] + 1), (w, x, 0))[1],
         "`while` carries it"),
        (lambda w, x: x @ lax.scan(lambda c, _: (c, w.T), 0, None, length=2)[1][1], "`scan` stacks it"),
        (lambda w, x: x @ lax.cond(x[0, 0] > 0, lambda w: w.T, lambda w: w, w), "`cond` returns it from a branch"),
        (lambda w, x: (x, w.T), "`apply` returns it"),
    ],
)  # fmt: skip
def test_densified_names_the_leaf(use, how):
    stored = packed({"other": random(8, 8), "deep": {"w": random(8, 8) + 1}})
    report = rewrite(lambda v, x: (use(v["deep"]["w"], x), x @ v["other"])).explain(prepare(stored), X)
    messages = report.of("densified").messages
    assert {m.path for m in messages} == {"deep/w"} and any(how in m.reason for m in messages)
    assert any("densified" in reason for reason in row_of(report, "deep/w").reasons)
    assert not row_of(report, "other").reasons or "densified" not in "".join(row_of(report, "other").reasons)


def test_sites_of_activations_are_one_line():
    def apply(v, x):
        for w in v["layers"]:
            x = jnp.tanh(x @ w)
            x = jax.nn.softmax(x @ x.T) @ x
        return x

    variables = {"layers": [random(8, 8) for _ in range(30)]}
    stored = packed(variables, 8)
    report = rewrite(apply, arithmetic("w8a8")).explain(stored, X)
    assert len(report.activations) == 60 and not report.of("float")
    (line,) = [line for line in str(report).splitlines() if "takes weights only" in line]
    assert line.startswith("60 dots of activations: float32 x float32; ")
    assert sum("takes weights only" in line or "@" in line for line in report.table(limit=None).splitlines()) == 61


def test_more_rows_than_entries_in_a_group_is_said():
    stored = packed({"w": random(64, 8)}, 4, group=16)
    run = rewrite(lambda v, x: x @ v["w"])
    few, many = (row_of(run.explain(stored, jnp.ones((n, 64))), "w") for n in (4, 40))
    assert few.format == many.format == "4 bits, groups of 16"
    assert not any("written in float" in reason for reason in few.reasons)
    assert any("written in float at each call" in reason for reason in many.reasons)
    assert (few.runs[0].program, many.runs[0].program) == ("float, in one dot", "float, scaled weight")


def test_a_weight_held_as_floats_is_said():
    ready = prepare(packed({"w": random(8, 8)}), "cpu")
    row = row_of(rewrite(lambda v, x: x @ v["w"], arithmetic("w4a16")).explain(ready, X), "w")
    assert row.format == "4 bits, in float32" and any("is held as floats" in reason for reason in row.reasons)


def test_one_call_says_what_the_method_left_alone_too():
    variables = {"w": random(8, 8), "b": random(8), "u": random(8, 8)}
    method = chain(prune(sparsity=0.5), where("w", quantize(8)))
    apply = lambda v, x: (x @ v["w"] + v["b"][None]) @ v["u"]
    info = inspect(apply, variables, X)
    stored = method.pack(variables, method.init(variables, info))
    report = rewrite(apply, arithmetic("w8a8")).explain(stored, X, method=method)
    assert row_of(report, "w").format == "50 % kept, 8 bits" and row_of(report, "u").format == "50 % kept, float32"
    assert row_of(report, "b").reasons[0].startswith("left alone: ")
    reasons = row_of(report, "u").reasons
    assert any(reason.startswith("partial: member 1 of the chain") for reason in reasons)
    assert any(reason.startswith("in float: rule w8a8 does not take") for reason in reasons)


def test_a_lookup_says_what_it_reads():
    stored = packed({"table": random(32, 8)}, 8)
    report = rewrite(lambda v, x: v["table"][x]).explain(stored, jnp.arange(3))
    (run,) = row_of(report, "table").runs
    assert run.operations[0].name == "lookup" and run.operations[0].operands[0].startswith(("int8", "uint8"))


def test_dots_in_no_site_are_said():
    apply = lambda v, x: x @ v["w"] + (jnp.ones((2, 3)) @ jnp.ones((3, 1))).sum()
    report = rewrite(apply).explain({"w": random(8, 8)}, X)
    assert [run.operations for run in report.others] == [(Operation("dot", ("float32[2, 3]", "float32[3, 1]")),)]


def test_two_calls_of_one_function_keep_their_sites_apart():
    layer = jax.jit(lambda w, x: x @ w)
    variables = {"a": random(8, 8), "b": random(8, 8)}
    report = rewrite(lambda v, x: layer(v["b"], layer(v["a"], x)), arithmetic("w8a8")).explain(packed(variables, 8), X)
    assert all(row.runs[0].operations[0].operands[0] == "int8[4, 8]" for row in report.rows) and not report.others


def rows(count):
    dot = Operation("dot", ("float32[4, 8]", "float32[8, 8]"))
    made = [LeafRow(f"layer_{i}/w", (8, 8 + i), "float32", "float32", "dot [I, O]", (Run(f"w{i}", (dot,)),))
            for i in range(count)]  # fmt: skip
    vectors = [LeafRow(f"layer_{i}/b", (8,), "float32", "float32", "added") for i in range(count)]
    return Report((), (*made, *vectors))


def test_a_table_fits_a_screen_and_the_rest_comes_on_request():
    lines = str(rows(100)).splitlines()
    assert len(lines) == SCREEN + 2 and lines[1].startswith("layer_99/w ")
    assert lines[-1].startswith("... and 61 more leaves, ") and "limit=None" in lines[-1]
    assert "layer_0/b and 99 more" in "\n".join(lines), "the vectors weigh more than a matrix"
    whole = rows(100).table(limit=None).splitlines()
    assert len(whole) == 201 and {line.split()[0] for line in whole[1:]} == {row.path for row in rows(100).rows}


def test_messages_on_no_leaf_are_cut_too():
    report = Report(tuple(Message("note", f"@{i}", "said") for i in range(90)))
    assert len(str(report).splitlines()) == SCREEN + 1
    assert len(report.table(limit=None).splitlines()) == 90


def test_equal_notes_are_one_footnote():
    variables = {f"w{i}": random(8, 8) for i in range(12)}
    apply = lambda v, x: sum(x @ w for w in v.values())
    text = str(rewrite(apply).explain(packed(variables), X))
    assert text.count("a call outside jit prepares it first") == 1 and text.count("[1]") == 13
