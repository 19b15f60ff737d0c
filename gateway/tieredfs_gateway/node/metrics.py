"""What a node counts, for Prometheus, and its access log: around the whole application, which knows nothing of it.

Calls have the names below, however many chunks and disks there are. Outcomes are HTTP statuses, or `gone`: nobody was there to be
answered. What the disks are is asked when somebody wants to know.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from tieredfs_gateway.node.disk_watch import DiskLook, DiskState
from tieredfs_gateway.node.exchange import Message, Receive, Send

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
PROBES: Final = ("/healthz", "/metrics")
GONE: Final = "gone"
CALLS: Final = {
    ("GET", "chunks/*"): "read_chunk",
    ("PUT", "chunks/*"): "write_chunk",
    ("DELETE", "chunks/*"): "delete_chunk",
    ("GET", "chunks"): "list_chunks",
    ("GET", "space"): "space",
    ("GET", "dumps"): "list_dumps",
    ("GET", "dumps/*"): "read_dump",
    ("DELETE", "dumps/*"): "delete_dump",
    ("PUT", "dumps/*/*"): "write_dump",
    ("POST", "dumps/*/*"): "publish_dump",
    ("DELETE", "dumps/*/*"): "discard_dump",
    ("GET", "places"): "identify",
    ("PUT", "places"): "format",
    ("POST", "places"): "give",
    ("DELETE", "places"): "erase",
}
OTHER: Final = "other"
_PATH_SHOWN_MAX: Final = 1200
_access: Final = logging.getLogger("tieredfs_gateway.node.access")


def call_of(method: str, path: str) -> str:
    """Pure."""
    match path.split("/")[1:]:
        case ["v1", "places"]:
            shape = "places"
        case ["v1", "disks", _, _, kind, *names]:
            shape = kind + "/*" * len(names)
        case _:
            return OTHER
    return CALLS.get((method, shape), OTHER)


class Metrics:
    """A registry of its own: two nodes in one process do not meet. Safe from any thread."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        labels = ["call", "outcome"]
        self.requests = Counter("tieredfs_node_requests", "Requests answered.", labels, registry=registry)
        self.received = Counter("tieredfs_node_received_bytes", "Bytes of bodies received.", registry=registry)
        self.sent = Counter("tieredfs_node_sent_bytes", "Bytes of bodies sent.", registry=registry)
        self.running = Gauge("tieredfs_node_requests_running", "Requests under way.", registry=registry)
        self.duration = Histogram(
            "tieredfs_node_request_duration_seconds", "From head to end.", ["call"], registry=registry
        )

    def text(self, disks: Sequence[DiskLook]) -> bytes:
        of_disks = CollectorRegistry()
        of_disks.register(_DiskMetrics(disks))
        return generate_latest(self._registry) + generate_latest(of_disks)


class _DiskMetrics(Collector):
    """Of one moment."""

    def __init__(self, disks: Sequence[DiskLook]) -> None:
        self._disks = disks

    def collect(self) -> Iterator[GaugeMetricFamily]:
        state = GaugeMetricFamily("tieredfs_node_disk_state", "1: the directory is that.", labels=["path", "state"])
        free = GaugeMetricFamily("tieredfs_node_disk_free_bytes", "Of its file system.", labels=["path"])
        total = GaugeMetricFamily("tieredfs_node_disk_total_bytes", "Of its file system.", labels=["path"])
        for disk in self._disks:
            for each in DiskState:
                state.add_metric([disk.path, each.value], disk.state is each)
            if disk.space is not None:
                free.add_metric([disk.path], disk.space.free_bytes)
                total.add_metric([disk.path], disk.space.total_bytes)
        yield from (state, free, total)


class Observed:
    """An application whose requests are counted and logged; probes are neither."""

    def __init__(self, application: Callable[[Any, Receive, Send], Any], metrics: Metrics) -> None:
        self._application = application
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._application(scope, receive, send)
            return
        seen, begun_s = _Seen(receive, send), time.perf_counter()
        self._metrics.running.inc()
        try:
            await self._application(scope, seen.receive, seen.send)
        finally:
            self._metrics.running.dec()
            self._note(scope, seen, time.perf_counter() - begun_s)

    def _note(self, scope: Mapping[str, Any], seen: "_Seen", duration_s: float) -> None:
        metrics, call = self._metrics, call_of(scope["method"], scope["path"])
        metrics.requests.labels(call, seen.outcome).inc()
        metrics.duration.labels(call).observe(duration_s)
        metrics.received.inc(seen.received_bytes)
        metrics.sent.inc(seen.sent_bytes)
        _access.info(
            "%s %s %s %s %s in=%d out=%d %.1fms",
            (scope.get("client") or ("-",))[0],
            call,
            scope["method"],
            ascii(scope["path"])[1:-1][:_PATH_SHOWN_MAX],
            seen.outcome,
            seen.received_bytes,
            seen.sent_bytes,
            duration_s * 1e3,
        )


class _Seen:
    """What goes through, on its way."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.received_bytes = self.sent_bytes = 0
        self.outcome = GONE
        self._receive = receive
        self._send = send
        self._status = GONE

    async def receive(self) -> Message:
        message = await self._receive()
        self.received_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._status = str(message["status"])
        else:
            self.sent_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.outcome = self._status
