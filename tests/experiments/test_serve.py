"""The real server in a process of its own: wrong requests, overload, deadlines, many clients, and its end."""

import contextlib
import http.client
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aiohttp.test_utils import make_mocked_request

from experiments import serve
from experiments.serving import wire
from experiments.serving.server import Server
from jaxopt_nn.export.exported import exported
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.store import save
from tests.experiments.test_predict import CLASSES, FEATURES, own_model, saved, tiny

NPY, JSON = {"Content-Type": "application/x-npy"}, {"Content-Type": "application/json"}
REPOSITORY = pathlib.Path(serve.__file__).parent.parent


def slow_model(seed, seconds):
    """``own_model``, whose every call takes so many seconds."""

    def late(y):
        time.sleep(seconds)
        return np.asarray(y)

    def apply(variables, x):
        y = own_model(0).apply(variables, x)
        return jax.pure_callback(late, jax.ShapeDtypeStruct(y.shape, y.dtype), y)

    return Network(apply, own_model(seed).variables)


def npy(x):
    out = io.BytesIO()
    np.save(out, np.asarray(x, np.float32))
    return out.getvalue()


def images(rng, rows):
    return rng.standard_normal((rows, 4, 4)).astype(np.float32)


def wanted(x):
    return np.tanh(x.reshape(len(x), FEATURES)) @ np.asarray(own_model(0).variables["w"])


class Client:
    """One connection to a server, open within its ``with``."""

    def __init__(self, port):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def send(self, method, path, body=None, headers=None):
        self._connection.request(method, path, body, headers or {})

    def ask(self, *request):
        self.send(*request)
        with self._connection.getresponse() as response:
            return response.status, response.headers, response.read()

    def predict(self, x):
        status, headers, body = self.ask("POST", "/v1/predict", npy(x), NPY)
        return status, np.load(io.BytesIO(body)) if status == 200 else (headers, json.loads(body))


def ask(port, *request):
    with Client(port) as client:
        return client.ask(*request)


def predict(port, x):
    with Client(port) as client:
        return client.predict(x)


@contextlib.contextmanager
def served(artifact, *flags, ready=True):
    """``(port, process)`` of a server on one device, as soon as it is ready, or listens."""
    environment = {**os.environ, "XLA_FLAGS": re.sub(r"--xla_force_host\S+", "", os.environ["XLA_FLAGS"])}
    command = [sys.executable, "-m", "experiments.serve", f"--artifact={artifact}", "--port=0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:"), line
            if ready:
                assert process.stdout.readline() == "ready\n"
            yield int(line.rpartition(":")[2]), process
        finally:
            process.kill()


def together(calls):
    """Runs each call in a thread of its own; their results in order."""
    results = [None] * len(calls)

    def one(n):
        results[n] = calls[n]()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "artifact"
    network = Network(lambda v, x: jnp.tanh(x.reshape(x.shape[0], FEATURES)) @ v["w"], {"w": own_model(0).variables["w"]})
    save(directory, network, programs=exported(network, (jax.ShapeDtypeStruct((2, 4, 4), jnp.float32),), ("cpu",)))
    return directory


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    config = tiny(model=f"{__name__}:slow_model", model_args={"seconds": 0.3})
    return saved(tmp_path_factory.mktemp("slow") / "artifact", {"config": config})


@pytest.fixture(scope="module")
def server(artifact):
    with served(artifact, "--max_batch=16") as (port, _):
        yield port


@pytest.mark.parametrize(
    ("accept", "outputs", "kind"),
    [
        (None, 1, wire.NPY),
        ("*/*", 1, wire.NPY),
        ("*/*", 2, wire.NPZ),
        ("application/json, text/plain, */*", 1, wire.JSON),
        ("application/x-npz;q=0.9, */*;q=0.1", 1, wire.NPZ),
        ("Application/X-NPY, application/json", 1, wire.NPY),
        ("application/x-npy, application/json", 2, wire.JSON),
        ("text/html, */*;q=0.8", 1, wire.NPY),
    ],
)
def test_the_answer_has_the_first_format_that_is_accepted(accept, outputs, kind):
    headers = {**NPY, **({"Accept": accept} if accept else {})}
    engine = types.SimpleNamespace(outputs=[None] * outputs)
    request = make_mocked_request("POST", "/v1/predict", headers=headers)
    assert Server._format(types.SimpleNamespace(_engine=engine), request) == kind


MALFORMED = [
    ("GET", "/v1/nothing", b"", {}, 404, "/v1/predict, /v1/model"),
    ("GET", "/v1/predict", b"", {}, 405, "allowed is POST"),
    ("POST", "/metrics", b"", {}, 405, "allowed is GET, HEAD"),
    ("POST", "/v1/predict", b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/x-npy"),
    ("POST", "/v1/predict", b"", {}, 415, "application/json"),
    ("POST", "/v1/predict", npy(np.ones((4, 4))), {**NPY, "Content-Encoding": "gzip"}, 415, "without Content-Encoding"),
    ("POST", "/v1/predict", npy(np.ones((4, 4))), {**NPY, "Accept": "text/html"}, 406, "possible are application/json"),
    ("POST", "/v1/predict", npy(np.ones((4, 4))), {**NPY, "X-Deadline-Ms": "-1"}, 400, "X-Deadline-Ms: sent -1"),
    ("POST", "/v1/predict", bytes(1_000_000), NPY, 413, "send fewer examples in a request"),
    ("POST", "/v1/predict", iter([bytes(500_000)] * 2), NPY, 413, "send fewer examples in a request"),
    ("POST", "/v1/predict", npy(np.ones((17, 4, 4))), NPY, 400, "inputs: sent 17; allowed is 1 to 16 examples"),
    ("POST", "/v1/predict", npy(np.ones((4, 5))), NPY, 400, "inputs: sent float32[4, 5]; allowed is float32[4, 4], or a"),
    ("POST", "/v1/predict", npy(np.full((4, 4), np.nan)), NPY, 400, "inputs: sent nan at [0, 0]; allowed is finite"),
    ("POST", "/v1/predict", b"[1]", JSON, 400, 'body: sent no object; allowed is {"inputs": array}'),
]


@pytest.mark.slow
def test_wrong_requests_are_refused_by_name_and_right_ones_answered(server, rng):
    x = images(rng, 3)
    for method, path, body, headers, status, message in MALFORMED:
        got, _, said = ask(server, method, path, body, headers)
        assert (got, message in json.loads(said)["error"]) == (status, True), said
    status, outputs = predict(server, x)
    np.testing.assert_allclose(outputs, wanted(x), atol=1e-5)
    assert predict(server, x[0])[1].shape == (CLASSES,)
    for accept in ({}, {"Accept": "application/x-npz"}):
        status, headers, body = ask(server, "POST", "/v1/predict", json.dumps({"inputs": x.tolist()}), {**JSON, **accept})
        out = np.load(io.BytesIO(body)) if accept else json.loads(body)
        np.testing.assert_allclose(out["outputs"], wanted(x), atol=1e-5)
    status, _, body = ask(server, "GET", "/v1/model")
    model = json.loads(body)
    assert model["inputs"] == [{"name": "inputs", "dtype": "float32", "shape": ["batch", 4, 4]}]
    assert (model["runs"], model["compiled_batches"]) == ("exported program", [1, 2, 4, 8, 16])
    assert [ask(server, "GET", path)[0] for path in ("/healthz", "/readyz")] == [200, 200]


def metric(port, name):
    lines = ask(port, "GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.slow
def test_many_clients_get_their_own_answers(server):
    predicted = 'serve_requests_total{code="200",path="/v1/predict"}'
    before = [metric(server, name) for name in (predicted, "serve_batch_examples_sum")]

    def requests(seed):
        rng = np.random.default_rng(seed)
        right = examples = 0
        with Client(server) as client:
            for _ in range(50):
                x = images(rng, rng.integers(1, 17))
                status, outputs = client.predict(x)
                right += status == 200 and np.allclose(outputs, wanted(x), atol=1e-5)
                examples += len(x)
        return right, examples

    right, examples = zip(*together([lambda seed=seed: requests(seed) for seed in range(8)]))
    after = [metric(server, name) for name in (predicted, "serve_batch_examples_sum")]
    assert sum(right) == 400
    assert [b - a for a, b in zip(before, after)] == [400, sum(examples)], "each computed once"
    assert metric(server, "serve_queue_examples") == 0


@pytest.mark.slow
def test_overload_is_told_and_what_was_taken_is_answered(slow, rng):
    x = images(rng, 4)
    with served(slow, "--max_batch=4", "--queue=8") as (port, _):
        ends = together([lambda: predict(port, x) for _ in range(10)])
        assert ask(port, "GET", "/healthz")[0] == 200
    answered = [outputs for status, outputs in ends if status == 200]
    refused = [told for status, told in ends if status == 503]
    assert len(answered) + len(refused) == 10 and len(answered) >= 3 and len(refused) >= 5
    assert all(np.allclose(outputs, wanted(x), atol=0.1) for outputs in answered)
    assert all(headers["Retry-After"] == "1" and "queue is full" in body["error"] for headers, body in refused)


@pytest.mark.slow
def test_late_answers_are_none(slow, rng):
    x = images(rng, 1)
    with served(slow, "--max_batch=1", "--deadline_ms=500") as (port, _):
        ends = together([lambda: predict(port, x) for _ in range(6)])
        assert sorted({status for status, _ in ends}) == [200, 504]
        assert all("no answer within 500 ms" in told[1]["error"] for status, told in ends if status == 504)
        before = metric(port, "serve_batch_examples_count")
        assert ask(port, "POST", "/v1/predict", npy(x), {**NPY, "X-Deadline-Ms": "5"})[0] == 504
        assert predict(port, x)[0] == 200, "the queue is free again"
        assert metric(port, "serve_batch_examples_count") <= before + 2


@pytest.mark.slow
def test_nothing_is_computed_for_who_went_away(slow, rng):
    x = images(rng, 1)
    with served(slow, "--max_batch=1") as (port, _):
        before = metric(port, "serve_batch_examples_count")
        running = threading.Thread(target=predict, args=(port, x))
        running.start()
        time.sleep(0.1)
        for _ in range(5):
            with Client(port) as client:
                client.send("POST", "/v1/predict", npy(x), NPY)
                time.sleep(0.02)
        running.join()
        assert predict(port, x)[0] == 200
        assert metric(port, "serve_batch_examples_count") == before + 2
        assert metric(port, 'serve_requests_total{code="499"') == 5


@pytest.mark.slow
def test_a_stop_under_load_loses_nothing(slow, rng):
    x = images(rng, 2)
    ends = []

    def requests(port):
        with Client(port) as client, contextlib.suppress(ConnectionRefusedError):  # it had stopped to listen before that one
            while True:
                status, outputs = client.predict(x)
                ends.append(status == 200 and np.allclose(outputs, wanted(x), atol=0.1))

    with served(slow, "--max_batch=4") as (port, process):
        threads = [threading.Thread(target=requests, args=(port,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(timeout=60)
        assert process.wait(timeout=60) == 0
        assert process.stdout.read() == "SIGTERM: stopping; once more ends it at once\nstopped\n"
    assert len(ends) >= 6 and all(ends)


def cut_off(port, x):
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        predict(port, x)


@pytest.mark.slow
@pytest.mark.parametrize("flags, signals, status", [((), 2, 128 + signal.SIGINT), (("--stop_seconds=0.5",), 1, 1)])
def test_the_end_at_once(tmp_path, rng, flags, signals, status):
    config = tiny(model=f"{__name__}:slow_model", model_args={"seconds": 3.0})
    directory = saved(tmp_path / "artifact", {"config": config})
    with served(directory, "--max_batch=1", *flags) as (port, process):
        thread = threading.Thread(target=cut_off, args=(port, images(rng, 1)))
        thread.start()
        time.sleep(0.5)
        start = time.monotonic()
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.wait(timeout=60) == status
        assert time.monotonic() - start < 2.5, "before the batch was done"
        thread.join()


@pytest.mark.slow
def test_nothing_is_predicted_before_it_is_ready(slow, rng):
    with served(slow, "--max_batch=4", ready=False) as (port, process):
        assert [ask(port, "GET", path)[0] for path in ("/healthz", "/readyz")] == [200, 503]
        status, (headers, body) = predict(port, images(rng, 1))
        assert status == 503 and "compiles" in body["error"] and headers["Retry-After"] == "1"
        assert process.stdout.readline() == "ready\n"
        assert ask(port, "GET", "/readyz")[0] == 200 and predict(port, images(rng, 1))[0] == 200


@pytest.mark.slow
def test_it_stops_also_where_nobody_reads_what_it_says(artifact, rng):
    with served(artifact, "--max_batch=1") as (port, process):
        process.stdout.close()
        assert predict(port, images(rng, 1))[0] == 200
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_a_damaged_artifact_is_refused_at_the_start(artifact, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(artifact.read_bytes()[:-7] + b"abcdefg")
    command = [sys.executable, "-m", "experiments.serve", f"--artifact={damaged}", "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "checksum" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_batch": 0}, "max_batch=0: allowed are numbers above 0"),
        ({"deadline_ms": float("nan")}, "deadline_ms=nan: allowed are numbers above 0"),
        ({"max_delay_ms": -1}, "max_delay_ms=-1: allowed are 0 and more"),
        ({"queue": 100}, "queue=100: allowed are max_batch=256 and more, so that the longest request fits"),
        ({"port": 70000}, "port=70000: allowed are 0 to 65535"),
    ],
)
def test_wrong_numbers(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        serve.run("artifact", **changes)
