"""One request, from its head to its last byte: authenticate, route, authorize, carry out in a thread, answer.

The event loop parses, waits and passes bytes on; whatever may block runs in threads. A look at an object is the exception: two
short reads of the metadata and, for a small object that is in the page cache, one of its file, are done here, because
handing them to a thread costs several times what they do. Small uploads go to the disk in groups (`small_puts`); large
bodies go in pieces of a mebibyte, the next one under way while one is worked on.
"""

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from tieredfs.errors import TieredError
from tieredfs.host import Clock
from tieredfs.volume.contract import FileSystemContract, Writing
from tieredfs_gateway.s3 import access, checksums, cors, form_posts, sigv2, sigv4, xml
from tieredfs_gateway.s3.body import ClientGoneError, IncomingBody, Message, Receive
from tieredfs_gateway.s3.bucket_calls import BucketCalls
from tieredfs_gateway.s3.bucket_names import is_bucket_name
from tieredfs_gateway.s3.bucket_rules import Believed
from tieredfs_gateway.s3.chunked import Decoder
from tieredfs_gateway.s3.config_calls import ConfigCalls
from tieredfs_gateway.s3.epoch import Epoch
from tieredfs_gateway.s3.errors import S3Error, told
from tieredfs_gateway.s3.http import ANONYMOUS, XML_TYPE, Caller, Request, Response, latin, parse_request
from tieredfs_gateway.s3.ingest import Expected, FileSink, Ingest, Received
from tieredfs_gateway.s3.keystore import AccessKey, Keystore
from tieredfs_gateway.s3.metrics import Metrics
from tieredfs_gateway.s3.object_calls import ObjectCalls, expected_body
from tieredfs_gateway.s3.object_puts import ObjectPut
from tieredfs_gateway.s3.routes import POST_OBJECT, Body, Level, Operation, is_form, route
from tieredfs_gateway.s3.small_puts import SmallPut, SmallPuts
from tieredfs_gateway.s3.store import Store
from tieredfs_gateway.s3.uploads import Uploads

Send = Callable[[Message], Awaitable[None]]
Scope = Mapping[str, Any]
T = TypeVar("T")

SMALL_BODY_BYTES: Final = 256 * 1024
PIECE_BYTES: Final = 256 * 1024
TRANSFERS_MAX: Final = 64
"""Large bodies and objects under way at one time, about 3 MiB of memory each; the others wait."""
TRANSFER_WAIT_S: Final = 60.0
SEND_WAIT_S: Final = 60.0
DRAIN_BYTES_MAX: Final = 8 << 20
DRAIN_WAIT_S: Final = 5.0
"""How much of a refused body is read all the same, and how long."""
_log: Final = logging.getLogger("tieredfs_gateway.s3")
_access: Final = logging.getLogger("tieredfs_gateway.s3.access")


class Endpoint:
    """An ASGI application without a lifespan. `executor` carries out what blocks."""

    def __init__(
        self,
        volume: FileSystemContract,
        clock: Clock,
        executor: Executor,
        metrics: Metrics,
        domains: Sequence[str],
        epoch: Epoch | None = None,
        share: int = 1,
    ) -> None:
        """`share`: of how many processes this is one."""
        self.store = store = Store(volume, clock, epoch)
        self.uploads = Uploads(store)
        self._volume = volume
        self._clock = clock
        self._executor = executor
        self._metrics = metrics
        self._domains = tuple(domains)
        self._keystore = Keystore(volume, clock)
        self._buckets = BucketCalls(store, self.uploads)
        self._configs = ConfigCalls(store)
        self._objects = ObjectCalls(store, self.uploads, clock)
        self._small_puts = SmallPuts(volume, executor)
        self._transfers = asyncio.Semaphore(max(1, TRANSFERS_MAX // share))
        self._plain = self._plain_calls()
        self._with_body: dict[str, Callable[[Request, bytes], Response]] = {
            "CreateBucket": self._buckets.create,
            "PutObjectTagging": self._objects.put_tags,
            "PutObjectAcl": self._objects.put_acl,
            **self._configs.with_body(),
            "CompleteMultipartUpload": self._objects.complete,
        }

    def _plain_calls(self) -> dict[str, Callable[[Request], Response]]:
        buckets, objects = self._buckets, self._objects
        return {
            "ListObjects": buckets.list_v1,
            "ListObjectsV2": buckets.list_v2,
            "ListObjectVersions": buckets.list_versions,
            "ListMultipartUploads": buckets.list_uploads,
            **self._configs.plain(),
            "HeadBucket": buckets.head,
            "DeleteBucket": buckets.delete,
            "GetObject": objects.get,
            "GetObjectAttributes": objects.attributes,
            "GetObjectAcl": objects.acl,
            "GetObjectTagging": objects.get_tags,
            "ListParts": objects.list_parts,
            "CreateMultipartUpload": objects.begin_upload,
            "DeleteObject": objects.delete,
            "DeleteObjectTagging": objects.delete_tags,
            "AbortMultipartUpload": objects.abort,
        }

    # ---- a request --------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = self._clock.monotonic_s()
        exchange = _Exchange(secrets.token_hex(8).upper(), scope, receive, send)
        self._metrics.running.inc()
        try:
            response = await self._answer(exchange)
            await self._send(exchange, response)
        except ClientGoneError:
            await self._tell_who_is_gone(exchange)
        finally:
            self._metrics.running.dec()
            self._note(exchange, self._clock.monotonic_s() - started_s)

    async def _tell_who_is_gone(self, exchange: "_Exchange") -> None:
        """A body that ended in its middle, or whose chunks are none, looks like this too: then there is somebody to tell."""
        if not exchange.status:
            exchange.body.ended = True
            response = error_response(S3Error("IncompleteBody"), exchange.resource, exchange.request_id)
            await self._send(exchange, replace(response, headers=[*response.headers, ("connection", "close")]))
        exchange.status = 499

    async def _answer(self, exchange: "_Exchange") -> Response:
        try:
            return await self._with_cors(exchange, await self._handle(exchange))
        except ClientGoneError:
            raise
        except (S3Error, TieredError) as error:
            failure = told(error)
            if failure.status >= 500 and not isinstance(error, S3Error):
                _log.info("request %s: %s: %s", exchange.request_id, type(error).__name__, error)
        except Exception as error:  # noqa: BLE001 - the edge: a client is told, the log has the traceback
            failure = told(error)
            if failure.code == "InternalError":
                _log.exception("request %s failed", exchange.request_id)
            else:
                _log.warning("request %s: %s", exchange.request_id, error)
        response = error_response(failure, exchange.resource, exchange.request_id)
        with contextlib.suppress(S3Error, TieredError):
            return await self._with_cors(exchange, response)
        return response

    async def _with_cors(self, exchange: "_Exchange", response: Response) -> Response:
        request = exchange.request
        if request is None or "origin" not in request.headers or request.method == "OPTIONS":
            return response
        rules = (await self.believed(request.bucket)).cors
        return replace(response, headers=[*response.headers, *cors.answer(rules, request.method, request.headers)])

    async def _handle(self, exchange: "_Exchange") -> Response:
        request = exchange.request = exchange.parse(self._domains)
        if request.method == "OPTIONS":
            exchange.operation = "Preflight"
            return Response(200, cors.preflight((await self.believed(request.bucket)).cors, request.headers))
        if is_form(request):
            exchange.operation = POST_OBJECT.name
            return await self._receive_form(exchange, request)
        caller = await self._authenticate(request)
        if caller.claim.is_link_v2 and not caller.is_anonymous:
            request = replace(request, headers=sigv2.carried(request.signable) | dict(request.headers))
        operation = route(request)
        exchange.operation = operation.name
        await self._check_access(operation, request, caller)
        if operation.body is Body.CONTENT:
            return await self._receive_content(exchange, operation, request, caller)
        if operation.body is Body.SMALL:
            return await self._receive_document(exchange, operation, request, caller)
        if operation.name == "HeadObject":
            return self._objects.head(request)
        if operation.name == "GetObject" and (response := self._objects.get_now(request)) is not None:
            return response
        if operation.name in ("CopyObject", "UploadPartCopy", "ListBuckets"):
            call = {
                "CopyObject": self._objects.copy,
                "UploadPartCopy": self._objects.copy_part,
                "ListBuckets": self._buckets.list_buckets,
            }[operation.name]
            return await self._run(call, request, caller)
        return await self._run(self._plain[operation.name], request)

    async def _check_access(self, operation: Operation, request: Request, caller: Caller) -> None:
        """That a bucket is not there, anybody may know. Raises S3Error."""
        try:
            if not access.check(operation, request, caller, await self.believed(request.bucket)):
                await self._run(self._objects.check_public, request, caller)
        except S3Error as error:
            if (
                error.code == "AccessDenied"
                and operation.level is not Level.SERVICE
                and operation.name != "CreateBucket"
            ):
                await self._run(self.store.check_bucket, request.bucket)
            raise

    async def believed(self, bucket: bytes) -> Believed:
        """What is configured for the bucket; what is no bucket's name has nothing."""
        if not is_bucket_name(bucket):
            return Believed()
        known = self.store.settings.known(bucket)
        return known if known is not None else await self._run(self.store.settings.believed, bucket)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._run(function, *arguments)

    async def key(self, access_key_id: str) -> AccessKey:
        return await self._key(access_key_id)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ns() / 1e9, UTC)

    async def _receive_form(self, exchange: "_Exchange", request: Request) -> Response:
        async with self._transfer():
            writing = await self._run(self._volume.create)
            try:
                return await form_posts.receive(self, self._objects, writing, request, exchange.body)
            finally:
                await asyncio.shield(self._run(writing.discard))

    async def _receive_document(
        self, exchange: "_Exchange", operation: Operation, request: Request, caller: Caller
    ) -> Response:
        size = request.headers.get("content-length", "")
        slot = contextlib.nullcontext() if size.isdigit() and int(size[:9]) <= SMALL_BODY_BYTES else self._transfer()
        async with slot:
            pieces = await exchange.body.all(xml.DOCUMENT_BYTES_MAX)
            return await self._run(self._with_small_body, operation, request, caller, pieces)

    async def _authenticate(self, request: Request) -> Caller:
        now = self.now()
        claim = sigv4.read(request.signable)
        if claim is not None:
            key = await self._key(claim.access_key_id)
            sigv4.verify(claim, key.secret_access_key, request.signable, now)
            return Caller(key, claim)
        link = sigv2.read(request.signable)
        if link is None:
            payload = request.headers.get("x-amz-content-sha256", "")
            claim = sigv4.unsigned_claim("")
            trailing = payload == sigv4.STREAMING_UNSIGNED_TRAILER
            return Caller(ANONYMOUS, replace(claim, payload=payload) if trailing else claim)
        key = await self._key(link.access_key_id)
        host_bucket = request.bucket if request.virtual_host else b""
        sigv2.verify(link, key.secret_access_key, request.signable, now, host_bucket)
        return Caller(key, sigv4.unsigned_claim(link.access_key_id))

    async def _key(self, access_key_id: str) -> AccessKey:
        key = self._keystore.known(access_key_id)
        if key is None:
            key = await self._run(self._keystore.find, access_key_id)
        if key is None:
            raise S3Error("InvalidAccessKeyId", fields={"AWSAccessKeyId": access_key_id})
        return key

    def _with_small_body(
        self, operation: Operation, request: Request, caller: Caller, pieces: Sequence[bytes]
    ) -> Response:
        if caller.claim.payload not in sigv4.STREAMING and "content-length" not in request.headers:
            length = {"content-length": str(sum(map(len, pieces)))}
            request = replace(request, headers={**request.headers, **length})
        of_document = request
        if operation.name == "CompleteMultipartUpload":  # its checksum is the object's, not the document's
            of_document = replace(request, headers=checksums.without(request.headers))
        expected = expected_body(of_document, caller)
        ingest = Ingest(expected, decoder_of(request, caller))
        content = bytearray()
        views = ingest.take(pieces, lambda views, _: content.extend(b"".join(views)))
        ingest.take_md5(views)
        ingest.finish()
        if operation.name == "DeleteObjects":
            return self._buckets.delete_many(request, bytes(content), caller)
        return self._with_body[operation.name](request, bytes(content))

    def close(self) -> None:
        """When no request is under way any more."""
        self._small_puts.close()

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, functools.partial(function, *arguments))

    # ---- bodies that become files -----------------------------------------------------------------------------------

    async def _receive_content(
        self, exchange: "_Exchange", operation: Operation, request: Request, caller: Caller
    ) -> Response:
        is_part = operation.name == "UploadPart"
        expect = self._objects.expect_part if is_part else self._objects.expect
        store = self._objects.put_part if is_part else self._objects.put
        if _is_small(request) and self._volume.has_room():
            if "expect" in request.headers:  # the client asks whether to send at all
                await self._run(expect, request, caller)
            pieces, decoder = await exchange.body.all(SMALL_BODY_BYTES), functools.partial(decoder_of, request, caller)
            if is_part:
                put = SmallPut(
                    pieces, functools.partial(expect, request, caller), decoder, functools.partial(store, request)
                )
            else:
                of_object = ObjectPut(self._objects, request, caller)
                put = SmallPut(pieces, of_object.expect, decoder, of_object.store, of_object.plan, of_object.answer)
            return await self._small_puts.store(put)
        expected = await self._run(expect, request, caller)
        async with self._transfer():
            writing = await self._run(self._volume.create)
            handed_over = False
            try:
                received = await self._receive_into(exchange, writing, expected, decoder_of(request, caller))
                handed_over = True
                return await self._run(_store_and_close, store, request, writing, received)
            finally:
                if not handed_over:
                    await asyncio.shield(self._run(writing.discard))

    async def _receive_into(
        self, exchange: "_Exchange", writing: Writing, expected: Expected, decoder: Decoder | None
    ) -> Received:
        """Three at a time: one batch comes in, one is written, of one the MD5 is computed."""
        ingest = Ingest(expected, decoder)
        sink = FileSink(writing.descriptor)
        hashing = self._start(ingest.take_md5, [])
        taking = self._start(ingest.take, [], sink)
        try:
            while not exchange.body.ended:
                pieces = await exchange.body.batch()
                views = await taking
                await hashing
                hashing = self._start(ingest.take_md5, views)
                taking = self._start(ingest.take, pieces, sink)
            views = await taking
            await hashing
            hashing = self._start(ingest.take_md5, views)
        finally:  # nothing writes to the file any more, whatever happened
            await asyncio.shield(asyncio.gather(taking, hashing, return_exceptions=True))
        await hashing
        return await self._run(ingest.finish)

    def _start(self, function: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
        return asyncio.ensure_future(self._run(function, *arguments))

    def _transfer(self) -> "contextlib.AbstractAsyncContextManager[None]":
        return _Slot(self._transfers)

    # ---- responses --------------------------------------------------------------------------------------------------

    async def _send(self, exchange: "_Exchange", response: Response) -> None:
        exchange.status = response.status
        headers = [
            (b"x-amz-request-id", exchange.request_id.encode()),
            (b"x-amz-id-2", exchange.request_id.encode()),
            (b"server", b"TieredFS"),
            *((name.encode("latin-1", "replace"), latin(value)) for name, value in response.headers),
        ]
        if not any(name == "content-length" for name, _ in response.headers) and response.status not in (204, 304):
            headers.append((b"content-length", str(len(response.body)).encode()))
        if await exchange.has_unread_body():
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        if response.content is None:
            exchange.sent_bytes = len(response.body)
            await exchange.send(start)
            await exchange.send({"type": "http.response.body", "body": response.body})
            return
        try:
            async with self._transfer():
                await exchange.send(start)
                await self._send_content(exchange, response)
        finally:
            await asyncio.shield(self._run(response.content.close))

    async def _send_content(self, exchange: "_Exchange", response: Response) -> None:
        """Piece by piece. A client that went, or does not take a piece in time, ends it.

        What is in the page cache is read here: a hop to a thread costs as much as copying the piece. One buffer serves for all
        of it, because `send` has copied it when it is called: memory that is touched already, where a new piece faults.
        """
        assert response.content is not None
        content, at, end = response.content, response.offset, response.offset + response.length
        await exchange.receive()
        gone = asyncio.ensure_future(exchange.receive())
        buffer = bytearray(PIECE_BYTES)
        try:
            while at < end:
                length = min(PIECE_BYTES, end - at)
                count = content.read_now(at, buffer)
                if count == PIECE_BYTES == length:
                    piece: bytes | bytearray = buffer
                elif count:
                    piece = bytes(memoryview(buffer)[: min(count, length)])
                else:
                    piece = await self._run(content.read, at, length)
                if not piece or gone.done():
                    raise ClientGoneError
                at += len(piece)
                exchange.sent_bytes += len(piece)
                async with asyncio.timeout(SEND_WAIT_S):
                    await exchange.send({"type": "http.response.body", "body": piece, "more_body": at < end})
        except (TieredError, OSError) as error:  # too late to say so: the client notices the missing bytes
            _log.warning("request %s ended early: %s", exchange.request_id, error)
            raise ClientGoneError from error
        finally:
            gone.cancel()

    def _note(self, exchange: "_Exchange", duration_s: float) -> None:
        metrics, operation = self._metrics, exchange.operation
        metrics.answered(operation, exchange.status, duration_s)
        if exchange.body.received_bytes:
            metrics.received.inc(exchange.body.received_bytes)
        if exchange.sent_bytes:
            metrics.sent.inc(exchange.sent_bytes)
        if not _access.isEnabledFor(logging.INFO):
            return
        _access.info(
            "%s %s %s %s %s %d in=%d out=%d %.1fms",
            exchange.client,
            exchange.request_id,
            operation,
            exchange.method,
            ascii(exchange.resource)[1:-1][:1200],
            exchange.status,
            exchange.body.received_bytes,
            exchange.sent_bytes,
            duration_s * 1e3,
        )


class _Exchange:
    """One request and its answer: what the log says in the end."""

    def __init__(self, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        self.request_id = request_id
        self.receive = receive
        self.send = send
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self._is_chunked, self._is_asked = b"transfer-encoding" in headers, b"expect" in headers
        self._announced_bytes = int(length) if length.isdigit() and not self._is_chunked else None
        self.body = IncomingBody(receive, self._announced_bytes)
        self.request: Request | None = None
        self.operation = "-"
        self.status = 0
        self.sent_bytes = 0
        self._scope = scope
        self.method: str = scope["method"][:20]
        client = scope.get("client")
        self.client: str = str(client[0]) if client else "-"
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        self.resource = raw_path.decode("utf-8", "replace")

    async def has_unread_body(self) -> bool:
        """After a little of what is left was read: who is still sending may not notice an answer. A client that asked whether
        to send at all (`Expect`) may do either, so its connection cannot be used again."""
        if self.body.ended or not (self._announced_bytes or self._is_chunked):
            return False
        if not self._is_asked:
            with contextlib.suppress(S3Error, TimeoutError, ClientGoneError):
                async with asyncio.timeout(DRAIN_WAIT_S):
                    await self.body.all(self.body.received_bytes + DRAIN_BYTES_MAX)
        return not self.body.ended

    def parse(self, domains: Sequence[str]) -> Request:
        scope = self._scope
        raw_path = scope.get("raw_path") or scope["path"].encode()
        return parse_request(
            scope["method"],
            raw_path,
            scope["query_string"],
            scope["headers"],
            self.request_id,
            self.client,
            domains,
            secure=scope.get("scheme") == "https",
        )


class _Slot(contextlib.AbstractAsyncContextManager[None]):
    """A place among the large transfers. Raises S3Error SlowDown when none comes free in time."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore

    async def __aenter__(self) -> None:
        try:
            async with asyncio.timeout(TRANSFER_WAIT_S):
                await self._semaphore.acquire()
        except TimeoutError as error:
            raise S3Error("SlowDown") from error

    async def __aexit__(self, *_: object) -> None:
        self._semaphore.release()


def _is_small(request: Request) -> bool:
    size = request.headers.get("content-length", "")
    return size.isdigit() and len(size) < 19 and int(size) <= SMALL_BODY_BYTES


def _store_and_close(
    store: Callable[[Request, Writing, Received], Response], request: Request, writing: Writing, received: Received
) -> Response:
    """In one thread, so that nothing discards the file while it gets its name."""
    with writing:
        return store(request, writing, received)


def decoder_of(request: Request, caller: Caller) -> Decoder | None:
    """Of an aws-chunked body. Raises S3Error for what `expected_body` refuses."""
    payload = caller.claim.payload
    if payload not in sigv4.STREAMING:
        return None
    signed = payload != sigv4.STREAMING_UNSIGNED_TRAILER
    signer = sigv4.chunk_signer(caller.claim, caller.key.secret_access_key) if signed else None
    size = expected_body(request, caller).size_bytes
    return Decoder(size, signer, trailers_expected=payload != sigv4.STREAMING_SIGNED)


def error_response(error: S3Error, resource: str, request_id: str) -> Response:
    headers = list(error.headers.items())
    if error.status == 304:
        return Response(304, headers)
    return Response(
        error.status, [*headers, ("content-type", XML_TYPE)], xml.error_document(error, resource, request_id)
    )
