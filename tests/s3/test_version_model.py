"""Versions against a model: a list of versions for each key, as S3's documentation describes what happens to it."""

import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tieredfs.config import parse_code
from tieredfs.model import Durability
from tieredfs.volume import FileSystem, format_volume
from tieredfs_gateway.s3 import bucket_rules, record
from tieredfs_gateway.s3.errors import S3Error
from tieredfs_gateway.s3.record import Record
from tieredfs_gateway.s3.store import Store
from tieredfs_gateway.s3.version_listing import Request, every, page
from tieredfs_gateway.s3.versions import NULL

BUCKET = b"bkt"
KEYS = [b"a", b"a/b", b"a-b", b"a//", b".."]
keys = st.sampled_from(KEYS)


@dataclass
class Version:
    version_id: str
    etag: str | None
    """None: a delete marker."""


class Versions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp(prefix="tieredfs-versions-")
        url = f"sqlite://{self.root}/volume.db"
        format_volume(
            url,
            [f"disk://{self.root}/d"],
            code=parse_code("replica:1"),
            durability=Durability.SSD,
            name="m",
            block_bytes=1 << 20,
        )
        self.volume = FileSystem.at(url, purpose="test")
        self.store = Store(self.volume, self.volume.volume.host.clock)
        self.store.create_bucket(BUCKET)
        self.state = ""
        self.model: dict[bytes, list[Version]] = {}
        """Newest first."""
        self.count = 0

    def teardown(self) -> None:
        self.volume.close()
        shutil.rmtree(self.root)

    def _add(self, key: bytes, version: Version) -> None:
        history = self.model.setdefault(key, [])
        if version.version_id == NULL:
            history[:] = [found for found in history if found.version_id != NULL]
        history.insert(0, version)

    @rule(state=st.sampled_from(["Enabled", "Suspended"]))
    def set_state(self, state: str) -> None:
        self.store.settings.put(BUCKET, bucket_rules.VERSIONING, state.encode())
        self.state = state

    @rule(key=keys)
    def put(self, key: bytes) -> None:
        self.count += 1
        etag = f"{self.count:032x}"
        with self.volume.splice([]) as writing:
            done = self.store.commit(BUCKET, key, writing, Record(etag, record.SPLICED_VERSION))
        assert (done.version_id is None) == (self.state == "")
        assert (done.version_id == NULL) == (self.state == "Suspended")
        self._add(key, Version(done.version_id or NULL, etag))

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        done = self.store.delete(BUCKET, key)
        if self.state == "":
            self.model.pop(key, None)
            return
        assert done.marker
        assert done.version_id is not None
        self._add(key, Version(done.version_id, None))

    @rule(key=keys, data=st.data())
    def delete_version(self, key: bytes, data: Any) -> None:
        known = [version.version_id for version in self.model.get(key, [])]
        chosen = data.draw(st.sampled_from([*known, NULL, "0" * 32]))
        found = [version for version in self.model.get(key, []) if version.version_id == chosen]
        done = self.store.delete(BUCKET, key, version_id=chosen)
        assert done.marker == any(version.etag is None for version in found)
        self.model[key] = [version for version in self.model.get(key, []) if version.version_id != chosen]

    @invariant()
    def each_version_is_there(self) -> None:
        for key in KEYS:
            history = self.model.get(key, [])
            current = self.store.find(BUCKET, key)
            expected = history[0].etag if history else None
            assert (current.record.etag if current else None) == expected
            for version in history:
                if version.etag is None:
                    with pytest.raises(S3Error, match="method"):
                        self.store.head(BUCKET, key, version.version_id)
                else:
                    assert self.store.head(BUCKET, key, version.version_id).record.etag == version.etag

    @invariant()
    def the_list_is_the_model(self) -> None:
        expected = [
            (key, version.version_id, version.etag is None, number == 0)
            for key in sorted(KEYS)
            for number, version in enumerate(self.model.get(key, []))
        ]
        found = [
            (row.key, row.version.version_id, row.version.record.marker, row.latest)
            for row in every(self.store, BUCKET)
        ]
        assert found == expected
        assert self._paged(2) == expected

    def _paged(self, size: int) -> list[tuple[bytes, str, bool, bool]]:
        found: list[tuple[bytes, str, bool, bool]] = []
        asked = Request(b"", b"", b"", None, size)
        for _ in range(100):
            shown = page(self.store, BUCKET, asked)
            found += [(row.key, row.version.version_id, row.version.record.marker, row.latest) for row in shown.rows]
            if not shown.truncated:
                return found
            asked = Request(b"", b"", shown.next_key, shown.next_version, size)
        raise AssertionError("the listing does not end")

    @invariant()
    def nothing_is_left_of_what_is_gone(self) -> None:
        if any(self.model.values()):
            return
        assert [path for path, _ in self.volume.walk(BUCKET)] == []


TestVersions = Versions.TestCase
TestVersions.settings = hypothesis_settings(max_examples=8, stateful_step_count=25, deadline=None)
