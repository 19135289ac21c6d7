"""A size is met: the file on the disk has it, and a knob that can't give it is an error that says what it gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_nn.core.combine import where
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.methods.rate_quantization import rate_quantize
from jaxopt_nn.pipeline.classes import classification
from jaxopt_nn.pipeline.compress_to import compress_to, file_bytes
from jaxopt_nn.pipeline.recipe import Stage

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 120), np.float32)
TASK = classification(train=(X, X[:, :9].argmax(1)), test=(X, X[:, :9].argmax(1)))
DRAWN = {name: RNG.standard_normal(shape, np.float32) for name, shape in {"up": (120, 80), "down": (80, 9)}.items()}
NETWORK = Network(lambda v, x: x @ v["up"] @ v["down"], {name: jnp.asarray(x) for name, x in DRAWN.items()})


def by_step(step):
    return [Stage("codes", where("**", rate_quantize(0.0, step=step)))]


def test_the_file_has_the_size(tmp_path):
    result = compress_to(NETWORK, by_step, TASK, bytes=4000, knob=(0.02, 4.0), workdir=tmp_path / "run", latency=False)
    trials = result.report["trials"]
    last = trials[-1]
    assert abs(last["bytes"] - 4000) <= 80 and len(trials) <= 7
    file = tmp_path / "run" / f"knob_{last['knob']!r}" / "network.jn"
    assert file.stat().st_size == last["bytes"] > file_bytes(result.network)
    assert last["metric"] == result.stages[-1]["metrics"][TASK.headline]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(f"knob_{trial['knob']!r}" for trial in trials)
    ordered = sorted(trials, key=lambda trial: trial["knob"])
    assert [t["bytes"] for t in ordered] == sorted((t["bytes"] for t in trials), reverse=True)


def test_what_the_knob_cannot_give_is_said():
    with pytest.raises(ValueError, match=r"the two knobs give \d+ bytes at 0.02, \d+ bytes at 0.05; pass knob="):
        compress_to(NETWORK, by_step, TASK, bytes=2000, knob=(0.02, 0.05), latency=False)
    jumps = lambda knob: by_step(0.02 if knob < 1 else 4.0)
    with pytest.raises(ValueError, match=r"no trial of 4 was within 2\.0%"):
        compress_to(NETWORK, jumps, TASK, bytes=4000, knob=(0.5, 2.0), trials=4, latency=False)


def test_another_size_goes_on_from_the_trials_that_it_has_in_common(tmp_path):
    """A trial of one knob is never taken for one of another, which another size asks for at the same place."""

    def recipe(step):
        return [Stage("codes", where("**", rate_quantize(0.0, step=step)), epochs=1, learning_rate=1e-4 * step)]

    options = {"knob": (0.02, 4), "workdir": tmp_path / "run", "latency": False, "tolerance": 0.3}
    one = compress_to(NETWORK, recipe, TASK, bytes=4000, **options)
    other = compress_to(NETWORK, recipe, TASK, bytes=2500, **options)
    assert one.report["trials"][:2] == other.report["trials"][:2] and len(other.report["trials"]) > 2
    for result, size in ((one, 4000), (other, 2500)):
        last = result.report["trials"][-1]
        assert abs(last["bytes"] - size) <= 0.3 * size
        assert (tmp_path / "run" / f"knob_{last['knob']!r}" / "network.jn").stat().st_size == last["bytes"]
    knobs = {float(trial["knob"]) for result in (one, other) for trial in result.report["trials"]}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(f"knob_{knob!r}" for knob in knobs)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"bytes": 0}, "bytes=0.: allowed are the whole numbers from 1"), ({"bytes": 2.5}, "bytes=2.5"),
        ({"knob": (1.0, 1.0)}, "knob=.1.0, 1.0..: two different values above 0"), ({"knob": (0.0, 1.0)}, "knob"),
        ({"knob": 3.0}, "knob"), ({"knob": (True, 2)}, "knob=.True, 2..: two different values above 0"),
        ({"tolerance": 0}, "tolerance=0.: a share of the size"), ({"tolerance": "x"}, "tolerance='x'.: a share of the size"),
        ({"trials": 1}, "trials=1.: allowed are the whole numbers from 2"), ({"trials": True}, "trials=True"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_errors(arguments, said):
    with pytest.raises(ValueError, match=rf"^compress_to\({said}"):
        compress_to(NETWORK, by_step, TASK, **{"bytes": 4000, "knob": (0.02, 4.0), **arguments})
