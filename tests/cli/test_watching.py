"""`stats` and `top`: what they ask of the daemon, what they print, and how they end."""

import json
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Ran
from tests.cli.fakes import CONFIG, META_URL, MOUNT_ID, FakeBackend, mount_at
from tieredfs.cli.backend import Progress
from tieredfs.cli.columns import heading, line, short_count, short_size, short_time
from tieredfs.cli.watch_verbs import STATS
from tieredfs.errors import UnavailableError

Run = Callable[..., Ran]
ACTIVITY: dict[str, object] = {
    "interval_s": 1.0,
    "operations": {"per_s": 1234.0, "mean_s": 42e-6},
    "kinds": {"open": {"per_s": 3.0, "mean_s": None}},
    "hit_ratio": None,
    "staged_bytes": 3 << 20,
    "staged_oldest_age_s": 4.0,
    "drain_error": None,
}
USE = {"operations_per_s": 5.0, "opens_per_s": 1.0, "busy_ratio": 0.1, "bytes_per_s": 0.0}
TOP: dict[str, object] = {
    "interval_s": 2.0,
    "operations_per_s": 5.0,
    "processes": [
        {"process": 17, "uid": 3, "command": "python train.py", **USE},
        {"process": 0, "uid": 0, "command": "(kernel)", **USE},
    ],
    "files": [{"path": "/a\nb", **USE}],
    "directories": [{"path": "/", **USE}],
}


@pytest.fixture(autouse=True)
def mounted(backend: FakeBackend) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    backend.answers |= {"activity": ACTIVITY, "top": TOP, "status": {"volume": {"uuid": CONFIG.uuid}}}


def asked(backend: FakeBackend, verb: str) -> list[object]:
    return [call[3] for call in backend.calls if call[0] == "ask" and call[2] == verb]


def test_stats_prints_a_line_for_each_interval_under_a_heading(backend: FakeBackend, run: Run) -> None:
    ran = run("stats", "/mnt/a", "--interval", "500ms", "--count", "21")
    assert ran.code == 0
    assert asked(backend, "activity") == [{"interval_s": 0.5}] * 21
    lines = ran.out.splitlines()
    assert len(lines) == 2 + 20 + 2 + 1
    assert lines[:2] == lines[22:24] == list(heading(STATS))
    assert len({len(text) for text in lines}) == 1, "columns stand below each other"
    assert "1.2k" in lines[2]
    assert "42us" in lines[2]
    assert "3.0M" in lines[2]


def test_stats_as_json_is_an_object_a_line(backend: FakeBackend, run: Run) -> None:
    ran = run("stats", META_URL, "--count", "2", "--json")
    found = [json.loads(text) for text in ran.out.splitlines()]
    assert [one["operations"] for one in found] == [ACTIVITY["operations"]] * 2
    assert {one["mount_point"] for one in found} == {"/mnt/a"}
    assert all(one["time_s"] > 0 for one in found)


def test_stats_says_what_is_in_the_way_of_the_drain(backend: FakeBackend, run: Run) -> None:
    backend.answers["activity"] = ACTIVITY | {"drain_error": "NoSpaceError: no room"}
    assert run("stats", "/mnt/a", "--count", "1").out.rstrip().endswith("NoSpaceError: no room")


def test_top_prints_who_and_what(backend: FakeBackend, run: Run) -> None:
    ran = run("top", "/mnt/a", "--count", "1", "--limit", "3")
    assert asked(backend, "top") == [{"interval_s": 2.0, "limit": 3}]
    assert "17 python train.py, user 3" in ran.out
    assert "(kernel)" in ran.out
    assert "/a\\nb" in ran.out
    assert "\x1b" not in ran.out, "a screen is cleared on a terminal only"
    assert json.loads(run("top", "/mnt/a", "--count", "1", "--json").out)["processes"] == TOP["processes"]


class Leaving(FakeBackend):
    """A mount that answers once; then its daemon does not, and the mount is there or gone."""

    def __init__(self, *, answers_again_at: int, stays: bool) -> None:
        super().__init__()
        self.again_at, self.stays, self.asked = answers_again_at, stays, 0
        self.mounted = [mount_at("/mnt/a")]

    def ask(self, mount_id: str, verb: str, arguments: Mapping[str, object], progress: Progress) -> object:
        self.asked += 1
        if 1 < self.asked < self.again_at:
            self.mounted = self.mounted if self.stays else []
            raise UnavailableError("no daemon answers")
        return ACTIVITY


def run_with(backend: FakeBackend, capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    from tieredfs.cli import main

    code = main(arguments, backend)
    captured = capsys.readouterr()
    return Ran(code, captured.out, captured.err)


def test_a_mount_that_goes_away_ends_it_well(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_with(Leaving(answers_again_at=99, stays=False), capsys, "stats", "/mnt/a", "--json")
    assert (ran.code, len(ran.out.splitlines()), ran.err) == (0, 1, "tieredfs: /mnt/a is unmounted\n")


def test_a_daemon_that_is_replaced_costs_one_interval(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_with(Leaving(answers_again_at=3, stays=True), capsys, "stats", "/mnt/a", "--json", "--count", "3")
    assert (ran.code, len(ran.out.splitlines()), ran.err) == (0, 3, "")


def test_a_daemon_that_stays_away_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_with(Leaving(answers_again_at=99, stays=True), capsys, "stats", "/mnt/a", "--json")
    assert (ran.code, len(ran.out.splitlines())) == (3, 1)
    assert "no daemon answers" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stats", "/nowhere"], "not below a TieredFS mount"),
        (["top", "/nowhere"], "not below a TieredFS mount"),
        (["stats", "/mnt/a", "--interval", "0"], "out of range"),
        (["stats", "/mnt/a", "--interval", "1h"], "out of range"),
        (["stats", "/mnt/a", "--interval", "fast"], "no duration"),
        (["stats", "/mnt/a", "--count", "-1"], "--count"),
        (["top", "/mnt/a", "--limit", "1000"], "--limit"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_asked(
    arguments: list[str], words: str, backend: FakeBackend, run: Run
) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert words in ran.err
    assert [call for call in backend.calls if call[0] == "ask"] == []


def test_a_volume_is_watched_where_it_is_mounted_once(backend: FakeBackend, run: Run) -> None:
    backend.mounted.append(mount_at("/mnt/b", mount_id="e" * 16))
    ran = run("stats", META_URL)
    assert ran.code == 2
    assert "name one: /mnt/a, /mnt/b" in ran.err
    backend.mounted = [mount_at("/mnt/a", "another", MOUNT_ID)]
    assert "is not mounted on this host" in run("stats", META_URL).err


@given(st.floats(0, 1e17))
def test_numbers_fit_their_columns(value: float) -> None:
    for text, width in ((short_count(min(value, 1e11)), 5), (short_size(value), 5), (short_time(min(value, 1e9)), 6)):
        assert 0 < len(text) <= width, text


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (short_count, 0, "0"),
        (short_count, 0.31, "0.3"),
        (short_count, 7, "7"),
        (short_count, 999.6, "1.0k"),
        (short_count, 34_000, "34k"),
        (short_size, 1023, "1023"),
        (short_size, 1.5 * (1 << 30), "1.5G"),
        (short_time, 0, "0us"),
        (short_time, 42e-6, "42us"),
        (short_time, 0.0031, "3.1ms"),
        (short_time, 4, "4.0s"),
        (short_time, 600, "10m"),
        (short_time, 3 * 86400, "72h"),
        (short_time, 9 * 86400, "9d"),
    ],
)
def test_numbers_are_short(write: Callable[[float], str], value: float, text: str) -> None:
    assert write(value) == text


def test_what_a_report_lacks_is_a_dash() -> None:
    assert set(line(STATS, {}).split()) == {"-"}
