"""The notebooks: their form, what their first cell refuses, and all of them executed, with their numbers checked."""

import ast
import heapq
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from sklearn.datasets import load_digits

import jaxopt_nn as jn

REPOSITORY = pathlib.Path(__file__).parents[2]
NOTEBOOKS = ("quickstart", "your_model", "pruning", "deep_compression")
METHODS = (
    "Clipping",
    "Integer quantization",
    "Sub-integer quantization",
    "Weight pruning",
    "Neuron pruning",
    "Transfer",
    "Distillation",
    "Parallel inference",
)
# Of LeNet-300-100 on pairs of digits, 19 sums: weights in matrices; biases and, quantized, as many steps.
WEIGHTS, VECTOR = 128 * 300 + 300 * 100 + 100 * 19, 4 * 419
FLOAT_BYTES = 4 * WEIGHTS + VECTOR

# Appended to the notebook: facts that NumPy finds again, from the weights alone, about what the cells have made.
FACTS = """
import json

def kernels(tree):
    return [np.asarray(x) for x in jax.tree.leaves(jn.densify(tree)) if x.ndim == 2]

def hidden(x):
    for i in range(2):
        x = np.maximum(x.reshape(len(x), -1) @ np.asarray(network[f"layer{i}"]["kernel"]) + network[f"layer{i}"]["bias"], 0)
        yield np.abs(x).mean(0) * np.linalg.norm(network[f"layer{i + 1}"]["kernel"], axis=1)

deviations = [np.abs(c - w.mean()).max() / w.std() for w, c in zip(kernels(network), kernels(clipped))]
errors = [np.abs(w - q) / (np.abs(w).max(0) / 127) for w, q in zip(kernels(network), kernels(eight))]
three = unseen[1] == 3
facts = {
    "results": results,
    "devices": counts,
    "deviations": [float(d) for d in deviations],
    "codes_error": float(max(e.max() for e in errors)),
    "levels": max(len(np.unique(c)) for w in kernels(method_of_2_bits.view(*two)) for c in w.T),
    "rounded": rounded[2],
    "zeros": [int((w == 0).sum()) for w in kernels(pruned)],
    "strongest": [sorted(np.argsort(-score)[: len(score) // 2].tolist()) for score in hidden(np.asarray(train_x[:2000]))],
    "kept": [plan.layers[i].kept.tolist() for i in range(2)],
    "moved": all(np.array_equal(a, b) for a, b in zip(kernels(network), kernels(moved))),
    "student": [list(w.shape) for w in kernels(student)],
    "from_slices": [float(a) for a in from_slices],
    "from_random": [float(a) for a in from_random],
    "threes": [float(accuracy(v, test=(unseen[0][three], unseen[1][three]))) for v in (plain, taught)],
    "equal": bool((alone == together).all()) and len(together) == len(test_y),
    "float_loss": float(np.abs(together - apply(network, test_x)).max() / np.abs(together).max()),
}
print(json.dumps(facts))
"""
#: What a training says on standard error while it runs.
PROGRESS = re.compile(r"\w+: step [\d,]+ of [\d,]+, ")
# `method` is used again and again: the test keeps the 2-bit one before the next section replaces it.
KEEP = "method_of_2_bits, two = method, (weights, state)"


@pytest.fixture(params=NOTEBOOKS)
def any_notebook(request):
    return read(request.param)


def read(name: str):
    return nbformat.read(REPOSITORY / "colab" / f"{name}.ipynb", as_version=4)


def code(notebook, cell_id: str) -> str:
    return next(cell.source for cell in notebook.cells if cell.id == cell_id)


def test_a_file_is_valid_and_holds_no_output(any_notebook):
    nbformat.validate(any_notebook)
    assert (any_notebook.nbformat, any_notebook.nbformat_minor) == (4, 5)
    assert any_notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in any_notebook.cells}) == len(any_notebook.cells)
    for cell in any_notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
            ast.parse(cell.source)  # plain Python: no magic, so that it runs anywhere
            # What installs, sets up or draws is folded in Colab.
            assert (cell.metadata.get("cellView") == "form") == cell.source.startswith("# @title"), cell.id


def test_a_badge_opens_the_notebook_itself(any_notebook):
    title = any_notebook.cells[0].source
    target = re.search(r"\[!\[Open in Colab\]\(\S+\)\]\(https://colab.research.google.com/github/(\S+)\)", title)[1]
    assert (REPOSITORY / target.partition("/blob/main/")[2]).exists()
    assert {code(read(name), "install") for name in NOTEBOOKS} == {code(any_notebook, "install")}  # one for all


def test_each_method_has_a_formula_a_short_cell_and_a_picture():
    cells = read("quickstart").cells
    starts = [i for i, cell in enumerate(cells) if re.match(r"## \d", cell.source)]
    assert [cells[i].source.splitlines()[0] for i in starts] == [f"## {n} · {m}" for n, m in enumerate(METHODS, 1)]
    for i, end in zip(starts, [*starts[1:], len(cells)]):
        text, *module, method, picture = cells[i : next(k for k in range(i, end) if cells[k].id.endswith("-picture")) + 1]
        assert text.source.count("$$") == 2
        lines = method.source.splitlines()
        assert method.cell_type == "code" and len(lines) <= 16 and max(map(len, lines)) <= 128, method.id
        assert len(module) <= 1 and "record(" in method.source and "plt" not in method.source
        assert picture.source.startswith("# @title") and picture.source.endswith("plt.show()")


def test_an_older_jax_is_refused_and_not_upgraded(any_notebook, monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    with pytest.raises(RuntimeError, match=r"0\.10\.2 is the floor.*Don't upgrade it in place"):
        exec(code(any_notebook, "install"), {})


def test_the_library_is_installed_where_it_is_missing_and_jax_stays(any_notebook, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec(code(any_notebook, "install"), {})
    assert len(commands) == 1 and commands[0][1:4] == ["-m", "pip", "install"]
    assert f"jax=={jax.__version__}" in commands[0] and any("jaxopt_nn[notebooks] @ git+" in part for part in commands[0])

    monkeypatch.undo()
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec(code(any_notebook, "install"), {})
    assert len(commands) == 1


def executed(notebook, directory: pathlib.Path):
    """The code cells by name, with their outputs, run by a kernel with this process's environment, on 8 host devices."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("MPLBACKEND", None)  # a kernel draws into the notebook
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(directory)}})
    client.execute(env=environment)
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    outputs = [(name, output) for name, cell in cells.items() for output in cell.outputs]
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
    complaints = "".join(output.text for _, output in outputs if output.get("name") == "stderr")
    assert not [line for line in complaints.splitlines() if not PROGRESS.match(line)]
    drawn = {name for name, output in outputs if "image/png" in output.get("data", {})}
    assert drawn == {name for name in cells if name.endswith("-picture")}
    assert list(directory.iterdir()) == []  # it leaves nothing behind
    return cells


@pytest.mark.slow
def test_the_quickstart_runs_and_its_numbers_hold(tmp_path):
    notebook = read("quickstart")
    at = next(i for i, cell in enumerate(notebook.cells) if cell.id == "bits")
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(KEEP, id="keep"))
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS, id="facts"))
    cells = executed(notebook, tmp_path)

    facts = json.loads(cells["facts"].outputs[0].text)
    table = "".join(output.text for output in cells["table"].outputs)
    assert [line[:20].strip() for line in table.splitlines()[1:]] == list(facts["results"])
    check_compression(facts)
    check_transfer_and_inference(facts)


def check_compression(facts):
    accuracy = {name: after for name, (*_, after, _) in facts["results"].items()}
    size = {name: after for name, (*_, after) in facts["results"].items()}
    trained = accuracy["training"]
    assert trained >= 0.87 and size["training"] == FLOAT_BYTES

    assert facts["deviations"] == pytest.approx([2.0] * 3, abs=1e-4)
    assert 0 < trained - accuracy["clipping"] <= 0.03 and size["clipping"] == FLOAT_BYTES

    assert 0.49 < facts["codes_error"] <= 0.5001
    assert abs(trained - accuracy["8 bits"]) <= 0.01 and size["8 bits"] == WEIGHTS + 2 * VECTOR
    for bits, lost in ((4, 0.0), (3, 0.01), (2, 0.12)):
        least = WEIGHTS * bits / 8 + 2 * VECTOR
        assert least <= size[f"{bits} bits"] <= 1.01 * least and trained - accuracy[f"{bits} bits"] <= lost
    assert facts["levels"] == 3 and accuracy["2 bits"] - facts["rounded"] > 0.3

    zeros = round(0.9 * WEIGHTS)
    shapes = ((128, 300), (300, 100), (100, 19))
    share = (WEIGHTS - zeros) / sum(i + o for i, o in shapes)  # Erdos-Renyi: kept weights are proportional to i + o
    assert sum(facts["zeros"]) == zeros
    assert facts["zeros"] == pytest.approx([i * o - share * (i + o) for i, o in shapes], abs=1)
    assert trained - accuracy["weight pruning"] <= 0.1 < 0.5 < trained - accuracy["pruned at once"]
    assert size["weight pruning"] == pytest.approx(4 * (WEIGHTS - zeros) + WEIGHTS / 8 + VECTOR, abs=4)

    assert facts["kept"] == facts["strongest"]
    kept = 128 * 150 + 150 * 50 + 50 * 19 + 150 + 50 + 19
    assert size["cut at once"] == size["neuron pruning"] == 4 * kept
    assert trained - accuracy["neuron pruning"] <= 0.08 < 0.3 < trained - accuracy["cut at once"]


def check_transfer_and_inference(facts):
    results = facts["results"]
    trained = results["training"][3]
    assert results["weight transfer"][1] < 0.2 and facts["moved"] and results["weight transfer"][3] == trained
    assert facts["student"] == [[128, 60], [60, 20], [20, 19]]
    assert facts["from_slices"][0] > facts["from_random"][0] + 0.1

    labels, teacher = facts["threes"]
    assert labels == 0 and teacher > 0.5  # of the digit that neither student has seen
    assert results["distillation"][3] - results["distillation"][1] > 0.05

    assert facts["devices"] == [1, 2, 4, 8] and facts["equal"]
    assert 0 < facts["float_loss"] < 0.05  # it ran on rounded activations, near the float network
    assert results["parallel inference"][1] == results["parallel inference"][3]


@pytest.mark.slow
def test_a_model_of_ones_own_runs(tmp_path):
    cells = executed(read("your_model"), tmp_path)
    said = {name: "".join(o.get("text", "") for o in cell.outputs) for name, cell in cells.items()}
    assert "100.0% of the parameters in matrices feed a site" in said["inspect"]
    stages = re.findall(r"^(float|prune|quantize) +([\d.]+)%", said["compress"], re.MULTILINE)
    assert [name for name, _ in stages] == ["float", "prune", "quantize"] and min(float(a) for _, a in stages) > 95
    assert float(re.search(r"read back: ([\d.]+)%", said["artifact"])[1]) > 95
    page = cells["report"].outputs[0]["data"]["text/html"]
    assert page.startswith("<div><iframe srcdoc=") and "quantize" in page


@pytest.mark.slow
def test_a_network_shrinks(tmp_path):
    cells = executed(read("pruning"), tmp_path)
    said = {name: "".join(o.get("text", "") for o in cell.outputs) for name, cell in cells.items()}
    number = lambda pattern, text: float(re.search(pattern, text)[1].replace(",", ""))
    assert said["groups"].count("may be cut") == 4 and said["groups"].count("reaches an output") == 1
    assert re.findall(r"^params/block.*?(equal|different|rescaled)", said["plan"], re.MULTILINE) == ["equal"] * 4
    assert number(r"network with zeros: (\S+)", said["cut"]) < 1e-4
    for what in ("multiply-accumulates", "bytes"):
        before, after = re.search(rf"{what} ([\d,]+) → ([\d,]+)", said["cut"]).groups()
        assert 4 * int(after.replace(",", "")) <= 1.05 * int(before.replace(",", ""))
    scores = {name: float(score) for name, score in re.findall(r"^(.+?) +([\d.]+)%$", said["repair"], re.MULTILINE)}
    assert list(scores) == ["whole", "cut", "refitted", "trained on"]
    assert scores["whole"] > 95 and scores["refitted"] > scores["cut"] and scores["trained on"] > scores["whole"] - 3
    assert number(r"largest difference: (\S+)", said["rebuild"]) < 1e-4
    times = re.search(r"batch 256: +([\d.]+) ms → +([\d.]+) ms", said["latency"])
    assert float(times[2]) < float(times[1])


# Appended to the notebook on Deep Compression: what it printed or drew, and where its files are.
TOLD = """
import json

shared_values = {"values": np.asarray(values).tolist(), "slopes": np.asarray(slopes).tolist()}
print(json.dumps({"folder": str(folder), "steps": steps, "coding": where_and_which, **shared_values}))
"""
LAYERS = ("fc1", "fc2", "fc3")


@pytest.mark.slow
def test_deep_compression_holds_step_by_step(tmp_path):
    notebook = read("deep_compression")
    notebook.cells.append(nbformat.v4.new_code_cell(TOLD, id="told"))
    told = json.loads(executed(notebook, tmp_path)["told"].outputs[0].text)
    folder = pathlib.Path(told["folder"])
    paths = {name: folder / f"{name.replace(' ', '_')}.jn" for name in told["steps"]}
    networks = {name: jn.load_file(path)[0]["variables"]["params"] for name, path in paths.items()}
    again = jn.load_file(folder / "deep_compression.jn")[0]["variables"]["params"]
    sizes = {name: path.stat().st_size for name, path in paths.items()} | {"paper": (folder / "huffman.bin").stat().st_size}
    shutil.rmtree(folder)

    assert sizes == {name: size for name, (*_, size) in told["steps"].items()} | {"paper": sizes["paper"]}
    assert jax.tree.all(jax.tree.map(np.array_equal, floats(again), floats(networks["values trained"])))
    train, test = digits_of_the_notebook()
    check_steps(told["steps"], {name: floats(network) for name, network in networks.items()}, test)
    check_laws({name: floats(network) for name, network in networks.items()}, networks["a price for each bit"])
    check_slopes(told, floats(networks["shared"]), train)
    check_coding(told["coding"], floats(networks["values trained"]), sizes)


def floats(network):
    return jax.tree.map(np.asarray, jn.densify(network))


def digits_of_the_notebook():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = (images[order] / 16).astype(np.float32), labels[order]
    return (x[:1297], y[:1297]), (x[1297:], y[1297:])


def activations(network, x):
    """The inputs of the three layers, and the logits."""
    out = [x]
    for layer in LAYERS:
        x = x @ network[layer]["kernel"] + network[layer]["bias"]
        x = x if layer == "fc3" else np.maximum(x, 0)
        out.append(x)
    return out


def check_steps(steps, networks, test):
    x, y = test
    for name, (score, *_) in steps.items():
        counted = (activations(networks[name], x)[-1].argmax(1) == y).mean()
        assert score == pytest.approx(counted, abs=1.01 / len(y)), name  # a tie may fall otherwise
    score, memory, size = ({name: step[i] for name, step in steps.items()} for i in range(3))
    best = score["trained"]
    assert best > 0.95 and score["pruned at once"] < best - 0.05
    assert all(score[name] > best - 0.025 for name in ("pruned", "shared", "values trained", "a price for each bit"))
    weights, kept, biases = 50_200, 5_020, 410
    assert memory["trained"] == 4 * (weights + biases) > size["trained"]
    assert memory["pruned"] == pytest.approx(weights / 8 + 4 * (kept + biases), abs=3)
    # codes of 3 bits, tables of 7 floats
    assert memory["shared"] == pytest.approx(weights / 8 + 3 * kept / 8 + 4 * (3 * 7 + biases), abs=6)
    assert memory["values trained"] == memory["shared"]
    assert abs(size["values trained"] - size["shared"]) < 64  # the tables alone differ
    assert size["trained"] > 8 * size["pruned"] > 24 * size["shared"]
    assert size["a price for each bit"] < 0.85 * size["values trained"]


def check_laws(networks, priced):
    names = ("pruned at once", "pruned", "shared", "values trained")
    at_once, pruned, shared, tuned = ([networks[name][layer]["kernel"] for layer in LAYERS] for name in names)
    assert [sum((w == 0).sum() for w in own) for own in (at_once, pruned)] == [round(0.9 * 50_200)] * 2
    for before, own, after in zip(pruned, shared, tuned):
        assert (own[before == 0] == 0).all() and np.array_equal(own == 0, after == 0)
        assert len(np.unique(own)) <= 8 and not np.array_equal(own, after)
        pairs = np.unique(np.stack([own.ravel(), after.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(own)) == len(np.unique(after))  # the same members
        values = np.unique(own)
        assert np.array_equal(values[np.abs(before[..., None] - values).argmin(-1)], own)  # each has the nearest
    for tensor in jax.tree.leaves(priced, is_leaf=jn.is_compressed):
        codes = np.asarray(tensor.densify()) / np.asarray(tensor.scale)
        assert np.abs(codes - np.rint(codes)).max() < 1e-4


def check_slopes(told, network, train):
    """The gradient of each shared value of fc2, by back-propagation in NumPy: the sum over its members."""
    x, y = (part[:1000] for part in train)
    _, first, second, logits = activations(jax.tree.map(np.float64, network), x.astype(np.float64))
    share = np.exp(logits - logits.max(1, keepdims=True))
    error = (share / share.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
    slope = first.T @ ((error @ network["fc3"]["kernel"].T) * (second > 0))
    members = [network["fc2"]["kernel"] == np.float32(value) for value in told["values"]]
    assert len(members) == 7 and sum(m.sum() for m in members) == (network["fc2"]["kernel"] != 0).sum()
    assert told["slopes"] == pytest.approx([slope[m].sum() for m in members], rel=1e-3, abs=1e-6)
    assert np.abs(told["slopes"]).max() > 1e-3


def entropy_in_bytes(symbols):
    share = np.unique(symbols, return_counts=True)[1] / symbols.size
    return -symbols.size * float((share * np.log2(share)).sum()) / 8


def shortest_in_bits(symbols):
    """Of a prefix code: each merge of Huffman's tree costs what lies below it a bit."""
    heap = np.unique(symbols, return_counts=True)[1].tolist()
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, both)
        bits += both
    return bits


def check_coding(coding, network, sizes):
    huffman = 4 * 410  # the biases
    for layer in LAYERS:
        weights, rows = network[layer]["kernel"].ravel(), {name: sum(parts) for name, parts in coding[layer].items()}
        values, codes = np.unique(weights, return_inverse=True)
        kept = np.flatnonzero(weights)
        assert rows["packed"] == pytest.approx((weights.size + 3 * kept.size) / 8)
        # places, then values given the places: the chain rule of entropy
        assert rows["order-0 entropy"] == pytest.approx(entropy_in_bytes(codes), rel=1e-6)
        distance = np.diff(kept, prepend=-1)
        stops = (distance - 1) // 32
        apart = np.concatenate([np.full(stops.sum(), 32), distance - 32 * stops])
        found = np.concatenate([np.zeros(stops.sum()), weights[kept]])
        for told, symbols in zip(coding[layer]["Huffman, as in the paper"], (apart, found)):
            assert 0 <= told - shortest_in_bits(symbols) / 8 < 40  # beside a table of code lengths
        assert rows["the file's coder"] < min(1.05 * rows["order-0 entropy"], rows["Huffman, as in the paper"])
        huffman += sum(coding[layer]["Huffman, as in the paper"]) + 4 * (len(values) - 1)
    assert sizes["paper"] == huffman > sizes["values trained"]
