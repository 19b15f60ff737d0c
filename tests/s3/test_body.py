"""Bodies on their way in, without a network: patience ends, and the disk begins early."""

import asyncio
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tieredfs.host import libc
from tieredfs_gateway.s3 import body, ingest
from tieredfs_gateway.s3.body import ClientGoneError, IncomingBody, Message
from tieredfs_gateway.s3.errors import S3Error


def incoming(messages: Sequence[Message]) -> IncomingBody:
    """A client that sends these and then nothing."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return IncomingBody(receive)


def piece(content: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


def test_batches_are_about_a_mebibyte() -> None:
    found = incoming([*[piece(bytes(400_000))] * 5, piece(b"end", more=False)])

    async def sizes() -> list[int]:
        batches = []
        while not found.ended:
            batches.append(sum(map(len, await found.batch())))
        return batches

    assert asyncio.run(sizes()) == [1_200_000, 800_003]
    assert found.received_bytes == 2_000_003


def test_of_a_body_that_has_its_length_nobody_waits_for_the_end() -> None:
    left = [piece(b"ab"), piece(b"cd")]

    async def receive() -> Message:
        assert left, "asked for what is behind the end"
        return left.pop(0)

    found = IncomingBody(receive, 4)
    assert asyncio.run(found.all(10)) == [b"ab", b"cd"]
    assert found.ended
    cut_off = IncomingBody(incoming([piece(b"ab"), piece(b"", more=False)])._receive, 4)
    assert asyncio.run(cut_off.all(10)) == [b"ab"]


def test_a_client_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "PIECE_WAIT_S", 0.01)
    with pytest.raises(S3Error) as caught:
        asyncio.run(incoming([piece(b"a")]).batch())
    assert caught.value.code == "RequestTimeout"


def test_a_client_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SLOW_AFTER_S", -1.0)
    monkeypatch.setattr(body, "RATE_BYTES_PER_S_MIN", 1 << 60)
    with pytest.raises(S3Error) as caught:
        asyncio.run(incoming([piece(b"a")] * 1000).batch())
    assert caught.value.code == "RequestTimeout"


def test_a_client_that_goes_is_noticed() -> None:
    with pytest.raises(ClientGoneError):
        asyncio.run(incoming([piece(b"a"), {"type": "http.disconnect"}]).batch())


def test_documents_have_a_limit() -> None:
    with pytest.raises(S3Error) as caught:
        asyncio.run(incoming([piece(bytes(1000))] * 3000).all(100_000))
    assert caught.value.code == "MaxMessageLengthExceeded"


def test_the_disk_begins_with_a_body_that_is_still_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    begin_writing = libc.begin_writing

    def noting(descriptor: int, offset: int, length: int) -> None:
        begin_writing(descriptor, offset, length)
        begun.append((offset, length))

    monkeypatch.setattr(libc, "begin_writing", noting)
    monkeypatch.setattr(ingest, "WRITE_BEHIND_BYTES", 10_000)
    content = os.urandom(43_000)
    with open(tmp_path / "file", "w+b") as file:
        sink = ingest.FileSink(file.fileno())
        for at in range(0, len(content), 4000):
            sink([memoryview(content[at : at + 1000]), memoryview(content[at + 1000 : at + 4000])], at)
        file.seek(0)
        assert file.read() == content
    assert begun == [(0, 12_000), (12_000, 12_000), (24_000, 12_000)]


def test_a_file_system_that_cannot_begin_early_takes_the_body_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def refusing(descriptor: int, offset: int, length: int) -> None:
        refused.append(length)
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    monkeypatch.setattr(libc, "begin_writing", refusing)
    monkeypatch.setattr(ingest, "WRITE_BEHIND_BYTES", 10)
    with open(tmp_path / "file", "w+b") as file:
        ingest.FileSink(file.fileno())([memoryview(b"0123456789a")], 0)
        assert file.read() == b"0123456789a"
    assert refused == [11]
