"""Lifecycle rules, carried out: one pass over the buckets that have some, now and then.

One thread of one process of a volume (`turn`), one key at a time, with the memory of a listing; between batches it yields to
requests. What it deletes it deletes as a client would, and only if it is still what was judged: so nothing is wrong where two
sweep after all, and a pass that is killed leaves nothing undone that the next one does not find.
"""

import itertools
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tieredfs.errors import TieredError
from tieredfs.host import Clock
from tieredfs.host.turn import Turn
from tieredfs_gateway.s3 import lifecycle, version_listing
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.lifecycle import Rule
from tieredfs_gateway.s3.store import Store
from tieredfs_gateway.s3.tagging import parse_tags
from tieredfs_gateway.s3.uploads import Uploads
from tieredfs_gateway.s3.version_listing import Row
from tieredfs_gateway.s3.versions import Object

EVERY_S: Final = 3600.0
FIRST_AFTER_S: Final = 60.0
_BATCH: Final = 256
_PAUSE_S: Final = 0.05
_log: Final = logging.getLogger("tieredfs_gateway.s3.lifecycle")


@dataclass(slots=True)
class Swept:
    """What a pass did."""

    expired: int = 0
    noncurrent: int = 0
    markers: int = 0
    uploads: int = 0


class Sweep:
    """For one thread at a time."""

    def __init__(self, store: Store, uploads: Uploads, clock: Clock, turn: Turn) -> None:
        self._store = store
        self._uploads = uploads
        self._clock = clock
        self._turn = turn
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """Pass after pass until `stop`."""
        wait_s = FIRST_AFTER_S
        while not self._stopped.wait(wait_s):
            wait_s = EVERY_S
            try:
                swept = self.once()
            except (S3Error, TieredError) as error:
                _log.info("a pass ended early: %s: %s", type(error).__name__, error)
                continue
            if swept != Swept():
                _log.info("swept: %s", swept)

    def once(self) -> Swept:
        """One pass over all buckets; nothing where another process of the volume does it. Raises S3Error, TieredError; the next
        pass begins anew."""
        swept = Swept()
        if not self._turn.take():
            return swept
        for bucket, _ in self._store.buckets():
            rules = self._store.settings.believed(bucket).lifecycle
            if rules and not self._stopped.is_set():
                self._sweep_bucket(bucket, rules, swept)
        return swept

    def _sweep_bucket(self, bucket: bytes, rules: tuple[Rule, ...], swept: Swept) -> None:
        now_ns = self._clock.wall_ns()
        for upload in self._uploads.listed(bucket):
            if lifecycle.upload_is_due(rules, upload.key, upload.started_ns, now_ns):
                self._uploads.abort(bucket, upload.key.encode(), upload.upload_id)
                swept.uploads += 1
        rows = self._paced(version_listing.every(self._store, bucket))
        for key, several in itertools.groupby(rows, key=lambda row: row.key):
            self._sweep_key(bucket, key, several, rules, now_ns, swept)

    def _paced(self, rows: Iterable[Row]) -> Iterator[Row]:
        for number, row in enumerate(rows, 1):
            if number % _BATCH == 0 and self._stopped.wait(_PAUSE_S):
                return
            yield row

    def _sweep_key(
        self, bucket: bytes, key: bytes, rows: Iterator[Row], rules: tuple[Rule, ...], now_ns: int, swept: Swept
    ) -> None:
        name = key.decode()
        first = next(rows)
        rest = 0
        newer: Object = first.version
        if not first.latest:  # what was current was removed through the mount
            rows = itertools.chain([first], rows)
        for row in rows:
            found = row.version
            if self._noncurrent_is_due(name, found, newer, rest, rules, now_ns):
                self._store.delete(bucket, key, version_id=found.version_id)
                swept.noncurrent += 1
            rest += 1
            newer = found
        if not first.latest:
            return
        if first.version.record.marker:
            if not rest and lifecycle.lone_marker_is_due(rules, name, first.version.order_ns, now_ns):
                self._store.delete(bucket, key, version_id=first.version.version_id)
                swept.markers += 1
        elif self._is_due(name, first.version, rules, now_ns):
            swept.expired += self._store.expire(bucket, key, first.version)

    def _is_due(self, name: str, found: Object, rules: tuple[Rule, ...], now_ns: int) -> bool:
        attributes = found.attributes
        due = lifecycle.expires(rules, name, attributes.size_bytes, self._tags(found, rules), attributes.mtime_ns)
        return due is not None and due[0] <= now_ns

    def _noncurrent_is_due(
        self, name: str, found: Object, newer: Object, count: int, rules: tuple[Rule, ...], now_ns: int
    ) -> bool:
        tags = self._tags(found, rules)
        size = found.attributes.size_bytes
        return lifecycle.noncurrent_is_due(rules, name, size, tags, newer.order_ns, count, now_ns)

    def _tags(self, found: Object, rules: tuple[Rule, ...]) -> dict[str, str]:
        """Looked up only where a rule asks for them."""
        if not any(rule.filter.tags for rule in rules):
            return {}
        return parse_tags((self._store.get_tags(found) or b"").decode())
