"""``jaxopt export``: one artifact in every format, each read back; what can't be written is named."""

import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from experiments import __main__ as command
from experiments import export
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.qtensor import QTensor

RNG = np.random.default_rng(0)


def apply(variables, x):
    return jnp.tanh(x @ variables["up"]["kernel"]) @ variables["head"]["kernel"] + variables["head"]["bias"][None]


def network(masked=False):
    coded = lambda *shape: QTensor.from_codes(RNG.integers(-8, 8, shape), RNG.random((1, shape[1]), np.float32), bits=4)
    up = coded(16, 8)
    up = Masked.pack(RNG.random((16, 8)) < 0.5, up) if masked else up
    return jn.Network(apply, {"up": {"kernel": up}, "head": {"kernel": coded(8, 3), "bias": jnp.zeros(3)}})


def saved(folder, masked=False, platforms=("cpu", "tpu")):
    own = network(masked)
    return jn.save(folder, own, programs=jn.exported(own, (np.zeros((2, 16), np.float32),), platforms))


def test_all_formats_are_read_back(tmp_path, capsys, monkeypatch):
    artifact, out = saved(tmp_path / "artifact"), tmp_path / "out"
    words = [f"--artifact={artifact.path}", f"--to={','.join(export.FORMATS)}", f"--out={out}", "--platforms=cpu,tpu"]
    found = export.run(artifact, export.FORMATS, out, platforms=("cpu", "tpu"))
    assert [entry["format"] for entry in found] == list(export.FORMATS)
    assert all("read back, 3 of 3 leaves equal to the bit" == entry["checked"] for entry in found)
    for entry in found:
        files = [os.path.join(at, name) for at, _, names in os.walk(entry["path"]) for name in names] or [entry["path"]]
        assert (entry["files"], entry["bytes"]) == (len(files), sum(map(os.path.getsize, files)))
    assert found[0]["notes"][0].startswith("program for cpu: runs") and "not run" in found[0]["notes"][1]
    x = RNG.standard_normal((5, 16)).astype(np.float32)
    np.testing.assert_allclose(jn.load(out / "network.jn")(x), jn.load(artifact, apply)(x), rtol=1e-5)
    with pytest.raises(FileExistsError, match="overwrite"):
        export.run(artifact, ["safetensors"], out)
    monkeypatch.setattr(sys, "argv", ["jaxopt", "export", *words, "--overwrite"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert not ended.value.code
    assert "safetensors" in capsys.readouterr().out


def test_leaves_that_do_not_fit_are_named_and_dense_on_request(tmp_path):
    artifact = saved(tmp_path / "artifact", masked=True, platforms=("cpu",))
    with pytest.raises(ValueError, match="up/kernel: is a Masked"):
        export.run(artifact, ["compressed-tensors"], tmp_path / "out")
    (found,) = export.run(artifact, ["compressed-tensors"], tmp_path / "out", others="dense")
    assert found["checked"] == "read back, 2 of 3 leaves equal to the bit"
    assert found["notes"][0].startswith("up/kernel is written dense: it is a Masked")


def test_mistakes_are_told(tmp_path):
    artifact = saved(tmp_path / "artifact", platforms=("cpu",))
    with pytest.raises(ValueError, match="--to=onnx: allowed are jax, safetensors"):
        export.run(artifact, ["onnx"], tmp_path / "out")
    with pytest.raises(ValueError, match=r"export for .*'cuda'.*: pass a list of some of 'cpu', 'gpu', 'tpu'"):
        export.run(artifact, ["jax"], tmp_path / "out", platforms=["cuda"])
    with pytest.raises(ValueError, match="does not name the model"):
        export.run(artifact, ["jax"], tmp_path / "out", platforms=["tpu"])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_file_that_is_read_back_otherwise_is_an_error():
    with pytest.raises(ValueError, match="safetensors: w was read back otherwise"):
        export.check_equal({"w": np.ones(3)}, {"w": np.zeros(3)}, "safetensors")
    with pytest.raises(ValueError, match="another structure"):
        export.check_equal({"w": np.ones(3)}, {"v": np.ones(3)}, "safetensors")
