"""What the gateway counts, for Prometheus: read from what already counts, when somebody asks."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from tieredfs.volume import Volume
from tieredfs_gateway.datasets.sessions import Sessions
from tieredfs_gateway.datasets.transform_pool import TransformPool
from tieredfs_gateway.volume_metrics import VolumeMetrics

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_PREFIX: Final = "tieredfs_gateway"


class Metrics(Collector):
    """A registry of its own: two gateways in one process do not meet. Safe from any thread."""

    def __init__(self, sessions: Sessions, transforms: TransformPool, volume: Volume | None = None) -> None:
        self._sessions = sessions
        self._transforms = transforms
        self._registry = CollectorRegistry()
        self._registry.register(self)
        if volume is not None:
            self._registry.register(VolumeMetrics(volume))

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        counts = self._sessions.encoders.counts
        yield _counter("batches_made", "Batches made, each once for all who share a lane.", counts.made)
        yield _counter("rows_made", "Rows of those batches.", counts.rows)
        yield _counter("batches_served", "Batches given to trainers.", counts.served)
        yield _counter("lanes", "Lanes that were begun.", counts.lanes)
        yield _counter("left_behind", "Trainers too slow for the others.", counts.left_behind)
        encoded = CounterMetricFamily(f"{_PREFIX}_batches_encoded", "Batches encoded, by form.", labels=["form"])
        for form, count in sorted(counts.encoded.items()):
            encoded.add_metric([form], count)
        yield encoded
        slabs = self._sessions.encoders.slabs
        yield _counter("slabs_made", "Slabs whose memory was touched for the first time.", slabs.made)
        yield _counter("slabs_beyond", "Slabs made beyond the limit, because a trainer waited.", slabs.beyond)
        for name, number in (self._sessions.sizes() | slabs.usage()).items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", f"Now: {name.replace('_', ' ')}.", value=number)
        for name, number in self._sessions.reader_counters().items():
            yield GaugeMetricFamily(f"{_PREFIX}_readers_{name}", "Of the readers that are open.", value=number)
        yield from self._of_transforms()

    def _of_transforms(self) -> Iterator[Metric]:
        seconds = CounterMetricFamily(f"{_PREFIX}_transform_seconds", "In a transform.", labels=["transform"])
        batches = CounterMetricFamily(f"{_PREFIX}_transform_batches", "Through a transform.", labels=["transform"])
        for name, timing in sorted(self._transforms.timings().items()):
            seconds.add_metric([name], timing.seconds)
            batches.add_metric([name], timing.batches)
        yield from (seconds, batches)


def _counter(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
