"""Volumes on storage nodes, end to end: three nodes of two disks; one is killed, or stopped, and comes back."""

import hashlib
import os
import signal
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount import volumes
from tests.mount.volumes import Lab
from tests.nodes.rig import WAIT_S, Node, node, secret_set
from tieredfs.chunk.directory import DiskIdentity
from tieredfs.chunk.node import NodeSite
from tieredfs.config import parse_code
from tieredfs.errors import NoSpaceError, UnavailableError
from tieredfs.host import libc, local_host
from tieredfs.limits import CELL_BYTES, MIB
from tieredfs.model import Durability
from tieredfs.testing.chunk_suite import name_of, pattern, put, read
from tieredfs.volume import FileSystem, format_volume


@pytest.fixture
def lab() -> Iterator[Lab]:
    with volumes.lab() as made:
        made.mnt.mkdir()
        yield made


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    with ExitStack() as stack:
        yield [stack.enter_context(node(2)) for _ in range(3)]


def format_over(lab: Lab, nodes: list[Node], code: str) -> None:
    urls = [str(made.url(disk)) for made in nodes for disk in range(2)]
    format_volume(lab.url, urls, code=parse_code(code), durability=Durability.SSD, name="lab", block_bytes=4 * MIB)


def write(volume: FileSystem, path: bytes, content: bytes) -> None:
    with volume.create() as file:
        os.pwrite(file.descriptor, content, 0)
        file.commit(path)


def read_cold(volume: FileSystem, path: bytes) -> bytes:
    volume.evict(path)
    with volume.open(path) as file:
        target = bytearray(file.attributes.size_bytes)
        assert file.read_into(0, memoryview(target)) == len(target)
    return bytes(target)


def test_reads_and_writes_go_on_without_a_node(lab: Lab, nodes: list[Node]) -> None:
    """A node has two disks, so with three of them it never has more than two chunks of a block."""
    format_over(lab, nodes, "rs:4+2")
    domains = {f"node-127.0.0.1:{made.port}" for made in nodes}
    assert {disk["domain"] for disk in lab.json("disk", "list", lab.url)} == domains
    first, second = os.urandom(9 * MIB), os.urandom(5 * MIB)
    with FileSystem.at(lab.url, purpose="test") as volume:
        write(volume, b"/first", first)
        volume.flush(WAIT_S)
        nodes[1].stop(signal.SIGKILL)
        assert read_cold(volume, b"/first") == first
        write(volume, b"/second", second)
        volume.flush(WAIT_S)
        with volume.open(b"/second") as file:
            assert file.attributes.size_bytes == len(second)
        states = {disk["url"]: disk["reachable"] for disk in lab.json("disk", "list", lab.url)}
        assert states == {str(made.url(disk)): made is not nodes[1] for made in nodes for disk in range(2)}
    assert lab.run("fsck", lab.url).returncode == 1
    nodes[1].start()
    assert lab.run("fsck", lab.url, "--repair").returncode == 0
    assert lab.run("fsck", lab.url).returncode == 0
    nodes[0].stop(signal.SIGKILL)
    with FileSystem.at(lab.url, purpose="test") as volume:
        assert read_cold(volume, b"/first") == first
        assert read_cold(volume, b"/second") == second, "it was made whole"


def test_a_node_that_stands_still_is_read_around(lab: Lab, nodes: list[Node]) -> None:
    format_over(lab, nodes, "rs:4+2")
    content = os.urandom(8 * MIB)
    with FileSystem.at(lab.url, purpose="test") as volume:
        write(volume, b"/f", content)
        volume.flush(WAIT_S)
        nodes[0].send(signal.SIGSTOP)
        try:
            assert read_cold(volume, b"/f") == content
            assert nodes[0].process is not None
            assert Path(f"/proc/{nodes[0].process.pid}/stat").read_text().rpartition(") ")[2][0] == "T", (
                "it stood still"
            )
        finally:
            nodes[0].send(signal.SIGCONT)
        assert read_cold(volume, b"/f") == content


@pytest.mark.mount
def test_a_mount_on_nodes_and_a_disk_that_is_added_and_emptied(lab: Lab, nodes: list[Node]) -> None:
    urls = [str(made.url()) for made in nodes]
    done = lab.run("format", lab.url, "--data", *urls, "--code", "rs:2+1", "--block-size", "4MiB")
    assert done.returncode == 0, done.stderr
    lab.mount()
    content = os.urandom(9 * MIB + 5)
    (lab.mnt / "f").write_bytes(content)
    lab.unmount(flush=True)
    added = lab.json("disk", "add", lab.url, str(nodes[0].url(1)))
    assert added["domain"] == f"node-127.0.0.1:{nodes[0].port}"
    assert lab.json("disk", "drain", lab.url, "1")["state"] == "removed"
    assert not list(nodes[0].path(0).glob("chunks/*/*"))
    nodes[1].stop(signal.SIGKILL)
    lab.mount()
    assert lab.ask("evict", paths=["f"])["kept"] == 0
    assert hashlib.sha256((lab.mnt / "f").read_bytes()).digest() == hashlib.sha256(content).digest()
    lab.unmount(flush=True)
    nodes[1].start()
    assert lab.run("destroy", lab.url, "--yes").returncode == 0
    assert [path for made in nodes for path in made.root.glob("d*/chunks/*/*")] == []


def test_a_volume_without_the_secret_says_what_is_missing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with node() as made:
        monkeypatch.delenv("TIEREDFS_NODE_SECRET")
        done = lab.run("format", lab.url, "--data", str(made.url()), "--code", "replica:1")
        assert (done.returncode, "TIEREDFS_NODE_SECRET" in done.stderr) == (2, True), done.stderr
        assert not made.path().exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for mount(2)")
def test_a_full_disk_of_a_node_says_so() -> None:
    with secret_set(), node() as made:
        made.path().mkdir()
        libc.mount("tmpfs", str(made.path()), "tmpfs", 0, f"size={32 * MIB}")
        try:
            identity = DiskIdentity("v", "d")
            site = NodeSite(made.url(), local_host())
            site.format(identity)
            store = site.open(identity)
            with pytest.raises(NoSpaceError, match="bytes free"):
                put(store, name_of(1), pattern(CELL_BYTES))
            assert list(store.names()) == []
            store.close()
        finally:
            made.stop()
            libc.unmount(str(made.path()), libc.MNT_DETACH)


# ---- TLS -------------------------------------------------------------------------------------------------------------


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, private


def test_a_node_by_tls_is_believed_only_with_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = self_signed(tmp_path)
    with secret_set(), node(1, "--cert", str(cert), "--key", str(key)) as made:
        identity = DiskIdentity("v", "d")
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            NodeSite(made.url(), local_host()).format(identity)
        monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(cert))
        site = NodeSite(made.url(), local_host())
        site.format(identity)
        store = site.open(identity)
        put(store, name_of(1), pattern(3 * MIB))
        assert read(store, name_of(1), 0, 3 * MIB) == pattern(3 * MIB)
        store.close()
