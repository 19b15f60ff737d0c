"""`tieredfs s3-key`: keys are made, listed without their secrets, and refused once they are removed."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.s3.endpoint import WAIT_S, Endpoint, command
from tieredfs.config import parse_code
from tieredfs.model import Durability
from tieredfs.volume import format_volume
from tieredfs_gateway.s3.keystore import AccessKey, Scope


def run(served: Endpoint, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line, environment = command(served.root / "entry-points", "s3-key", *arguments)
    return subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=60)


def refusal_of(client: Any) -> str:
    """The code with which the key is refused; it is believed for a second after it was last looked up."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            client.list_buckets()
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        assert time.monotonic() < deadline_s, "a removed key is believed for ever"
        time.sleep(1.1)


def test_the_life_of_a_key(served: Endpoint) -> None:
    added = run(served, "add", served.meta_url, "--bucket", "runs", "--prefix", "a/", "--read-only", "--json")
    assert added.returncode == 0, added.stderr
    made = json.loads(added.stdout)
    assert made["scope"] == {"buckets": ["runs"], "prefix": "a/", "read_only": True}
    client = served.client(AccessKey(made["access_key_id"], made["secret_access_key"], Scope(), 0))
    client.list_buckets()
    listed = run(served, "list", served.meta_url, "--json")
    assert made["access_key_id"] in [key["access_key_id"] for key in json.loads(listed.stdout)]
    assert made["secret_access_key"] not in listed.stdout
    with served.volume() as volume:
        path = b".tieredfs/s3/keys/" + made["access_key_id"].encode()
        assert volume.stat(path).mode == 0o600
        assert volume.stat(b".tieredfs/s3/keys").mode == 0o700
    removed = run(served, "rm", served.meta_url, made["access_key_id"])
    assert removed.returncode == 0, removed.stderr
    assert refusal_of(client) == "InvalidAccessKeyId"
    assert run(served, "rm", served.meta_url, made["access_key_id"]).returncode == 2
    assert run(served, "rm", served.meta_url, "../../x").returncode == 2


def test_scopes_that_make_no_sense_are_refused(served: Endpoint) -> None:
    refused = run(served, "add", served.meta_url, "--bucket", "Not A Bucket")
    assert refused.returncode == 2
    assert "no bucket name" in refused.stderr


def test_a_key_is_shown_when_too_few_disks_are_left_to_store_it(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/volume.db"
    disks = [f"disk://{tmp_path}/d{number}" for number in range(3)]
    format_volume(url, disks, code=parse_code("rs:2+1"), durability=Durability.SSD, name="test")
    for number in (0, 1):
        shutil.rmtree(tmp_path / f"d{number}")
    line, environment = command(tmp_path / "entry-points", "s3-key", "add", url, "--json")
    added = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert added.returncode == 0, added.stderr
    assert "on the SSD only" in added.stderr
    made = json.loads(added.stdout)
    line, environment = command(tmp_path / "entry-points", "s3-key", "list", url, "--json")
    listed = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert [key["access_key_id"] for key in json.loads(listed.stdout)] == [made["access_key_id"]], listed.stderr
