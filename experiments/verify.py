"""Reads an artifact back whole and checks everything about it that can be checked here.

    jaxopt verify runs/digits_quickstart/network.jn

Checked are all checksums, every array against the structure, and for each exported program that it can be read and takes the
stored weights. The program for this platform is run: the weights that it prepares equal those that ``jaxopt_nn.prepare`` makes
of the stored ones, to the bit, and its outputs on random inputs are finite. With ``--code`` they are compared with those of the
model's code, which the artifact's config names: it is imported and called, so only for an artifact whose author you trust. The
exit status is 1 where something is wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxopt_nn.coding.forms import artifact_bytes, artifact_files, read_artifact
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.core.transform import State
from jaxopt_nn.export.imported import Imported, fitted, imported
from jaxopt_nn.export.programs import Programs, of_files, opened
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.reporting.leaf_table import format_of
from jaxopt_nn.tensors.base import nbytes

from . import common
from .command import start
from .predict import loaded

PyTree = Any
#: Rows of the inputs that a program is tried on, and the length of an axis that may have any, of texts say.
ROWS = 4
#: Most that outputs of program and code may differ, as a share of the largest: rounding activations amplifies the last bits.
TOLERANCE = 0.05


def run(artifact: str, code: bool = False, max_bytes: int | None = None) -> dict[str, Any]:
    """Verifies an artifact.

    Args:
      artifact: the file that ``jaxopt_nn.save``, ``save_file`` or ``compress`` wrote, or the folder of ``save_artifact``.
      code: whether the program for this platform is compared with the model's code.
      max_bytes: most memory that its arrays may take, as for ``load_file``.

    Returns:
      ``artifact``; ``bytes`` on disk and ``files``, their number; ``leaves``, each with ``path``, ``shape``, ``format`` and
      ``bytes``; ``programs``, ``{platform: what was checked}``; ``code``, how the model's code compares (None: it was not).

    Raises:
      ValueError: something is wrong; says what.
      FileNotFoundError: no such file.
    """
    common.check_no_run(artifact)
    tree, manifest = read_artifact(artifact, max_bytes=max_bytes)
    variables, states = parts(tree, manifest)
    programs = of_files(artifact_files(artifact, manifest))
    network, said = checked_programs(programs, variables, states)
    return {
        "artifact": artifact,
        "bytes": artifact_bytes(artifact),
        "files": len(manifest["files"]) + 1 if os.path.isdir(artifact) else 1,
        "leaves": [
            {"path": path, "shape": list(leaf.shape), "format": format_of(leaf), "bytes": nbytes(leaf)}
            for path, leaf in leaves_by_path(variables).items()
        ],
        "programs": said,
        "code": compared(artifact, network) if code else None,
    }  # fmt: skip


def parts(tree: PyTree, manifest: Mapping[str, Any]) -> tuple[PyTree, dict[str, State]]:
    """Variables and states of a network; of an artifact that holds another tree, that tree."""
    extra = manifest["extra"]
    if not isinstance(extra, Mapping) or "rules" not in extra:
        return tree, {}
    return tree["variables"], {site: State(**state) for site, state in tree["states"].items()}


def checked_programs(
    programs: Mapping[str, Programs], variables: PyTree, states: Mapping[str, State]
) -> tuple[Network | None, dict[str, str]]:
    """The network of the program for this platform, where there is one, and a word on each program.

    Raises:
      ValueError: a program is damaged, takes other weights, prepares them otherwise, or gives NaN or Inf.
    """
    here, network, said = jax.default_backend(), None, {}
    for platform, program in programs.items():
        fitted(program, platform, variables, states)
        said[platform] = f"readable, takes the stored weights; not run, this machine has {here}"
    if here in programs:
        network = imported(programs, variables, states)
        check_prepared(network.variables["leaves"], variables)
        if not all(np.isfinite(x).all() for x in outputs(network, example(network))):
            raise ValueError(f"programs/{here}: gives NaN or Inf on random inputs")
        said[here] = "runs; prepares the stored weights as jaxopt_nn.prepare does, to the bit; outputs are finite"
    return network, said


def check_prepared(leaves: Mapping[str, list[Any]], variables: PyTree) -> None:
    """Raises ValueError where the arrays that a program prepared are not those of the stored tree."""
    for path, arrays in opened(leaves_by_path(jax.jit(prepare)(variables))).items():
        same = [bits(a) == bits(b) for a, b in zip(arrays, leaves[path], strict=True)]
        if not all(same):
            raise ValueError(f"{path}: the program prepares another weight than the one that is stored")


def bits(x: Any) -> tuple[str, tuple[int, ...], bytes]:
    """All that makes an array equal to another: its dtype, shape and bytes."""
    x = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return str(x.dtype), tuple(x.shape), np.asarray(x).tobytes()


def example(network: Network) -> tuple[PyTree, ...]:
    """Inputs that its program takes: floats from a normal distribution, zeros of other kinds."""
    assert isinstance(network.apply, Imported)
    rng = np.random.default_rng(0)

    def drawn(x: jax.ShapeDtypeStruct) -> jax.Array:
        shape = tuple(n if isinstance(n, int) else ROWS for n in x.shape)
        return jnp.asarray(rng.standard_normal(shape) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(shape), x.dtype)

    return tuple(jax.tree.map(drawn, network.apply.inputs))


def outputs(network: Network, inputs: tuple[PyTree, ...]) -> list[np.ndarray]:
    """The floating outputs, as float32."""
    arrays = [jnp.asarray(x) for x in jax.tree.leaves(network(*inputs))]
    return [np.asarray(x, np.float32) for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]


def compared(artifact: str, network: Network | None) -> str:
    """How the outputs of the program differ from those of the model's code.

    Raises:
      ValueError: by more than ``TOLERANCE``, in shapes, or by NaN; the artifact holds no program for this platform, or does
        not name its model.
    """
    if network is None:
        raise ValueError(f"{artifact}: holds no program for {jax.default_backend()} that --code could compare")
    code = loaded(artifact)[0]
    inputs = example(network)
    ours, theirs = outputs(network, inputs), outputs(code, inputs)
    forms = [", ".join(f"float32{list(x.shape)}" for x in each) for each in (ours, theirs)]
    if forms[0] != forms[1]:
        raise ValueError(f"the program gives {forms[0]}, the model's code {forms[1]}")
    with np.errstate(invalid="ignore"):  # of infinities: NaN, which is refused
        shares = [np.abs(a - b).max(initial=0) / np.abs(b).max(initial=1e-30) for a, b in zip(ours, theirs)]
    worst = float(np.max(shares, initial=0))
    if not worst <= TOLERANCE:
        raise ValueError(f"program and model's code differ by {worst:.2g} of the largest output; allowed is {TOLERANCE}")
    return f"program and model's code differ by {worst:.2g} of the largest output"


def sentences(checks: Mapping[str, Any]) -> list[str]:
    """What the table does not say."""
    stored = sum(leaf["bytes"] for leaf in checks["leaves"])
    files = "1 file" if checks["files"] == 1 else f"{checks['files']} files"
    sizes = f"{files}, {checks['bytes']:,} bytes; weights {stored:,} bytes in memory"
    out = [f"{checks['artifact']}: {sizes}; checksums right"]
    out += [f"program for {platform}: {said}" for platform, said in checks["programs"].items()]
    if not checks["programs"]:
        out.append("holds no program: loading it needs the model's code")
    return [*out, checks["code"]] if checks["code"] else out


def define_flags() -> None:
    flags.DEFINE_bool("code", False, "Compare the program with the model's code, which is imported.")
    flags.DEFINE_integer("max_bytes", None, common.MAX_BYTES)


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv[:1])
    if len(argv) != 2:
        sys.exit("error: pass the artifact: jaxopt verify FILE")
    with common.plain_errors():
        checks = run(argv[1], flag.code, flag.max_bytes)
    lines = [[leaf["path"], str(leaf["shape"]), leaf["format"], f"{leaf['bytes']:,}"] for leaf in checks["leaves"]]
    common.show(["leaf", "shape", "format", "bytes"], lines, left=3)
    print("\n".join(sentences(checks)))


if __name__ == "__main__":
    start(define_flags, main, __doc__)
