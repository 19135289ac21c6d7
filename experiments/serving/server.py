"""The HTTP side: routes, limits, errors as JSON, and the way from the first signal to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from aiohttp import web

from . import wire
from .batching import Batcher, QueueFull, Stopped
from .engine import Arrays, Engine
from .metrics import CONTENT_TYPE, Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PATHS = ("/v1/predict", "/v1/model", "/healthz", "/readyz", "/metrics")
#: A header by which a client asks for less time than the server's own deadline, in ms.
DEADLINE = "X-Deadline-Ms"
#: Seconds in which open connections are still served, and told to close, after the server has stopped to accept new ones.
LINGER = 0.2
#: The status that counts requests whose client went away; nobody reads it.
GONE = 499
RETRY = {"Retry-After": "1"}


class Server:
    """An engine behind HTTP.

    Args:
      facts: of the artifact, for ``/v1/model``.
      max_delay, deadline: in seconds. max_queue: examples.
    """

    def __init__(
        self, engine: Engine, facts: Mapping[str, Any], *, max_delay: float, max_queue: int, deadline: float
    ):
        self._engine, self._deadline, self._state = engine, deadline, "compiling"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._batcher = Batcher(self._run, max_batch=engine.max_batch, max_delay=max_delay, max_queue=max_queue)
        self._metrics = Metrics(engine.sizes, lambda: self._batcher.queued)
        self._max_bytes = wire.max_bytes(engine.inputs, engine.max_batch)
        self._model = {
            **facts,
            "inputs": _described(engine.inputs),
            "outputs": _described(engine.outputs),
            "max_batch": engine.max_batch,
            "compiled_batches": engine.sizes,
            "max_delay_ms": 1e3 * max_delay,
            "max_queue": max_queue,
            "deadline_ms": 1e3 * deadline,
            "max_body_bytes": self._max_bytes,
            "devices": engine.devices,
            "jax": jax.__version__,
        }

    @property
    def app(self) -> web.Application:
        app = web.Application(client_max_size=self._max_bytes, middlewares=[self._answered])
        handlers = (self._predict, self._describe, self._live, self._ready, self._measured)
        for path, handler in zip(PATHS, handlers, strict=True):
            add = app.router.add_post if handler == self._predict else app.router.add_get
            add(path, handler)
        return app

    async def run(self, host: str, port: int, stop_seconds: float) -> None:
        """Serves until a signal; then answers what was taken, and returns.

        A second signal ends the process at once, and so does the end of ``stop_seconds``, with status 1.

        Raises:
          OSError: the port is taken, or the host is none of this machine's.
        """
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(
            self.app, access_log=None, handler_cancellation=True, auto_decompress=False, shutdown_timeout=stop_seconds
        )
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        await site.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, functools.partial(_signalled, number, stop, stop_seconds))
        _say(f"listening on {site.name.rpartition(':')[0]}:{runner.addresses[0][1]}")
        await loop.run_in_executor(self._worker, self._engine.warm_up)
        if not stop.is_set():
            self._state = "ready"
            _say("ready")
        await stop.wait()
        self._state = "stopping"
        await site.stop()
        await asyncio.sleep(LINGER)
        await runner.cleanup()
        await self._batcher.stop()
        self._worker.shutdown()
        _say("stopped")

    async def _run(self, requests: Sequence[wire.Decoded]) -> list[Arrays]:
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._worker, self._engine, [request.arrays for request in requests])
        self._metrics.ran(sum(request.rows for request in requests), time.perf_counter() - start)
        return answers

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts, and makes each error an answer in JSON."""
        start, code = time.perf_counter(), GONE
        path = request.match_info.route.resource.canonical if request.match_info.route.resource else "other"
        self._metrics.in_flight.inc()
        try:
            response = await _or_error(handler, request)
            if self._state == "stopping":
                response.force_close()
            code = response.status
            return response
        finally:
            self._metrics.in_flight.dec()
            self._metrics.answered(path, code)
            if path == "/v1/predict":
                self._metrics.predicted(time.perf_counter() - start)

    async def _predict(self, request: web.Request) -> web.Response:
        if self._state == "compiling":
            return error(503, "the server compiles its programs; /readyz tells when it is ready", RETRY)
        kind, wanted = request.content_type, self._format(request)
        if kind not in wire.FORMATS or request.headers.get("Content-Encoding", "identity") != "identity":
            return error(415, f"Content-Type {kind}; allowed are {', '.join(wire.FORMATS)}, without Content-Encoding")
        deadline = self._deadline_of(request)
        try:
            async with asyncio.timeout(deadline):
                if (request.content_length or 0) > self._max_bytes:
                    raise web.HTTPRequestEntityTooLarge(self._max_bytes, request.content_length)
                sent = wire.decoded(await request.read(), kind, self._engine.inputs, self._engine.max_batch)
                outputs = await self._batcher.submit(sent, sent.rows)
        except TimeoutError:
            return error(504, f"no answer within {1e3 * deadline:g} ms; send less, or later", deadline_ms=1e3 * deadline)
        if sent.single:
            outputs = [x[0] for x in outputs]
        try:
            body = wire.encoded(outputs, wanted, self._engine.outputs)
        except ValueError:
            return error(500, f"the outputs hold NaN or infinity, which JSON lacks; take them with Accept: {wire.NPZ}")
        return web.Response(body=body, content_type=wanted)

    def _format(self, request: web.Request) -> str:
        """Of the answer: the first that ``Accept`` names, else that of the request, where several outputs need ``.npz``."""
        accept = request.headers.get("Accept", "*/*")
        several = len(self._engine.outputs) > 1
        possible = [kind for kind in wire.FORMATS if not (several and kind == wire.NPY)]
        asked = [entry.partition(";")[0].strip().lower() for entry in accept.split(",")]
        for kind in asked:
            if kind in possible:
                return kind
        if "*/*" in asked:
            return wire.NPZ if several and request.content_type == wire.NPY else request.content_type
        raise web.HTTPNotAcceptable(text=f"Accept {accept}; possible are {', '.join(possible)}")

    def _deadline_of(self, request: web.Request) -> float:
        """In seconds."""
        text = request.headers.get(DEADLINE)
        if text is None:
            return self._deadline
        try:
            asked = float(text) / 1e3
        except ValueError:
            asked = 0.0
        if not asked > 0:
            raise wire.Refused(DEADLINE, "a number of milliseconds above 0", text)
        return min(asked, self._deadline)

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"state": self._state})

    async def _ready(self, request: web.Request) -> web.Response:
        return web.json_response({"state": self._state}, status=200 if self._state == "ready" else 503)

    async def _describe(self, request: web.Request) -> web.Response:
        return web.json_response(self._model)

    async def _measured(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def error(status: int, message: str, headers: Mapping[str, str] | None = None, **facts: Any) -> web.Response:
    return web.json_response({"error": message, **facts}, status=status, headers=headers)


async def _or_error(handler: Handler, request: web.Request) -> web.StreamResponse:
    """The handler's answer, or one that tells its error."""
    try:
        return await handler(request)
    except wire.Refused as refused:
        return error(400, str(refused), field=refused.field, allowed=refused.allowed, sent=refused.sent)
    except QueueFull:
        return error(503, "the queue is full; try again", RETRY)
    except Stopped:
        return error(503, "the server stops; try another", RETRY)
    except web.HTTPNotFound:
        return error(404, f"{request.path}: no such path; there are {', '.join(PATHS)}")
    except web.HTTPMethodNotAllowed as raised:
        allowed = ", ".join(sorted(raised.allowed_methods))
        return error(405, f"{request.path}: {raised.method}; allowed is {allowed}", {"Allow": allowed})
    except web.HTTPRequestEntityTooLarge:
        return error(413, f"a body of more than {request.client_max_size} bytes; send fewer examples in a request")
    except web.HTTPException as raised:
        return error(raised.status, raised.text or raised.reason)
    except Exception:
        logging.exception("%s %s", request.method, request.path)
        return error(500, "the server failed; its log says why")


def _described(fields: Sequence[wire.Field]) -> list[dict[str, Any]]:
    return [{"name": f.name, "dtype": str(f.dtype), "shape": ["batch", *f.shape]} for f in fields]


def _signalled(number: int, stop: asyncio.Event, stop_seconds: float) -> None:
    """The first signal asks the server to stop, the second ends the process."""
    if stop.is_set():
        os._exit(128 + number)
    stop.set()
    asyncio.get_running_loop().call_later(stop_seconds, os._exit, 1)
    _say(f"{signal.Signals(number).name}: stopping; once more ends it at once")


def _say(line: str) -> None:
    """Prints, also where nobody reads any more: that must not keep the server from its end."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)
