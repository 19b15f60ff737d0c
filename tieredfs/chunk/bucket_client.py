"""Requests to an S3-compatible bucket through boto3, bounded, and what its errors mean. Import it only where a bucket is used."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import boto3
import botocore.session
import urllib3.exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tieredfs.chunk.directory import IDENTITY_NAME, DiskIdentity, decode_identity
from tieredfs.config import BucketUrl
from tieredfs.errors import (
    ConfigurationError,
    CorruptError,
    NoSpaceError,
    NotFoundError,
    TieredError,
    UnavailableError,
)
from tieredfs.host import Clock
from tieredfs.limits import KIB, REMOTE_CALL_S, REMOTE_CONNECT_S, REMOTE_SILENCE_S

ATTEMPTS: Final = 2
"""Of one request, and of one body that broke off: the block layer has other chunks to ask sooner than a third one helps."""
CONNECTIONS_MAX: Final = 32
_STEP_BYTES: Final = 256 * KIB
ABSENT: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_FULL: Final = frozenset(
    {"QuotaExceeded", "InsufficientCapacity", "InsufficientStorage", "StorageFull", "XMinioStorageFull", "507"}
)
_OUT_OF_RANGE: Final = frozenset({"InvalidRange", "416"})


class _TornError(Exception):
    """An answer that began well and broke off: not something that the SDK repeats. Never leaves this module."""


def new_client(url: BucketUrl) -> Any:
    """An S3 client whose every call is bounded. Raises ConfigurationError."""
    config = Config(
        connect_timeout=REMOTE_CONNECT_S,
        read_timeout=REMOTE_SILENCE_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS_MAX,
        tcp_keepalive=True,
        response_checksum_validation="when_required",  # every cell is checked here
        s3={"addressing_style": "path" if url.endpoint else "auto"},
    )
    try:
        return _session().client("s3", endpoint_url=url.endpoint or None, region_name=url.region or None, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"{url}: {error}") from error


def _session() -> Any:
    """A session of its own, as boto3 wants it for each thread, with the descriptions of S3 that the process has read already:
    a client costs 17 ms of processor time then, and 90 when it reads them again.
    """
    descriptions = _descriptions()
    session = botocore.session.get_session()
    session.register_component("data_loader", descriptions)
    made = boto3.session.Session(botocore_session=session)
    paths = descriptions.search_paths
    paths[:] = dict.fromkeys(paths)  # every session adds that of boto3 to them
    return made


@functools.cache
def _descriptions() -> Any:
    return botocore.session.get_session().get_component("data_loader")


def translate(error: Exception, what: str) -> TieredError:
    """The one table of this edge. A message has the server's code, or the SDK's words, which name no secret."""
    if not isinstance(error, ClientError):
        return UnavailableError(f"{what}: {error}")
    code = str(error.response.get("Error", {}).get("Code", "?"))
    if code in ABSENT:
        return NotFoundError(f"{what}: it is not there")
    if code in _FULL:
        return NoSpaceError(f"{what}: {code}")
    if code in _OUT_OF_RANGE:
        return CorruptError(f"{what}: it is shorter than it was")
    return UnavailableError(f"{what}: {code}")


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        raise translate(error, what) from error


def read_bucket_identity(client: Any, url: BucketUrl) -> DiskIdentity | None:
    """None: there is none. Raises UnavailableError, CorruptError, NewerFormatError."""
    key = f"{url.prefix}/{IDENTITY_NAME}".lstrip("/")
    try:
        with translated(f"{url} does not answer"):
            answer = client.get_object(Bucket=url.bucket, Key=key)
            with answer["Body"] as body:
                raw: bytes = body.read(4 * KIB)
    except NotFoundError:
        return None
    return decode_identity(raw, f"{url.bucket}/{key}")


def check_present(client: Any, url: BucketUrl, identity: DiskIdentity | None) -> None:
    """What is missing is missing only while the disk itself is there, and ours. `identity` None: whose it is, is not asked.

    Raises UnavailableError, ForeignDataError never: somebody else's is not there, either.
    """
    found = read_bucket_identity(client, url)
    if found is None or (identity is not None and found != identity):
        raise UnavailableError(f"{url} is not the disk that it was")


def fetch(
    client: Any, url: BucketUrl, key: str, clock: Clock, what: str, start: int, views: Sequence[memoryview]
) -> int:
    """Fill `views`, one after another, with the object's bytes from `start`; returns the length of the whole object.

    `what`: that it cannot be done, in words. Raises NotFoundError, UnavailableError, and CorruptError when the object ends
    before they are full; also if it is empty.
    """
    deadline_s = clock.monotonic_s() + REMOTE_CALL_S
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(_TornError):
            return _fetch_once(client, url, key, clock, what, start, views, deadline_s)
    try:
        return _fetch_once(client, url, key, clock, what, start, views, deadline_s)
    except _TornError as error:
        raise UnavailableError(str(error)) from error


def _fetch_once(
    client: Any,
    url: BucketUrl,
    key: str,
    clock: Clock,
    what: str,
    start: int,
    views: Sequence[memoryview],
    deadline_s: float,
) -> int:
    end = start + sum(len(view) for view in views)
    with translated(what):
        answer = client.get_object(Bucket=url.bucket, Key=key, Range=f"bytes={start}-{end - 1}")
    total = _total_of(answer, start, what)
    with answer["Body"] as body:
        if total < end:
            raise CorruptError(f"{what}: it ends {end - total} bytes early")
        try:
            for view in views:
                _receive(body, view, clock, deadline_s, what)
            body.drain_conn()  # there is nothing left; said to the SDK, it keeps the connection
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _TornError(f"{what}: {error}") from error
    return total


def _receive(body: Any, view: memoryview, clock: Clock, deadline_s: float, what: str) -> None:
    """In steps of what has arrived, so that one that trickles meets its deadline."""
    done = 0
    while done < len(view):
        piece = body.read1(min(_STEP_BYTES, len(view) - done))
        if not piece:
            raise _TornError(f"{what}: the answer broke off")
        if clock.monotonic_s() > deadline_s:
            raise UnavailableError(f"{what}: the answer took over {REMOTE_CALL_S:.0f} s")
        view[done : done + len(piece)] = piece
        done += len(piece)


def _total_of(answer: Any, start: int, what: str) -> int:
    """Length of the whole object. Raises UnavailableError for a server that does not understand ranges."""
    if "ContentRange" in answer:
        return int(answer["ContentRange"].rpartition("/")[2])
    if start:
        raise UnavailableError(f"{what}: the server ignores ranges")
    return int(answer["ContentLength"])
