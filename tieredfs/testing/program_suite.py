"""Whole programs over a mount: what unmodified tools do to a file system, checked by their own means or by comparison.

Part of the suites of `posix_suite`. A program or library that is not installed skips its test, with the reason.
"""

import hashlib
import importlib
import importlib.util
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tieredfs.testing.features import Features, children, finish, write_file

PROGRAM_TIMEOUT_S: Final = 60.0

SOURCES: Final = {
    "main.c": '#include <stdio.h>\n#include "part.h"\nint main(void) { return printf("%d\\n", part(20)) < 0; }\n',
    "part.c": '#include "part.h"\nint part(int number) { return 2 * number + 2; }\n',
    "part.h": "int part(int number);\n",
    "Makefile": (
        "program: main.o part.o\n\tcc -o $@ $^\n%.o: %.c part.h\n\tcc -c -o $@ $<\nclean:\n\trm -f *.o program\n"
    ),
}

SQLITE_WRITER: Final = """
import sqlite3, sys
database = sqlite3.connect('db', timeout=60, isolation_level=None)
for number in range(40):
    database.execute('BEGIN IMMEDIATE')
    database.execute('INSERT INTO rows VALUES (?, ?, randomblob(500))', (sys.argv[1], number))
    database.execute('UPDATE total SET count = count + 1')
    database.execute('COMMIT')
"""


def needs_program(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


def needs_library(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the Python library {name} is not installed")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program to its end, bounded; its output. A failure fails the test with what it said."""
    environment = {**os.environ, "LC_ALL": "C", "HOME": str(cwd), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def make_tree(root: Path) -> None:
    """A small tree with one of everything that archives must carry."""
    (root / "sub/deeper").mkdir(parents=True)
    (root / "empty").mkdir()
    for number in range(40):
        write_file(root / "sub" / f"file-{number}", os.urandom(137 * number))
    write_file(root / "sub/deeper/large", os.urandom(1_500_000))
    write_file(root / "script", b"#!/bin/sh\n", 0o755)
    os.chmod(write_file(root / "secret", b"hidden"), 0o400)
    os.symlink("sub/file-3", root / "relative")
    os.symlink("/nowhere/at/all", root / "dangling")
    os.link(root / "sub/file-5", root / "sub/deeper/linked")
    os.mkfifo(root / "fifo")
    with open(os.path.join(os.fsencode(root), b"caf\xe9"), "wb") as file:
        file.write(b"latin-1 name")
    with open(root / "sparse", "wb") as file:
        file.truncate(5_000_000)
        file.seek(4_000_000)
        file.write(b"island")
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, (1_500_000_000 + number, 1_400_000_000 + number), follow_symlinks=False)


def describe(root: Path, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Names, modes, owners, link counts, sizes, whole-second mtimes (with `times`), contents and targets of a tree."""
    shown: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for parent, directories, names in os.walk(top):
        for name in directories + names:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content = b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).digest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            modified = int(status.st_mtime) if times else 0
            owner = (status.st_uid, status.st_gid, status.st_nlink)
            shown[os.path.relpath(path, top)] = (oct(status.st_mode), owner, size, modified, content)
    return shown


def _tensors() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    torch.manual_seed(1)
    return {f"layer{number}": torch.randn(300, 400) for number in range(6)}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    torch = importlib.import_module("torch")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class ToolSuite:
    """cp, tar, rsync, git, SQLite, make."""

    def test_cp_archive(self, mounted: Path, tmp_path: Path) -> None:
        needs_program("cp")
        (tmp_path / "tree").mkdir()
        make_tree(tmp_path / "tree")
        run("cp", "-a", tmp_path / "tree", mounted / "in", cwd=mounted)
        assert describe(mounted / "in") == describe(tmp_path / "tree")
        run("cp", "-a", mounted / "in", mounted / "again", cwd=mounted)
        run("cp", "-a", mounted / "again", tmp_path / "out", cwd=mounted)
        assert describe(tmp_path / "out") == describe(tmp_path / "tree")

    def test_tar_there_and_back(self, mounted: Path, tmp_path: Path, features: Features) -> None:
        needs_program("tar")
        (mounted / "tree").mkdir()
        make_tree(mounted / "tree")
        run("tar", "--sparse", "-cf", mounted / "archive.tar", "-C", mounted / "tree", ".", cwd=mounted)
        for target in (mounted / "extracted", tmp_path / "extracted"):
            target.mkdir()
            run("tar", "-xpf", mounted / "archive.tar", "-C", target, cwd=mounted)
            # tar sets one time and omits the other.
            times = features.single_time_changes
            assert describe(target, times=times) == describe(mounted / "tree", times=times)

    def test_rsync_transfers_nothing_the_second_time(self, mounted: Path, tmp_path: Path) -> None:
        needs_program("rsync")
        (tmp_path / "tree").mkdir()
        make_tree(tmp_path / "tree")
        command = ("rsync", "-aH", "--itemize-changes", f"{tmp_path}/tree/", f"{mounted}/copy/")
        run(*command, cwd=tmp_path)
        assert describe(mounted / "copy") == describe(tmp_path / "tree")
        assert run(*command, cwd=tmp_path) == ""

    def test_git(self, mounted: Path) -> None:
        needs_program("git")
        origin = mounted / "origin"
        origin.mkdir()
        git = ("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
        run(*git, "init", cwd=origin)
        for name, text in SOURCES.items():
            (origin / name).write_text(text)
        run(*git, "add", ".", cwd=origin)
        run(*git, "commit", "-m", "first", cwd=origin)
        (origin / "part.c").write_text(SOURCES["part.c"] + "/* changed */\n")
        assert "part.c" in run(*git, "status", "--porcelain", cwd=origin)
        run(*git, "commit", "-a", "-m", "second", cwd=origin)
        run(*git, "clone", origin, mounted / "clone", cwd=mounted)
        run(*git, "gc", cwd=mounted / "clone")
        run(*git, "checkout", "HEAD~1", cwd=mounted / "clone")
        assert (mounted / "clone/part.c").read_text() == SOURCES["part.c"]
        for repository in (origin, mounted / "clone"):
            run(*git, "fsck", "--full", "--strict", cwd=repository)
            assert run(*git, "status", "--porcelain", cwd=repository) == ""

    @pytest.mark.parametrize("journal", ["WAL", "DELETE"])
    def test_sqlite_under_two_processes(self, mounted: Path, journal: str) -> None:
        database = sqlite3.connect(mounted / "db", isolation_level=None)
        try:
            assert database.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal.lower()
            database.execute("CREATE TABLE rows (writer TEXT, number INTEGER, payload BLOB)")
            database.execute("CREATE TABLE total (count INTEGER)")
            database.execute("INSERT INTO total VALUES (0)")
            # The site directory is needed here: sqlite3 lives beside it in some builds.
            with children([[sys.executable, "-c", SQLITE_WRITER, name] for name in "ab"], mounted) as running:
                finish(running)
            assert database.execute("SELECT count FROM total").fetchone() == (80,)
            assert database.execute("SELECT count(*), count(DISTINCT writer) FROM rows").fetchone() == (80, 2)
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        finally:
            database.close()

    def test_make_and_compile(self, mounted: Path) -> None:
        needs_program("make", "cc")
        for name, text in SOURCES.items():
            (mounted / name).write_text(text)
        run("make", "-j2", cwd=mounted)
        assert run(mounted / "program", cwd=mounted) == "42\n"
        assert "up to date" in run("make", cwd=mounted)
        os.utime(mounted / "part.c", (2_000_000_000, 2_000_000_000))
        rebuilt = run("make", cwd=mounted)
        assert "part.o" in rebuilt
        assert "main.o main.c" not in rebuilt
        run("make", "clean", cwd=mounted)
        assert sorted(os.listdir(mounted)) == sorted(SOURCES)


class TensorSuite:
    """What people who train models do: torch.save, torch.load, safetensors, distributed checkpoints."""

    def test_torch_save_and_load(self, mounted: Path) -> None:
        needs_library("torch")
        torch = importlib.import_module("torch")
        tensors = _tensors()
        torch.save(tensors, mounted / "model.pt")
        assert _same(torch.load(mounted / "model.pt"), tensors)
        mapped = torch.load(mounted / "model.pt", mmap=True)
        assert _same(mapped, tensors)
        # The usual way to replace a checkpoint, while the old one is still mapped.
        torch.save({"layer0": tensors["layer1"]}, mounted / "model.pt.tmp")
        os.replace(mounted / "model.pt.tmp", mounted / "model.pt")
        assert _same(mapped, tensors)
        assert _same(torch.load(mounted / "model.pt"), {"layer0": tensors["layer1"]})

    def test_safetensors(self, mounted: Path) -> None:
        needs_library("torch", "safetensors")
        library = importlib.import_module("safetensors.torch")
        tensors = _tensors()
        library.save_file(tensors, mounted / "model.safetensors")
        assert _same(library.load_file(mounted / "model.safetensors"), tensors)
        with importlib.import_module("safetensors").safe_open(mounted / "model.safetensors", "pt") as file:
            assert _same({name: file.get_tensor(name) for name in file.keys()}, tensors)  # noqa: SIM118 - no mapping

    @pytest.mark.filterwarnings("ignore")
    def test_distributed_checkpoint(self, mounted: Path) -> None:
        """The warnings of the library about running without a process group are its own."""
        needs_library("torch", "numpy")
        torch = importlib.import_module("torch")
        checkpoint = importlib.import_module("torch.distributed.checkpoint")
        tensors = _tensors()
        save: Callable[..., object] = checkpoint.save
        load: Callable[..., object] = checkpoint.load
        for _ in range(2):
            save(tensors, storage_writer=checkpoint.FileSystemWriter(mounted / "step", thread_count=2))
        loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        load(loaded, storage_reader=checkpoint.FileSystemReader(mounted / "step"))
        assert _same(loaded, tensors)
        assert not [name for name in os.listdir(mounted / "step") if name.startswith(".fuse_hidden")]
