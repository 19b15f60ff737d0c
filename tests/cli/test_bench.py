"""`tieredfs bench`: what it prints, what it refuses, and that nothing of it is left."""

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran
from tieredfs.cli import measuring
from tieredfs.cli.measuring import STEPS, Load, measure
from tieredfs.cli.outcomes import CONDITION, INTEGRITY, OK, REQUEST

SMALL = ("--size", "3M", "--files", "7", "--rounds", "2")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


def test_two_directories_side_by_side(run: Callable[..., Ran], here: Path, there: Path) -> None:
    ran = run("bench", str(here), "--against", str(there), *SMALL)
    assert (ran.code, ran.err) == (OK, "")
    lines = ran.out.splitlines()
    assert lines[0].split() == ["measure", "directory", "against", "ratio"]
    assert [line.partition("  ")[0].strip() for line in lines[1:]] == [step.name for step in STEPS]
    assert [*here.iterdir(), *there.iterdir()] == []


def test_json_has_bare_figures(run: Callable[..., Ran], here: Path) -> None:
    data = run("bench", str(here), *SMALL, "--json").data
    assert isinstance(data, dict)
    assert (data["directories"], data["size_bytes"], data["files"], data["rounds"]) == ([str(here)], 3 << 20, 7, 2)
    assert {figure["unit"] for figure in data["figures"]} == {"bytes", "files"}
    assert all(figure["per_s"][0] > 0 and figure["ratio"] is None for figure in data["figures"])


def test_directories_take_turns_at_being_first(here: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    step = measuring.Step("look", "files", lambda load: load.files, lambda folder, _: seen.append(folder.parent.name))
    monkeypatch.setattr(measuring, "STEPS", (step,))
    told: list[tuple[int, int]] = []
    (figure,) = measure([here, there], Load(1, 10), 3, lambda *done: told.append(done))
    assert seen == ["here", "there", "there", "here", "here", "there"]
    assert told == [(done, 6) for done in range(6)]
    assert figure.ratio == figure.per_s[0] / figure.per_s[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{here}/absent"], REQUEST, "is no directory"),
        (["{here}", "--against", "/etc/passwd"], REQUEST, "is no directory"),
        (["{here}", "--size", "0"], REQUEST, "too small"),
        (["{here}", "--size", "a lot"], REQUEST, "a lot"),
        (["{here}", "--size", "1000T"], CONDITION, "choose a smaller --size"),
        (["{here}", "--files", "0"], REQUEST, "--files"),
        (["{here}", "--rounds", "0"], REQUEST, "--rounds"),
    ],
)
def test_what_cannot_be_measured_is_said(
    run: Callable[..., Ran], here: Path, arguments: list[str], code: int, words: str
) -> None:
    ran = run("bench", *(argument.replace("{here}", str(here)) for argument in arguments))
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert list(here.iterdir()) == []


def test_nothing_is_left_when_it_fails_in_the_middle(
    run: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, load: Load) -> None:
        raise PermissionError(13, "Permission denied", f"{folder}/{load.files}")

    monkeypatch.setattr(
        measuring, "STEPS", (*STEPS[:3], measuring.Step("stat", "files", lambda load: load.files, refuse))
    )
    ran = run("bench", str(here), *SMALL)
    assert (ran.code, ran.out) == (REQUEST, "")
    assert "Permission denied" in ran.err
    assert list(here.iterdir()) == []


def test_a_file_that_is_not_read_whole_is_damage(
    run: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_pieces", lambda size_bytes: [size_bytes // 4])
    assert run("bench", str(here), *SMALL).code == INTEGRITY
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_ended(here: Path, number: signal.Signals) -> None:
    program = (
        "import signal, sys; from tieredfs.cli import main; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.exit(main(sys.argv[1:]))"  # who runs tests in the background has SIGINT ignored
    )
    arguments = ["bench", str(here), "--size", "1M", "--files", "1000", "--rounds", "100"]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments])
    try:
        deadline_s = time.monotonic() + 20
        while not list(here.glob(".tieredfs-bench-*/small/*")):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert list(here.iterdir()) == []


def test_a_disk_that_is_full_meanwhile_is_said(
    run: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(folder: Path, load: Load) -> None:
        (folder / "large").write_bytes(bytes(load.size_bytes))
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "large"))

    monkeypatch.setattr(measuring, "STEPS", (measuring.Step("write", "bytes", lambda load: load.size_bytes, fill),))
    ran = run("bench", str(here), *SMALL)
    assert (ran.code, ran.out) == (CONDITION, "")
    assert "No space left on device" in ran.err
    assert list(here.iterdir()) == []
