"""The table of exit codes is total, agrees with the kinds of errors, and every error is one line."""

from collections.abc import Callable

import pytest

from tests.cli.conftest import Ran
from tests.cli.fakes import META_URL, FakeBackend
from tieredfs import errors
from tieredfs.cli.outcomes import CONDITION, INTEGRITY, INTERRUPTED, OUTCOME_OF, REQUEST, error_line, exit_code_of

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
    assert exit_code_of(error) == CONDITION


def test_an_interrupt_is_no_traceback(backend: FakeBackend, run: Callable[..., Ran]) -> None:
    backend.fails["unmount"] = KeyboardInterrupt()
    ran = run("umount", "/mnt/x")
    assert (ran.code, ran.out) == (INTERRUPTED, "")
    assert "Traceback" not in ran.err


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
