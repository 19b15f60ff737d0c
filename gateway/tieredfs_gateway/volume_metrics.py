"""What the volume behind a front end lacks, for Prometheus: read from the metadata when somebody asks."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tieredfs.volume import Volume


class VolumeMetrics(Collector):
    """A registry of its own. Every process that serves a volume says the same, so it does not matter which one is asked."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Raises what reading the metadata raises."""
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        short = self._volume.short()
        yield _gauge("short_blocks", "Blocks that lack chunks, and wait to be healed.", short.block_count)
        yield _gauge("bare_blocks", "Of them: those that can lose no chunk more.", short.bare_count)
        yield _gauge("short_bytes", "Content of the blocks that lack chunks.", short.size_bytes)
        yield _gauge("missing_chunk_bytes", "Of the chunks that they lack.", short.missing_bytes)
        yield _gauge("short_oldest_seconds", "How long the oldest of them has lacked some.", short.oldest_age_s)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tieredfs_volume_{name}", text, value=value)
