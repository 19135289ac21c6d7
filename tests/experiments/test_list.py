"""``jaxopt list``: the lines add up to the file, two files are compared leaf by leaf, damage ends it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from experiments import __main__ as command
from experiments import common
from experiments import list as listing
from jaxopt_nn.coding import loader


def apply(v, x):
    return jnp.tanh(x @ v["up"]) @ v["down"] + v["bias"][None]


def network(seed=0, bits=4, tied=False):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    v = {"bias": jnp.arange(8.0), "down": draw(32, 8), "up": draw(8, 32)}
    v |= {"other": v["bias"]} if tied else {}
    method = jn.by_path([("up", jn.chain(jn.prune(sparsity=0.75), jn.quantize(bits))), ("down", jn.quantize(8))])
    return jn.Network(apply, method.pack(v, method.init(v)))


def test_the_lines_add_up_to_the_file(tmp_path):
    net = network(tied=True)
    path = jn.save(tmp_path / "a.jn", net, programs=jn.exported(network(), (jnp.ones((1, 8)),), ["cpu"])).path
    entries = {entry["path"]: entry for entry in listing.run(str(path))}
    assert list(entries) == ["bias", "down", "other", "up", "header", "programs/cpu.prepare", "programs/cpu.run"]
    assert sum(entry["file"] for entry in entries.values()) == path.stat().st_size
    assert sum(entry["share"] for entry in entries.values()) == pytest.approx(1)
    assert entries["up"]["zeros"] == 0.75 and entries["up"]["stored"] == jn.nbytes(net.variables["up"])
    assert entries["up"]["bits"] == 8 * entries["up"]["file"] / 256 and entries["other"]["file"] == 0
    alone = jn.save_file(tmp_path / "b.jn", {"down": net.variables["down"].codes}).bytes
    assert abs(entries["down"]["file"] - alone) < 60
    _, lines = listing.shown(list(entries.values()))
    assert lines[-1][0] == "all" and lines[-1][6] == f"{path.stat().st_size:,}" and lines[4][1:4] == ["", "", ""]


ODD = {
    "one leaf": (jnp.arange(9.0), {}),
    "a key without letters": ({"": jnp.arange(9.0), "b": jnp.ones(3)}, {}),
    "a leaf and a file of one name": ({"a": jnp.arange(9.0)}, {"a": b"123"}),
    "a leaf and a file called header": ({"header": jnp.arange(9.0)}, {"header": b"123"}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_counted_once(tmp_path, name):
    tree, files = ODD[name]
    path = jn.save_file(tmp_path / "a", tree, files=files).path
    entries = listing.run(str(path))
    assert sum(entry["file"] for entry in entries) == path.stat().st_size
    assert [entry["part"] for entry in entries].count("leaf") == len(jax.tree.leaves(tree))
    other = jn.save_file(tmp_path / "b", jax.tree.map(lambda x: x + 1, tree), files=files).path
    said = [line[-1] for line in listing.compared(entries, listing.run(str(other)))[1]]
    assert said[:-1].count("values") == len(jax.tree.leaves(tree)) and len(said) == len(entries) + 1


def test_a_file_that_declares_much_memory_is_not_decoded(tmp_path, monkeypatch):
    path = str(jn.save_file(tmp_path / "a", {"w": np.zeros(10**6, np.uint8)}).path)
    with pytest.raises(ValueError, match="its arrays take 1,000,000 bytes, allowed are 1,000; pass max_bytes=1000000"):
        listing.run(path, 1000)
    monkeypatch.setattr(loader, "LIMIT", 10)  # a thousand bytes of zeros declare 64 times as much and more
    with pytest.raises(ValueError, match="allowed are"):
        listing.run(path)
    assert listing.run(path, 10**6)[0]["stored"] == 10**6


def test_a_name_says_nothing_to_the_terminal(capsys):
    common.show(["path"], [["a\x1b[31m\nb ü"]])
    assert capsys.readouterr().out == "path\na\\x1b[31m\\nb ü\n"


def test_two_files_are_compared_leaf_by_leaf(tmp_path):
    for name, net in {"a": network(), "b": network(bits=3), "c": network(1)}.items():
        jn.save(tmp_path / name, net)
    a, b, c = (listing.run(str(tmp_path / name)) for name in "abc")
    said = lambda *files: {line[0]: line[-1] for line in listing.compared(*files)[1]}
    assert said(a, a) == {"bias": "nothing", "down": "nothing", "up": "nothing", "header": "", "all": "1.000x"}
    assert said(a, b)["up"] == "Masked(QTensor int4), Masked(QTensor int3)" and said(a, b)["down"] == "nothing"
    assert said(a, c)["down"] == "values" and said(a[1:], a)["bias"] == "only in the other"


def test_the_command(tmp_path, monkeypatch, capsys):
    path = jn.save(tmp_path / "a.jn", network()).path
    monkeypatch.setattr(sys, "argv", ["jaxopt", "list", str(path), "--verify", f"--picture={tmp_path / 'a.png'}"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "Masked(QTensor int4)" in text and "checksums right" in text
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_file_or_damaged_is_said(tmp_path):
    path = jn.save(tmp_path / "network.jn", network()).path
    with pytest.raises(ValueError, match=r"is a run's folder; its artifact is .*network.jn"):
        listing.run(str(tmp_path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"network.jn: truncated"):
        listing.run(str(path))
