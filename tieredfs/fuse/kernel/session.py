"""A mount being served, on one /dev/fuse descriptor, from INIT (or a take-over) to the unmount.

**Threads.** One thread reads and carries out what is quick (`readers.py`). What moves bytes or waits for a disk, the opcodes
in `_PATIENT`, is carried out after another thread has begun to read; so is whatever finds out that it must wait.

**Nothing kills the daemon.** A request that makes no sense gets EINVAL, one that we do not know ENOSYS, and whatever an
operation raises becomes an errno in the one table (`errnos.py`); what is not one of our errors is logged, once per
type.

**The end.** After an unmount reads say ENODEV. The kernel drops RELEASE requests that were still queued, so the session
releases what the ledger still has.
"""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tieredfs.errors import TieredError
from tieredfs.fuse.errnos import errno_of
from tieredfs.fuse.kernel import wire
from tieredfs.fuse.kernel.content import ContentHandlers
from tieredfs.fuse.kernel.directories import DirectoryHandlers
from tieredfs.fuse.kernel.handles import BackingFiles, Handles
from tieredfs.fuse.kernel.ledger import Ledger
from tieredfs.fuse.kernel.metering import Metering, Table
from tieredfs.fuse.kernel.modes import Mode
from tieredfs.fuse.kernel.names import NameHandlers
from tieredfs.fuse.kernel.negotiation import Agreement, agree, encode_agreement, parse_offer
from tieredfs.fuse.kernel.readers import GONE, Readers
from tieredfs.fuse.kernel.releases import Late, Releases
from tieredfs.fuse.kernel.request import DONE, NO_REPLY, Handler, Reply, Request, Timeouts
from tieredfs.fuse.kernel.wire import Op
from tieredfs.fuse.operations import Operations
from tieredfs.fuse.watching import Note
from tieredfs.host import Clock, SystemClock
from tieredfs.limits import FUSE_READER_THREADS, STAGED_TIMEOUT_S
from tieredfs.model import InodeId

_log = logging.getLogger(__name__)

_PATIENT: Final = frozenset(
    int(op) for op in (Op.READ, Op.WRITE, Op.FSYNC, Op.FSYNCDIR, Op.FALLOCATE, Op.SETATTR, Op.COPY_FILE_RANGE)
)
"""These move bytes or wait for a disk, so somebody else reads on first."""
_RELEASE: Final = int(Op.RELEASE)
_OPENING: Final = frozenset({int(Op.OPEN), int(Op.CREATE)})
_BY_INODE: Final = frozenset(
    int(op) for op in (Op.GETATTR, Op.SETATTR, Op.READLINK, Op.OPEN, Op.OPENDIR, Op.GETXATTR, Op.LISTXATTR, Op.SETXATTR)
)
"""Requests on an inode that the kernel found by a name before. When it is not found any more, the name may mean another
one by now (a file replaced by rename): ESTALE makes the kernel look again, where ENOENT would reach the program."""
_KNOWN_AND_ABSENT: Final[dict[Op, int]] = {
    # ENOSYS tells the kernel not to ask again and to do it itself (copy_file_range by splice, statx by GETATTR).
    Op.ACCESS: errno.ENOSYS,
    Op.BMAP: errno.ENOSYS,
    Op.COPY_FILE_RANGE: errno.ENOSYS,
    Op.IOCTL: errno.ENOTTY,
    Op.POLL: errno.ENOSYS,
    Op.STATX: errno.ENOSYS,
    Op.SYNCFS: errno.ENOSYS,
    Op.TMPFILE: errno.EOPNOTSUPP,
    Op.GETLK: errno.ENOSYS,
    Op.SETLK: errno.ENOSYS,
    Op.SETLKW: errno.ENOSYS,
}


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a mount is served. Longer timeouts of names and attributes need somebody who pushes what others change.
    `negative_timeout_s`: how long "no such name" is kept; 0, as others create names too."""

    attribute_timeout_s: float = STAGED_TIMEOUT_S
    entry_timeout_s: float = STAGED_TIMEOUT_S
    negative_timeout_s: float = 0.0
    passthrough: bool = True
    reader_threads: int = FUSE_READER_THREADS


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """Counts since this daemon began. `passthrough_refused`: why passthrough is off although it was asked for."""

    requests: dict[str, int] = field(default_factory=dict)
    passthrough_opens: int = 0
    cached_opens: int = 0
    direct_opens: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    open_handles: int = 0
    threads: int = 0
    passthrough: bool = False
    passthrough_refused: str = ""


class Session:
    """One mount. `device` is its /dev/fuse descriptor, which the caller keeps."""

    def __init__(
        self,
        operations: Operations,
        device: int,
        ledger: Ledger,
        options: SessionOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._operations = operations
        self._device = device
        self._ledger = ledger
        self._options = options or SessionOptions()
        self._handles = Handles(BackingFiles(device), ledger)
        timeouts = Timeouts(
            self._options.entry_timeout_s,
            self._options.attribute_timeout_s,
            self._options.negative_timeout_s,
            STAGED_TIMEOUT_S,
        )
        self._names = NameHandlers(operations, timeouts, clock or SystemClock())
        self._content = ContentHandlers(operations, timeouts, self._handles, self.forget_attributes)
        self._directories = DirectoryHandlers(operations, timeouts, self._handles)
        self._handlers: Table = self._table()
        self._metering = Metering(self._handlers, self._use)
        self._readers = Readers(device, self._options.reader_threads, self._dispatch, self._catch_up)
        self._releases = Releases()
        self._surprises: set[type[BaseException]] = set()
        self._on_ready: Callable[[], None] = _nothing

    # ---- life --------------------------------------------------------------------------------------------------------

    def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Serve until the mount is gone. Takes over when the ledger says that INIT was answered before.

        `on_ready` is called once, when INIT has been answered or the take-over is done.
        """
        self._on_ready = on_ready or _nothing
        agreement = self._ledger.agreement()
        if agreement is not None:
            self._take_over(agreement)
        self._readers.run()
        self._release_all()

    def snapshot(self) -> SessionSnapshot:
        requests = list(self._readers.requests)
        totals = [sum(counts) for counts in zip(*(request.counts for request in requests), strict=True)]
        opened = self._handles.opened
        return SessionSnapshot(
            requests={op.name.lower(): totals[op] for op in Op if op < len(totals) and totals[op]},
            passthrough_opens=opened[Mode.PASSTHROUGH],
            cached_opens=opened[Mode.CACHED],
            direct_opens=opened[Mode.DIRECT] + opened[Mode.VEILED],
            bytes_read=sum(request.read_bytes for request in requests),
            bytes_written=sum(request.written_bytes for request in requests),
            open_handles=len(self._handles),
            threads=self._readers.threads,
            passthrough=self._handles.passthrough,
            passthrough_refused=self._handles.refused,
        )

    def watched(self, note: Note) -> AbstractContextManager[None]:
        """See `Metering.watched`."""
        return self._metering.watched(note)

    def _use(self, handlers: Table) -> None:
        self._handlers = handlers

    def _take_over(self, agreement: Agreement) -> None:
        self._handles.passthrough = agreement.passthrough
        self._handles.take_over(self._operations)
        if agreement.resend:
            self._notify(wire.NOTIFY_RESEND)
        self._on_ready()

    def _release_all(self) -> None:
        for handle, is_directory in self._handles.drain():
            try:
                if is_directory:
                    self._operations.release_directory(handle)
                else:
                    self._operations.release(handle)
            except (TieredError, OSError) as error:
                _log.warning("handle %d was not released cleanly: %s", handle, error)

    # ---- what the file system tells the kernel -----------------------------------------------------------------------

    def invalidate_inode(self, inode: InodeId, offset: int = 0, length: int = 0) -> None:
        """Drop cached attributes and pages of `inode` from `offset` (negative: attributes only); `length` 0: to the
        end.

        Never call it while serving a request on the same inode: the kernel may wait for that request.
        """
        self._notify(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(inode, offset, length))

    def forget_attributes(self, inode: InodeId) -> None:
        """Drop cached attributes of `inode` alone; from any thread: the kernel waits for nothing then."""
        self.invalidate_inode(inode, -1)

    def invalidate_entry(self, parent: InodeId, name: bytes) -> None:
        """Drop a cached name. As `invalidate_inode`, not from a request on the same directory."""
        self._notify(wire.NOTIFY_INVAL_ENTRY, wire.INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")

    def announce_removal(self, parent: InodeId, inode: InodeId, name: bytes) -> None:
        """Tell the kernel that `name` was removed elsewhere, so that who watches or stands in it learns of it."""
        self._notify(wire.NOTIFY_DELETE, wire.DELETE_OUT.pack(parent, inode, len(name)) + name + b"\0")

    def _notify(self, code: int, body: bytes = b"") -> None:
        try:
            os.write(self._device, wire.OUT_HEADER.pack(wire.OUT_HEADER_BYTES + len(body), code, 0) + body)
        except (FileNotFoundError, NotADirectoryError):
            pass  # the kernel knows nothing of it
        except OSError as error:
            if error.errno not in GONE:
                raise

    # ---- one request -------------------------------------------------------------------------------------------------

    def _dispatch(self, request: Request) -> None:
        length, opcode, unique, inode, request.uid, request.gid, request.process = wire.IN_HEADER.unpack_from(
            request.buffer
        )
        for late in self._releases.before(opcode, inode):
            self._release(request, late)
        request.opcode, request.inode, request.answer_unique = opcode, InodeId(inode), unique
        request.resent = unique >= wire.UNIQUE_RESEND
        request.unique = unique & ~wire.UNIQUE_RESEND if request.resent else unique
        request.counts[opcode if opcode < wire.OPCODE_LIMIT else 0] += 1
        handler, least = self._handlers.get(opcode, _ABSENT)
        if length != request.length or length < wire.IN_HEADER_BYTES + least:
            handler = _WRONG_LENGTH
        elif opcode in _PATIENT:
            request.step_aside()
        elif opcode == _RELEASE and (handle := self._content.only_read(request)):
            self._releases.put_off(Late(unique, inode, handle))
            if not request.leading:  # relieved: who leads now may have looked already
                self._catch_up(request)
            return
        self._carry_out(request, handler)

    def _carry_out(self, request: Request, handler: Handler) -> None:
        try:
            reply = handler(request)
        except Exception as error:  # noqa: BLE001 - the edge: every error becomes an errno, and none ends the daemon
            self._answer_error(request, error)
            return
        if reply is not NO_REPLY:
            self._answer(request, reply)

    def _catch_up(self, request: Request) -> bool:
        late = self._releases.next()
        if late is None:
            return False
        self._release(request, late)
        return True

    def _release(self, request: Request, late: Late) -> None:
        """Carry out a RELEASE that was put off."""
        request.opcode, request.answer_unique = _RELEASE, late.unique
        self._carry_out(request, partial(self._content.close_late, late.handle))

    def _answer(self, request: Request, body: bytes) -> None:
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER_BYTES + len(body), 0, request.answer_unique)
        try:
            os.write(request.device, header + body)
        except OSError as error:
            # ENOENT: whoever asked is gone.
            if error.errno == errno.ENOENT and request.opcode in _OPENING:
                self._content.undo(body)
            elif error.errno not in GONE and error.errno != errno.ENOENT:
                _log.warning("an answer to %s was refused: %s", _name(request.opcode), error.strerror)

    def _answer_error(self, request: Request, error: Exception) -> None:
        if not isinstance(error, (TieredError, OSError)) and type(error) not in self._surprises:
            self._surprises.add(type(error))
            _log.error("%s failed unexpectedly", _name(request.opcode), exc_info=error)
        number = errno_of(error)
        if number == errno.ENOENT and request.opcode in _BY_INODE:
            number = errno.ESTALE
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER_BYTES, -number, request.answer_unique)
        try:
            os.write(request.device, header)
        except OSError as failure:
            if failure.errno not in GONE and failure.errno != errno.ENOENT:
                _log.warning("an answer to %s was refused: %s", _name(request.opcode), failure.strerror)

    def _table(self) -> dict[int, tuple[Handler, int]]:
        table: dict[Op, tuple[Handler, int]] = {
            **{op: (_refusal(number), 0) for op, number in _KNOWN_AND_ABSENT.items()},
            **self._names.table(),
            **self._content.table(),
            **self._directories.table(),
            Op.INIT: (self._init, wire.INIT_IN.size),
            Op.DESTROY: (self._destroy, 0),
            # Waits are bounded, and the answer of what was interrupted comes in any case.
            Op.INTERRUPT: (_ignore, 0),
            Op.NOTIFY_REPLY: (_ignore, 0),
        }
        return {int(op): entry for op, entry in table.items()}

    def _init(self, request: Request) -> Reply:
        offer = parse_offer(request.view[wire.IN_HEADER_BYTES : request.length])
        if (offer.major, offer.minor) < (wire.PROTOCOL_MAJOR, wire.PROTOCOL_MINOR_LEAST):
            raise OSError(errno.EPROTO, f"the kernel speaks FUSE {offer.major}.{offer.minor}")
        agreement = agree(offer, passthrough=self._options.passthrough)
        self._handles.passthrough = agreement.passthrough
        if self._options.passthrough and not agreement.passthrough:
            self._handles.refused = "this kernel has no FUSE passthrough (Linux 6.9 or later has)"
            _log.warning("kernel passthrough is off for this mount: %s", self._handles.refused)
        self._ledger.note_agreement(agreement)
        # Answered here, so that `on_ready` finds the kernel past INIT: before that it would undo a changed read-ahead.
        self._answer(request, encode_agreement(agreement))
        self._on_ready()
        return NO_REPLY

    def _destroy(self, _: Request) -> Reply:
        return DONE


def _nothing() -> None:
    pass


def _refusal(number: int) -> Handler:
    def refuse(_: Request) -> Reply:
        raise OSError(number, os.strerror(number))

    return refuse


def _ignore(_: Request) -> Reply:
    return NO_REPLY


_ABSENT: Final[tuple[Handler, int]] = (_refusal(errno.ENOSYS), 0)
_WRONG_LENGTH: Final = _refusal(errno.EINVAL)


def _name(opcode: int) -> str:
    return Op(opcode).name if opcode in Op._value2member_map_ else str(opcode)
