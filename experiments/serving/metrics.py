"""What a server tells of itself, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]
#: Upper ends of the latency histogram's buckets, in seconds.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Counters and histograms of one server, in a registry of their own.

    Args:
      sizes: rows of the compiled programs, the ends of the batch histogram's buckets.
      queued: gives the examples that wait.
    """

    def __init__(self, sizes: Sequence[int], queued: Callable[[], int]):
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "serve_requests", "Requests that were answered.", ["path", "code"], registry=registry
        )
        self._latency = Histogram(
            "serve_latency_seconds", "From a prediction's headers to its answer.", buckets=SECONDS, registry=registry
        )
        self._batch = Histogram("serve_batch_examples", "Examples of a batch.", buckets=sizes, registry=registry)
        self._run = Histogram("serve_batch_seconds", "Run time of a batch.", buckets=SECONDS, registry=registry)
        self.in_flight = Gauge("serve_in_flight", "Requests that are being answered.", registry=registry)
        Gauge("serve_queue_examples", "Examples that wait for a batch.", registry=registry).set_function(queued)
        ProcessCollector(registry=registry)

    def answered(self, path: str, code: int) -> None:
        self._requests.labels(path, str(code)).inc()

    def predicted(self, seconds: float) -> None:
        self._latency.observe(seconds)

    def ran(self, examples: int, seconds: float) -> None:
        self._batch.observe(examples)
        self._run.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
