"""Claim: the server loses nothing under load, and gives at least 0.8 of what the bare ``predictor`` computes.

Command: ``python -m experiments.benchmarks.serving [--plot=docs/images/serving.png]`` (about 6 minutes; the `serve` extra)

LeNet-5 on 28 x 28 images, 8-bit weights, as an exported program; the server, 8 client processes and the network share the
machine's cores. Bodies are ``.npy``, unless JSON is said.

1. 100,000 requests of one image, 1 % of them malformed. Each answer is compared with the direct prediction, the clients' counts
   with the server's, and the server's memory is read twice a second.
2. Rounds of requests that hold as many images as the server runs together, and of fewer. Before and after each round the bare
   ``predictor`` runs images in the same full batches, with the clients and the server idle. "Over bare" is the ratio of the
   examples a second, the median of the rounds. Where other programs run, the clocks tell who gets the cores; then the ratio of
   the processor times an image, the server's and the clients' together, is the one to read.
3. Requests of one image arrive in a Poisson process, at shares of the most that eight busy clients got through. Latency counts
   from the arrival to the answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxopt_nn.core.combine import where
from jaxopt_nn.core.files import write_file
from jaxopt_nn.export.exported import exported
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.parallel.infer import Predictor, predictor
from jaxopt_nn.pipeline.store import load, save

from ..common import picture
from ..models import fashion
from .common import emit

CLIENTS, POOL, MAX_BATCH, DEADLINE_MS = 8, 4096, 256, 2000
MALFORMED = 0.01
#: Of the second part: examples of a request, its format, and requests of a client in a round.
SIZES = ((256, "x-npy", 10), (32, "x-npy", 40), (1, "x-npy", 150), (1, "json", 75))
ROUNDS = 5
#: Seconds of the bare predictor between two rounds.
BARE = 2.0
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)


class Load:
    """A server in a process of its own, and its clients in theirs."""

    def __init__(self, server: subprocess.Popen[str], port: int, clients: list[subprocess.Popen[str]]):
        self._server, self._port, self._clients = server, port, clients
        self._tasks = 0

    def run(self, **task: Any) -> list[dict[str, Any]]:
        """What came of a task that every client got, with a seed of its own."""
        for client in self._clients:
            self._tasks += 1
            assert client.stdin is not None
            client.stdin.write(json.dumps({**task, "seed": self._tasks}) + "\n")
            client.stdin.flush()
        return [json.loads(client.stdout.readline()) for client in self._clients if client.stdout is not None]

    def closed(self, **task: Any) -> tuple[Counter[str], float]:
        """How the requests ended, and requests a second, from the first client's start to the last one's end."""
        done = self.run(**task)
        ends = sum((Counter(each["ends"]) for each in done), Counter[str]())
        seconds = max(each["end"] for each in done) - min(each["start"] for each in done)
        return ends, ends.total() / seconds

    def metrics(self) -> dict[str, float]:
        """The server's own counts, by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics") as response:
            lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def processor(self) -> np.ndarray:
        """Seconds of processor time that the server, and all clients together, took so far."""
        used = [_processor(process.pid) for process in (self._server, *self._clients)]
        return np.array([used[0], sum(used[1:])])

    def resident(self) -> float:
        """MB of memory that the server holds."""
        return int(Path(f"/proc/{self._server.pid}/statm").read_text().split()[1]) * 4096 / 1e6


def _processor(pid: int) -> float:
    """Seconds, of the user and the system, that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def loaded(artifact: Path, inputs: np.ndarray, outputs: np.ndarray) -> Iterator[Load]:
    """A server of the artifact that is ready, and clients that know the right answers."""
    np.save(artifact.parent / "inputs.npy", inputs)
    np.save(artifact.parent / "outputs.npy", outputs)
    flags = [f"--artifact={artifact}", "--port=0", f"--max_batch={MAX_BATCH}", f"--deadline_ms={DEADLINE_MS}"]
    start = lambda *command: subprocess.Popen(
        [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with contextlib.ExitStack() as stack:
        server = start("experiments.serve", *flags)
        stack.callback(server.communicate)
        stack.callback(server.terminate)
        assert server.stdout is not None
        port = server.stdout.readline().strip().rpartition(":")[2]
        server.stdout.readline()
        files = [str(artifact.parent / name) for name in ("inputs.npy", "outputs.npy")]
        clients = [stack.enter_context(start("experiments.benchmarks.serving_client", port, *files)) for _ in range(CLIENTS)]
        for client in clients:
            stack.callback(client.terminate)
        yield Load(server, int(port), clients)


def lenet(directory: Path) -> Path:
    """An artifact of LeNet-5, 8-bit weights, with its program."""
    network, x = fashion.lenet5(), jax.ShapeDtypeStruct((2, 28, 28, 1), np.float32)
    method = where("**/kernel", quantize(8))
    state = method.init(network.variables, inspect(network.apply, network.variables, x))
    stored = network.replace(variables=method.pack(network.variables, state))
    save(directory / "artifact", stored, programs=exported(stored, (x,), (jax.default_backend(),)))
    return directory / "artifact"


def bare(predict: Predictor, inputs: np.ndarray) -> tuple[float, float]:
    """Examples a second of the bare predictor at full batches, and its processor time an example."""
    done, start, used = 0, time.perf_counter(), time.process_time()
    while (seconds := time.perf_counter() - start) < BARE:
        predict(inputs)
        done += len(inputs)
    return done / seconds, (time.process_time() - used) / done


def over_bare(load: Load, predict: Predictor, inputs: np.ndarray, examples: int, kind: str, requests: int) -> dict[str, Any]:
    """A row of the second part."""
    ends, speeds, alone, used = Counter[str](), list[float](), [bare(predict, inputs)], np.zeros(2)
    for _ in range(ROUNDS):
        before = load.processor()
        more, speed = load.closed(requests=requests, examples=examples, kind=f"application/{kind}")
        used += load.processor() - before
        ends += more
        speeds.append(examples * speed)
        alone.append(bare(predict, inputs))
    ratios = [2 * speed / (one + other) for speed, (one, _), (other, _) in zip(speeds, alone, alone[1:])]
    each = 1e3 * used / (examples * ends.total())
    alone_each = 1e3 * statistics.median(seconds for _, seconds in alone)
    return {
        "examples a request": examples,
        "format": kind,
        "requests": ends.total(),
        "right": ends["right"],
        "requests/s": statistics.median(speeds) / examples,
        "examples/s": statistics.median(speeds),
        "bare examples/s": statistics.median(speed for speed, _ in alone),
        "over bare": statistics.median(ratios),
        "rounds": [round(ratio, 2) for ratio in ratios],
        "processor ms an image: bare": alone_each,
        "server": float(each[0]),
        "clients": float(each[1]),
        "over bare, by processor time": alone_each / float(each.sum()),
    }


def sampled(load: Load, stop: threading.Event) -> list[float]:
    """The server's memory, twice a second, in a list that grows until ``stop``."""
    samples = [load.resident()]

    def sample() -> None:
        while not stop.wait(0.5):
            samples.append(load.resident())

    threading.Thread(target=sample, daemon=True).start()
    return samples


def correctness(load: Load, requests: int) -> dict[str, Any]:
    """The row of the first part; the server's own counts must be those of the clients."""
    load.closed(requests=500, examples=1)  # the first allocations are no leak
    before, stop = load.metrics(), threading.Event()
    memory = sampled(load, stop)
    ends, speed = load.closed(requests=requests // CLIENTS, examples=1, malformed=MALFORMED)
    stop.set()
    counted = {name: value - before.get(name, 0.0) for name, value in load.metrics().items()}
    answered, refused = (int(counted[f'serve_requests_total{{code="{n}",path="/v1/predict"}}']) for n in (200, 400))
    images, batches = (counted[f"serve_batch_examples_{name}"] for name in ("sum", "count"))
    if (answered, refused, images) != (ends["right"], ends["refused by name"], ends["right"]):
        raise ValueError(f"the server counts {answered} and {refused} answers of {images} images, the clients {dict(ends)}")
    tenth, middle = max(1, len(memory) // 10), len(memory) // 2
    parts = {"start": memory[:tenth], "middle": memory[middle : middle + tenth], "end": memory[-tenth:]}
    return {
        "requests": ends.total(),
        **ends,
        "requests/s": speed,
        "images a batch": images / batches,
        **{f"memory at {name}, MB": statistics.median(part) for name, part in parts.items()},
        "most, MB": max(memory),
    }


def latencies(load: Load, most: float, seconds: float) -> list[dict[str, Any]]:
    """The third part: a row for each load."""
    rows = []
    for share in LOADS:
        done = load.run(rate=share * most / CLIENTS, seconds=seconds, examples=1)
        ends = sum((Counter(each["ends"]) for each in done), Counter[str]())
        p50, p99 = np.percentile(np.concatenate([each["latencies"] for each in done]), [50, 99])
        rows.append({
            "offered requests/s": share * most,
            "of the most": share,
            "requests": ends.total(),
            "right": ends["right"],
            "503 or 504": ends["503"] + ends["504"],
            "answered/s": ends["right"] / seconds,
            "p50, ms": 1e3 * float(p50),
            "p99, ms": 1e3 * float(p99),
        })  # fmt: skip
    return rows


def drawn(rows: list[dict[str, Any]]) -> bytes:
    """Latency against load, as PNG."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        x = [row["offered requests/s"] for row in rows]
        for name in ("p50, ms", "p99, ms"):
            axes.plot(x, [row[name] for row in rows], marker="o", label=name.partition(",")[0])
        axes.axvline(x[0] / LOADS[0], color="grey", linestyle=":", label="most that eight busy clients got through")
        axes.set(xlabel="offered load, requests of one image a second", ylabel="latency, ms", yscale="log")
        for each in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            each("{x:g}")
        axes.legend()

    return picture(draw, 6.4, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="of the first part")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load of the third part")
    parser.add_argument("--plot", type=Path, help="a PNG of the third part")
    flags = parser.parse_args()
    inputs = np.random.default_rng(0).random((POOL, 28, 28, 1), np.float32)
    with tempfile.TemporaryDirectory() as directory:
        artifact = lenet(Path(directory))
        predict = predictor(load(artifact), batch_size=MAX_BATCH)
        with loaded(artifact, inputs, predict(inputs)) as running:
            emit([correctness(running, flags.requests)])
            sizes = [over_bare(running, predict, inputs, *size) for size in SIZES]
            emit(sizes)
            most = max(row["requests/s"] for row in sizes if row["examples a request"] == 1)
            rows = latencies(running, most, flags.seconds)
            emit(rows)
    if flags.plot:
        write_file(flags.plot, drawn(rows))


if __name__ == "__main__":
    main()
