"""The notebook: its form, what its first cell refuses, and all of it executed by a kernel, with its numbers checked."""

import ast
import json
import os
import pathlib
import re
import sys

import jax
import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = pathlib.Path(__file__).parents[2]
NOTEBOOK = REPOSITORY / "colab" / "quickstart.ipynb"
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
# Of LeNet-300-100 on digits: 50,200 weights in matrices, 410 biases and, quantized, as many steps.
WEIGHTS, VECTOR = 64 * 300 + 300 * 100 + 100 * 10, 4 * 410
FLOAT_BYTES = 4 * WEIGHTS + VECTOR

# Appended to the notebook: facts that NumPy finds again, from the weights alone, about what the cells have made.
FACTS = """
import json

def kernels(tree):
    return [np.asarray(x) for x in jax.tree.leaves(jn.densify(tree)) if x.ndim == 2]

def hidden(x):
    layers = [network["params"][f"Dense_{i}"] for i in range(2)]
    for layer in layers:
        x = np.maximum(x.reshape(len(x), -1) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
        yield x

deviations = [np.abs(c - w.mean()).max() / w.std() for w, c in zip(kernels(network), kernels(clipped))]
errors = [np.abs(w - q) / (np.abs(w).max(0) / 127) for w, q in zip(kernels(network), kernels(eight))]
three = test_y == 3
facts = {
    "results": results,
    "devices": counts,
    "deviations": [float(d) for d in deviations],
    "codes_error": float(max(e.max() for e in errors)),
    "levels": max(len(np.unique(c)) for w in kernels(method_of_2_bits.view(*two)) for c in w.T),
    "rounded": rounded[2],
    "zeros": [int((w == 0).sum()) for w in kernels(pruned)],
    "dead": [int((a.max(0) == 0).sum()) for a in hidden(np.asarray(train_x))],
    "masked": [int(layer.off.sum()) for layer in dead.layers if layer.pinned is None],
    "same_outputs": same,
    "changed": int((apply(jn.densify(alive), test_x).argmax(-1) != apply(network, test_x).argmax(-1)).sum()),
    "moved": all(np.array_equal(a, b) for a, b in zip(kernels(network), kernels(moved))),
    "student": [list(w.shape) for w in kernels(student)],
    "from_slices": [float(a) for a in from_slices],
    "from_random": [float(a) for a in from_random],
    "threes": [float(accuracy(student_apply, v, test_x[three], test_y[three])) for v in (plain, taught)],
    "equal": bool((alone == together).all()) and len(together) == len(test_y),
    "float_loss": float(np.abs(together - apply(network, test_x)).max() / np.abs(together).max()),
}
print(json.dumps(facts))
"""
# `method` is used again and again: the test keeps the 2-bit one before the next section replaces it.
KEEP = "method_of_2_bits, two = method, (weights, state)"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook, cell_id: str) -> str:
    return next(cell.source for cell in notebook.cells if cell.id == cell_id)


def test_the_file_is_valid_and_holds_no_output(notebook):
    nbformat.validate(json.loads(NOTEBOOK.read_text()))
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
            ast.parse(cell.source)  # plain Python: no magic, so that it runs anywhere


def test_each_method_has_a_formula_a_short_cell_and_a_picture(notebook):
    cells = notebook.cells
    starts = [i for i, cell in enumerate(cells) if re.match(r"## \d", cell.source)]
    assert [cells[i].source.splitlines()[0] for i in starts] == [f"## {n} · {m}" for n, m in enumerate(METHODS, 1)]
    for i in starts:
        text, method, picture = cells[i : i + 3]
        assert text.source.count("$$") == 2
        lines = method.source.splitlines()
        assert method.cell_type == "code" and len(lines) <= 12 and max(map(len, lines)) <= 110, method.id
        assert "jn." in method.source and "record(" in method.source and "plt" not in method.source
        assert picture.source.startswith("# @title") and picture.source.endswith("plt.show()")
        assert picture.metadata.cellView == "form"  # folded in Colab
        assert cells[i + 3].cell_type == "markdown"


def test_an_older_jax_is_refused_and_not_upgraded(notebook, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    with pytest.raises(RuntimeError, match=r"0\.10\.2 is the floor.*Don't upgrade it in place"):
        exec(code(notebook, "setup"), {})


def test_where_the_library_is_missing_the_first_cell_says_what_to_do(notebook, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "jaxopt_nn", None)
    with pytest.raises(
        ImportError, match=rf"%cd into the clone(.|\n)*%pip install.*jax=={re.escape(jax.__version__)}'"
    ):
        exec(code(notebook, "setup"), {})


def executed(notebook, directory: pathlib.Path):
    """The notebook with its outputs, run by a kernel with this process's environment, on 8 host devices."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("MPLBACKEND", None)  # a kernel draws into the notebook
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(directory)}}
    )
    client.execute(env=environment)
    return notebook


def test_it_runs_from_top_to_bottom_and_its_numbers_hold(notebook, tmp_path):
    at = next(i for i, cell in enumerate(notebook.cells) if cell.id == "bits")
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(KEEP, id="keep"))
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS, id="facts"))
    cells = {cell.id: cell for cell in executed(notebook, tmp_path).cells if cell.cell_type == "code"}

    order = [cell.execution_count for cell in cells.values()]
    assert order == list(range(1, len(cells) + 1))
    outputs = [(name, output) for name, cell in cells.items() for output in cell.outputs]
    drawn = [name for name, output in outputs if "image/png" in output.get("data", {})]
    assert drawn == [name for name in cells if name.endswith("-picture")] and len(drawn) == len(METHODS) + 1
    assert not [output.text for _, output in outputs if output.get("name") == "stderr"]
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind

    facts = json.loads(cells["facts"].outputs[0].text)
    table = "".join(output.text for output in cells["table"].outputs)
    assert [line[:20].strip() for line in table.splitlines()[1:]] == list(facts["results"])
    check_compression(facts)
    check_transfer_and_inference(facts)


def check_compression(facts):
    accuracy = {name: (before, after) for name, (_, before, _, after, _) in facts["results"].items()}
    size = {name: after for name, (*_, after) in facts["results"].items()}
    trained = accuracy["training"][1]
    assert trained >= 0.97 and size["training"] == FLOAT_BYTES

    assert facts["deviations"] == pytest.approx([2.0] * 3, abs=1e-4)
    assert trained - accuracy["clipping"][1] <= 0.01 and size["clipping"] == FLOAT_BYTES

    assert 0.49 < facts["codes_error"] <= 0.5001
    assert trained - accuracy["8 bits"][1] <= 0.01 and size["8 bits"] == WEIGHTS + 2 * VECTOR
    for bits in (4, 3, 2):
        least = WEIGHTS * bits / 8 + 2 * VECTOR
        assert least <= size[f"{bits} bits"] <= 1.01 * least and trained - accuracy[f"{bits} bits"][1] <= 0.02
    assert facts["levels"] == 3 and accuracy["2 bits"][1] - facts["rounded"] > 0.1

    zeros = round(0.9 * WEIGHTS)
    assert sum(facts["zeros"]) == zeros and facts["zeros"][2] < 0.5 * 1000  # erk spares the thin layer
    assert trained - accuracy["weight pruning"][1] <= 0.02 < 0.1 < trained - accuracy["pruned at once"][1]
    assert size["weight pruning"] == 4 * (WEIGHTS - zeros) + WEIGHTS / 8 + VECTOR

    assert facts["dead"] == facts["masked"] and min(facts["dead"]) > 0
    assert facts["same_outputs"] and facts["changed"] == 0
    first, second = (n - dead for n, dead in zip((300, 100), facts["dead"]))
    kept = 64 * first + first * second + second * 10
    assert size["neuron pruning"] == 4 * kept + WEIGHTS / 8 + VECTOR


def check_transfer_and_inference(facts):
    results = facts["results"]
    trained = results["training"][3]
    assert results["weight transfer"][1] < 0.3 and facts["moved"] and results["weight transfer"][3] == trained
    assert facts["student"] == [[64, 60], [60, 20], [20, 10]]
    assert (
        facts["from_slices"][0] > facts["from_random"][0] + 0.1 and facts["from_slices"][-1] > facts["from_random"][-1]
    )

    labels, teacher = facts["threes"]
    assert labels == 0 and teacher > 0.7  # of the digit that neither student has seen
    assert results["distillation"][3] - results["distillation"][1] > 0.05

    assert facts["devices"] == [1, 2, 4, 8] and facts["equal"]
    assert 0 < facts["float_loss"] < 0.05  # it ran on rounded activations, near the float network
    assert results["parallel inference"][1] == results["parallel inference"][3]
