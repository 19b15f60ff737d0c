"""The volume record, disks, and the codes of volumes that this program is too old or too new for."""

import dataclasses
from pathlib import Path

import pytest

from tests.meta.conftest import CONFIG, DISKS, Volume
from tieredfs import errors
from tieredfs.format import keys, records
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.meta.metadata import Metadata, format_volume
from tieredfs.model import ROOT, Code, CodeKind, DiskId, DiskState, Durability, FileKind


def test_format_writes_a_volume_once(volume: Volume) -> None:
    assert volume.metadata.config() == CONFIG
    assert volume.metadata.disks() == DISKS
    root = volume.metadata.attributes(ROOT)
    assert (root.kind, root.mode, root.link_count, root.parent) == (FileKind.DIRECTORY, 0o755, 2, ROOT)
    assert volume.metadata.count_inodes() == 1
    other = dataclasses.replace(CONFIG, uuid="other")
    with pytest.raises(errors.VolumeExistsError):
        format_volume(volume.engine, other, [])
    assert volume.metadata.config() == CONFIG
    assert volume.metadata.disks() == DISKS


def test_database_without_a_volume(tmp_path: Path, volume: Volume) -> None:
    engine = SqliteEngine(str(tmp_path / "empty.db"), create=True)
    with pytest.raises(errors.VolumeNotFoundError):
        Metadata(engine, volume.clock).config()
    engine.close()


def test_volume_of_a_newer_format(volume: Volume) -> None:
    newer = dataclasses.replace(CONFIG, format_version=3)
    volume.engine.write(lambda writer: writer.put(keys.VOLUME, records.encode_volume(newer)))
    with pytest.raises(errors.NewerFormatError):
        volume.metadata.config()


def test_settings_change_and_identity_does_not(volume: Volume) -> None:
    metadata, code = volume.metadata, Code(CodeKind.REPLICA, 1, 2)
    assert metadata.code() == CONFIG.code
    changed = dataclasses.replace(CONFIG, name="new", code=code, block_bytes=1 << 20, durability=Durability.STORE)
    metadata.set_config(changed)
    assert metadata.config() == changed
    assert metadata.code() == CONFIG.code, "cached"
    volume.clock.sleep(2)
    assert metadata.code() == code
    with pytest.raises(errors.InvalidRequestError):
        metadata.set_config(dataclasses.replace(CONFIG, uuid="other"))


def test_disks_are_known_by_uuid_and_url(volume: Volume) -> None:
    metadata = volume.metadata
    for uuid, url in (("uuid-1", "disk:///new"), ("new", "disk:///d1")):
        with pytest.raises(errors.AlreadyExistsError):
            metadata.add_disk(uuid, url, "domain")
    added = metadata.add_disk("new", "disk:///new", "domain")
    assert (added.disk, added.state) == (DiskId(4), DiskState.ACTIVE)
    assert metadata.set_disk_state(DiskId(4), DiskState.LOST).state is DiskState.LOST
    assert metadata.set_disk_state(DiskId(4), DiskState.ACTIVE).state is DiskState.ACTIVE
    metadata.set_disk_state(DiskId(4), DiskState.LOST)
    metadata.set_disk_state(DiskId(4), DiskState.REMOVED)
    assert metadata.add_disk("newer", "disk:///new", "domain").disk == DiskId(5), "ids are never used again"
    with pytest.raises(errors.AlreadyExistsError):
        metadata.add_disk("new", "disk:///newest", "domain")
    assert [disk.disk for disk in metadata.disks()] == [1, 2, 3, 4, 5]


def test_every_pair_of_disk_states(volume: Volume) -> None:
    """The table, walked whole: allowed and refused transitions as a reader would list them."""
    metadata = volume.metadata
    allowed = {"AD", "AL", "DA", "DL", "DR", "LA", "LR"} | {state.name[0] * 2 for state in DiskState}
    reach = {"A": "", "D": "D", "L": "L", "R": "LR"}
    states = {state.name[0]: state for state in DiskState}
    for old, new in ((old, new) for old in states for new in states):
        disk = metadata.add_disk(f"{old}{new}", f"disk:///{old}{new}", "domain").disk
        for step in reach[old]:
            metadata.set_disk_state(disk, states[step])
        if old + new in allowed:
            assert metadata.set_disk_state(disk, states[new]).state is states[new]
        else:
            with pytest.raises(errors.InvalidRequestError):
                metadata.set_disk_state(disk, states[new])


def test_rotten_record_is_an_error_and_not_a_file(volume: Volume) -> None:
    value = volume.engine.read(lambda reader: reader.get(keys.inode(ROOT)))
    assert value is not None
    rotten = bytes([value[0], value[1] ^ 1]) + value[2:]
    volume.engine.write(lambda writer: writer.put(keys.inode(ROOT), rotten))
    with pytest.raises(errors.CorruptError):
        volume.metadata.attributes(ROOT)
    volume.engine.write(lambda writer: writer.put(keys.inode(ROOT), value))
