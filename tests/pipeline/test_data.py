"""Sources of batches: what is wrong is named, short batches count for what they hold, a run goes on where it was."""

import jax
import numpy as np
import pytest

import jaxopt_nn as jn
from jaxopt_nn.pipeline import data as sources
from jaxopt_nn.pipeline.checkpoints import Checkpoints
from jaxopt_nn.pipeline.compress import Compressor
from jaxopt_nn.pipeline.data import Arrays, Stream, source_of

X, Y = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 2, 1])
KEY = jax.random.key(0)


def test_arrays_keep_what_they_are_given():
    source = source_of((X, [1, 0, 1, 0]), "train")
    assert source.tree[0] is X and source.size == 4 and source.example[0].shape == (1, 3)
    assert source.steps(3) == 1 and source.batch_rows(3) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((X[:0], Y[:0]), "train: no examples"),
        ((X, Y[:3]), r"train: the first axes are the examples, and differ: 0 \[4, 3\], 1 \[3\]"),
        ((X, np.int32(3)), r"differ: 0 \[4, 3\], 1 \[\]"),
        ((X + np.nan, Y), "train, 0: NaN or Inf"),
        ({}, "train: holds no array"),
        (iter([X]), "train: is an iterator, which can be gone over once only"),
    ],
)
def test_bad_data_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        source_of(given, "train")


def test_what_is_no_data_is_named():
    with pytest.raises(TypeError, match=r"train is a int; pass arrays \(inputs, labels\), or what gives batches"):
        source_of(3, "train")
    with pytest.raises(TypeError, match="train, 1: dtype <U1 is no number"):
        source_of((X, np.array(list("abcd"))), "train")


def test_arrays_in_batches_of_any_size_fill_up_the_last():
    batches = list(Arrays((X, Y), "test").batches(3))
    assert [real.tolist() for _, real in batches] == [[1, 1, 1], [1, 0, 0]]
    np.testing.assert_array_equal(batches[1][0][0], X[[3, 3, 3]])


def loader(*batches):
    """A function that gives the batches again at each call."""
    return lambda: iter(batches)


def taken(source, epochs=1, start=0):
    """Rows that count, batch by batch."""
    found = []
    for part in source.stretches(0, epochs, KEY, start):
        for i in range(part.n):
            found.append(part.batches[0][i][part.real[i] > 0][:, 0].tolist())
    return found


@pytest.mark.parametrize("most", [1, 2, 100])
def test_a_stream_is_stacked_short_batches_count_for_what_they_hold(monkeypatch, most):
    monkeypatch.setattr(sources, "STRETCH", most)
    source = Stream(loader((X[:2], Y[:2]), (X[2:], Y[2:]), (X[:1], Y[:1])), "train")
    assert source.steps(7) == 3 and source.batch_rows(7) == 2
    assert taken(source, 2) == 2 * [[0.0, 3.0], [6.0, 9.0], [0.0]]
    assert len({part.batches[0].shape for part in source.stretches(0, 2, KEY)}) == 1
    assert taken(source, 2, start=3) == [[0.0, 3.0], [6.0, 9.0], [0.0]]
    assert [real.tolist() for _, real in source.batches(0)] == [[1, 1], [1, 1], [1, 0]]


@pytest.mark.parametrize("kind", ["list", "class", "function"])
def test_whatever_can_be_gone_over_again_is_a_stream(kind):
    batches = [(X[:2], Y[:2]), (X[2:], Y[2:])]

    class Loader:
        def __iter__(self):
            return iter(batches)

    given = {"list": batches, "class": Loader(), "function": lambda: iter(batches)}[kind]
    assert taken(source_of(given, "train")) == [[0.0, 3.0], [6.0, 9.0]]


def test_a_function_is_told_the_epoch_and_a_seed_of_its_own():
    told = []

    def batches(epoch, seed):
        told.append((epoch, seed))
        yield X[np.random.default_rng(seed).permutation(4)][:2], Y[:2]

    source = Stream(batches, "train")
    assert source.steps(0) == 1 and source.batch_rows(0) == 2
    told.clear()
    whole, rest = taken(source, 3), taken(source, 3, start=1)
    assert rest == whole[1:] and [epoch for epoch, _ in told] == [0, 1, 2, 1, 2]
    assert len({seed for _, seed in told}) == 3 and taken(source, 3) == whole


def once_short():
    """Three batches at the first pass, two ever after."""
    passes = []

    def batches():
        passes.append(0)
        return iter([(X, Y)] * (3 if len(passes) < 3 else 2))

    return batches


def generator(*batches):
    yield from batches


def breaking():
    yield X, Y
    raise RuntimeError("the disk is gone")


def one_iterator(*batches):
    """The same iterator at each call."""
    held = generator(*batches)
    return lambda: held


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (once_short(), r"train: epoch 0 ended after 2 batches, an epoch has 3; pass data that can be gone over again"),
        (loader((X, Y), (X[:, :2], Y)), r"train, batch 1 of epoch 0, 0: float32\[4, 2\], the first batch has float32\[4, 3\]"),
        (loader((X, Y), (X, Y.astype(np.int8))), r"batch 1 of epoch 0, 1: int8\[4\], the first batch has int64\[4\]"),
        (loader((X[:2], Y[:2]), (X, Y)), "and no more rows"),
        (loader((X, Y), (X, Y[:2])), "batch 1 of epoch 0: numbers of rows differ: 0 4, 1 2"),
        (loader((X, Y), (X, Y, Y)), r"batch 1 of epoch 0: holds \['0', '1', '2'\], the first batch \['0', '1'\]"),
        (loader((X, Y), (X * np.nan, Y)), "train, batch 1 of epoch 0, 0: NaN or Inf"),
        (loader((X, Y), (X[:0], Y[:0])), "batch 1 of epoch 0, 0: has no row; leave empty batches out"),
        (loader(), "train: gives no batch; pass at least one"),
        (breaking, "train, batch 1 of epoch 0: RuntimeError: the disk is gone"),
        (one_iterator((X, Y), (X, Y)), "train: gives the same iterator again, which can be gone over once only; pass a list"),
        (one_iterator((X, Y)), "train: gives the same iterator again"),
    ],
    ids=["early", "shape", "dtype", "rows", "rows of parts", "structure", "NaN", "empty", "nothing", "raises", "once", "one"],
)
def test_a_loader_that_fails_is_named_with_its_batch(batches, said):
    with pytest.raises(ValueError, match=said):
        taken(Stream(batches, "train"))


def test_more_batches_than_an_epoch_has_are_named():
    class Loader(list):
        def __len__(self):
            return 2

    with pytest.raises(ValueError, match="epoch 0 has more than 2 batches"):
        taken(Stream(Loader([(X, Y)] * 3), "train"))


def test_a_loader_without_a_length_it_could_tell_is_counted():
    class Loader(list):
        def __len__(self):
            raise TypeError("unknown")

    source = Stream(Loader([(X, Y)] * 3), "train")
    assert source.steps(0) == 3 and source.size == 12


def test_an_evaluation_of_fewer_batches_than_before_is_refused():
    """A metric over a part of the data would look like one over all of it."""
    network = jn.Network(lambda v, x: x @ v["w"], {"w": np.eye(3, dtype=np.float32)})
    task = jn.classification(test=once_short())
    first = jn.evaluate(network, task)
    assert first["accuracy"] == np.mean(X.argmax(1) == Y)
    with pytest.raises(ValueError, match="test: epoch 0 ended after 2 batches, an epoch has 3"):
        jn.evaluate(network, task)
    with pytest.raises(ValueError, match="test: gives the same iterator again"):
        jn.evaluate(network, jn.classification(test=one_iterator((X, Y), (X, Y))))


RNG = np.random.default_rng(0)
GOOD = [(RNG.standard_normal((8, 3)).astype(np.float32), RNG.integers(0, 2, 8)) for _ in range(4)]
SPOILT = {
    "NaN": ((GOOD[2][0] * np.nan, GOOD[2][1]), "batch 2 of epoch 1, 0: NaN or Inf"),
    "shape": ((GOOD[2][0][:, :2], GOOD[2][1]), r"batch 2 of epoch 1, 0: float32\[8, 2\], the first batch has"),
    "empty": ((GOOD[2][0][:0], GOOD[2][1][:0]), "batch 2 of epoch 1, 0: has no row"),
    "early": (None, "train: epoch 1 ended after 2 batches, an epoch has 4"),
    "error": (OSError("no such disk"), "batch 2 of epoch 1: OSError: no such disk"),
}
NETWORK = jn.Network(lambda v, x: x @ v["w"], {"w": np.zeros((3, 2), np.float32)})


@pytest.fixture(scope="module")
def compressor():
    """Three epochs of four steps, compiled once; and the run that nothing stops."""
    made = Compressor([jn.Stage("float", jn.identity(), epochs=3, learning_rate=0.1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "STRETCH", 1)
        return made, made(NETWORK, jn.classification(train=lambda: iter(GOOD), test=GOOD[0]), latency=False)


@pytest.mark.parametrize("kind", SPOILT)
def test_training_that_its_data_stops_keeps_what_was_done(tmp_path, monkeypatch, compressor, kind):
    """The third batch of the second epoch is bad; with mended data the run goes on to the numbers of an undisturbed one."""
    monkeypatch.setattr(sources, "STRETCH", 1)
    bad, said = SPOILT[kind]
    spoilt = {"now": True}

    def batches(epoch):
        for i, batch in enumerate(GOOD):
            if not spoilt["now"] or (epoch, i) != (1, 2):
                yield batch
            elif isinstance(bad, Exception):
                raise bad
            elif bad is None:
                return
            else:
                yield bad

    run, whole = compressor
    task = jn.classification(train=batches, test=GOOD[0])
    places = lambda name: Checkpoints(str(tmp_path / name), 1e9)
    with pytest.raises(ValueError, match=said):
        run(NETWORK, task, latency=False, checkpoints=places)
    assert [int(p.name) for p in (tmp_path / "float").iterdir() if p.name.isdigit()] == [6]
    spoilt["now"] = False
    told = []
    resumed = run(NETWORK, task, latency=False, checkpoints=places, watch=told.append)
    assert [entry["step"] for entry in told] == list(range(7, 13))
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert resumed.report["history"] == whole.report["history"]


def test_test_data_that_fails_after_training_costs_no_training(tmp_path, monkeypatch, compressor):
    monkeypatch.setattr(sources, "STRETCH", 1)
    (bad, said), spoilt = SPOILT["NaN"], {"now": True}
    tested = lambda: iter([*GOOD[:2], bad if spoilt["now"] else GOOD[2]])
    task = jn.classification(train=lambda: iter(GOOD), test=tested)
    places, told = lambda name: Checkpoints(tmp_path / name, 1e9), []
    with pytest.raises(ValueError, match=said.replace("epoch 1", "epoch 0")):
        compressor[0](NETWORK, task, latency=False, checkpoints=places)
    spoilt["now"] = False
    found = compressor[0](NETWORK, task, latency=False, checkpoints=places, watch=told.append)
    assert not told and np.isfinite(found.stages[-1]["metrics"]["loss"])
