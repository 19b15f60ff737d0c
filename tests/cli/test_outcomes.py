"""The table of exit codes is total, agrees with the kinds of errors, and every error is one line."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran
from tests.cli.fakes import META_URL, FakeBackend
from tieredfs import errors
from tieredfs.cli import INTERRUPTED
from tieredfs.cli.outcomes import CONDITION, INTEGRITY, OK, OUTCOME_OF, REQUEST, error_line, exit_code_of

TIEREDFS = [sys.executable, "-c", "import sys; from tieredfs.cli import main; sys.exit(main())"]
CODE_OF_KIND = {errors.RequestError: REQUEST, errors.ConditionError: CONDITION, errors.IntegrityError: INTEGRITY}


def test_the_table_is_total() -> None:
    assert set(OUTCOME_OF) == set(errors.domain_errors())


@pytest.mark.parametrize("kind", list(errors.domain_errors()), ids=lambda kind: kind.__name__)
def test_every_domain_error_is_one_line_and_its_exit_code(
    kind: type[errors.TieredError], backend: FakeBackend, run: Callable[..., Ran]
) -> None:
    backend.fails["open"] = kind("first line\nsecond line")
    ran = run("gc", META_URL)
    (expected,) = [code for base, code in CODE_OF_KIND.items() if issubclass(kind, base)]
    assert ran.code == expected
    assert ran.out == ""
    assert ran.err.startswith("tieredfs: first line second line")
    assert ran.err.count("\n") == 1
    assert ran.err.rstrip("\n").endswith(OUTCOME_OF[kind].advice)


def test_a_message_that_says_what_to_do_is_left_alone() -> None:
    assert error_line(errors.BusyError("in use; unmount it first")) == "tieredfs: in use; unmount it first"


def test_errors_of_the_system_name_their_file() -> None:
    error = PermissionError(13, "Permission denied", "/data/volume.db")
    assert error_line(error) == "tieredfs: /data/volume.db: Permission denied"
    assert exit_code_of(error) == REQUEST


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, REQUEST),
        (errno.EEXIST, REQUEST),
        (errno.ENOTDIR, REQUEST),
        (errno.EISDIR, REQUEST),
        (errno.ENOSPC, CONDITION),
        (errno.EIO, CONDITION),
        (errno.EBUSY, CONDITION),
    ],
)
def test_only_what_may_pass_is_said_to_pass(number: int, code: int) -> None:
    assert exit_code_of(OSError(number, os.strerror(number), "/data/x")) == code


@pytest.mark.parametrize("arguments", [["--help"], ["gc", "--help"], ["format"]])
def test_a_reader_that_leaves_is_no_problem_found(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        ran = subprocess.run([*TIEREDFS, *arguments], stdout=write_end, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write_end)
    assert ran.returncode == (OK if "--help" in arguments else REQUEST)
    assert b"Traceback" not in ran.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_traceback(closed: str, tmp_path: Path) -> None:
    line = f'exec "$0" -c "$1" status sqlite://{tmp_path}/none.db {closed}'
    ran = subprocess.run(["sh", "-c", line, *TIEREDFS[::2]], capture_output=True, timeout=60, check=False)
    assert ran.returncode == REQUEST
    assert b"Traceback" not in ran.stderr


def test_an_interrupt_is_no_traceback(backend: FakeBackend, run: Callable[..., Ran]) -> None:
    backend.fails["unmount"] = KeyboardInterrupt()
    ran = run("umount", "/mnt/x")
    assert (ran.code, ran.out) == (INTERRUPTED, "")
    assert "Traceback" not in ran.err


INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests in the background had it ignored

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupts())
from tieredfs.cli import main
sys.exit(main(["--version"]))
"""


@pytest.mark.parametrize(
    "module", ["typer", "tieredfs.cli.render", "tieredfs.cli.app", "tieredfs.errors", "tieredfs_gateway.s3.verbs"]
)
def test_an_interrupt_while_the_program_loads_is_no_traceback(module: str) -> None:
    program = [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTING, module]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (INTERRUPTED, "", "tieredfs: interrupted\n")


def test_a_bug_is_not_hidden(backend: FakeBackend, run: Callable[..., Ran]) -> None:
    backend.fails["open"] = AssertionError("a promise of ours")
    with pytest.raises(AssertionError, match="a promise of ours"):
        run("gc", META_URL)


@pytest.mark.parametrize("arguments", [["nonsense"], ["gc"], ["mount", META_URL], ["gc", META_URL, "--bogus"]])
def test_wrong_usage_is_a_request_error(arguments: list[str], backend: FakeBackend, run: Callable[..., Ran]) -> None:
    ran = run(*arguments)
    assert ran.code == REQUEST
    assert ran.err
    assert backend.calls == []
