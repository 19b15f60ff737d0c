"""Days on which the endpoint is told to stop, has no room, or serves clients that do not read: nothing acknowledged is lost."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import httpx
import pytest

from tests import web
from tests.s3.endpoint import Endpoint, endpoint, new_bucket
from tieredfs.limits import MIB
from tieredfs_gateway.s3.endpoint import Endpoint as Application
from tieredfs_gateway.s3.metrics import Metrics
from tieredfs_gateway.s3.server import PROBES, S3App

DATA = os.urandom(24 * MIB)
WAIT_S = 60.0


def test_it_ends_after_the_transfers_that_are_under_way() -> None:
    with endpoint("--workers", "2") as stopped:
        s3 = stopped.client()
        bucket = new_bucket(s3)
        s3.put_object(Bucket=bucket, Key="k", Body=DATA)
        body = s3.get_object(Bucket=bucket, Key="k")["Body"]
        begun = body.read(MIB)
        stopping = threading.Thread(target=stopped.stop)
        stopping.start()
        deadline_s = time.monotonic() + WAIT_S
        while answers(stopped):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert begun + body.read() == DATA
        stopping.join(WAIT_S)
        assert stopped.process is not None
        assert stopped.process.returncode == 0


def answers(asked: Endpoint) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return web.get(f"{asked.url}/healthz", timeout=1).status_code == 200
    return False


def test_a_small_ssd_slows_writers_down_and_loses_nothing() -> None:
    """Ten times as much as fits is written at once; what is answered with 503 is sent again, as clients do."""
    with endpoint("--workers", "1", "--cache-size", "16MiB") as narrow:
        s3 = narrow.client()
        bucket = new_bucket(s3)
        bodies = {f"k{number:02}": os.urandom(8 * MIB) for number in range(20)}

        def put(key: str) -> None:
            for _ in range(20):
                try:
                    narrow.client(read_timeout=180).put_object(Bucket=bucket, Key=key, Body=bodies[key])
                except s3.exceptions.ClientError as error:
                    if error.response["Error"]["Code"] != "SlowDown":
                        raise
                else:
                    return
            raise AssertionError("refused twenty times")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, bodies))
        for key, body in bodies.items():
            assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body


def test_readers_that_stop_reading_do_not_stop_the_others(served: Endpoint, bucket: str) -> None:
    s3 = served.client()
    s3.put_object(Bucket=bucket, Key="k", Body=DATA)
    request = served.signed("GET", f"/{bucket}/k")
    with contextlib.ExitStack() as stack:
        begun = []
        for _ in range(20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=10))
            connection.sendall(served.head_of(request))
            begun.append((connection, connection.recv(100)))
            assert begun[-1][1].startswith(b"HTTP/1.1 200")
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == DATA
        s3.put_object(Bucket=bucket, Key="other", Body=DATA)
        for connection, first in begun[:3]:  # and they go on where they stopped, whatever went through meanwhile
            received = bytearray(first)
            while len(received.partition(b"\r\n\r\n")[2]) < len(DATA) and (more := connection.recv(4 * MIB)):
                received += more
            assert received.partition(b"\r\n\r\n")[2] == DATA


def test_a_link_that_was_used_before_is_refused_after_its_time(served: Endpoint, bucket: str) -> None:
    s3 = served.client(signature_version="s3v4")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    link = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=2)
    assert web.get(link).content == b"x"
    deadline_s = time.monotonic() + WAIT_S
    while (answer := web.get(link)).status_code == 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    assert answer.status_code == 403
    assert b"Request has expired" in answer.content


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not here")
def test_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True, timeout=WAIT_S)
    with endpoint("--workers", "2", "--cert", str(cert), "--key", str(key)) as secure:
        s3 = boto3.client(
            "s3",
            endpoint_url=secure.url,
            aws_access_key_id=secure.key.access_key_id,
            aws_secret_access_key=secure.key.secret_access_key,
            region_name="us-east-1",
            verify=str(cert),
        )
        bucket = new_bucket(s3)
        for size in (10, len(DATA)):
            s3.put_object(Bucket=bucket, Key="k", Body=DATA[:size])
            assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == DATA[:size]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{secure.url}/healthz")  # nobody vouches for this certificate
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{secure.port}/healthz")


def test_only_the_probes_are_open_and_they_say_what_they_are(served: Endpoint) -> None:
    """The OpenAPI document has them alone; it is not served, for its path may be a bucket's."""
    application: Application = object()  # type: ignore[assignment]
    document = S3App(application, Metrics()).openapi()
    assert set(document["paths"]) == set(PROBES)
    for path, methods in document["paths"].items():
        assert set(methods) == {"get"}
        answer = web.get(f"{served.url}{path}")
        assert str(answer.status_code) in methods["get"]["responses"]
        assert web.get(f"{served.url}{path}?x=1").status_code == 404
        assert web.request("DELETE", f"{served.url}{path}").status_code in (404, 405)
    assert web.get(f"{served.url}/openapi.json").status_code == 404
