"""The ledger against a dict, across successors."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredfs.errors import CorruptError
from tieredfs.fuse.kernel.ledger import Ledger, OpenDirectory, OpenFile, make_memory
from tieredfs.fuse.kernel.modes import Mode
from tieredfs.fuse.kernel.negotiation import Agreement
from tieredfs.fuse.kernel.wire import Init
from tieredfs.model import InodeId

U64 = st.integers(0, (1 << 64) - 1)
FILES = st.builds(
    OpenFile,
    handle=U64,
    inode=U64.map(InodeId),
    flags=st.integers(0, (1 << 32) - 1),
    mode=st.sampled_from(Mode),
    backing=U64,
    backing_id=st.integers(0, (1 << 31) - 1),
    unique=U64,
)
DIRECTORIES = st.builds(OpenDirectory, handle=U64, inode=U64.map(InodeId), unique=U64)
STEPS = st.lists(st.one_of(FILES, DIRECTORIES, st.integers(0, 100), st.none()), max_size=60)


@given(STEPS)
def test_a_successor_finds_what_was_noted(steps: list[OpenFile | OpenDirectory | int | None]) -> None:
    memory = make_memory()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, memory)
        ledger = Ledger(memory)
        noted: dict[int, OpenFile | OpenDirectory] = {}
        for step in steps:
            if step is None:
                ledger.close()
                ledger = Ledger(memory)
            elif isinstance(step, OpenFile):
                noted[ledger.note_file(step)] = step
            elif isinstance(step, OpenDirectory):
                noted[ledger.note_directory(step)] = step
            elif noted:
                index = sorted(noted)[step % len(noted)]
                del noted[index]
                ledger.forget(index)
            assert dict([*ledger.files(), *ledger.directories()]) == noted
        ledger.close()


def test_the_agreement_is_kept() -> None:
    memory = make_memory()
    agreement = Agreement(40, 131072, Init.PASSTHROUGH | Init.HAS_RESEND | Init.BIG_WRITES)
    ledger = Ledger(memory)
    assert ledger.agreement() is None
    ledger.note_agreement(agreement)
    assert Ledger(memory).agreement() == agreement
    os.pwrite(memory, b"rubbish!", 0)
    with pytest.raises(CorruptError):
        ledger.agreement()
    os.close(memory)
