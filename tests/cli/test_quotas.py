"""`tieredfs quota` over a real volume: what is set is shown, what is wrong is said in one line, and `check` counts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tieredfs.cli import main
from tieredfs.cli.outcomes import OK, PROBLEMS_FOUND, REQUEST
from tieredfs.format import keys, records
from tieredfs.meta.metadata import Creation
from tieredfs.model import ROOT, FileKind
from tieredfs.volume import Volume


@pytest.fixture
def url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    url = f"sqlite://{tmp_path}/volume.db"
    assert main(["format", url, "--data", f"disk://{tmp_path}/d{{0..2}}", "--code", "rs:2+1"]) == OK
    with Volume.open(url, purpose="test") as volume:
        team = volume.metadata.create(ROOT, b"team", Creation(FileKind.DIRECTORY, 0o755, 0, 0)).inode
        volume.metadata.create(team, b"file", Creation(FileKind.REGULAR, 0o644, 0, 0))
        volume.metadata.create(ROOT, b"\xff odd", Creation(FileKind.DIRECTORY, 0o755, 0, 0))
    capsys.readouterr()
    return url


def data_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["quota", *arguments, "--json"]) == OK
    return json.loads(capsys.readouterr().out)


def test_from_set_to_delete(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quota", "list", url]) == OK
    assert capsys.readouterr().out == "no quotas\n"
    made = {
        "path": "/team",
        "used_bytes": 0,
        "limit_bytes": 100 << 30,
        "used_inodes": 1,
        "limit_inodes": 1_000_000,
        "used_ratio": 1e-6,
    }
    assert data_of(capsys, "set", url, "--path", "/team/", "--capacity", "100GiB", "--inodes", "1000000") == made
    assert data_of(capsys, "get", url, "--path", "team") == made
    changed = data_of(capsys, "set", url, "--path", "/team", "--inodes", "2", "--capacity", "none")
    assert (changed["limit_bytes"], changed["limit_inodes"], changed["used_ratio"]) == (None, 2, 0.5)
    data_of(capsys, "set", url, "--path", "/", "--capacity", "1T")
    data_of(capsys, "set", url, "--path", "\udcff odd", "--capacity", "4096")
    assert [quota["path"] for quota in data_of(capsys, "list", url)] == ["/", "/team", "/\udcff odd"]
    assert main(["quota", "list", url]) == OK
    shown = capsys.readouterr().out
    assert "1.00 TiB" in shown
    assert "50.0%" in shown
    assert data_of(capsys, "delete", url, "--path", "/")["used_inodes"] == 3
    assert len(data_of(capsys, "list", url)) == 2


def test_check_finds_what_a_record_does_not_know(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    data_of(capsys, "set", url, "--path", "/team", "--inodes", "5")
    assert [found["right"] for found in data_of(capsys, "check", url)] == [True]
    with Volume.open(url, purpose="test") as volume:
        wrong = volume.metadata.quota(b"team")._replace(used_inodes=4, used_bytes=8192)
        volume.metadata.amend(lambda writer: writer.put(keys.quota(wrong.directory), records.encode_quota(wrong)))
    assert main(["quota", "check", url, "--path", "/team", "--json"]) == PROBLEMS_FOUND
    captured = capsys.readouterr()
    found = json.loads(captured.out)[0]
    assert (found["recorded_inodes"], found["counted_inodes"], found["right"]) == (4, 1, False)
    assert f"`tieredfs quota check {url} --repair`" in captured.err
    assert data_of(capsys, "check", url, "--repair")[0]["repaired"] is True
    assert data_of(capsys, "check", url) == [
        {
            "path": "/team",
            "recorded_bytes": 0,
            "counted_bytes": 0,
            "recorded_inodes": 1,
            "counted_inodes": 1,
            "right": True,
            "repaired": False,
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", "--path", "/team"], "give --capacity SIZE, --inodes NUMBER, or both"),
        (["set", "--path", "/team", "--capacity", "0"], "`--capacity none` takes the limit away"),
        (["set", "--path", "/team", "--capacity", "-1G"], "'-1G' is no size"),
        (["set", "--path", "/team", "--capacity", "9000P"], "too large: at most 8191P"),
        (["set", "--path", "/team", "--capacity", "100GB"], "could mean two sizes"),
        (["set", "--path", "/team", "--capacity", "5"], "less than one block of 4096"),
        (["set", "--path", "/team", "--inodes", "0"], "`--inodes none` takes the limit away"),
        (["set", "--path", "/team", "--inodes", "-5"], "no number of inodes"),
        (["set", "--path", "/team", "--inodes", "9223372036854775808"], "from 1 to 2^63 - 1"),
        (["set", "--path", "/team", "--inodes", "many"], "no number of inodes"),
        (["set", "--path", "/team/file", "--inodes", "1"], "/team/file is not a directory"),
        (["set", "--path", "/absent", "--inodes", "1"], "there is no /absent"),
        (["set", "--path", "/team/..", "--inodes", "1"], "cannot be the name"),
        (["get", "--path", "/team"], "/team has no quota: `tieredfs quota set"),
        (["delete", "--path", "/team"], "/team has no quota"),
        (["check", "--path", "/team"], "/team has no quota"),
        (["check", "--path", "/absent"], "there is no /absent"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_changed(
    arguments: list[str], words: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quota", arguments[0], url, *arguments[1:]]) == REQUEST
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
    assert data_of(capsys, "list", url) == []


def test_a_dump_has_them(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_of(capsys, "set", url, "--path", "/team", "--inodes", "5", "--capacity", "1G")
    before = data_of(capsys, "list", url)
    assert main(["dump", url, f"{tmp_path}/dump"]) == OK
    for path in tmp_path.glob("volume.db*"):
        if path.is_file():
            path.unlink()
    assert main(["load", url, f"{tmp_path}/dump"]) == OK
    capsys.readouterr()
    assert data_of(capsys, "list", url) == before
    assert data_of(capsys, "check", url)[0]["right"] is True
    assert main(["fsck", url]) == OK
