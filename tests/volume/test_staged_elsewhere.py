"""What one host has staged, read on another one without a mount: by path, by version, by reference, as a checkpoint."""

import os
import signal
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cache.rigs import LyingFiles, wait_until
from tests.nodes.rig import SECRET, secret_set
from tests.nodes.test_node_volumes import self_signed
from tests.whole_files import get, put
from tieredfs.cache.peers import LISTEN_VARIABLE
from tieredfs.config import parse_code
from tieredfs.errors import BusyError, ConfigurationError
from tieredfs.host import Host, local_host
from tieredfs.limits import GIB, MIB
from tieredfs.model import NO_CACHE, Durability
from tieredfs.volume import FileSystem, SsdTier, Volume, format_volume, peer_keeper
from tieredfs.volume.contract import Part
from tieredfs.volume.peer_keeper import PeerKeeper
from tieredfs.volume.peering import Listening, served
from tieredfs_client.checkpoint import CheckpointManager

LISTENING = Listening(("127.0.0.1", 0), SECRET.encode())
DATA = np.random.default_rng(1).bytes(5 * MIB + 7)
Two = tuple[FileSystem, FileSystem]


def host(name: str, other: Path) -> Host:
    files = LyingFiles()
    files.hidden.append(str(other))
    return replace(local_host(), name=name, files=files)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    """The owner, which drains when its tier is started, and the reader."""
    url = f"sqlite://{tmp_path}/volume.db"
    disks = [f"disk://{tmp_path}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="v", block_bytes=MIB)
    with ExitStack() as stack:
        stack.enter_context(secret_set())
        here, there = host("host-a", tmp_path / "b"), host("host-b", tmp_path / "a")
        volume = Volume.open(url, purpose="test", host=here)
        owner = stack.enter_context(FileSystem(volume, SsdTier(volume, str(tmp_path / "a"), GIB)))
        reader = stack.enter_context(
            FileSystem.at(url, purpose="test", host=there, cache_dir=str(tmp_path / "b"), cache_bytes=GIB)
        )
        yield owner, reader


def test_by_path_by_version_and_by_reference(two: Two) -> None:
    owner, reader = two
    with served(owner.volume, LISTENING):
        put(owner, b"file", DATA)
        found = reader.stat(b"file")
        assert found.staged_in == owner._tier.cache
        assert reader.open_here(found) is None, "its bytes have to be fetched"
        assert get(reader, b"file") == DATA
        with reader.open_version(found) as reading:
            assert reading.descriptor is not None
        here = reader.open_here(reader.stat(b"file"))
        assert here is not None, "now they are here"
        here.close()
        assert reader.stat(b"file").staged_in != NO_CACHE, "and still not stored"
        owner._ssd.start()
        with reader.splice([Part(found.inode, 1, 4 * MIB)]) as writing:
            writing.commit(b"part")
        assert get(reader, b"part") == DATA[1 : 1 + 4 * MIB]


def test_a_checkpoint_that_was_committed_a_moment_ago(two: Two) -> None:
    owner, reader = two
    weight = np.arange(1 << 19)
    with served(owner.volume, LISTENING):
        with CheckpointManager(owner, "runs/r", rank=0, world_size=1, job="a") as manager:
            manager.save(1, {"weight": weight})
        with CheckpointManager(reader, "runs/r", rank=0, world_size=1, job="b") as manager:
            assert np.array_equal(manager.load(1)["weight"], weight)
    assert owner.volume.staged().file_count > 0


def test_a_process_that_is_kept_serving_ends_with_its_keeper_even_when_it_is_stopped(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, _ = two
    monkeypatch.setenv(LISTEN_VARIABLE, "127.0.0.1:0")
    monkeypatch.setattr(peer_keeper, "_END_S", 0.2)
    keeper = PeerKeeper(owner.volume)
    keeper.start()
    try:
        wait_until(owner.volume.metadata.peers, "somebody serves")
        (child,) = [peer.session.process for peer in owner.volume.metadata.peers()]
        os.kill(child, signal.SIGSTOP)
    finally:
        keeper.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_with_tls(two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, reader = two
    cert, key = self_signed(tmp_path)
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(cert))
    with secret_set():
        listening = Listening.asked("127.0.0.1:0", cert=str(cert), key=str(key))
    with served(owner.volume, listening) as server:
        assert server.address.startswith("https://")
        put(owner, b"file", DATA)
        assert get(reader, b"file") == DATA
        with (
            pytest.raises(BusyError, match="cannot listen"),
            served(owner.volume, Listening(("127.0.0.1", server.server_address[1]), SECRET.encode())),
        ):
            pass


@pytest.mark.parametrize("listen", ["0.0.0.0:9410", "[::]:0", "nowhere", "host:", ":1", "host:99999"])
def test_where_to_listen_is_an_address_that_others_reach(listen: str) -> None:
    with secret_set(), pytest.raises(ConfigurationError):
        Listening.asked(listen)


def test_a_secret_is_needed_and_a_key_to_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="secret"):
        Listening.asked("127.0.0.1:0")
    with secret_set(), pytest.raises(ConfigurationError, match="belong together"):
        Listening.asked("127.0.0.1:0", cert=str(tmp_path))
