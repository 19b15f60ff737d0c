"""Slow clients and clients that go, without a network: patience ends."""

import asyncio
from collections.abc import Sequence

import pytest

from tieredfs_gateway.s3 import body
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
