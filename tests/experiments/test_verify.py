"""``jaxopt verify``: a good artifact is told leaf by leaf, a damaged one is refused by name."""

import pathlib
import shutil

import absl.flags
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_nn as jn
from experiments import verify


def apply(variables, x):
    return jnp.tanh(x @ variables["w"]) @ variables["head"] + variables["b"][None]


def network(scale=1.0):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
    variables = {"w": draw(16, 8), "head": draw(8, 3), "b": jnp.zeros(3)}
    method = jn.by_path([("w", jn.quantize(4)), ("head", jn.quantize(4))])
    return jn.Network(apply, method.pack(variables, method.init(variables, jn.ModelInfo())), rules=jn.arithmetic("w4a8"))


INPUTS = (np.zeros((2, 16), np.float32),)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    target = tmp_path_factory.mktemp("verify") / "artifact"
    jn.save(target, network(), programs=jn.exported(network(), INPUTS, ["cpu", "tpu"]))
    return target


@pytest.fixture
def main(monkeypatch):
    """The command on its arguments, with the flags at their defaults."""
    values = absl.flags.FlagValues()
    absl.flags.DEFINE_bool("code", False, "", flag_values=values)
    absl.flags.DEFINE_integer("max_bytes", None, "", flag_values=values)
    absl.flags.DEFINE_integer("verbosity", 0, "", flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(absl.flags, "FLAGS", values)
    return lambda *arguments: verify.main(["jaxopt verify", *map(str, arguments)])


def test_leaves_programs_and_bytes(artifact, main, capsys):
    main(artifact)
    text = capsys.readouterr().out
    found = verify.run(str(artifact))
    stored = network().variables
    assert {leaf["path"]: leaf["bytes"] for leaf in found["leaves"]} == {n: jn.nbytes(x) for n, x in stored.items()}
    assert found["bytes"] == artifact.stat().st_size
    assert found["programs"]["cpu"].startswith("runs; ") and found["programs"]["tpu"].startswith("readable")
    with pytest.raises(ValueError, match="does not name the model"):
        verify.run(str(artifact), code=True)
    assert "QTensor int4" in text and "checksums right" in text


def test_a_tree_that_is_no_network(tmp_path):
    jn.save_artifact(tmp_path / "tree", {"w": np.ones((2, 3), np.float32)})
    found = verify.run(str(tmp_path / "tree"))
    assert found["programs"] == {} and [leaf["bytes"] for leaf in found["leaves"]] == [24]


def flip(file: pathlib.Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda at: flip(at, 0.5), "the checksum of its data is wrong"),
        (lambda at: flip(at, 0.004), "the checksum of its header is wrong"),
        (lambda at: flip(at, 0), "its first bytes are others"),
        (lambda at: at.write_bytes(at.read_bytes()[:-1]), "truncated"),
        (lambda at: at.write_bytes(b""), "its first bytes are others"),
        (lambda at: at.unlink(), "no such file"),
    ],
)
def test_damage_ends_with_status_1_and_one_line(artifact, main, tmp_path, damage, said):
    copy = tmp_path / "copy"
    shutil.copy(artifact, copy)
    damage(copy)
    with pytest.raises(SystemExit) as ended:
        main(copy)
    assert isinstance(ended.value.code, str) and said in ended.value.code and "\n" not in ended.value.code


def test_a_damaged_file_of_a_folder_is_named(tmp_path):
    folder = jn.save_artifact(tmp_path / "tree", {"w": np.ones((2, 3), np.float32)}, files={"a": b"123"}).path
    assert verify.run(str(folder))["files"] > 2
    flip(folder / "a", 0.5)
    with pytest.raises(ValueError, match="a: its content is not what the manifest's checksum says"):
        verify.run(str(folder))


def test_a_program_of_other_weights_is_found(tmp_path):
    """Checksums that are right again do not hide that program and tree are not of one network."""
    changed = {name: jn.densify(x) for name, x in network().variables.items()}
    with pytest.raises(ValueError, match="are not of one network"):
        programs = jn.exported(network(), INPUTS, ["tpu"])
        jn.save(tmp_path / "mixed", jn.Network(apply, changed), programs=programs)
        verify.run(str(tmp_path / "mixed"))


def test_a_program_that_prepares_another_weight_is_found(artifact):
    tree, _ = jn.load_file(artifact)
    ready = jn.load(artifact).variables["leaves"]
    verify.check_prepared(ready, tree["variables"])
    with pytest.raises(ValueError, match="w: the program prepares another weight"):
        verify.check_prepared(ready, {**tree["variables"], "w": network(2.0).variables["w"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.at[0, 0].set(jnp.nan), "differ by nan of the largest output"),
        (lambda x: 2 * x, "differ by 1 of the largest output"),
        (lambda x: x[:, :1], r"gives float32\[4, 1\], the model's code float32\[4, 3\]"),
        (lambda x: (x, x), r"gives float32\[4, 3\], float32\[4, 3\], the model's code float32\[4, 3\]"),
    ],
)
def test_outputs_that_differ_from_the_codes_are_refused(artifact, monkeypatch, change, message):
    code = jn.Network(apply, network().variables)
    monkeypatch.setattr(verify, "loaded", lambda artifact: (code,))
    program = jn.load(artifact)
    assert verify.compared("here", program).startswith("program and model's code differ by ")
    monkeypatch.setattr(verify, "example", lambda network: (jnp.ones((4, 16)),))
    with pytest.raises(ValueError, match=message):
        verify.compared("here", jn.Network(lambda v, x: change(apply(v, x)), network().variables))


def test_the_arguments(main):
    for arguments in ([], ["a", "b"]):
        with pytest.raises(SystemExit, match="pass the artifact"):
            main(*arguments)
