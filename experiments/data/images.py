"""Fashion-MNIST, MNIST and CIFAR-10, read from their original files."""

from __future__ import annotations

import gzip
import math
import pathlib
import struct
import tarfile
import zlib
from collections.abc import Callable

import numpy as np

from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.task import Task

from .files import Source, present

Arrays = tuple[np.ndarray, np.ndarray]

IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

FASHION_MNIST = Source(
    name="Fashion-MNIST",
    folder="fashion-mnist",
    mirrors=(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    sha256=dict(zip(IDX_NAMES, (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ), strict=True)),
    system="/usr/share/datasets/fashion-mnist",
    package="apt-get install dataset-fashion-mnist",
)  # fmt: skip

MNIST = Source(
    name="MNIST",
    folder="mnist",
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    sha256=dict(zip(IDX_NAMES, (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ), strict=True)),
)  # fmt: skip

CIFAR10 = Source(
    name="CIFAR-10 (binary version)",
    folder="cifar-10",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    sha256={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
)


def fashion_mnist(dir: str = "", validation: int = 0, limit: int = 0, seed: int = 0) -> Task:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 and 10,000 grey images of ten kinds of clothes.

    Args:
      dir: the folder with the four IDX files, packed (``.gz``) or not. If empty: that of Debian's package
        ``dataset-fashion-mnist``, else a cache, into which the files are downloaded.
      validation: so many training images, drawn by ``seed``, become the test part, and the test files stay unread; for
        choosing settings. 0: the test files are the test part.
      limit: train on the first so many of the remaining training images; 0 for all.
      seed: of the drawing of ``validation``.

    Returns:
      Inputs float32 ``[n, 28, 28, 1]`` in [0, 1], labels int32 0 to 9.

    Raises:
      FileNotFoundError: a file is missing and can't be downloaded; the message says how to get it.
      ValueError: a file is damaged (cut short, another magic number, other counts or checksum), or ``validation`` or
        ``limit`` is negative or more than there is.
    """
    return _data(FASHION_MNIST, _idx, dir, validation, limit, seed)


def mnist(dir: str = "", validation: int = 0, limit: int = 0, seed: int = 0) -> Task:
    """MNIST (LeCun et al., 1998): 60,000 and 10,000 handwritten digits; as ``fashion_mnist``, but no Debian package."""
    return _data(MNIST, _idx, dir, validation, limit, seed)


def cifar10(dir: str = "", validation: int = 0, limit: int = 0, seed: int = 0) -> Task:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 and 10,000 colour images of ten classes, inputs float32 ``[n, 32, 32, 3]``.

    Args:
      dir: the folder with ``cifar-10-binary.tar.gz``, with ``cifar-10-batches-bin``, or with the ``.bin`` files themselves.
        If empty: a cache, into which the archive is downloaded.
      validation, limit, seed: as for ``fashion_mnist``.

    Raises:
      FileNotFoundError, ValueError: as for ``fashion_mnist``.
    """
    return _data(CIFAR10, _cifar, dir, validation, limit, seed)


def _data(source: Source, read: Callable[..., Arrays], dir: str, validation: int, limit: int, seed: int) -> Task:
    """``read(source, folder, train)`` gives bytes ``[n, H, W, C]`` and labels; only what is used becomes float."""
    if validation < 0 or limit < 0:
        raise ValueError(
            f"{source.name}: validation={validation}, limit={limit}; allowed are numbers of images, 0 for none"
        )
    folder = source.located(dir)
    x, y = read(source, folder, train=True)
    rest = len(y) - validation
    if rest < max(limit, 1):
        raise ValueError(
            f"{source.name}: validation={validation} and limit={limit} of {len(y)} training images; pass smaller numbers"
        )
    kept = slice(0, limit or rest)
    if not validation:
        return classification(train=_example(x[kept], y[kept]), test=_example(*read(source, folder, train=False)))
    # the generator's stream, not its shuffle, is what NumPy promises to keep
    order = np.argsort(np.random.Generator(np.random.PCG64(seed)).random(len(y)), kind="stable")
    train, test = order[:rest][kept], order[rest:]
    return classification(train=_example(x[train], y[train]), test=_example(x[test], y[test]))


def _example(x: np.ndarray, y: np.ndarray) -> Arrays:
    return np.divide(x, np.float32(255), order="C"), y.astype(np.int32)


def _idx(source: Source, folder: pathlib.Path, train: bool) -> Arrays:
    images, labels = IDX_NAMES[:2] if train else IDX_NAMES[2:]
    (images, x), (labels, y) = (_idx_array(source, folder, name, axes) for name, axes in ((images, 3), (labels, 1)))
    if x.shape[1:] != (28, 28):
        raise _damaged(source, images, f"images of {x.shape[1]} x {x.shape[2]} pixels, must be 28 x 28")
    if len(x) != len(y):
        raise _damaged(source, labels, f"{len(y)} labels for {len(x)} images")
    _check_labels(source, labels, y)
    return x[..., None], y


def _idx_array(source: Source, folder: pathlib.Path, name: str, axes: int) -> tuple[pathlib.Path, np.ndarray]:
    """An IDX file and its bytes, ``uint8`` of ``axes`` axes: magic number 0x08NN, the lengths, the entries, big-endian."""
    path = present(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder / name}: not there, nor without .gz. {source.ways}")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(source, path, f"can't be unpacked ({error})") from error
    header = 4 * (1 + axes)
    if len(content) < header:
        raise _damaged(source, path, f"{len(content)} bytes, the header alone has {header}")
    magic, *shape = struct.unpack(f">{1 + axes}I", content[:header])
    if magic != 0x800 + axes:
        raise _damaged(source, path, f"magic number {magic:#010x}, must be {0x800 + axes:#010x}")
    if len(content) - header != math.prod(shape):
        raise _damaged(source, path, f"{len(content) - header} bytes after the header, which announces {shape}")
    return path, np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _cifar(source: Source, folder: pathlib.Path, train: bool) -> Arrays:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    archive = folder / next(iter(source.sha256))
    plain = next((f for f in (folder, folder / "cifar-10-batches-bin") if (f / names[0]).is_file()), None)
    if plain is None and archive.is_file():
        batches = _members(source, archive, names)
    else:
        batches = [_plain_bytes(source, (plain or folder) / name) for name in names]
    parts = [_cifar_batch(source, folder / name, batch) for name, batch in zip(names, batches, strict=True)]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _plain_bytes(source: Source, path: pathlib.Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there. {source.ways}")
    return path.read_bytes()


def _members(source: Source, archive: pathlib.Path, names: list[str]) -> list[bytes]:
    """The files of these names in the archive, wherever in it; nothing is written."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = pathlib.PurePosixPath(member.name).name
                if member.isfile() and name in names:
                    found[name] = tar.extractfile(member).read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise _damaged(source, archive, f"can't be unpacked ({error})") from error
    for name in names:
        if name not in found:
            raise _damaged(source, archive, f"holds no {name}")
    return [found[name] for name in names]


def _cifar_batch(source: Source, path: pathlib.Path, content: bytes) -> Arrays:
    """A record is the label's byte and the planes red, green, blue, each 32 x 32 bytes by rows."""
    record = 1 + 3 * 32 * 32
    if not content or len(content) % record:
        raise _damaged(source, path, f"{len(content)} bytes, no multiple of the {record} of a record")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    _check_labels(source, path, records[:, 0])
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _check_labels(source: Source, path: pathlib.Path, y: np.ndarray) -> None:
    if not len(y) or y.max() > 9:
        raise _damaged(source, path, f"label {y.max()}, allowed are 0 to 9" if len(y) else "no examples")


def _damaged(source: Source, path: pathlib.Path, what: str) -> ValueError:
    return ValueError(f"{path}: damaged: {what}. Replace it. {source.ways}")
