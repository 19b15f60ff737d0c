"""The mount's one table of errnos is total, and knows what to do with errors that are not ours."""

import errno

import pytest

from tieredfs import errors
from tieredfs.fuse.errnos import ERRNO_OF, errno_of


def test_the_table_has_every_domain_error_and_nothing_else() -> None:
    assert set(ERRNO_OF) == set(errors.domain_errors())


KINDS = sorted(errors.domain_errors(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_every_domain_error_has_a_known_errno(kind: type[errors.TieredError]) -> None:
    assert errno_of(kind("why")) == ERRNO_OF[kind]
    assert ERRNO_OF[kind] in errno.errorcode


def test_lost_data_is_an_io_error() -> None:
    assert {ERRNO_OF[kind] for kind in errors.domain_errors() if issubclass(kind, errors.IntegrityError)} == {errno.EIO}


def test_other_errors() -> None:
    assert errno_of(OSError(errno.EXDEV, "a system call's own")) == errno.EXDEV
    assert errno_of(OSError("without a number")) == errno.EIO
    assert errno_of(ValueError("not ours")) == errno.EIO
