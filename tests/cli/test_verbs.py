"""Every verb: what it asks of the backend, what it prints, and what it refuses before it asks anything."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tieredfs
from tests.cli.conftest import Ran
from tests.cli.fakes import CONFIG, META_URL, MOUNT_ID, FakeBackend, FakeFinding, FakeStaged, mount_at
from tieredfs.cli.backend import MountRequest, RestoreRequest
from tieredfs.errors import AlreadyExistsError, UnavailableError
from tieredfs.limits import CACHE_BYTES_DEFAULT, GIB, MEMORY_BYTES_DEFAULT, MIB
from tieredfs.model import Code, CodeKind, Durability

Run = Callable[..., Ran]


def asked(backend: FakeBackend, verb: str) -> list[object]:
    return [call[3] for call in backend.calls if call[0] == "ask" and call[2] == verb]


# ---- volumes ------------------------------------------------------------------------------------------------------


def test_format(backend: FakeBackend, run: Run) -> None:
    ran = run("format", META_URL, "--data", "disk:///d{0..5}", "--durability", "store", "--name", "x", "--json")
    disks = [f"disk:///d{index}" for index in range(6)]
    assert backend.calls == [("format", META_URL, disks, "rs:4+2", Durability.STORE, 64 * MIB, "x", False)]
    assert ran.code == 0
    assert isinstance(ran.data, dict)
    assert (ran.data["code"], ran.data["durability"], ran.data["block_bytes"]) == ("rs:4+2", "ssd", 64 * MIB)


def test_format_takes_what_a_shell_made_of_the_braces(backend: FakeBackend, run: Run) -> None:
    assert run("format", META_URL, "--data", "disk:///d0", "disk:///d1", "disk:///d2", "--code", "replica:3").code == 0
    assert backend.calls[0][2] == ["disk:///d0", "disk:///d1", "disk:///d2"]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([META_URL], "--data"),
        ([META_URL, "--data", "disk:///d{0..4}"], "name 1 more"),
        ([META_URL, "--data", "disk:///d{0..5}", "--code", "rs:4"], "rs:4+2"),
        ([META_URL, "--data", "disk:///d{0..5}", "--durability", "tape"], "ssd or store"),
        ([META_URL, "--data", "disk:///d{0..5}", "--block-size", "64MB"], "64MiB"),
        ([META_URL, "--data", "disk:///d{0..5}", "--name", "a:b"], "volume name"),
        (["/data/volume.db", "--data", "disk:///d{0..5}"], "did you mean sqlite:///data/volume.db"),
    ],
)
def test_format_refuses_before_it_asks(arguments: list[str], advice: str, backend: FakeBackend, run: Run) -> None:
    ran = run("format", *arguments)
    assert ran.code == 2
    assert advice in ran.err
    assert backend.calls == []


def test_status_shows_the_volume_and_its_mounts(backend: FakeBackend, run: Run) -> None:
    dead = "f" * 16
    backend.mounted = [mount_at("/mnt/a"), mount_at("/mnt/other", "other", "e" * 16)]
    backend.answers["status"] = {"volume": {"uuid": CONFIG.uuid}, "cache": {"used_bytes": 5}}
    data = run("status", META_URL, "--json").data
    assert isinstance(data, dict)
    assert [mount["mount_point"] for mount in data["mounts"]] == ["/mnt/a"]
    assert data["mounts"][0]["daemon"] == {"cache": {"used_bytes": 5}}
    backend.answers["status"] = UnavailableError("gone")
    backend.mounted = [mount_at("/mnt/a", mount_id=dead)]
    backend.purposes = [f"mount {dead}"]
    data = run("status", META_URL, "--json").data
    assert isinstance(data, dict)
    assert data["mounts"][0]["daemon"] is None


def test_status_does_not_take_another_volume_of_the_same_name_for_this_one(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    backend.answers["status"] = {"volume": {"uuid": "another"}}
    data = run("status", META_URL, "--json").data
    assert isinstance(data, dict)
    assert data["mounts"] == []
    backend.answers["status"] = UnavailableError("gone")
    backend.purposes = ["mount " + "c" * 16]
    data = run("status", META_URL, "--json").data
    assert isinstance(data, dict)
    assert data["mounts"] == [], "nobody says whose it is, and this volume has no session of it"


def test_status_for_people_has_units_and_no_control_characters(backend: FakeBackend, run: Run) -> None:
    backend.staged = FakeStaged(2, 3 * GIB, 75.0)
    out = run("status", META_URL).out
    for text in ("64.0 MiB", "3.00 GiB", "1 m 15 s", "rs:4+2", "5.00 GiB", "train"):
        assert text in out, text
    backend.mounted = [mount_at("/mnt/a\x1b[31m")]
    assert "\x1b" not in run("status", META_URL).out


def test_status_of_nothing_lists_the_mounts(backend: FakeBackend, run: Run) -> None:
    assert "nothing is mounted" in run("status").out
    backend.mounted = [mount_at("/mnt/a")]
    data = run("status", "--json").data
    assert data == [{"mount_point": "/mnt/a", "volume_name": "train", "mount_id": MOUNT_ID, "read_only": False}]


def test_chunks_of_blocks_are_one_line_each(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    chunks = [{"index": index, "disk": 6 - index} for index in range(6)]
    backend.answers["info"] = {"blocks": [{"block": "07", "chunks": chunks}]}
    assert "index 5, disk 1" in run("info", "/mnt/a").out


def test_status_of_a_mount(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    backend.answers["status"] = {"staged_bytes": 7}
    assert run("status", "/mnt/a", "--json").data == {"staged_bytes": 7}


def test_dump(backend: FakeBackend, run: Run) -> None:
    assert run("dump", META_URL, "/backup/v.dump", "--json").code == 0
    assert run("dump", META_URL).code == 0
    assert [call for call in backend.calls if call[0].startswith("dump")] == [  # type: ignore[attr-defined]
        ("dump_to_file", "/backup/v.dump"),
        ("dump_to_disks",),
    ]


def test_load(backend: FakeBackend, run: Run) -> None:
    ran = run("load", META_URL, "disk:///data/d0", "/backup/v.dump", "--json")
    assert ran.code == 0
    assert ran.data == {"dump": "/data/d0/metadata/1.dump", "away": {}}
    assert backend.calls == [("load", META_URL, ["disk:///data/d0", "/backup/v.dump"])]
    assert f"`tieredfs fsck {META_URL}`" in ran.err
    backend.away = {2: "not there"}
    assert f"`tieredfs disk rebuild {META_URL} 2`" in run("load", META_URL, "/backup/v.dump").err
    assert run("load", META_URL).code == 2


def test_clone(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/train"), mount_at("/mnt/other", "other", "f" * 16)]
    backend.answers["status"] = {"volume": {"meta_url": META_URL}}
    assert run("clone", "/mnt/train/a", "/mnt/train/b", "--json").code == 0
    assert backend.calls[-1] == ("clone", META_URL, "a", "b")
    ran = run("clone", "/mnt/train/a", "/mnt/other/b")
    assert (ran.code, "two mounts" in ran.err) == (2, True)
    assert run("clone", "/mnt/train/a", "/elsewhere").code == 2
    backend.fails["clone"] = AlreadyExistsError("b is there already")
    assert "there already" in run("clone", "/mnt/train/a", "/mnt/train/b").err


def test_snapshots(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/train"), mount_at("/mnt/other", "other", "f" * 16)]
    backend.answers["status"] = {"volume": {"meta_url": META_URL}}
    ran = run("snapshot", "create", "/mnt/train/a", "s", "--json")
    assert (ran.code, backend.calls[-1]) == (0, ("create_snapshot", META_URL, MOUNT_ID, "a", "s"))
    assert isinstance(ran.data, dict)
    assert (ran.data["path"], ran.data["place"]) == ("/mnt/train/a", "/mnt/train/.snapshots/a/@s")
    assert "tieredfs restore /mnt/train/a s" in run("snapshot", "create", "/mnt/train/a", "s").out
    listed = run("snapshot", "list", "--json")
    asked_for = [call for call in backend.calls if call[0] == "snapshots"]
    assert asked_for == [("snapshots", META_URL, "")], "a volume that has two mounts is asked once"
    assert isinstance(listed.data, list)
    assert len(listed.data) == 1
    assert run("snapshot", "list", "/mnt/train/a/b").code == 0
    assert backend.calls[-1] == ("snapshots", META_URL, "a/b")
    assert run("snapshot", "rm", "/mnt/train/a", "s", "--json").data == {"removed": "s", "entry_count": 1}
    backend.fails["snapshots"] = UnavailableError("no daemon answers")
    unasked = run("snapshot", "list")
    assert (unasked.code, "/mnt/train: no daemon answers" in unasked.err) == (1, True)
    assert run("snapshot", "list", "/mnt/train").code == 3
    backend.fails["create_snapshot"] = AlreadyExistsError("there is a snapshot s of /a already; remove it")
    assert run("snapshot", "create", "/mnt/train/a", "s").code == 2


def test_restore(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/train"), mount_at("/mnt/other", "other", "f" * 16)]
    backend.answers["status"] = {"volume": {"meta_url": META_URL}}
    assert run("restore", "/mnt/train/a", "s", "--json").code == 0
    assert backend.calls[-1][1] == RestoreRequest(META_URL, "a", "s", "a", force=False, mount_point="/mnt/train")
    assert run("restore", "/mnt/train/a", "s", "--to", "/mnt/train/b", "--force").code == 0
    assert backend.calls[-1][1] == RestoreRequest(META_URL, "a", "s", "b", force=True, mount_point="/mnt/train")
    two = run("restore", "/mnt/train/a", "s", "--to", "/mnt/other/b")
    assert (two.code, "two mounts" in two.err) == (2, True)
    assert run("restore", "/elsewhere", "s").code == 2
    backend.mounted = [dataclasses.replace(mount_at("/mnt/train"), read_only=True)]
    for arguments in (["snapshot", "create"], ["snapshot", "rm"], ["restore"]):
        ran = run(*arguments, "/mnt/train/a", "s")
        assert (ran.code, "read-only" in ran.err) == (2, True)
    assert run("snapshot", "list", "/mnt/train").code == 0


def test_gc(run: Run) -> None:
    assert run("gc", META_URL, "--json").data == {"block_count": 2, "freed_bytes": 3 * MIB}
    assert "3.00 MiB" in run("gc", META_URL).out


def test_fsck_says_by_its_exit_code_what_it_found(backend: FakeBackend, run: Run) -> None:
    assert run("fsck", META_URL).code == 0
    backend.findings = (FakeFinding("chunk", "block 7, chunk 2", "checksum", False),)
    ran = run("fsck", META_URL, "--json")
    assert ran.code == 1
    assert isinstance(ran.data, dict)
    assert ran.data["findings"][0]["subject"] == "block 7, chunk 2"
    assert "--repair" in ran.err
    assert run("fsck", META_URL, "--repair").code == 0
    assert ("check", True) in backend.calls


def test_config_shows_and_changes(backend: FakeBackend, run: Run) -> None:
    assert "train" in run("config", META_URL).out
    assert not [call for call in backend.calls if call[0] == "set_config"]
    assert run("config", META_URL, "--durability", "store", "--code", "replica:2", "--json").code == 0
    assert backend.calls[-1] == ("set_config", None, Code(CodeKind.REPLICA, 1, 1), Durability.STORE, None)


def test_destroy_never_happens_by_accident(backend: FakeBackend, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("destroy", META_URL)
    assert ran.code == 2
    assert "--yes" in ran.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _prompt: "another")
    assert run("destroy", META_URL).code == 2
    assert ("destroy", META_URL) not in backend.calls
    monkeypatch.setattr("builtins.input", lambda _prompt: "train")
    assert run("destroy", META_URL).code == 0
    assert run("destroy", META_URL, "--yes", "--json").data == {"destroyed": META_URL, "name": "train"}


def test_disks(backend: FakeBackend, run: Run) -> None:
    out = run("disk", "list", META_URL).out
    assert "disk:///data/d1" in out
    assert "no" in out
    assert isinstance(run("disk", "list", META_URL, "--json").data, list)
    assert run("disk", "add", META_URL, "disk:///new", "--domain", "shelf").code == 0
    assert run("disk", "drain", META_URL, "2").code == 0
    assert run("disk", "rebuild", META_URL, "2", "--json").data == {"block_count": 5, "freed_bytes": 0}
    done = [call for call in backend.calls if call[0] != "open"]
    assert done == [("add_disk", "disk:///new", "shelf"), ("drain_disk", 2), ("rebuild_disk", 2)]


@pytest.mark.parametrize("text", ["0", "x", "-1", "65536", "1.5", "99999999999999999999"])
def test_bad_disk_numbers(text: str, backend: FakeBackend, run: Run) -> None:
    ran = run("disk", "drain", META_URL, "--", text)
    assert ran.code == 2
    assert "disk list" in ran.err
    assert backend.calls == []


# ---- mounts -------------------------------------------------------------------------------------------------------


def request(**changes: object) -> MountRequest:
    fields: dict[str, object] = {
        "meta_url": META_URL,
        "mountpoint": "/mnt/a",
        "cache_dir": None,
        "cache_bytes": CACHE_BYTES_DEFAULT,
        "memory_bytes": MEMORY_BYTES_DEFAULT,
        "driver": "auto",
        "read_only": False,
        "allow_other": False,
        "foreground": False,
    }
    return MountRequest(**{**fields, **changes})  # type: ignore[arg-type]


def test_mount(backend: FakeBackend, run: Run) -> None:
    ran = run("mount", META_URL, "/mnt/a")
    assert backend.calls == [("mount", request())]
    assert "kernel driver (Linux 6.18 and root: passthrough)" in ran.out


def test_mount_with_everything(backend: FakeBackend, run: Run) -> None:
    ran = run(
        *("mount", META_URL, "/mnt/a", "--cache-dir", "/ssd", "--cache-size", "2GiB", "--memory", "1G", "--driver"),
        *("fuse-python", "--foreground", "--read-only", "--allow-other", "--json"),
    )
    wanted = request(
        cache_dir="/ssd",
        cache_bytes=2 * GIB,
        memory_bytes=GIB,
        driver="fuse-python",
        foreground=True,
        read_only=True,
        allow_other=True,
    )
    assert backend.calls == [("mount", wanted)]
    assert isinstance(ran.data, dict)
    assert ran.data["mount_id"] == MOUNT_ID


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [("--driver", "nfs", "auto, kernel"), ("--cache-size", "0", "10GiB"), ("--memory", "1GB", "1GiB")],
)
def test_mount_refuses(option: str, value: str, advice: str, backend: FakeBackend, run: Run) -> None:
    ran = run("mount", META_URL, "/mnt/a", option, value)
    assert ran.code == 2
    assert advice in ran.err
    assert backend.calls == []


def test_relative_mount_points_become_absolute(
    backend: FakeBackend, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("mount", META_URL, "mnt")
    run("umount", "mnt", "--flush")
    assert backend.calls == [
        ("mount", request(mountpoint=str(tmp_path / "mnt"))),
        ("unmount", str(tmp_path / "mnt"), True),
    ]


def test_up_formats_once_and_says_what_next(backend: FakeBackend, run: Run, tmp_path: Path) -> None:
    home, point = tmp_path / "my volume", tmp_path / "mnt"
    ran = run("up", str(home), str(point))
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 3
    made, mounted = backend.calls
    assert made[1:4] == (
        f"sqlite://{home}/volume.db",
        [f"disk://{home}/disks/d{index}" for index in range(6)],
        "rs:4+2",
    )
    assert made[6:] == ("my-volume", False)
    assert mounted[1] == request(meta_url=made[1], mountpoint=str(point), cache_dir=f"{home}/cache")
    assert point.is_dir()
    (home / "volume.db").touch()
    run("up", str(home), str(point))
    assert [call[0] for call in backend.calls] == ["format", "mount", "mount"]


# ---- files --------------------------------------------------------------------------------------------------------


def test_info_asks_the_daemon_for_the_path_from_the_root(backend: FakeBackend, run: Run, tmp_path: Path) -> None:
    backend.mounted = [mount_at(str(tmp_path))]
    backend.answers["info"] = {"state": "stored", "cached_ratio": 0.5, "blocks": [{"block": 1, "size_bytes": 1024}]}
    assert run("info", f"{tmp_path}/a/b", "--json").data == backend.answers["info"]
    assert asked(backend, "info") == [{"path": "a/b"}]
    out = run("info", str(tmp_path)).out
    assert asked(backend, "info")[-1] == {"path": ""}
    assert "50.0%" in out
    assert "1.00 KiB" in out


def test_symlinks_inside_the_mount_are_followed_but_for_the_last(
    backend: FakeBackend, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "mnt/step-1").mkdir(parents=True)
    (tmp_path / "mnt/latest").symlink_to("step-1")
    (tmp_path / "mnt/out").symlink_to(tmp_path)
    backend.mounted = [mount_at(f"{tmp_path}/mnt")]
    run("info", f"{tmp_path}/mnt/latest/model.pt")
    run("info", f"{tmp_path}/mnt/latest")
    assert asked(backend, "info") == [{"path": "step-1/model.pt"}, {"path": "latest"}]
    ran = run("info", f"{tmp_path}/mnt/out/x")
    assert ran.code == 2
    assert "leads out of the mount" in ran.err


def test_warmup_and_evict_go_to_each_mount_once(backend: FakeBackend, run: Run, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    backend.mounted = [mount_at(one), mount_at(two, mount_id="f" * 16)]
    backend.answers["warmup"] = {"warmed_bytes": 5}
    assert run("warmup", f"{one}/a", f"{one}/b", "--json").data == {"warmed_bytes": 5}
    assert asked(backend, "warmup") == [{"paths": ["a", "b"]}]
    data = run("warmup", f"{one}/a", f"{two}/b", "--json").data
    assert isinstance(data, dict)
    assert set(data) == {one, two}
    run("evict", two)
    assert asked(backend, "evict") == [{"paths": [""]}]


@pytest.mark.parametrize(
    ("evicted", "staged", "opened", "code", "words"),
    [
        (2, 0, 0, 0, ()),
        (0, 0, 0, 0, ()),
        (1, 1, 0, 0, ("not stored yet stay on the SSD: 1", "tieredfs drain")),
        (0, 3, 0, 3, ("not stored yet stay on the SSD: 3",)),
        (0, 0, 2, 3, ("open stay on the SSD: 2",)),
    ],
)
def test_evict_says_what_stays(
    evicted: int,
    staged: int,
    opened: int,
    code: int,
    words: tuple[str, ...],
    backend: FakeBackend,
    run: Run,
    tmp_path: Path,
) -> None:
    backend.mounted = [mount_at(str(tmp_path))]
    backend.answers["evict"] = {"evicted": evicted, "kept_staged": staged, "kept_open": opened}
    ran = run("evict", str(tmp_path), "--json")
    assert (ran.code, ran.data) == (code, backend.answers["evict"])
    assert all(word in ran.err for word in words)
    assert bool(ran.err) == bool(words)


def test_warmup_tells_by_its_exit_code_that_some_could_not_be(backend: FakeBackend, run: Run, tmp_path: Path) -> None:
    backend.mounted = [mount_at(str(tmp_path))]
    backend.answers["warmup"] = {"files": 2, "failed": 1, "problems": ["two disks are away"]}
    ran = run("warmup", str(tmp_path))
    assert ran.code == 1
    assert "two disks are away" in ran.out


@pytest.mark.parametrize("verb", ["info", "warmup", "evict", "drain", "status"])
def test_a_path_that_is_on_no_mount(verb: str, backend: FakeBackend, run: Run) -> None:
    ran = run(verb, "/tmp/plain")
    assert ran.code == 2
    assert "not below a TieredFS mount" in ran.err
    assert backend.calls == []


def test_a_dead_daemon_is_said_before_the_path_is_touched(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/dead")]
    backend.answers["ping"] = UnavailableError("no daemon answers for mount 1")
    ran = run("info", "/mnt/dead/file")
    assert ran.code == 3
    assert "no daemon answers" in ran.err
    assert asked(backend, "info") == []


# ---- drain --------------------------------------------------------------------------------------------------------


def test_drain_of_a_mount(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    assert "all is stored" in run("drain", "/mnt/a/dir").out
    assert asked(backend, "drain") == [{}]


def test_drain_of_a_volume_asks_its_live_mounts(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a"), mount_at("/mnt/b", "other", "e" * 16)]
    backend.staged = FakeStaged(3, 300)
    data = run("drain", META_URL, "--json").data
    assert data == {"stored_file_count": 3, "staged_file_count": 0}
    assert [call[1] for call in backend.calls if call[0] == "ask" and call[2] == "drain"] == [MOUNT_ID]
    assert ("drain_volume", META_URL) not in backend.calls


def test_drain_of_a_volume_without_a_daemon_opens_its_caches(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    backend.answers["status"] = UnavailableError("gone")
    backend.staged = FakeStaged(3, 300)
    assert run("drain", META_URL).code == 0
    assert ("drain_volume", META_URL) in backend.calls
    assert asked(backend, "drain") == []


def test_drain_leaves_the_cache_of_a_live_daemon_to_it(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    backend.answers["status"] = {"cache": {"path": "/ssd/cache"}}
    backend.staged, backend.open_files = FakeStaged(3, 300), 1
    assert run("drain", META_URL, "--json").data == {"stored_file_count": 2, "staged_file_count": 1}
    assert ("drain_volume", META_URL) not in backend.calls


def test_drain_with_nothing_staged_asks_nobody(backend: FakeBackend, run: Run) -> None:
    backend.mounted = [mount_at("/mnt/a")]
    assert run("drain", META_URL).code == 0
    assert {call[0] for call in backend.calls} == {"open"}


# ---- the program itself -------------------------------------------------------------------------------------------


def test_every_verb_has_help_with_an_example(run: Run) -> None:
    from tieredfs.cli.app import app

    own = [command for command in app.registered_commands if command.callback.__module__.startswith("tieredfs.cli")]
    verbs = [[command.name or getattr(command.callback, "__name__", "")] for command in own]
    verbs += [["disk", verb] for verb in ("list", "add", "drain", "rebuild")]
    verbs += [["snapshot", verb] for verb in ("create", "list", "rm")]
    assert len(verbs) == 28
    for verb in verbs:
        ran = run(*verb, "--help")
        assert ran.code == 0
        assert "Example: tieredfs" in ran.out, verb
        assert ("--json" in ran.out) != (verb == ["peer"]), "that one serves until it is ended"


def test_the_program_runs_without_the_backend_being_imported() -> None:
    program = (
        "import sys\nfrom tieredfs.cli import main\n"
        "code = main(['--version'])\n"
        "heavy = {'tieredfs.volume', 'tieredfs.fuse.mounting', 'sqlite3', 'numpy', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"tieredfs {tieredfs.__version__}\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    program = (
        "import sys\nsys.path.insert(0, '.')\nfrom tests.cli.fakes import FakeBackend\nfrom tieredfs.cli import main\n"
        "backend = FakeBackend()\nsys.stdin.readline()\n"
        "sys.exit(main(['status', 'sqlite:///x/y'], backend))\n"
    )
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(b"\n", timeout=60)
    assert err == b""
    assert process.returncode == 0


def test_progress_bars_are_for_terminals_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("gc", META_URL).err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "collecting garbage" in run("gc", META_URL).err
    assert run("gc", META_URL, "--json").err == ""
