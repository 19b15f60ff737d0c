"""What a new user gets wrong: each is one line that says what to do, the right exit code, and nothing is changed.

Against real volumes and the real command line, in this process; one row for each mistake.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran
from tests.cli.fakes import META_URL, FakeBackend, mount_at
from tieredfs.cli import main
from tieredfs.cli.outcomes import OK, PROBLEMS_FOUND, REQUEST

ROWS = [
    (["up", "{dir}/plain", "{dir}/mnt"], "plain is not a directory; name a new one"),
    (["up", "{dir}/new", "{dir}/mnt", "--memory", "1"], "at least 320 MiB"),
    (["format", "sqlite://{dir}/plain", "--data", "disk://{dir}/e{0..5}"], "plain, which is no volume; use another"),
    (["format", "{url}", "--data", "disk://{dir}/e{0..5}"], "there is a volume at"),
    (
        ["format", "sqlite://{dir}/new.db", "--data", "disk://{dir}/e{0..5}", "--block-size", "1"],
        "blocks of 1 bytes cannot",
    ),
    (["format", "sqlite://{dir}/new.db", "--data", "disk://{dir}/e{0..5}", "--block-size", "1T"], "at most 256 MiB"),
    (["disk", "add", "{url}", "disk://{dir}/plain"], "plain is not a directory; name an empty"),
    (["disk", "add", "{url}", "disk://{dir}/d1"], "d1 is disk 2 of this volume already"),
    (["disk", "drain", "{url}", "99"], "no disk 99: `tieredfs disk list"),
    (["s3-key", "rm", "{url}", "NOPE"], "no access key 'NOPE': `tieredfs s3-key list"),
    (["s3-key", "rm", "{url}", "../x"], "no access key '../x'"),
    (["s3", "{url}", "--memory", "1K"], "at least"),
    (["s3", "{url}", "--cert", "{dir}/plain", "--key", "{dir}/plain"], "no certificate (PEM) and its key"),
    (["s3", "{url}", "--cert", "{dir}/plain", "--key", "{dir}/absent"], "absent"),
    (["gateway", "{url}", "--cert", "{dir}/plain", "--key", "{dir}/plain"], "no certificate (PEM) and its key"),
    (["ckpt", "export", "{url}", "runs/gpt", "latest", "{dir}/plain"], "no checkpoint in runs/gpt"),
]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_text("my diary\n")
    url = f"sqlite://{tmp_path}/volume.db"
    assert main(["format", url, "--data", f"disk://{tmp_path}/d{{0..2}}", "--code", "rs:2+1"]) == OK
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"), ROWS, ids=[" ".join(row[0][:2]) + f" {n}" for n, row in enumerate(ROWS)]
)
def test_one_line_says_what_is_wrong(
    arguments: list[str], words: str, volume: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    before = sorted(path.name for path in volume.iterdir())
    said = [part.replace("{dir}", str(volume)).replace("{url}", f"sqlite://{volume}/volume.db") for part in arguments]
    code = main(said)
    captured = capsys.readouterr()
    assert (code, captured.out) == (REQUEST, "")
    assert words in captured.err
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("tieredfs: ")]
    assert len(lines) == 1 or "Usage:" in captured.err
    assert (volume / "plain").read_text() == "my diary\n"
    new = {path.name for path in volume.iterdir()} - set(before)
    assert new <= {"new", "mnt", "clients", "volume.db-wal", "volume.db-shm"}, "nothing is left of it"


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "/mnt/a/home", "/x"],
        ["mount", META_URL, "/x", "--cache-dir", "/mnt/a/cache"],
        ["format", META_URL, "--data", "disk:///mnt/a/d{0..5}"],
        ["format", "sqlite:///mnt/a/volume.db", "--data", "disk:///x/d{0..5}"],
        ["disk", "add", META_URL, "disk:///mnt/a/d9"],
    ],
)
def test_a_volume_is_not_made_of_what_is_in_a_mount(
    arguments: list[str], backend: FakeBackend, run: Callable[..., Ran]
) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    ran = run(*arguments)
    assert ran.code == REQUEST
    assert "is inside the TieredFS mount at /mnt/a; name a directory of a disk" in ran.err
    assert backend.calls == []


def test_what_is_not_there_is_named_with_its_mount(backend: FakeBackend, run: Callable[..., Ran]) -> None:
    from tieredfs.errors import NotFoundError

    backend.mounted = [mount_at("/mnt/a")]
    for verb in ("info", "warmup", "evict"):
        backend.answers[verb] = NotFoundError("there is no none")
        ran = run(verb, "/mnt/a")
        assert (ran.code, ran.err) == (REQUEST, "tieredfs: /mnt/a: there is no none\n")


def test_fsck_says_whether_it_is_clean(volume: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite://{volume}/volume.db"
    capsys.readouterr()
    assert main(["fsck", url]) == OK
    out = capsys.readouterr().out
    assert out.split()[:2] == ["clean", "yes"]
    assert "0 B" in out, "bytes have units"
    (volume / "d1/tieredfs-disk.json").unlink(missing_ok=True)
    for name in list((volume / "d1").iterdir()):
        if name.is_file():
            name.unlink()
    assert main(["fsck", url, "--json"]) == PROBLEMS_FOUND
    assert '"clean": false' in capsys.readouterr().out
