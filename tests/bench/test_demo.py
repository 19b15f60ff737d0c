"""The pure parts of the demo: reading the disk list, the corpus, what is missing, what is left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.demo import __main__ as program
from bench.demo import story
from bench.demo.volume import disk_id


@pytest.mark.parametrize(
    "listing",
    [
        [{"disk": 3, "url": "disk:///a/d0"}, {"disk": 4, "url": "disk:///a/d1"}],
        {"disks": [{"id": 3, "url": "disk:///a/d0"}, {"id": 4, "url": "disk:///a/d1"}]},
    ],
)
def test_disk_id_is_found_by_its_directory(listing: object) -> None:
    assert disk_id(listing, Path("/a/d1")) == 4
    with pytest.raises(LookupError):
        disk_id(listing, Path("/a/d"))


def test_corpus_is_bounded_text_and_the_same_each_time(tmp_path: Path) -> None:
    sizes = [story.write_corpus(tmp_path / name) for name in ("one", "two")]
    assert sizes[0] == sizes[1] == (tmp_path / "one").stat().st_size <= story.CORPUS_BYTES
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert b"def " in (tmp_path / "one").read_bytes()


def test_leftover_files_and_processes_are_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        try:
            found = program.leftovers(tmp_path, keep=False)
            assert found == [f"process {child.pid}", f"files in {tmp_path}"]
            assert program.leftovers(tmp_path, keep=True) == [f"process {child.pid}"]
        finally:
            child.kill()
            child.wait(30)
    tmp_path.rmdir()
    assert program.leftovers(tmp_path, keep=False) == []


def test_a_failed_claim_ends_the_story() -> None:
    narrator = story.Narrator()
    narrator.check("so it is", True)
    with pytest.raises(story.ClaimError, match="so it is not"):
        narrator.check("so it is not", False)
    assert narrator.checks == 2


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "NEEDED_BYTES", 1 << 60)
    assert "GiB free" in (program.missing(True, tmp_path) or "")
