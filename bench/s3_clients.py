"""What asks the servers of `bench.s3`: presigned links, requests signed in their headers for curl, wrk, a listing client.

A client that costs as much as the server hides it: so bytes are curl's, small objects are wrk's (C, 32 connections), and a
listing is read by a loop that looks for one element, not by an SDK.
"""

import http.client
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from bench.s3_servers import Server
from bench.targets import UnavailableTargetError
from tieredfs.limits import MIB

CONNECTIONS: Final = 32
SMALL_BYTES: Final = 4096
BUCKET: Final = "bench"
WRK_WAIT_S: Final = 60
UPLOAD_WAIT_S: Final = 60.0
_TOKEN: Final = re.compile(rb"<NextContinuationToken>([^<]+)</NextContinuationToken>")
_SCRIPT: Final = """
local paths, at = {}, 0
local body = METHOD == "PUT" and string.rep("x", BYTES) or nil
for line in io.lines(LINKS) do paths[#paths + 1] = line end
function request()
  at = at + 1
  return wrk.format(METHOD, paths[at % #paths + 1], nil, body)
end
"""


class Client:
    """Of one server, with one key."""

    def __init__(self, server: Server) -> None:
        assert server.key is not None
        self.server = server
        self._credentials = Credentials(server.key.access_key_id, server.key.secret_access_key)
        self.s3: Any = boto3.client(
            "s3",
            endpoint_url=server.address,
            aws_access_key_id=server.key.access_key_id,
            aws_secret_access_key=server.key.secret_access_key,
            region_name="us-east-1",
            config=Config(signature_version="s3v4", retries={"max_attempts": 1}, read_timeout=600),
        )
        if BUCKET not in [bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]]:
            self.s3.create_bucket(Bucket=BUCKET)

    def link(self, call: str, **parameters: str) -> str:
        made: str = self.s3.generate_presigned_url(call, Params={"Bucket": BUCKET, **parameters}, ExpiresIn=36_000)
        return made

    def put_file(self, path: Path, key: str, sha256: str = "") -> None:
        """By curl. With `sha256` the payload is signed; else it is not."""
        if not sha256:
            curl("--upload-file", str(path), self.link("put_object", Key=key))
            return
        request = AWSRequest("PUT", f"{self.server.address}/{BUCKET}/{key}")
        request.headers["X-Amz-Content-SHA256"] = sha256
        request.context["payload_signing_enabled"] = True
        _GivenHash(self._credentials, "s3", "us-east-1").add_auth(request)
        headers = [part for name, value in request.headers.items() for part in ("--header", f"{name}: {value}")]
        curl("--upload-file", str(path), *headers, request.url)

    def put_small(self, keys: Sequence[str]) -> None:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda key: self.s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(SMALL_BYTES)), keys))

    def small(self, method: str, keys: Sequence[str], folder: Path, seconds: int) -> float:
        """Requests a second, by wrk. Raises RuntimeError when one was not answered with 200."""
        call = "put_object" if method == "PUT" else "get_object"
        links = folder / f"{self.server.name.replace(' ', '-')}-{method}.txt"
        start = len(self.server.address)
        links.write_text("".join(f"{self.link(call, Key=key)[start:]}\n" for key in keys))
        script = folder / f"{links.stem}.lua"
        given = f'METHOD, BYTES, LINKS = "{method}", {SMALL_BYTES}, "{links}"\n'
        script.write_text(given + _SCRIPT)
        line = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "--timeout", "30", "-s", str(script)]
        done = subprocess.run(
            [*line, self.server.address], check=True, capture_output=True, text=True, timeout=seconds + WRK_WAIT_S
        )
        rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        if rate is None or "Non-2xx" in done.stdout:
            raise RuntimeError(f"{self.server.name} did not answer every {method}: {done.stdout}")
        return float(rate[1])

    def count_keys(self, prefix: str) -> int:
        """A whole listing, page after page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=600)
        count, token, start = 0, "", len(self.server.address)
        while True:
            more = {"ContinuationToken": token} if token else {}
            connection.request("GET", self.link("list_objects_v2", Prefix=prefix, **more)[start:])
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{self.server.name} does not list: {body[:300]!r}")
            count += body.count(b"<Key>")
            found = _TOKEN.search(body)
            if found is None:
                connection.close()
                return count
            token = unquote(found[1].decode()) if b"<EncodingType>url" in body else found[1].decode()


class Upload:
    """One that is begun, and not ended."""

    def __init__(self, port: int, target: str, size_bytes: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), UPLOAD_WAIT_S)
        head = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {size_bytes}\r\n\r\n"
        self._socket.sendall(head.encode())

    def send(self, count: int) -> None:
        """`count` bytes of the body. Raises OSError when the server does not take them."""
        piece = bytes(MIB)
        for _ in range(count // MIB):
            self._socket.sendall(piece)

    def close(self) -> None:
        self._socket.close()


class _GivenHash(S3SigV4Auth):  # type: ignore[misc]
    """The payload's hash is in the header already: it is not computed again."""

    def payload(self, request: Any) -> str:
        return str(request.headers["X-Amz-Content-SHA256"])

    def _modify_request_before_signing(self, request: Any) -> None:
        given = request.headers["X-Amz-Content-SHA256"]
        super()._modify_request_before_signing(request)
        del request.headers["X-Amz-Content-SHA256"]
        request.headers["X-Amz-Content-SHA256"] = given


def need(program: str) -> None:
    """Raises UnavailableTargetError."""
    if shutil.which(program) is None:
        raise UnavailableTargetError(f"{program} is not installed (Debian: apt install {program})")


def curl(*arguments: str) -> None:
    subprocess.run(["curl", "--silent", "--fail", "--output", "/dev/null", *arguments], check=True)


def fetch(link: str, times: int) -> None:
    """`times` clients at once."""
    line = ["curl", "--silent", "--fail", "--output", "/dev/null", link]
    clients = [subprocess.Popen(line) for _ in range(times)]
    if sum(client.wait() for client in clients):  # all of them, whatever the first one said
        raise RuntimeError(f"curl could not fetch {link.partition('?')[0]}")
