"""What broken and hostile clients send: each is answered as S3 does, nothing is left behind, and the endpoint lives on."""

import hashlib
import re
import socket
import subprocess
import time
from typing import Any

import httpx
import pytest

from tests import web
from tests.s3.endpoint import WAIT_S, Endpoint, command
from tests.s3.test_chunked import encode
from tieredfs.limits import MIB
from tieredfs_gateway.s3.http import HEADER_BYTES_MAX
from tieredfs_gateway.s3.routes import TABLE, Level

BODY = b"0123456789" * 1000


def code_of(response: httpx.Response) -> str:
    found = re.search(rb"<Code>(\w+)</Code>", response.content)
    assert found, response.content
    assert b"<RequestId>" in response.content
    return found[1].decode()


@pytest.fixture(autouse=True)
def alive_and_tidy(served: Endpoint, s3: Any) -> Any:
    yield
    assert served.process is not None
    assert served.process.poll() is None
    s3.list_buckets()
    deadline_s = time.monotonic() + 10
    while not served.is_tidy():
        assert time.monotonic() < deadline_s, "something unfinished was left behind"
        time.sleep(0.1)


def absent(s3: Any, bucket: str) -> None:
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


# ---- who asks --------------------------------------------------------------------------------------------------------


def test_unknown_keys_and_wrong_secrets(served: Endpoint, bucket: str) -> None:
    request = served.signed("GET", f"/{bucket}")
    headers = dict(request.headers.items())
    wrong_id = headers | {"Authorization": headers["Authorization"].replace(served.key.access_key_id, "AKIANOBODY")}
    answer = web.get(f"{served.url}/{bucket}", headers=wrong_id)
    assert (answer.status_code, code_of(answer)) == (403, "InvalidAccessKeyId")
    wrong = headers | {"Authorization": headers["Authorization"][:-4] + "0000"}
    answer = web.get(f"{served.url}/{bucket}", headers=wrong)
    assert (answer.status_code, code_of(answer)) == (403, "SignatureDoesNotMatch")
    assert code_of(web.get(f"{served.url}/{bucket}")) == "AccessDenied"
    assert code_of(web.get(f"{served.url}/{bucket}?X-Amz-Signature=0")) == "AuthorizationQueryParametersError"
    odd = headers | {"Authorization": headers["Authorization"].replace(served.key.access_key_id, "../../x")}
    assert code_of(web.get(f"{served.url}/{bucket}", headers=odd)) == "AuthorizationHeaderMalformed"


# ---- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_body_that_ends_early_leaves_nothing(served: Endpoint, s3: Any, bucket: str, size: int) -> None:
    body = bytes(size)
    request = served.signed("PUT", f"/{bucket}/k", body)
    served.raw(served.head_of(request, [("Content-Length", str(size))]), body[: size // 2], close_early=True)
    absent(s3, bucket)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_body_with_another_hash_than_signed_is_refused(served: Endpoint, s3: Any, bucket: str, size: int) -> None:
    request = served.signed("PUT", f"/{bucket}/k", bytes(size))
    answer = web.put(f"{served.url}/{bucket}/k", content=b"x" + bytes(size - 1), headers=dict(request.headers.items()))
    assert code_of(answer) == "XAmzContentSHA256Mismatch"
    absent(s3, bucket)


def test_wrong_digests_are_refused(served: Endpoint, s3: Any, bucket: str) -> None:
    answer = served.send("PUT", f"/{bucket}/k", BODY, {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert code_of(answer) == "BadDigest"
    answer = served.send("PUT", f"/{bucket}/k", BODY, {"Content-MD5": "nonsense"})
    assert code_of(answer) == "InvalidDigest"
    absent(s3, bucket)


def test_a_body_without_a_length_is_refused(served: Endpoint, s3: Any, bucket: str) -> None:
    request = served.signed("PUT", f"/{bucket}/k", BODY)
    head = served.head_of(request, [("Transfer-Encoding", "chunked"), ("Connection", "close")])
    answer = served.raw(head.replace(b"Content-Length", b"X-Content-Length"), b"4\r\nabcd\r\n0\r\n\r\n")
    assert b" 411 " in answer.split(b"\r\n")[0]
    absent(s3, bucket)


@pytest.mark.parametrize("chunks", [b"zz\r\nabcd", b"-4\r\nabcd", b"4\r\nabcdX\r\n0\r\n\r\n", b"f" * 20 + b"\r\nabcd"])
def test_broken_framing_is_answered(served: Endpoint, s3: Any, bucket: str, chunks: bytes) -> None:
    kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    for payload, headers, status in (
        ("UNSIGNED-PAYLOAD", {}, b" 411 "),
        (kind, {"x-amz-decoded-content-length": "9"}, b" 400 "),
    ):
        request = served.signed("PUT", f"/{bucket}/k", b"", headers, payload)
        head = served.head_of(request, [("Transfer-Encoding", "chunked"), ("Connection", "close")])
        answer = served.raw(head, chunks)
        assert status in answer.split(b"\r\n")[0]
        assert b"<RequestId>" in answer
    absent(s3, bucket)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_who_stops_in_the_middle_and_listens_is_told(served: Endpoint, s3: Any, bucket: str, size: int) -> None:
    request = served.signed("PUT", f"/{bucket}/k", b"", payload="UNSIGNED-PAYLOAD")
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(served.head_of(request, [("Content-Length", str(size))]) + bytes(size // 2))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"<Code>IncompleteBody</Code>" in answer
    absent(s3, bucket)


def test_too_large_is_said_before_it_is_sent(served: Endpoint, bucket: str) -> None:
    request = served.signed("PUT", f"/{bucket}/k", b"", payload="UNSIGNED-PAYLOAD")
    lines = [("Content-Length", str(6 << 30)), ("Expect", "100-continue"), ("Connection", "close")]
    answer = served.raw(served.head_of(request, lines))
    assert b"EntityTooLarge" in answer
    assert b"100 Continue" not in answer


def test_a_connection_is_not_used_again_when_its_body_was_not_read(served: Endpoint, bucket: str) -> None:
    refused = served.signed("PUT", "/no-such-bucket/k", b"x" * 100)
    asked = [("Content-Length", "100"), ("Expect", "100-continue")]
    answer = served.raw(served.head_of(refused, asked), served.head_of(served.signed("GET", f"/{bucket}")))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close" in answer.lower()
    answer = served.raw(
        served.head_of(refused, [("Content-Length", "100")]) + b"x" * 100,
        served.head_of(served.signed("GET", f"/{bucket}")),
    )
    assert answer.count(b"HTTP/1.1 ") == 2, "a short body is read to its end, and the connection goes on"
    assert b"HTTP/1.1 200" in answer


STREAMING = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def streamed(served: Endpoint, path: str, body: bytes, size: int, payload: str = STREAMING) -> httpx.Response:
    headers = {"x-amz-decoded-content-length": str(size), "content-encoding": "aws-chunked"}
    if payload.endswith("TRAILER"):
        headers["x-amz-trailer"] = "x-amz-checksum-sha256"
    return served.send("PUT", path, body, headers, payload)


def sha256(body: bytes) -> dict[str, str]:
    import base64

    return {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(body).digest()).decode()}


@pytest.mark.parametrize("size", [len(BODY), 100])
def test_unsigned_chunks_with_a_trailer(served: Endpoint, s3: Any, bucket: str, size: int) -> None:
    content = BODY[:size]
    good = encode([content[:50], content[50:]], signed=False, trailers=sha256(content))
    assert streamed(served, f"/{bucket}/k", good, size).status_code == 200
    found = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert found["Body"].read() == content
    assert found["ChecksumSHA256"] == sha256(content)["x-amz-checksum-sha256"]
    assert "ContentEncoding" not in found
    s3.delete_object(Bucket=bucket, Key="k")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (encode([BODY], signed=False, trailers=sha256(b"other")), "BadDigest"),
        (encode([BODY], signed=False, trailers={}), "InvalidRequest"),
        (encode([BODY[:-1]], signed=False, trailers=sha256(BODY)), "IncompleteBody"),
        (encode([BODY, b"more"], signed=False, trailers=sha256(BODY)), "IncompleteBody"),
        (b"zz\r\n" + BODY, "InvalidRequest"),
        (encode([BODY], signed=False, trailers=sha256(BODY))[:-30], "IncompleteBody"),
        (b"", "IncompleteBody"),
    ],
)
def test_bad_chunks_are_refused(served: Endpoint, s3: Any, bucket: str, body: bytes, code: str) -> None:
    assert code_of(streamed(served, f"/{bucket}/k", body, len(BODY))) == code
    absent(s3, bucket)


def test_signed_chunks(served: Endpoint, s3: Any, bucket: str) -> None:
    import hmac

    kind = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    headers = {"x-amz-decoded-content-length": str(len(BODY)), "content-encoding": "aws-chunked"}
    request = served.signed("PUT", f"/{bucket}/k", b"", headers, kind)
    scope = re.search(r"Credential=[^/]+/([^,]+)", request.headers["Authorization"])
    seed = re.search(r"Signature=(\w+)", request.headers["Authorization"])
    assert scope
    assert seed
    key = f"AWS4{served.key.secret_access_key}".encode()
    for part in scope[1].split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    body, last = b"", seed[1]
    for chunk in (BODY[:8192], BODY[8192:], b""):
        lines = ["AWS4-HMAC-SHA256-PAYLOAD", request.headers["X-Amz-Date"], scope[1], last]
        lines += [hashlib.sha256(b"").hexdigest(), hashlib.sha256(chunk).hexdigest()]
        last = hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
        body += b"%x;chunk-signature=%s\r\n" % (len(chunk), last.encode()) + chunk + b"\r\n"
    sent = dict(request.headers.items())
    evil = body.replace(b"0123456789", b"0123456780", 1)
    assert code_of(web.put(f"{served.url}/{bucket}/k", content=evil, headers=sent)) == "SignatureDoesNotMatch"
    absent(s3, bucket)
    assert web.put(f"{served.url}/{bucket}/k", content=body, headers=sent).status_code == 200
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == BODY


# ---- documents and heads ---------------------------------------------------------------------------------------------


DOCTYPE = b'<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
BOMB = b'<?xml version="1.0"?>' + DOCTYPE + b"<Delete><Object><Key>&b;</Key></Object></Delete>"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<Delete>",
        BOMB,
        b"<Delete></Delete>",
        b"<Other/>",
        b'<?xml version="1.0" encoding="utf-7"?><Delete/>',
        b"<Delete>" + b"<Object><Key>k</Key></Object>" * 1001 + b"</Delete>",
    ],
)
def test_broken_documents(served: Endpoint, bucket: str, document: bytes) -> None:
    import base64

    digest = base64.b64encode(hashlib.md5(document).digest()).decode()
    answer = served.send("POST", f"/{bucket}?delete=", document, {"Content-MD5": digest})
    assert code_of(answer) == "MalformedXML"


def test_huge_documents_are_not_read(served: Endpoint, bucket: str) -> None:
    answer = served.send("POST", f"/{bucket}?delete=", b" " * (5 << 20), {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert answer.status_code == 400


def test_huge_heads_are_refused(served: Endpoint, bucket: str) -> None:
    answer = served.send("GET", f"/{bucket}", headers={"x-amz-meta-a": "x" * HEADER_BYTES_MAX})
    assert code_of(answer) == "RequestHeaderSectionTooLarge"
    request = served.signed("GET", f"/{bucket}")
    assert b" 431 " in served.raw(served.head_of(request, [("X-Large", "y" * 600_000)])).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_no_harm(served: Endpoint, head: bytes) -> None:
    served.raw(head)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/{b}/%ff", 400),
        ("GET", "/{b}/" + "x" * 1025, 400),
        ("GET", "/{b}?acl=&policy=", 400),
        ("GET", "/{b}?max-keys=-1", 400),
        ("GET", "/{b}?list-type=2&encoding-type=rot13", 400),
        ("GET", "/{b}?prefix=%FF", 400),
        ("GET", "/{b}/k?versionId=other", 400),
        ("PUT", "/{b}?versioning=", 400),
        ("PUT", "/{b}?lifecycle=", 400),
        ("PUT", "/{b}?encryption=", 501),
        ("PUT", "/{b}?object-lock=", 501),
        ("PUT", "/{b}?replication=", 501),
        ("POST", "/{b}", 412),
        ("POST", "/{b}/k", 405),
        ("PATCH", "/{b}/k", 405),
        ("PUT", "/{b}/k?partNumber=0&uploadId=x", 400),
        ("PUT", "/{b}/k?partNumber=1&uploadId=..%2F..", 404),
        ("DELETE", "/{b}/k?uploadId=%00", 404),
    ],
)
def test_requests_that_make_no_sense(served: Endpoint, bucket: str, method: str, path: str, status: int) -> None:
    answer = served.send(method, path.replace("{b}", bucket))
    assert answer.status_code == status
    assert code_of(answer)
    assert answer.headers["x-amz-request-id"]


@pytest.mark.parametrize("value", ["", "%FF", "%00", "9" * 30])
def test_no_call_is_upset_by_any_argument(served: Endpoint, s3: Any, bucket: str, value: str) -> None:
    """Each call of the table, with that as each of its identifiers, numbers and texts: a client's mistake, or none."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"bar")
    paths = {Level.SERVICE: "/", Level.BUCKET: f"/{bucket}", Level.OBJECT: f"/{bucket}/k"}
    names = ["continuation-token", "key-marker", "marker", "max-keys", "partNumber", "prefix", "upload-id-marker"]
    names += ["version-id-marker", "versionId"]
    client = httpx.Client(timeout=WAIT_S)
    for level, method, subresource in TABLE:
        parts = subresource.split()
        headers = {"x-amz-copy-source": f"/{bucket}/k?versionId={value}"} if "copy" in parts else {}
        own = [f"{part}={value if part == 'uploadId' else ''}" for part in parts if part != "copy"]
        for arguments in ([], [f"{name}={value}" for name in names], [f"versionId={value}"], [f"prefix={value}"]):
            query = "&".join(sorted(own + arguments))
            request = served.signed(method, f"{paths[level]}?{query}", b"", headers, "UNSIGNED-PAYLOAD")
            answer = client.request(method, request.url, headers=dict(request.headers.items()))
            assert answer.status_code < 500 or answer.status_code == 501, (method, query, answer.text)
    client.close()


def test_what_would_be_ignored_is_refused(served: Endpoint, s3: Any, bucket: str) -> None:
    for name, value in (
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-acl", "aws-exec-read"),
        ("x-amz-grant-read-acp", "uri=http://acs.amazonaws.com/groups/global/AllUsers"),
        ("x-amz-object-lock-mode", "GOVERNANCE"),
    ):
        assert code_of(served.send("PUT", f"/{bucket}/k", b"", {name: value})) == "NotImplemented"
    absent(s3, bucket)


# ---- clients that go -------------------------------------------------------------------------------------------------


def test_a_reader_that_vanishes_is_no_harm(served: Endpoint, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="big", Body=bytes(24 * MIB))
    request = served.signed("GET", f"/{bucket}/big")
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as connection:
            connection.sendall(served.head_of(request))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert len(s3.get_object(Bucket=bucket, Key="big")["Body"].read()) == 24 * MIB


def test_probes_answer_anybody(served: Endpoint) -> None:
    assert web.get(f"{served.url}/healthz").json() == {"status": "ok"}
    text = web.get(f"{served.url}/metrics").text
    assert 'tieredfs_s3_requests_total{operation="ListBuckets",status="200"}' in text


def test_a_port_that_is_in_use_is_not_shared(served: Endpoint) -> None:
    line, environment = command(
        served.root / "entry-points", "s3", served.meta_url, "--listen", f"127.0.0.1:{served.port}"
    )
    done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "cannot listen" in done.stderr
    assert served.key.secret_access_key not in (served.root / "log").read_text()
