"""moto's server as a process: the remote that these tests take for S3."""

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from tests import web
from tests.s3.endpoint import free_port
from tieredfs.config import BucketUrl

WAIT_S = 60.0
REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "hush-this-is-secret"}


@dataclass(frozen=True)
class Moto:
    """A server, and a client that reaches around what is tested."""

    port: int
    client: Any

    def new_bucket(self) -> str:
        name = f"b-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name)
        return name

    def url(self, bucket: str, prefix: str = "p", *, port: int | None = None, capacity: str = "") -> BucketUrl:
        return BucketUrl(bucket, prefix, f"http://127.0.0.1:{port or self.port}", REGION, capacity)

    def keys(self, bucket: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, bucket: str, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())


@contextlib.contextmanager
def moto_server(log: Path) -> Iterator[Moto]:
    port = free_port()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, "moto does not answer"
            time.sleep(0.1)
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"max_attempts": 1}),
        )
        yield Moto(port, client)
        client.close()
    finally:
        process.kill()
        process.wait(WAIT_S)


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return web.get(f"http://127.0.0.1:{port}/", timeout=2).status_code < 500
    return False
