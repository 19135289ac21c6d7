"""Original file formats, written here by hand; real Fashion-MNIST where it is installed; damage is named."""

import gzip
import hashlib
import io
import pathlib
import re
import struct
import sys
import tarfile
import time

import numpy as np
import pytest

from experiments.data import files, images, text
from experiments.data.images import cifar10, fashion_mnist, mnist
from experiments.data.text import corpus, text_bytes

NAMES = [name.removesuffix(".gz") for name in images.IDX_NAMES]
DEBIAN = pathlib.Path(images.FASHION_MNIST.system)
needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason=f"no Fashion-MNIST in {DEBIAN}: apt-get install dataset-fashion-mnist"
)


def idx(array, magic=None):
    """An IDX file of a byte array."""
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim if magic is None else magic, *array.shape)
    return header + array.tobytes()


def pixels(n, seed=0, size=28):
    return np.random.default_rng(seed).integers(256, size=(n, size, size), dtype=np.uint8)


def labels(n, start=0):
    return (np.arange(start, start + n) % 10).astype(np.uint8)


def write_idx(folder, packed=False, train=12, test=5):
    """The four files; returns their arrays."""
    arrays = pixels(train), labels(train), pixels(test, seed=1), labels(test, start=3)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(NAMES, arrays, strict=True):
        content = idx(array)
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return arrays


def scaled(x):
    return x[..., None].astype(np.float32) / np.float32(255)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No system folder, an empty cache, mirrors that are files, checksums of those; returns (source, mirror, cache)."""
    mirror = tmp_path / "mirror"
    write_idx(mirror, packed=True)
    sums = {name: hashlib.sha256((mirror / name).read_bytes()).hexdigest() for name in images.IDX_NAMES}
    dead = tmp_path.as_uri() + "/no_mirror/"
    source = files.Source("Tiny", "tiny", (dead, mirror.as_uri() + "/"), sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "MNIST", source)
    return source, mirror, tmp_path / "cache" / "jaxopt_nn" / "tiny"


# The IDX files


@pytest.mark.parametrize("load", [mnist, fashion_mnist])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_packed_or_not(tmp_path, load, packed):
    x, y, test_x, test_y = write_idx(tmp_path, packed)
    data = load(str(tmp_path))
    for part, expected, classes in ((data.train.tree, x, y), (data.test.tree, test_x, test_y)):
        np.testing.assert_array_equal(part[0], scaled(expected))
        np.testing.assert_array_equal(part[1], classes)
        assert (part[0].dtype, part[1].dtype) == (np.float32, np.int32)
        assert part[0].flags.c_contiguous


def test_limit_takes_the_first_images_and_leaves_the_test_alone(tmp_path):
    x, y, _, test_y = write_idx(tmp_path)
    data = mnist(str(tmp_path), limit=7)
    np.testing.assert_array_equal(data.train.tree[0], scaled(x[:7]))
    np.testing.assert_array_equal(data.train.tree[1], y[:7])
    np.testing.assert_array_equal(data.test.tree[1], test_y)


def test_validation_comes_out_of_the_training_images_by_seed(tmp_path):
    x, _, _, _ = write_idx(tmp_path)
    for name in NAMES[2:]:
        (tmp_path / name).unlink()  # the test files are not read
    data = mnist(str(tmp_path), validation=4)
    assert (len(data.train.tree[1]), len(data.test.tree[1])) == (8, 4)
    both = np.concatenate([data.train.tree[0], data.test.tree[0]])
    assert sorted(map(bytes, both)) == sorted(map(bytes, scaled(x)))
    where = {bytes(image): label for image, label in zip(scaled(x), labels(12), strict=True)}
    for images_, labels_ in (data.train.tree, data.test.tree):
        assert [where[bytes(image)] for image in images_] == labels_.tolist()

    again, other = mnist(str(tmp_path), validation=4), mnist(str(tmp_path), validation=4, seed=1)
    np.testing.assert_array_equal(data.test.tree[0], again.test.tree[0])
    assert not np.array_equal(data.test.tree[0], other.test.tree[0])
    limited = mnist(str(tmp_path), validation=4, limit=3)
    np.testing.assert_array_equal(limited.train.tree[0], data.train.tree[0][:3])
    np.testing.assert_array_equal(limited.test.tree[0], data.test.tree[0])


@pytest.mark.parametrize(
    "wrong", [{"validation": -1}, {"limit": -2}, {"validation": 12}, {"limit": 13}, {"validation": 6, "limit": 7}]
)
def test_more_images_than_there_are(tmp_path, wrong):
    write_idx(tmp_path)
    with pytest.raises(ValueError, match=f"validation={wrong.get('validation', 0)}"):
        mnist(str(tmp_path), **wrong)


DAMAGE = {
    "cut short": (0, lambda content: content[:-1], "after the header, which announces"),
    "too long": (1, lambda content: content + b"x", "after the header, which announces"),
    "no header": (2, lambda content: content[:7], "7 bytes, the header alone has 16"),
    "empty": (3, lambda content: b"", "0 bytes, the header alone has 8"),
    "labels for images": (0, lambda content: idx(labels(12), 0x801) + b"\0" * 9, "0x00000801, must be 0x00000803"),
    "count": (1, lambda content: idx(labels(11)), "11 labels for 12 images"),
    "size": (2, lambda content: idx(pixels(5, size=27)), "27 x 27 pixels, must be 28 x 28"),
    "class": (3, lambda content: idx(labels(5) + np.uint8(9)), "label 13, allowed are 0 to 9"),
    "none": (3, lambda content: idx(labels(0)), "0 labels for 5 images"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_idx_file_is_named_with_the_ways_to_get_it(tmp_path, case):
    which, damage, message = DAMAGE[case]
    write_idx(tmp_path)
    path = tmp_path / NAMES[which]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        fashion_mnist(str(tmp_path))
    assert str(error.value).startswith(f"{path}: damaged: ")
    for way in ("apt-get install dataset-fashion-mnist", "--config.data.dir=", "network"):
        assert way in str(error.value)


@pytest.mark.parametrize("damage", [lambda c: c[:-20], lambda c: c[:40] + b"\xff" * 9 + c[49:], lambda c: b"no gzip"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    write_idx(tmp_path, packed=True)
    path = tmp_path / images.IDX_NAMES[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: damaged: can't be unpacked"):
        mnist(str(tmp_path))


@pytest.mark.parametrize(
    "load, first", [(fashion_mnist, "apt-get install"), (mnist, "a copy of "), (cifar10, "a copy of ")]
)
def test_missing_files_are_named_with_the_three_ways(tmp_path, load, first):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=re.escape(str(folder))) as error:
            load(str(folder))
        for way in (first, "--config.data.dir=FOLDER", "a machine with a network"):
            assert way in str(error.value)


# The download


def test_missing_files_are_downloaded_once_from_the_first_mirror_that_has_them(elsewhere, monkeypatch):
    source, _, cache = elsewhere
    data = mnist()
    np.testing.assert_array_equal(data.train.tree[0], scaled(pixels(12)))
    assert sorted(path.name for path in cache.iterdir()) == sorted(source.sha256)

    def no_network(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    np.testing.assert_array_equal(mnist().test.tree[1], data.test.tree[1])


def test_a_download_with_another_checksum_is_refused_and_not_kept(elsewhere):
    source, mirror, cache = elsewhere
    (mirror / images.IDX_NAMES[1]).write_bytes(b"<html>please log in</html>")
    found = hashlib.sha256(b"<html>please log in</html>").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 is {found}, must be {source.sha256[images.IDX_NAMES[1]]}") as error:
        mnist()
    assert "train-labels-idx1-ubyte.gz" in str(error.value) and "Three ways to get Tiny" in str(error.value)
    assert [path.name for path in cache.iterdir()] == [images.IDX_NAMES[0]]


def test_no_network(elsewhere, monkeypatch):
    source, _, cache = elsewhere
    asked = []

    def no_network(url, timeout):
        asked.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(FileNotFoundError, match="Name or service not known") as error:
        mnist()
    assert asked == [mirror + images.IDX_NAMES[0] for mirror in source.mirrors]
    assert all(part in str(error.value) for part in (str(cache / images.IDX_NAMES[0]), *asked, "Three ways"))
    assert not list(cache.iterdir())


def test_an_answer_that_breaks_off_leaves_nothing_behind(elsewhere, monkeypatch):
    _, _, cache = elsewhere

    class Broken(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise TimeoutError("the read operation timed out")
            return super().read(10)

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Broken(b"x" * 100))
    with pytest.raises(FileNotFoundError, match="timed out"):
        mnist()
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_made(elsewhere, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError, match=r"cache.*Three ways to get Tiny"):
        mnist()


def test_a_complete_system_folder_goes_before_the_cache(tmp_path, monkeypatch):
    system, cache = tmp_path / "system", tmp_path / "jaxopt_nn" / "fashion-mnist"
    write_idx(system, packed=True, train=7)
    write_idx(cache, train=9)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = images.FASHION_MNIST
    monkeypatch.setattr(images, "FASHION_MNIST", files.Source(
        found.name, found.folder, (), found.sha256, str(system), found.package
    ))  # fmt: skip
    assert len(fashion_mnist().train.tree[1]) == 7
    (system / images.IDX_NAMES[3]).unlink()
    assert len(fashion_mnist().train.tree[1]) == 9


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / ".cache" / "jaxopt_nn" / "mnist" == images.MNIST.cache


@needs_fashion_mnist
def test_fashion_mnist_is_that_of_its_authors():
    """The unpacked files have the authors' checksums; mean and deviation are those everybody normalizes by."""
    for name, start in zip(NAMES, ("c59f468a2f67", "bad3541b69d9", "5b4141f0afba", "0402a96d92fd"), strict=True):
        content = gzip.decompress((DEBIAN / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest().startswith(start)
    begin = time.process_time()
    data = fashion_mnist()
    assert time.process_time() - begin < 3
    assert data.train.tree[0].shape == (60_000, 28, 28, 1) and data.test.tree[0].shape == (10_000, 28, 28, 1)
    assert (data.train.tree[0].min(), data.train.tree[0].max()) == (0, 1)
    assert round(float(data.train.tree[0].mean(dtype=np.float64)), 4) == 0.2860
    assert round(float(data.train.tree[0].std(dtype=np.float64)), 4) == 0.3530
    assert data.train.tree[1][:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert np.bincount(data.train.tree[1]).tolist() == [6000] * 10 and np.bincount(data.test.tree[1]).tolist() == [1000] * 10


# CIFAR-10


def records(n, seed):
    """Bytes of `n` records, and their images [n, 32, 32, 3] and labels."""
    x = np.random.default_rng(seed).integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
    y = labels(n, start=seed)
    content = b"".join(
        bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for image, label in zip(x, y, strict=True)
    )
    return content, x, y


def write_cifar(folder, form):
    """The six batches as plain files, in their folder, or in the archive."""
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    batches = [records(2, seed) for seed in range(6)]
    if form == "archive":
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for name, (content, _, _) in zip(["readme.html", *names], [(b"hi", 0, 0), *batches], strict=True):
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        inner = folder / ("cifar-10-batches-bin" if form == "folder" else ".")
        inner.mkdir(exist_ok=True)
        for name, (content, _, _) in zip(names, batches, strict=True):
            (inner / name).write_bytes(content)
    return batches


@pytest.mark.parametrize("form", ["plain", "folder", "archive"])
def test_cifar10_is_read_from_each_of_its_forms(tmp_path, form):
    batches = write_cifar(tmp_path, form)
    data = cifar10(str(tmp_path))
    np.testing.assert_array_equal(data.train.tree[0], scaled(np.concatenate([x for _, x, _ in batches[:5]]))[..., 0])
    np.testing.assert_array_equal(data.train.tree[1], np.concatenate([y for _, _, y in batches[:5]]))
    np.testing.assert_array_equal(data.test.tree[0], scaled(batches[5][1])[..., 0])
    np.testing.assert_array_equal(data.test.tree[1], batches[5][2])
    assert data.train.tree[0].flags.c_contiguous and data.train.tree[0].dtype == np.float32
    assert len(cifar10(str(tmp_path), validation=3, limit=2).train.tree[1]) == 2


def test_damaged_cifar10_files(tmp_path):
    write_cifar(tmp_path, "plain")
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin: damaged: 6145 bytes, no multiple of the 3073"):
        cifar10(str(tmp_path))
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match=r"data_batch_3.bin: damaged: label 10"):
        cifar10(str(tmp_path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin: not there"):
        cifar10(str(tmp_path))


def test_a_damaged_cifar10_archive(tmp_path):
    write_cifar(tmp_path, "archive")
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: damaged: "):
        cifar10(str(tmp_path))
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"holds no data_batch_1.bin"):
        cifar10(str(tmp_path))


# Text


def test_rows_are_bytes_and_labels_the_bytes_after(tmp_path):
    content = bytes(np.random.default_rng(0).integers(256, size=1000, dtype=np.uint8))
    (tmp_path / "a.txt").write_bytes(content)
    data = text_bytes(str(tmp_path), length=16)
    assert data.train.tree[0].shape == (59, 16) and data.test.tree[0].shape == (3, 16)  # of 950 and of 50 bytes
    assert (data.train.tree[0].dtype, data.train.tree[1].dtype, data.headline) == (np.int32, np.int32, "bits/byte")
    for (x, y), part in ((data.train.tree, content[:950]), (data.test.tree, content[950:])):
        for i, (row, after) in enumerate(zip(x, y, strict=True)):
            assert bytes(row.tolist()) == part[16 * i : 16 * i + 16]
            assert bytes(after.tolist()) == part[16 * i + 1 : 16 * i + 17]
    limited = text_bytes(str(tmp_path), length=16, limit=5)
    np.testing.assert_array_equal(limited.train.tree[1], data.train.tree[1][:5])
    np.testing.assert_array_equal(limited.test.tree[0], data.test.tree[0])


def test_a_corpus_is_a_file_or_the_visible_files_of_a_folder_by_path(tmp_path):
    for name, content in {"b.txt": b"bb", "a/z.md": b"az", "a.py": b"a", ".git/x": b"no", "c/.h": b"no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert corpus(str(tmp_path)) == (b"a" + b"az" + b"bb", hashlib.sha256(b"aazbb").hexdigest())
    assert corpus(str(tmp_path / "b.txt"))[0] == b"bb"


def test_the_default_corpus_is_the_pinned_part_of_the_standard_library(caplog):
    content, checksum = corpus()
    assert len(text.STANDARD_LIBRARY) == 20 and list(text.STANDARD_LIBRARY) == sorted(text.STANDARD_LIBRARY)
    assert 1_000_000 < len(content) < 1_500_000
    for name in ("argparse", "typing"):  # the first and the last
        source = pathlib.Path(__import__(name).__file__).read_bytes()
        assert content.startswith(source) if name == "argparse" else content.endswith(source)
    known = {(3, 11, 7): "fce39f31194d6d80", (3, 13, 0): "a36ff4b4d07d9623"}
    assert checksum.startswith(known.get(sys.version_info[:3], checksum))
    with caplog.at_level("INFO", logger="absl"):
        data = text_bytes(length=64)
    assert f"{len(content)} bytes, SHA-256 {checksum[:16]}" in caplog.text
    assert data.train.tree[0].shape[1] == 64 and 18 < len(data.train.tree[0]) / len(data.test.tree[0]) < 20


def test_text_that_is_missing_or_too_short_or_not_ascii(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"--config.data.dir="):
        corpus(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="none"):
        corpus(str(tmp_path / "none"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"argparse.py.*Three ways to get text"):
        corpus()
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"length=128.*0 bytes"):
        text_bytes(str(path))
    path.write_bytes(b"a" * 100)
    assert text_bytes(str(path), length=4).test.tree[0].shape == (1, 4)
    for wrong, message in (
        ({"length": 5}, "5 bytes"),
        ({"length": 0}, "length=0"),
        ({"length": 4, "limit": 24}, "23 training"),
    ):
        with pytest.raises(ValueError, match=message):
            text_bytes(str(path), **wrong)
    path.write_bytes(b"a" * 70 + "é".encode() * 20)
    with pytest.raises(ValueError, match="byte 195 at 70; pass vocabulary=256"):
        text_bytes(str(path), length=4, vocabulary=128)
