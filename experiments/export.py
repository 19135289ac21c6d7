"""Takes an artifact to where networks run: programs without its code, or weights in the format of another tool.

    jaxopt export --artifact=runs/digits_quickstart/network.jn --to=jax,safetensors --out=exported

``jax``: an artifact with ``jax.export`` programs for ``--platforms``, weights as stored, for a batch of any size.
``safetensors``, ``msgpack``, ``orbax``: the variables, compressed as they are. ``compressed-tensors``: integer weights as vLLM
and Transformers read them; leaves that do not fit are an error, or written without masks, or as floats, with
``--others=dense``. Each file is read back and compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from jaxopt_nn.coding.artifact import Artifact
from jaxopt_nn.coding.compressed_tensors import from_compressed_tensors, to_compressed_tensors
from jaxopt_nn.coding.forms import artifact_files, read_artifact
from jaxopt_nn.coding.msgpack import from_msgpack, to_msgpack
from jaxopt_nn.coding.orbax import from_orbax, to_orbax
from jaxopt_nn.coding.safetensors import from_safetensors, to_safetensors
from jaxopt_nn.coding.writer import save_file
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.export.exported import check_platforms, exported
from jaxopt_nn.export.programs import as_files, of_files
from jaxopt_nn.tensors.base import densify

from . import common
from .command import start
from .predict import of_config
from .verify import bits, checked_programs, parts

PyTree = Any
#: Containers of variables: what is written, the function that writes it, and the one that reads it.
CONTAINERS: dict[str, tuple[str, Callable[..., Artifact], Callable[[Path], PyTree]]] = {
    "safetensors": ("model.safetensors", to_safetensors, from_safetensors),
    "compressed-tensors": ("compressed-tensors", to_compressed_tensors, from_compressed_tensors),
    "msgpack": ("model.msgpack", to_msgpack, from_msgpack),
    "orbax": ("orbax", to_orbax, from_orbax),
}
FORMATS = ("jax", *CONTAINERS)


def run(
    artifact: str | os.PathLike[str],
    to: Sequence[str],
    out: str | os.PathLike[str],
    *,
    platforms: Sequence[str] = ("cpu", "tpu", "gpu"),
    others: str = "error",
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Writes an artifact in each of the formats, reads it back and compares.

    Args:
      artifact: what ``experiments.compress``, ``jaxopt_nn.save``, ``save_file`` or ``save_artifact`` wrote.
      to: some of ``FORMATS``.
      out: a folder for all that is written; made where it is missing.
      platforms: of the programs. others, overwrite: as for ``jaxopt_nn.to_compressed_tensors``.

    Returns:
      of each format ``format``, ``path``, ``files``, ``bytes``, ``checked`` (in a few words) and ``notes``, sentences.

    Raises:
      ValueError: no artifact, another format or platform; what a format can't hold; what was read back differs.
      OSError: something can't be read or written, or stands there already.
    """
    unknown = [name for name in to if name not in FORMATS]
    if unknown or not to:
        raise ValueError(f"--to={','.join(to)}: allowed are {', '.join(FORMATS)}, joined by commas")
    check_platforms(list(platforms))
    common.check_no_run(artifact)
    tree, manifest = read_artifact(artifact)
    variables, states = parts(tree, manifest)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name in to:
        if name == "jax":
            written, notes = _programs(artifact, tree, manifest, folder / "network.jn", platforms, overwrite)
        else:
            written, notes = _container(name, variables, folder, others, overwrite)
            notes += ["the ranges that its rules know are not part of it"] if states else []
        leaves = len(leaves_by_path(variables))
        checked = f"read back, {leaves - len(written.dense)} of {leaves} leaves equal to the bit"
        files = sum(p.is_file() for p in (written.path, *written.path.rglob("*")))
        entry = {"format": name, "path": str(written.path), "files": files, "bytes": written.bytes}
        found.append({**entry, "checked": checked, "notes": notes})
    return found


def _programs(
    artifact: str | os.PathLike[str],
    tree: PyTree,
    manifest: Mapping[str, Any],
    target: Path,
    platforms: Sequence[str],
    overwrite: bool,
) -> tuple[Artifact, list[str]]:
    """An artifact with a program for each platform: its own, and for other platforms those of the model's code."""
    programs = of_files(artifact_files(artifact, manifest))
    missing = [platform for platform in platforms if platform not in programs]
    if missing:
        network, task = of_config(artifact)
        programs |= exported(network, task.example, missing)
    programs = {platform: programs[platform] for platform in platforms}
    written = save_file(
        target, tree, recipe=manifest["recipe"], extra=manifest["extra"], files=as_files(programs), overwrite=overwrite
    )
    back, again = read_artifact(written)
    check_equal(back, tree, "jax")
    _, said = checked_programs(of_files(artifact_files(written, again)), *parts(back, again))
    return written, [f"program for {platform}: {text}" for platform, text in said.items()]


def _container(name: str, variables: PyTree, folder: Path, others: str, overwrite: bool) -> tuple[Artifact, list[str]]:
    """The variables in one container."""
    file, write, read = CONTAINERS[name]
    options = {"others": others} if name == "compressed-tensors" else {}
    written = write(folder / file, variables, overwrite=overwrite, **options)
    values = lambda tree: {path: densify(x) if path in written.dense else x for path, x in leaves_by_path(tree).items()}
    check_equal(values(read(written.path)), values(variables), name)
    return written, [f"{path} is written dense: it {reason}" for path, reason in written.dense.items()]


def check_equal(got: PyTree, wanted: PyTree, name: str) -> None:
    """Raises ValueError where two trees differ in structure, a dtype, a shape or a bit."""
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        raise ValueError(f"{name}: what was read back has another structure than what was written; the files can't be trusted")
    read = leaves_by_path(got)
    for path, leaf in leaves_by_path(wanted).items():
        if any(bits(a) != bits(b) for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(read[path]), strict=True)):
            raise ValueError(f"{name}: {path} was read back otherwise than it was written; the files can't be trusted")


def define_flags() -> None:
    flags.DEFINE_string("artifact", None, "The artifact: a file, or a folder.")
    flags.DEFINE_list("to", None, f"Some of {', '.join(FORMATS)}.")
    flags.DEFINE_string("out", None, "A folder for all that is written.")
    flags.DEFINE_list("platforms", ["cpu", "tpu", "gpu"], "Of the programs: some of cpu, tpu, gpu.")
    flags.DEFINE_string("others", "error", "What becomes of leaves that compressed-tensors can't hold: error, or dense.")
    flags.DEFINE_bool("overwrite", False, "Replaces what stands there.")
    flags.mark_flags_as_required(["artifact", "to", "out"])


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv)
    with common.plain_errors():
        found = run(
            flag.artifact, flag.to, flag.out, platforms=flag.platforms, others=flag.others, overwrite=flag.overwrite
        )
    rows = [[x["format"], x["path"], x["checked"], f"{x['files']:,}", f"{x['bytes']:,}"] for x in found]
    common.show(["format", "path", "checked", "files", "bytes"], rows, left=3)
    for entry in found:
        for note in entry["notes"]:
            print(f"{entry['format']}: {note}")


if __name__ == "__main__":
    start(define_flags, main, __doc__)
