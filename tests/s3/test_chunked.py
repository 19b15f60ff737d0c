"""aws-chunked bodies: cut anywhere they decode to the same; whatever is wrong with them is noticed."""

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs_gateway.s3.chunked import ChunkSigner, Decoder
from tieredfs_gateway.s3.errors import S3Error

KEY, TIME, SCOPE, SEED = b"k" * 32, "20260101T000000Z", "20260101/us-east-1/s3/aws4_request", "0" * 64
EMPTY = hashlib.sha256(b"").hexdigest()


def sign(kind: str, last: str, *hashes: str) -> str:
    return hmac.new(KEY, "\n".join([kind, TIME, SCOPE, last, *hashes]).encode(), hashlib.sha256).hexdigest()


def encode(chunks: list[bytes], *, signed: bool, trailers: dict[str, str] | None = None) -> bytes:
    """The test's own encoder, written from the protocol's description."""
    out, last = b"", SEED
    for chunk in [*chunks, b""]:
        out += b"%x" % len(chunk)
        if signed:
            last = sign("AWS4-HMAC-SHA256-PAYLOAD", last, EMPTY, hashlib.sha256(chunk).hexdigest())
            out += b";chunk-signature=" + last.encode()
        out += b"\r\n" + (chunk + b"\r\n" if chunk else b"")
    lines = [f"{name}:{value}" for name, value in (trailers or {}).items()]
    out += "".join(f"{line}\r\n" for line in lines).encode()
    if trailers is not None and signed:
        canonical = "".join(f"{line}\n" for line in lines).encode()
        signature = sign("AWS4-HMAC-SHA256-TRAILER", last, hashlib.sha256(canonical).hexdigest())
        out += f"x-amz-trailer-signature:{signature}\r\n".encode()
    return out + b"\r\n"


def decode(
    body: bytes, size: int, *, signed: bool, trailers: bool = False, cut: int = 1 << 20
) -> tuple[bytes, dict[str, str]]:
    decoder = Decoder(size, ChunkSigner(KEY, TIME, SCOPE, SEED) if signed else None, trailers_expected=trailers)
    out = b"".join(bytes(view) for at in range(0, len(body), cut) for view in decoder.feed(body[at : at + cut]))
    return out, decoder.finish()


CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@given(CHUNKS, st.booleans(), st.one_of(st.none(), st.just({"x-amz-checksum-crc32": "AAAAAA=="})), st.integers(1, 99))
def test_cut_anywhere_it_decodes_to_the_same(
    chunks: list[bytes], signed: bool, trailers: dict[str, str] | None, cut: int
) -> None:
    body = encode(chunks, signed=signed, trailers=trailers)
    size = sum(map(len, chunks))
    found = decode(body, size, signed=signed, trailers=trailers is not None, cut=cut)
    assert found == (b"".join(chunks), trailers or {})


@given(CHUNKS.filter(bool), st.booleans(), st.data())
def test_truncated_bodies_are_incomplete(chunks: list[bytes], signed: bool, data: st.DataObject) -> None:
    body = encode(chunks, signed=signed)
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(S3Error) as caught:
        decode(body[:end], sum(map(len, chunks)), signed=signed)
    assert caught.value.code == "IncompleteBody"


@pytest.mark.parametrize("odd", [b"\x0c", b"\x0b", b"\x1c", b"\x85", b"\xa0"])
def test_odd_white_space_is_no_way_around_a_signature(odd: bytes) -> None:
    body = encode([b"abc"], signed=True, trailers={"x-amz-checksum-crc32": "AAAAAA=="})
    for changed in (
        body.replace(b"AAAAAA==\r\n", b"AAAAAA==" + odd + b"\n"),
        body.replace(b"32:A", b"32:" + odd + b"A"),
    ):
        with pytest.raises(S3Error):
            decode(changed, 3, signed=True, trailers=True)


@given(CHUNKS.filter(bool), st.data())
def test_a_signed_body_cannot_be_changed(chunks: list[bytes], data: st.DataObject) -> None:
    body = bytearray(encode(chunks, signed=True, trailers={"x-amz-checksum-crc32": "AAAAAA=="}))
    at = data.draw(st.integers(0, len(body) - 5))
    body[at] ^= 1
    with pytest.raises(S3Error):
        decode(bytes(body), sum(map(len, chunks)), signed=True, trailers=True)


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3;x=y\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\nmore",
        b"3\r\nabc\r\n0\r\nno colon\r\n\r\n",
        b"3\r\nabc\r\n0\r\na:1\r\na:2\r\n\r\n",
        b"3\r\nabc\r\n0\r\n" + b"a:" + b"x" * 9000 + b"\r\n\r\n",
        b"1" * 300,
        b"3" + b" " * 300 + b"\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_bad_framing_is_refused(body: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        decode(body, 3, signed=False, trailers=True)
    assert caught.value.code == "InvalidRequest"


@pytest.mark.parametrize("body", [b"4\r\nabcd\r\n0\r\n\r\n", b"2\r\nab\r\n0\r\n\r\n", b"ffffffffffffffff\r\nabc"])
def test_a_body_of_another_length_than_announced_is_refused(body: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        decode(body, 3, signed=False)
    assert caught.value.code == "IncompleteBody"


def test_a_trailer_that_was_not_announced_is_refused() -> None:
    with pytest.raises(S3Error):
        decode(b"0\r\na:1\r\n\r\n", 0, signed=False, trailers=False)
