"""Lists the leaves of an artifact's file: how each is stored, and the bytes that it takes in the file.

    jaxopt list runs/digits_quickstart/network.jn [OTHER] [--verify] [--picture=bytes.png]

Columns: shape and format; ``bits``, of the file for each weight; ``zeros``; ``stored``, the bytes in memory; ``file``, those in
the file, with checksums; ``ratio``, of float32 over the file; ``share``, of the file. The lines add up to what ``ls -l`` says.
The whole file is read, and damage is an error. With a second file the two are compared, leaf by leaf. ``--verify`` checks its
programs too, as ``jaxopt verify`` does; ``--picture`` draws where the bytes are, as PNG.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import flags

from jaxopt_nn.coding.loader import read_sizes
from jaxopt_nn.core.files import write_file
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.reporting.leaf_table import leaf_table
from jaxopt_nn.reporting.sizes import draw_sizes

from . import common, verify
from .command import start

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(path: str, max_bytes: int | None = None) -> list[dict[str, Any]]:
    """What a file consists of, as dicts: its leaves in the tree's order, its header, its further files.

    Args:
      path: of the file that ``jaxopt_nn.save``, ``save_file`` or ``compress`` wrote.
      max_bytes: most memory that its arrays may take, as for ``load_file``.

    Returns:
      of each ``part`` (leaf, header or file) its ``path``, ``file`` (bytes in it) and ``share``; of a leaf also ``shape``,
      ``format``, ``size``, ``bits`` (of the file for a weight), ``zeros`` (share), ``stored`` (bytes in memory), ``ratio``
      (float32 over the file) and ``digest``.

    Raises:
      ValueError: damage, or no such file's format. FileNotFoundError: no such file.
    """
    common.check_no_run(path)
    tree, _, sizes = read_sizes(path, max_bytes)
    total = sum(sizes.leaves.values()) + sizes.header + sum(sizes.files.values())
    leaves = leaves_by_path(tree)
    found = []
    for entry in leaf_table(tree, {}):
        bytes_, n = sizes.leaves.get(entry["path"], 0), entry["size"]
        found.append({
            "part": "leaf", "path": entry["path"].removeprefix("variables/"), "shape": entry["shape"],
            "format": entry["format"], "size": n,
            "bits": 8 * bytes_ / max(n, 1), "zeros": 1 - entry["nonzero"] / max(n, 1), "stored": entry["bytes"],
            "file": bytes_, "ratio": 4 * n / max(bytes_, 1), "share": bytes_ / total, "digest": _digest(leaves[entry["path"]]),
        })  # fmt: skip
    others = [("header", "header", sizes.header), *(("file", *each) for each in sizes.files.items())]
    return [*found, *({"part": part, "path": path, "file": size, "share": size / total} for part, path, size in others)]


def _digest(leaf: Any) -> int:
    """A number that is another one where the leaf is, but for chance."""
    return hash((jax.tree.structure(leaf), *map(verify.bits, jax.tree.leaves(leaf))))


def shown(entries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table, the sum last."""
    columns = ["path", "shape", "format", "bits", "zeros", "stored", "file", "ratio", "share"]
    leaves = [entry for entry in entries if "shape" in entry]
    size, file, stored = (sum(e.get(key, 0) for e in entries) for key in ("size", "file", "stored"))
    zeros = sum(e["zeros"] * e["size"] for e in leaves) / max(size, 1)
    whole = {
        "path": "all", "shape": [size], "format": "", "bits": 8 * file / max(size, 1), "zeros": zeros, "stored": stored,
        "file": file, "ratio": 4 * size / file, "share": 1.0,
    }  # fmt: skip
    form = {
        "path": str, "shape": lambda n: " x ".join(map(str, n)) or "1", "format": str, "bits": "{:.3f}".format,
        "zeros": "{:.1%}".format, "stored": "{:,}".format, "file": "{:,}".format, "ratio": "{:.1f}x".format,
        "share": "{:.1%}".format,
    }  # fmt: skip
    return columns, [[form[c](e[c]) if c in e else "" for c in columns] for e in (*entries, whole)]  # type: ignore[operator]


def compared(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of two files: bytes in each, and what differs."""
    one, two = ({(entry["part"], entry["path"]): entry for entry in entries} for entries in (first, second))
    lines = []
    for part, path in dict.fromkeys((*one, *two)):
        a, b = one.get((part, path)), two.get((part, path))
        sizes = [f"{entry['file']:,}" if entry else "-" for entry in (a, b)]
        change = f"{b['file'] - a['file']:+,}" if a and b else "-"
        lines.append([path, *sizes, change, _difference(a, b)])
    ends = [sum(entry["file"] for entry in entries) for entries in (first, second)]
    lines.append(["all", *(f"{n:,}" for n in ends), f"{ends[1] - ends[0]:+,}", f"{ends[1] / ends[0]:.3f}x"])
    return ["path", "file", "other", "change", "what differs"], lines


def _difference(a: dict[str, Any] | None, b: dict[str, Any] | None) -> str:
    if a is None or b is None:
        return "only in the other" if a is None else "only in the first"
    if "shape" not in a or "shape" not in b:
        return ""
    for key in ("shape", "format"):
        if a[key] != b[key]:
            return f"{a[key]}, {b[key]}"
    return "nothing" if a["digest"] == b["digest"] else "values"


def picture(entries: Sequence[dict[str, Any]]) -> bytes:
    """Where the bytes of a file are, as PNG."""

    def draw(figure: Figure) -> None:
        draw_sizes(figure.add_subplot(), [(e["path"], e["file"], e.get("format", "")) for e in entries])

    return common.picture(draw, 7.6, 1.0 + 0.23 * min(len(entries), 40))


def define_flags() -> None:
    flags.DEFINE_bool("verify", False, "Checks the programs too, as jaxopt verify does.")
    flags.DEFINE_integer("max_bytes", None, common.MAX_BYTES)
    flags.DEFINE_string("picture", "", "A file for a picture of where the bytes are, as PNG.")


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv[:1])
    if len(argv) not in (2, 3):
        sys.exit("error: pass the artifact: jaxopt list FILE, or two to compare them")
    with common.plain_errors():
        files = [run(path, flag.max_bytes) for path in argv[1:]]
        checks = verify.sentences(verify.run(argv[1], max_bytes=flag.max_bytes)) if flag.verify else []
        if flag.picture:
            write_file(Path(flag.picture).absolute(), picture(files[0]))
    if len(files) == 2:
        common.show(*compared(*files))
    else:
        common.show(*shown(files[0]), left=3)
    print("\n".join(checks), end="\n" if checks else "")


if __name__ == "__main__":
    start(define_flags, main, __doc__)
