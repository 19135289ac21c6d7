"""Serves a compressed network over HTTP, from its artifact.

    jaxopt serve --artifact=runs/digits_quickstart/network.jn [--port=8000] [--max_batch=256]

Requests are batched: they wait in a bounded queue, for ``--max_delay_ms`` at most, and run together in one call of a program
that was compiled at the start. There is no authentication and no encryption: the server listens on the loopback interface; put
a proxy before it that has both.

    curl -H "Content-Type: application/json" -d '{"inputs": [0, 0.5, 1]}' http://127.0.0.1:8000/v1/predict
    curl -H "Content-Type: application/x-npy" --data-binary @x.npy http://127.0.0.1:8000/v1/predict -o outputs.npy

``/v1/model`` tells what it takes, ``/healthz`` that it lives, ``/readyz`` that it takes requests, ``/metrics`` what it did, for
Prometheus. On SIGTERM or Ctrl-C it takes no more, answers what it took, and ends; a second one ends it at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from absl import flags

from . import common
from .command import start


def run(
    artifact: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    max_batch: int = 256,
    max_delay_ms: float = 2.0,
    queue: int = 4096,
    deadline_ms: float = 5000.0,
    stop_seconds: float = 25.0,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
      artifact: the file that ``experiments.compress`` or ``jaxopt_nn.save`` wrote.
      port: 0 takes a free one; it is printed.
      max_batch: examples that run together, and examples of a request, at most.
      max_delay_ms: for which a request waits for others while the network is idle.
      queue: examples that may wait; a request beyond them gets status 503.
      deadline_ms: from a request's headers to its answer; later it gets status 504.
      stop_seconds: from the first signal to the end of the process, at most.

    Raises:
      ValueError: a number out of its range; the directory holds no network, or a damaged one, or one that can't run here.
      OSError: no such directory; the port is taken. ModuleNotFoundError: the ``serve`` extra is not installed.
    """
    numbers = {"max_batch": max_batch, "queue": queue, "deadline_ms": deadline_ms, "stop_seconds": stop_seconds}
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: allowed are numbers above 0")
    if not max_delay_ms >= 0:
        raise ValueError(f"max_delay_ms={max_delay_ms}: allowed are 0 and more")
    if queue < max_batch:
        raise ValueError(f"queue={queue}: allowed are max_batch={max_batch} and more, so that the longest request fits")
    if not 0 <= port < 1 << 16:
        raise ValueError(f"port={port}: allowed are 0 to 65535; 0 takes a free one")
    try:
        import uvloop

        from .serving.server import Server
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; what the server needs comes with: pip install 'jaxopt_nn[serve]'") from error
    from .serving.engine import opened

    engine, facts = opened(artifact, max_batch)

    async def serve() -> None:
        limits = {"max_delay": max_delay_ms / 1e3, "max_queue": queue, "deadline": deadline_ms / 1e3}
        await Server(engine, facts, **limits).run(host, port, stop_seconds)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def define_flags() -> None:
    flags.DEFINE_string("artifact", None, "The artifact: a file, or a folder.")
    flags.DEFINE_string("host", "127.0.0.1", "The address to listen on.")
    flags.DEFINE_integer("port", 8000, "0 takes a free one and prints it.")
    flags.DEFINE_integer("max_batch", 256, "Examples that run together, and examples of a request, at most.")
    flags.DEFINE_float("max_delay_ms", 2.0, "For which a request waits for others while the network is idle.")
    flags.DEFINE_integer("queue", 4096, "Examples that may wait; a request beyond them gets status 503.")
    flags.DEFINE_float("deadline_ms", 5000.0, "From a request's headers to its answer; later it gets status 504.")
    flags.DEFINE_float("stop_seconds", 25.0, "From the first signal to the end of the process, at most.")
    flags.mark_flags_as_required(["artifact"])


def main(argv: Sequence[str]) -> None:
    flag = common.flag_values(argv)
    with common.plain_errors():
        run(
            flag.artifact, flag.host, flag.port, max_batch=flag.max_batch, max_delay_ms=flag.max_delay_ms,
            queue=flag.queue, deadline_ms=flag.deadline_ms, stop_seconds=flag.stop_seconds,
        )  # fmt: skip


if __name__ == "__main__":
    start(define_flags, main, __doc__)
