"""The status page of a real volume, served by a real process: what is staged, a disk that is gone, blocks that lack chunks."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests import web
from tests.mount import volumes
from tests.mount.volumes import WAIT_S, Lab, wait_until
from tests.s3.endpoint import command, free_port
from tieredfs.limits import MIB

FILE_BYTES = 3 * MIB
DISKS = 6


class Page:
    """A page that is served."""

    def __init__(self, lab: Lab, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        line, environment = command(lab.root / "entry-points", "status-page", lab.url, "--listen", f"127.0.0.1:{port}")
        with open(lab.root / "page.log", "wb") as log:
            self.process = subprocess.Popen(line, env=environment, stdout=log, stderr=log)

    def answers(self) -> bool:
        assert self.process.poll() is None
        with contextlib.suppress(httpx.HTTPError):
            return web.get(f"{self.url}/healthz", timeout=2).status_code == 200
        return False

    def data(self) -> Any:
        return web.get(f"{self.url}/status.json", timeout=WAIT_S).json()

    def html(self) -> str:
        return web.get(self.url, timeout=WAIT_S).text

    def until(self, condition: Callable[[Any], bool], what: str) -> Any:
        """The first look of which it is true."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = [self.data()]
            return condition(found[0])

        wait_until(look, what)
        return found[0]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with volumes.lab() as made:
        made.format(disks=DISKS)
        made.mount()
        yield made


@pytest.fixture(scope="module")
def page(lab: Lab) -> Iterator[Page]:
    served = Page(lab, free_port())
    try:
        wait_until(served.answers, "the page is served")
        yield served
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(WAIT_S) == 0
    finally:
        served.process.kill()
        served.process.wait(WAIT_S)


def texts(data: Any) -> str:
    return "\n".join(concern["text"] for concern in data["concerns"])


def test_the_page_says_what_is_where_and_what_is_not_yet_safe(lab: Lab, page: Page) -> None:
    (lab.mnt / "stored").write_bytes(os.urandom(FILE_BYTES))
    lab.ask("drain")
    lab.json("dump", lab.url)
    well = page.until(lambda data: data["census"] and data["census"]["block_count"] == 1, "the block is counted")
    assert (well["concerns"], well["problem"], well["volume"]["redundancy"]) == ([], None, 2)
    assert well["census"]["content_bytes"] == FILE_BYTES
    assert [holding["chunk_count"] for holding in well["census"]["disks"].values()] == [1] * DISKS
    assert [mount["mount_point"] for mount in well["mounts"]] == [str(lab.mnt)]
    assert "everything is in the store" in page.html()

    with open(lab.mnt / "open", "wb") as file:
        file.write(b"x" * FILE_BYTES)
        file.flush()
        os.fsync(file.fileno())
        staged = page.until(lambda data: data["volume"]["staged"]["file_count"] == 1, "it is seen to be staged")
        assert staged["volume"]["caches"][0]["staged_files"] == 1
        assert staged["concerns"] == [], "it is on its way"
        assert "On SSDs only" in page.html()
    lab.ask("drain")

    lab.disk(5).rename(lab.root / "gone")
    (lab.mnt / "short").write_bytes(os.urandom(FILE_BYTES))
    lab.ask("drain")
    short = page.until(
        lambda data: data["volume"]["short"]["block_count"] == 1 and data["volume"]["redundancy"] == 1,
        "a block lacks a chunk, and its disk is seen to be away",
    )
    away = [disk["disk"] for disk in short["volume"]["disks"] if not disk["reachable"]]
    assert len(away) == 1
    assert f"Disk {away[0]} is away" in texts(short)
    assert "1 block lacks chunks" in texts(short)
    assert {concern["level"] for concern in short["concerns"]} == {"watch"}
    assert "out of reach" in page.html()
    writes = {speed["disk"]: speed["write_mean_s"] for speed in short["speeds"]}
    assert sum(mean is not None for mean in writes.values()) >= DISKS - 1, "chunks were written to all others"

    (lab.root / "gone").rename(lab.disk(5))
    healed = page.until(lambda data: data["concerns"] == [], "the block has its chunk, the volume its disk")
    assert (healed["volume"]["short"]["block_count"], healed["volume"]["redundancy"]) == (0, 2)
    assert max(sample["missing_bytes"] for sample in healed["history"]) > 0, "what was is remembered"


def test_a_daemon_that_does_not_answer_is_said(lab: Lab, page: Page) -> None:
    daemon = lab.daemon_pid()
    os.kill(daemon, signal.SIGSTOP)
    try:
        silent = page.until(lambda data: not data["mounts"][0]["answers"], "the daemon is missed")
        assert f"The daemon of {lab.mnt} does not answer" in texts(silent)
    finally:
        os.kill(daemon, signal.SIGCONT)
    page.until(lambda data: data["mounts"][0]["answers"], "it is back")


def test_the_page_in_a_file_is_the_page(lab: Lab) -> None:
    target = lab.root / "status.html"
    line, environment = command(lab.root / "entry-points", "status-page", lab.url, "--html", str(target))
    done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    html = target.read_text()
    assert str(lab.disk(0)) in html
    assert re.search(r"[0-9]+ blocks?, counted", html)
    assert str(lab.mnt) in html
    assert "<script" not in html
    assert [path.name for path in lab.root.glob(".status.html*")] == []
