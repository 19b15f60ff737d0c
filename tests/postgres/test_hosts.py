"""Two hosts of one volume under real mounts: what one has staged the other reads, whoever is killed meanwhile."""

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.volumes import Lab, lab, wait_until
from tests.nodes.rig import secret_set
from tests.postgres.hosts import children_of, other_host
from tests.postgres.server import Server

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another host needs namespaces, hence root")
HONEST = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
MIB = 1 << 20


@pytest.fixture
def here(server: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("TIEREDFS_STATE_DIR", str(tmp_path / "state"))
    with secret_set(), lab(server.url(database)) as made:
        made.format("rs:2+1", 3)
        yield made


def hosts_that_serve(made: Lab) -> list[str]:
    with made.open() as volume:
        return [peer.session.host for peer in volume.metadata.peers()]


def patiently_read(path: Path, tries: int) -> bytes:
    """An error is an honest answer while the owner comes back; other bytes never are."""
    while True:
        tries -= 1
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in HONEST or not tries:
                raise


def test_what_is_staged_on_another_host_is_read_here_whatever_is_killed_there(here: Lab) -> None:
    with other_host(here, "host-a") as owner:
        owner.mount()
        here.mount(cache_dir=f"{here.root}/ssd/cache")
        wait_until(lambda: hosts_that_serve(here) == ["host-a"], "it serves what is staged on it")
        for number in range(3):
            here.disk(number).rename(here.root / f"away-{number}")  # now nothing can be stored
        contents = {"small": os.urandom(100_000), "large": os.urandom(24 * MIB + 5)}
        for name, content in contents.items():
            owner.path(f"mnt/{name}").write_bytes(content)
            assert (here.mnt / name).read_bytes() == content
        contents["small"] = b"closed again"
        owner.path("mnt/small").write_bytes(contents["small"])
        assert (here.mnt / "small").read_bytes() == contents["small"]

        contents["large"] = os.urandom(24 * MIB + 5)
        owner.path("mnt/large").write_bytes(contents["large"])
        daemon = owner.daemon_pid()
        (serving,) = children_of(daemon, "peer_process")
        os.kill(serving, signal.SIGSTOP)
        got: list[bytes] = []
        opener = threading.Thread(target=lambda: got.append(patiently_read(here.mnt / "large", 20)), daemon=True)
        opener.start()
        opener.join(0.5)
        assert opener.is_alive(), "it waits for a host that says nothing"
        os.kill(daemon, signal.SIGKILL)
        os.kill(serving, signal.SIGKILL)
        opener.join(120)
        assert got == [contents["large"]]
        assert owner.daemon_pid() != daemon

        for number in range(3):
            (here.root / f"away-{number}").rename(here.disk(number))
        owner.run("drain", str(here.mnt))
        here.ask("evict", paths=list(contents))
        for name, content in contents.items():
            assert (here.mnt / name).read_bytes() == content, "from the store"
        here.unmount()
