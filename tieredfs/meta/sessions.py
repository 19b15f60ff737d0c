"""Who has the volume open: sessions with what they hold (orphans, intents), caches, peers, and receipts of mounts."""

from tieredfs.errors import BusyError, ConflictError, NotFoundError
from tieredfs.format import keys, records
from tieredfs.format.keys import Counter
from tieredfs.kv.engine import Reader, Writer
from tieredfs.meta import allocation, blocks, feed, inodes
from tieredfs.meta.changes import Receipt
from tieredfs.model import NEVER_NS, CacheId, CacheRecord, InodeId, Peer, Session, SessionId

# ---- sessions and orphans --------------------------------------------------------------------------------------------


def open_session(writer: Writer, host: str, process: int, purpose: str, now_ns: int) -> Session:
    number = SessionId(allocation.take(writer, Counter.SESSION))
    session = Session(number, host, process, purpose, now_ns, now_ns)
    writer.put(keys.session(number), records.encode_session(session))
    return session


def heartbeat(writer: Writer, number: SessionId, now_ns: int) -> None:
    """Raises NotFoundError."""
    value = writer.get(keys.session(number))
    if value is None:
        raise NotFoundError(f"session {number} was ended")
    old = records.decode_session(number, value)
    session = Session(number, old.host, old.process, old.purpose, old.started_ns, now_ns)
    writer.put(keys.session(number), records.encode_session(session))


def revive(writer: Writer, session: Session, *, follows: bool) -> None:
    """A session that was ended though its process lives is there again, under the number that the process knows.

    What it held is gone, and whoever needs it is told: a block without its intent is refused (`blocks.record_block`), and so
    is an unnamed file that is no orphan of it (`placing.place`). Nobody else is ever given its number.
    """
    writer.put(keys.session(session.session), records.encode_session(session))
    if follows:
        feed.follow(writer, session.session)


def lost_holders(reader: Reader) -> list[SessionId]:
    """Sessions that do not exist and hold orphans: their processes went on after they were taken for dead."""
    known = {session.session for session in listed(reader)}
    return sorted({holder for holder, _ in orphans(reader)} - known)


def listed(reader: Reader) -> list[Session]:
    prefix = keys.SESSIONS_PREFIX
    return [
        records.decode_session(SessionId(keys.last_u64(key)), value)
        for key, value in reader.scan(prefix, keys.end_of(prefix))
    ]


def orphans(reader: Reader) -> list[tuple[SessionId, InodeId]]:
    """Those of sessions that do not exist (any more) too: somebody must find them."""
    prefix = keys.ORPHANS_PREFIX
    return [
        (SessionId(keys.first_u64(key)), InodeId(keys.last_u64(key)))
        for key, _ in reader.scan(prefix, keys.end_of(prefix))
    ]


def reclaim_orphan(writer: Writer, inode: InodeId, holder: SessionId, now_ns: int) -> bool:
    """Whether it was one."""
    key = keys.orphan(holder, inode)
    if writer.get(key) is None:
        return False
    writer.delete(key)
    inodes.delete(writer, inodes.read(writer, inode), now_ns)
    return True


def _check_silent(reader: Reader, number: SessionId, heartbeat_ns: int) -> None:
    """Raises ConflictError when that is not its last heartbeat (`NEVER_NS`: when it exists)."""
    value = reader.get(keys.session(number))
    if heartbeat_ns != (NEVER_NS if value is None else records.decode_session(number, value).heartbeat_ns):
        raise ConflictError(f"session {number} is alive")


def end(writer: Writer, number: SessionId, now_ns: int, heartbeat_ns: int | None = None) -> list[InodeId]:
    """Delete the session, its orphans and its intents; returns the orphans. ConflictError if it beat after `heartbeat_ns`."""
    if heartbeat_ns is not None:
        _check_silent(writer, number, heartbeat_ns)
    prefix = keys.orphans_of(number)
    found = [InodeId(keys.last_u64(key)) for key, _ in writer.scan(prefix, keys.end_of(prefix))]
    for inode in found:
        reclaim_orphan(writer, inode, number, now_ns)
    for block in blocks.intents_of(writer, number):
        writer.delete(keys.intent(block))
    writer.delete(keys.follower(number))
    writer.delete(keys.peer(number))
    writer.delete(keys.session(number))
    return found


# ---- caches ----------------------------------------------------------------------------------------------------------


def caches(reader: Reader) -> list[CacheRecord]:
    prefix = keys.CACHES_PREFIX
    return [
        records.decode_cache(CacheId(keys.last_u64(key)), value)
        for key, value in reader.scan(prefix, keys.end_of(prefix))
    ]


def register_cache(writer: Writer, uuid: str, host: str, path: str) -> CacheRecord:
    known = next((cache.cache for cache in caches(writer) if cache.uuid == uuid), None)
    number = CacheId(allocation.take(writer, Counter.CACHE)) if known is None else known
    record = CacheRecord(number, uuid, host, path)
    writer.put(keys.cache(number), records.encode_cache(record))
    return record


def forget_cache(writer: Writer, number: CacheId) -> None:
    prefix = keys.staged_in(number)
    if next(writer.scan(prefix, keys.end_of(prefix), limit=1), None) is not None:
        raise BusyError(f"cache {number} has contents that are nowhere else")
    writer.delete(keys.cache(number))


# ---- peers -----------------------------------------------------------------------------------------------------------


def announce_peer(writer: Writer, number: SessionId, address: str) -> None:
    """Raises NotFoundError when the session was ended."""
    if writer.get(keys.session(number)) is None:
        raise NotFoundError(f"session {number} was ended")
    writer.put(keys.peer(number), records.encode_bytes(address.encode()))


def peers(reader: Reader) -> list[Peer]:
    """Of sessions that exist."""
    known = {session.session: session for session in listed(reader)}
    prefix = keys.PEERS_PREFIX
    return [
        Peer(known[number], records.decode_bytes(value).decode())
        for key, value in reader.scan(prefix, keys.end_of(prefix))
        if (number := SessionId(keys.last_u64(key))) in known
    ]


# ---- receipts --------------------------------------------------------------------------------------------------------


def leave_receipt(writer: Writer, receipt: Receipt | None) -> None:
    if receipt is not None:
        writer.put(keys.receipt(receipt.mount, receipt.slot), records.encode_number(receipt.unique))


def carried_out(reader: Reader, mount: int, unique: int) -> bool:
    prefix = keys.receipts(mount)
    return any(records.decode_number(value) == unique for _, value in reader.scan(prefix, keys.end_of(prefix)))


def forget_receipts(writer: Writer, mount: int) -> None:
    prefix = keys.receipts(mount)
    for key, _ in writer.scan(prefix, keys.end_of(prefix)):
        writer.delete(key)
