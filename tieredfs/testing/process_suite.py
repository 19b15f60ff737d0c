"""What programs rely on when several processes use a file system at once. Part of the suites of `posix_suite`.

Children talk to the test through pipes: whoever must wait for another waits for a line from it, never for time to pass.
"""

import errno
import fcntl
import mmap
import os
import shutil
import struct
from pathlib import Path
from subprocess import Popen
from typing import Final

from tieredfs.limits import KIB, MIB
from tieredfs.testing.features import Features, child_command, children, finish, needs, opened, run_child, write_file

WRITERS: Final = 8
PART_BYTES: Final = 512 * KIB

LOCK_HOLDER: Final = """
import fcntl, sys
file = open('f', 'r+b')
if sys.argv[1] == 'flock':
    fcntl.flock(file, fcntl.LOCK_EX)
else:
    fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)
print('locked', flush=True)
sys.stdin.readline()
"""


def _say(process: Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def _hear(process: Popen[str], text: str) -> None:
    """The line that the child says next; an empty one when it died. The test's own timeout bounds the wait."""
    assert process.stdout is not None
    assert process.stdout.readline() == text + "\n"


class ProcessSuite:
    """Locks, appends, shared writing, visibility, and races on names."""

    def test_flock_excludes_another_process(self, mounted: Path) -> None:
        write_file(mounted / "f", b"x")
        with children([child_command(LOCK_HOLDER, "flock")], mounted) as (holder,):
            _hear(holder, "locked")
            with open(mounted / "f", "r+b") as file:
                for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                    try:
                        fcntl.flock(file, kind | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    raise AssertionError("two exclusive owners of one lock")
                _say(holder, "release")
                finish([holder])
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_record_locks_exclude_their_range_only(self, mounted: Path) -> None:
        write_file(mounted / "f", b"x" * 1000)
        with children([child_command(LOCK_HOLDER, "fcntl")], mounted) as (holder,):
            _hear(holder, "locked")
            with open(mounted / "f", "r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 105)
                except OSError as error:
                    if error.errno not in {errno.EACCES, errno.EAGAIN}:
                        raise
                else:
                    raise AssertionError("two owners of one range")
                asked = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 100, 10, 0))
                assert struct.unpack("hhqqi4x", asked)[4] == holder.pid
                _say(holder, "release")
                finish([holder])
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 105)

    def test_a_lock_ends_with_its_process(self, mounted: Path) -> None:
        write_file(mounted / "f", b"x")
        with children([child_command(LOCK_HOLDER, "flock")], mounted) as (holder,):
            _hear(holder, "locked")
            holder.kill()
            holder.wait(timeout=30)
            with open(mounted / "f", "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_what_was_closed_is_seen_by_another_process(self, mounted: Path) -> None:
        for content in (b"first", b"the second, longer", b"3rd"):
            write_file(mounted / "f", content)
            seen = run_child("print(len(open('f', 'rb').read()), open('f', 'rb').read())", cwd=mounted)
            assert seen == f"{len(content)} {content!r}\n"
        run_child("open('f', 'wb').write(b'written by a child')", cwd=mounted)
        assert (mounted / "f").read_bytes() == b"written by a child"
        assert (mounted / "f").stat().st_size == 18

    def test_what_was_written_is_seen_through_an_open_descriptor(self, mounted: Path) -> None:
        write_file(mounted / "f", b"before")
        with opened(mounted / "f", os.O_RDONLY) as descriptor:
            assert os.pread(descriptor, 100, 0) == b"before"
            run_child("f = open('f', 'r+b'); f.seek(3); f.write(b'AFTER')", cwd=mounted)
            assert os.pread(descriptor, 100, 0) == b"befAFTER"
            assert os.fstat(descriptor).st_size == 8

    def test_a_shared_map_is_shared_between_processes(self, mounted: Path) -> None:
        write_file(mounted / "f", b"\0" * 8192)
        script = (
            "import mmap, sys\n"
            "file = open('f', 'r+b')\n"
            "memory = mmap.mmap(file.fileno(), 8192)\n"
            "print('mapped', flush=True); sys.stdin.readline()\n"
            "assert memory[0:4] == b'ping', memory[0:4]\n"
            "memory[4096:4100] = b'pong'\n"
        )
        with (
            children([child_command(script)], mounted) as (child,),
            opened(mounted / "f", os.O_RDWR) as descriptor,
            mmap.mmap(descriptor, 8192) as memory,
        ):
            _hear(child, "mapped")
            memory[0:4] = b"ping"
            _say(child, "look")
            finish([child])
            assert memory[4096:4100] == b"pong"

    def test_appends_of_two_processes_do_not_overwrite_each_other(self, mounted: Path) -> None:
        write_file(mounted / "f", b"")
        script = (
            "import os, sys\n"
            "descriptor = os.open('f', os.O_WRONLY | os.O_APPEND)\n"
            "sys.stdin.readline()\n"
            "for number in range(300): os.write(descriptor, b'%s %06d\\n' % (sys.argv[1].encode(), number))\n"
        )
        with children([child_command(script, name) for name in "ab"], mounted) as running:
            for child in running:
                _say(child, "go")
            finish(running)
        lines = (mounted / "f").read_bytes().splitlines()
        assert len(lines) == 600
        for name in (b"a", b"b"):
            assert [line for line in lines if line.startswith(name)] == [b"%s %06d" % (name, n) for n in range(300)]

    def test_eight_processes_write_one_file(self, mounted: Path) -> None:
        write_file(mounted / "f", b"")
        script = (
            "import os, sys\n"
            "number, writers, part = map(int, sys.argv[1:])\n"
            "descriptor = os.open('f', os.O_WRONLY)\n"
            "sys.stdin.readline()\n"
            "for offset in range(0, part, 65536):\n"
            "    place = (offset // 65536 * writers + number) * 65536\n"
            "    assert os.pwrite(descriptor, bytes([65 + number]) * 65536, place) == 65536\n"
            "os.fsync(descriptor)\n"
        )
        commands = [child_command(script, str(n), str(WRITERS), str(PART_BYTES)) for n in range(WRITERS)]
        with children(commands, mounted) as running:
            for child in running:
                _say(child, "go")
            finish(running)
        data = (mounted / "f").read_bytes()
        assert len(data) == WRITERS * PART_BYTES
        expected = b"".join(bytes([65 + number]) * 65536 for number in range(WRITERS))
        assert data == expected * (PART_BYTES // 65536)

    def test_exclusive_creation_has_one_winner(self, mounted: Path) -> None:
        script = (
            "import os, sys\n"
            "sys.stdin.readline()\n"
            "won = 0\n"
            "for number in range(50):\n"
            "    try: os.close(os.open(f'f{number}', os.O_CREAT | os.O_EXCL | os.O_WRONLY)); won += 1\n"
            "    except FileExistsError: pass\n"
            "print(won)\n"
        )
        with children([child_command(script) for _ in range(3)], mounted) as running:
            for child in running:
                _say(child, "go")
            wins = [int(output) for output in finish(running)]
        assert sum(wins) == 50
        assert len(os.listdir(mounted)) == 50

    def test_readers_see_the_old_or_the_new_file_during_replacement(self, mounted: Path, features: Features) -> None:
        needs(features.seamless_replacement, "an open that races with a replacement of the file")
        write_file(mounted / "f", b"0" * 1000)
        script = (
            "import sys\n"
            "print('reading', flush=True)\n"
            "kinds = set()\n"
            "for number in range(300):\n"
            "    data = open('f', 'rb').read()\n"
            "    assert len(data) == 1000 and len(set(data)) == 1, (len(data), set(data))\n"
        )
        with children([child_command(script) for _ in range(2)], mounted) as running:
            for child in running:
                _hear(child, "reading")
            for number in range(150):
                write_file(mounted / "new", b"%d" % (number % 10) * 1000)
                os.rename(mounted / "new", mounted / "f")
            finish(running)

    def test_a_tree_is_removed_while_another_process_creates_in_it(self, mounted: Path) -> None:
        os.makedirs(mounted / "tree/sub")
        script = (
            "import os\n"
            "made = 0\n"
            "for number in range(1_000):\n"
            "    try:\n"
            "        os.close(os.open(f'tree/sub/f{number}', os.O_CREAT | os.O_WRONLY))\n"
            "        made += 1\n"
            "        if made == 20: print('creating', flush=True)\n"
            "        os.mkdir(f'tree/d{number}')\n"
            "    except FileNotFoundError:\n"
            "        break\n"
        )
        with children([child_command(script)], mounted) as (creator,):
            _hear(creator, "creating")
            while creator.poll() is None:
                shutil.rmtree(mounted / "tree", ignore_errors=True)
            finish([creator])
        # Whoever won, nothing may be left that cannot be removed, and no removed directory may have taken a new file.
        shutil.rmtree(mounted / "tree", ignore_errors=True)
        assert os.listdir(mounted) == []

    def test_a_file_open_in_another_process_survives_removal(self, mounted: Path) -> None:
        write_file(mounted / "f", b"x" * MIB)
        script = (
            "import os, sys\n"
            "file = open('f', 'r+b')\n"
            "print('open', flush=True); sys.stdin.readline()\n"
            "assert os.fstat(file.fileno()).st_nlink == 0\n"
            "assert len(file.read()) == 1 << 20\n"
            "file.write(b'more'); file.flush()\n"
            "assert os.fstat(file.fileno()).st_size == (1 << 20) + 4\n"
        )
        with children([child_command(script)], mounted) as (child,):
            _hear(child, "open")
            os.unlink(mounted / "f")
            _say(child, "go")
            finish([child])
        assert os.listdir(mounted) == []
