"""The server's metrics, in their own Prometheus registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server. Status 0 stands for clients that left before the answer."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.requests = Counter("growtas_requests", "Inference requests by HTTP status", ["code"], registry=registry)
        self.failures = Counter("growtas_failures", "Inference requests without a result", registry=registry)
        self.seconds = Histogram("growtas_request_seconds", "Duration of inference requests", registry=registry, buckets=_SECONDS)
        self.images = Counter("growtas_images", "Images in answered requests", registry=registry)
        self.queue = Gauge("growtas_queue_requests", "Requests waiting for a batch", registry=registry)
        self.batches = Histogram(
            "growtas_batch_images", "Images per batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
        )
        self.compute = Histogram("growtas_batch_seconds", "Duration of batches in the runtime", registry=registry, buckets=_SECONDS)
        self.dropped = Counter(
            "growtas_connections_dropped", "Connections ended by the server, by reason", ["reason"], registry=registry
        )
        self._registry = registry

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def answered(self, code: int, seconds: float, images: int = 0) -> None:
        """Counts one inference request."""
        self.requests.labels(str(code)).inc()
        self.seconds.observe(seconds)
        self.images.inc(images)
        if code != 200:
            self.failures.inc()
