"""The notebooks: their form, what their first cell refuses, and all of them executed, with their numbers checked."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import subprocess

import jax
import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = pathlib.Path(__file__).parents[2]
NOTEBOOKS = ("quickstart", "your_model", "pruning")
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
PROGRESS = re.compile(r"\w+: step \d+ of \d+, ")
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
