"""What the endpoint counts, for Prometheus. Where several processes serve, each can tell of all: they count in files that
the environment's PROMETHEUS_MULTIPROC_DIR names (the client library's own way)."""

import os
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    """A registry of its own: two endpoints in one process do not meet. Safe from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["operation", "status"]
        self.requests = Counter("tieredfs_s3_requests", "Requests answered.", labels, registry=self._registry)
        self.received = Counter("tieredfs_s3_received_bytes", "Bytes of bodies received.", registry=self._registry)
        self.sent = Counter("tieredfs_s3_sent_bytes", "Bytes of bodies sent.", registry=self._registry)
        self.running = Gauge(
            "tieredfs_s3_requests_running",
            "Requests under way.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.duration = Histogram(
            "tieredfs_s3_request_duration_seconds", "From head to end.", ["operation"], registry=self._registry
        )
        self._counters: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, operation: str, status: int, duration_s: float) -> None:
        """Looking for the two children by their labels takes 2 us, and there are a few dozen of them."""
        counters = self._counters.get((operation, status))
        if counters is None:
            counters = self.requests.labels(operation, str(status)), self.duration.labels(operation)
            self._counters[operation, status] = counters
        counters[0].inc()
        counters[1].observe(duration_s)

    def text(self) -> bytes:
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        multiprocess.MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)
