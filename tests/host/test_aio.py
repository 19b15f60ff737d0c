"""fdatasync of several files at once, in one thread."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.host import aio
from tieredfs.host.aio import TOGETHER_MAX, SyncsTogether


@pytest.fixture
def descriptors(tmp_path: Path) -> Iterator[list[int]]:
    made = [os.open(tmp_path / f"{number}", os.O_RDWR | os.O_CREAT) for number in range(TOGETHER_MAX)]
    for descriptor in made:
        os.pwrite(descriptor, bytes(4096), 0)
    yield made
    for descriptor in made:
        os.close(descriptor)


def synced(syncs: SyncsTogether, descriptors: list[int]) -> list[OSError | None]:
    found = syncs.sync(descriptors)
    if found is None:
        pytest.skip("this kernel, or what guards it, has no io_submit")
    return found


def test_all_of_them_again_and_again(descriptors: list[int]) -> None:
    syncs = SyncsTogether()
    for count in (1, 7, TOGETHER_MAX, 1):
        assert synced(syncs, descriptors[:count]) == [None] * count


def test_each_fails_for_itself(descriptors: list[int], tmp_path: Path) -> None:
    gone = os.open(tmp_path / "gone", os.O_RDWR | os.O_CREAT)
    os.close(gone)
    found = synced(SyncsTogether(), [*descriptors[:3], gone, *descriptors[3:5]])
    assert [None if each is None else each.errno for each in found] == [None] * 3 + [errno.EBADF] + [None] * 2


def test_what_is_too_much_or_nothing_is_not_done(descriptors: list[int]) -> None:
    syncs = SyncsTogether()
    assert syncs.sync([]) is None
    assert syncs.sync([*descriptors, descriptors[0]]) is None


def test_what_the_kernel_does_not_take_is_synced_all_the_same(
    descriptors: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs, done = SyncsTogether(), list[int]()
    synced(syncs, descriptors[:1])
    monkeypatch.setattr(aio, "_syscall", lambda *_: -1)
    monkeypatch.setattr(os, "fdatasync", done.append)
    assert syncs.sync(descriptors[:3]) == [None] * 3
    assert done == descriptors[:3]
    assert syncs.sync(descriptors[:3]) is None, "it is not asked again"


def test_a_failure_is_not_asked_for_twice(descriptors: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = SyncsTogether()
    monkeypatch.setattr(aio._Context, "sync", lambda _, asked: [errno.EIO, errno.EINVAL, 0][: len(asked)])
    found = syncs.sync(descriptors[:3])
    if found is None:
        pytest.skip("this kernel, or what guards it, has no io_submit")
    assert [None if each is None else each.errno for each in found] == [errno.EIO, None, None]


def test_from_several_threads(descriptors: list[int]) -> None:
    syncs, found = SyncsTogether(), list[list[OSError | None]]()
    synced(syncs, descriptors[:1])
    threads = [
        threading.Thread(target=lambda lane=lane: found.append(synced(syncs, descriptors[lane::4])))
        for lane in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [[None] * (TOGETHER_MAX // 4)] * 4


def test_a_child_has_contexts_of_its_own(descriptors: list[int]) -> None:
    syncs = SyncsTogether()
    synced(syncs, descriptors[:2])
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int(syncs.sync(descriptors[:2]) != [None, None])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert synced(syncs, descriptors[:2]) == [None, None]
