"""A client process of ``experiments.benchmarks.serving``; it imports no JAX, and takes little of the cores that it shares.

``python -m experiments.benchmarks.serving_client PORT INPUTS.npy OUTPUTS.npy``: reads a task a line, as JSON, and writes what
came of it as JSON.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

NPY, JSON = "application/x-npy", "application/json"
#: Connections of a client whose requests arrive by themselves.
CONNECTIONS = 16
#: An answer is right where it differs from the direct prediction by less, of the largest output: programs of other batch sizes
#: add in another order. Outputs of two images differ by a thousand times more.
TOLERANCE = 1e-5


class Connection:
    """HTTP over one socket."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, kind: str, *parts: Any) -> tuple[int, bytes]:
        """``(status, body)`` of a prediction whose body is ``parts``, one after the other."""
        length = sum(memoryview(part).nbytes for part in parts)
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        self._socket.sendall(head.encode() + bytes(parts[0]))
        for part in parts[1:]:
            self._socket.sendall(part)
        data = self._socket.recv(1 << 16)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._received()
        fields = data[:end].lower().split(b"\r\n")
        total = next(int(f.split(b":")[1]) for f in fields if f.startswith(b"content-length:")) + end + 4
        while len(data) < total:
            data += self._received()
        if len(data) > total:
            raise ValueError("an answer that nobody asked for")
        return int(data[9:12]), data[end + 4 :]

    def _received(self) -> bytes:
        if not (data := self._socket.recv(1 << 16)):
            raise ConnectionError("closed before the answer was whole")
        return data


class Requests:
    """Requests over a pool of images, and the check of their answers."""

    def __init__(self, inputs: np.ndarray, outputs: np.ndarray, examples: int, kind: str, rng: np.random.Generator):
        self._inputs, self._outputs, self._examples, self._kind = inputs, outputs, examples, kind
        self._head = npy(inputs[:examples])[: -inputs[:examples].nbytes]
        self._rng, self._limit = rng, TOLERANCE * np.abs(outputs).max()

    def good(self, connection: Connection) -> str:
        """Sends images from anywhere in the pool; ``right`` if they were answered so."""
        start = int(self._rng.integers(len(self._inputs) - self._examples + 1))
        rows = slice(start, start + self._examples)
        if self._kind == NPY:
            status, body = connection.post(NPY, self._head, self._inputs[rows])
        else:
            status, body = connection.post(JSON, json.dumps({"inputs": self._inputs[rows].tolist()}).encode())
        if status != 200:
            return str(status)
        got = np.load(io.BytesIO(body)) if self._kind == NPY else np.float32(json.loads(body)["outputs"])
        same = got.shape == self._outputs[rows].shape and np.abs(got - self._outputs[rows]).max() < self._limit
        return "right" if same else "wrong"

    def malformed(self, connection: Connection) -> str:
        """Sends one of ``MALFORMED``; ``refused by name`` if the answer says which field is at fault."""
        kind, body, field = MALFORMED[int(self._rng.integers(len(MALFORMED)))]
        status, said = connection.post(kind, body)
        return "refused by name" if status == 400 and json.loads(said)["field"] == field else f"malformed: {status}"


def npy(x: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


_IMAGES = np.zeros((2, 28, 28, 1), np.float32)
#: ``(content type, body, the field that is at fault)``
MALFORMED = [
    (NPY, npy(_IMAGES.astype(np.float64)), "inputs"),
    (NPY, npy(_IMAGES[:, :27]), "inputs"),
    (NPY, npy(_IMAGES + np.float32(np.nan)), "inputs"),
    (NPY, npy(_IMAGES[:0]), "inputs"),
    (NPY, npy(_IMAGES)[:-4], "inputs"),
    (NPY, b"\x00" * 100, "inputs"),
    (JSON, b'{"inputs": [[1, 2], [3]]}', "inputs"),
    (JSON, b'{"inputs": "image"}', "inputs"),
    (JSON, b'{"input": [1]}', "body"),
    (JSON, b'{"inputs": ', "body"),
]


def closed(port: int, requests: Requests, number: int, malformed: float, rng: np.random.Generator) -> dict[str, Any]:
    """One request after the other, of which a share is malformed."""
    connection, ends = Connection(port), Counter[str]()
    start = time.time()
    for bad in rng.random(number) < malformed:
        ends[requests.malformed(connection) if bad else requests.good(connection)] += 1
    return {"ends": ends, "start": start, "end": time.time()}


def opened(port: int, requests: Requests, rate: float, seconds: float, rng: np.random.Generator) -> dict[str, Any]:
    """Requests that arrive by themselves, in a Poisson process; latency counts from the arrival, not from the sending."""
    gaps = rng.exponential(1 / rate, int(2 * rate * seconds) + 20)
    arrivals: Iterator[float] = iter(time.time() + np.cumsum(gaps)[np.cumsum(gaps) < seconds])
    ends, latencies, lock = Counter[str](), list[float](), threading.Lock()

    def worker() -> None:
        connection = Connection(port)
        while True:
            with lock:
                due = next(arrivals, None)
            if due is None:
                return
            time.sleep(max(0.0, due - time.time()))
            end = requests.good(connection)
            with lock:
                ends[end] += 1
                latencies.append(time.time() - due)

    threads = [threading.Thread(target=worker) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"ends": ends, "latencies": latencies}


def main() -> None:
    port, inputs, outputs = int(sys.argv[1]), np.load(sys.argv[2]), np.load(sys.argv[3])
    for line in sys.stdin:
        task = json.loads(line)
        rng = np.random.default_rng(task["seed"])
        requests = Requests(inputs, outputs, task["examples"], task.get("kind", NPY), rng)
        if "rate" in task:
            done = opened(port, requests, task["rate"], task["seconds"], rng)
        else:
            done = closed(port, requests, task["requests"], task.get("malformed", 0.0), rng)
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
