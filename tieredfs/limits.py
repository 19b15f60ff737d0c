"""Every limit of the system, in one place, with the relations between them asserted at import.

A limit is here so that its neighbours are in view: a chunk header must hold the checksum table of the largest chunk, a
staged file must fit the length fields of the formats, and so on. Sizes are bytes, durations are seconds.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

# Names and files (POSIX as Linux has it).
NAME_BYTES_MAX: Final = 255
PATH_BYTES_MAX: Final = 4096
SYMLINK_BYTES_MAX: Final = 4095
LINK_COUNT_MAX: Final = 65_000
FILE_BYTES_MAX: Final = (1 << 63) - 1
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_VALUE_BYTES_MAX: Final = 64 * KIB
DIRECTORY_DEPTH_MAX: Final = 4096
"""How far `rename` walks towards the root when it looks for a cycle."""

# Quotas.
QUOTA_UNIT_BYTES: Final = 4 * KIB
"""What a quota rounds sizes up to: what statfs calls a block."""
QUOTA_MOVED_MAX: Final = 1024
"""Entries of a directory that moves between quotas in one step, counted as it does: 12 ms. What has more has to be copied, except
a directory with a quota of its own, whose usage is known."""
QUOTA_STEP_BYTES: Final = 16 * MIB
"""How far a file grows through a daemon before quotas are asked again, once they were not near."""
QUOTA_BATCH: Final = 1024
"""Entries that are made ready to be counted in one transaction, before a quota is set."""

# Blocks and chunks.
BLOCK_BYTES_DEFAULT: Final = 64 * MIB
BLOCK_BYTES_MAX: Final = 256 * MIB
CELL_BYTES: Final = 256 * KIB
"""The unit that has its own CRC32C inside a chunk, hence the least that a verified read fetches."""
CHUNK_ALIGNMENT_BYTES: Final = 4 * KIB
CHUNK_HEADER_BYTES: Final = 8 * KIB
CHUNK_FIXED_HEADER_BYTES: Final = 128
CODE_WIDTH_MAX: Final = 32
"""k + m at most; also the number of replicas at most."""
CELLS_PER_CHUNK_MAX: Final = BLOCK_BYTES_MAX // CELL_BYTES
DISKS_MAX: Final = 65_535
DISK_REST_S: Final = 5.0
"""A disk that failed to answer is asked again after this long; until then others do its work."""
CHUNK_STALL_S: Final = 30.0
"""A chunk that is not written after this long goes to another disk; the disk is not used until that write has ended."""
READ_FIRST_S: Final = 2.0
"""A read whose disks all say nothing for this long does without some of them, if the others suffice..."""
READ_SIBLING_S: Final = 0.5
"""...and after this long once some have answered. The disk is not used until that read has ended."""
SCRATCH_BYTES: Final = 16 * MIB
"""Memory in which one degraded read decodes: one window, and the next one being read."""
SCRATCH_COUNT: Final = 3
"""Degraded reads, checks and repairs that decode at one time; the others wait."""
SCRATCH_WAIT_S: Final = 120.0

# Chunk stores off this machine.
REMOTE_CONNECT_S: Final = 3.0
REMOTE_SILENCE_S: Final = 10.0
"""A bucket or node that says nothing for so long, while something of it is awaited, does not answer..."""
REMOTE_CALL_S: Final = 60.0
"""...and no call takes longer than this, however steadily it trickles."""
REMOTE_HEADERS_MAX: Final = 2048
"""Chunk headers that a remote store remembers: 4 KiB each at most."""
REMOTE_SPACE_FRESH_S: Final = 5.0
"""Space is asked for again, beside the work, when what is known is so old..."""
REMOTE_SPACE_STALE_S: Final = 60.0
"""...and waited for when it is so old: for `REMOTE_SPACE_WAIT_S`."""
REMOTE_SPACE_WAIT_S: Final = 3.0
BUCKET_BYTES_DEFAULT: Final = 1024 * TIB
"""What a bucket without `?capacity=` is taken to hold."""
BUCKET_COUNT_INTERVAL_S: Final = 3600.0
"""A bucket with `?capacity=` is listed so often, to count what is in it."""

# Small files.
PACKED_FILE_BYTES_MAX: Final = 4 * MIB
"""Files up to this size share blocks; larger ones fill blocks of their own."""
PACK_FILES_MAX: Final = 4096

# Transactions and sessions.
SHARD_COUNT: Final = 1 << 16
INODE_BATCH: Final = 1024
KEY_BYTES_MAX: Final = 512
TRANSACTION_RETRIES_MAX: Final = 30
LOCK_WAIT_S: Final = 30.0
CONNECTIONS_MAX: Final = 8
"""To a database server, of one process: a server of 100 connections, its default, so has room for a dozen processes."""
CONNECTION_IDLE_S: Final = 60.0
CONNECT_WAIT_S: Final = 5.0
OPEN_WAIT_S: Final = 3.0
"""Who opens a volume is told this early that its database server does not answer; who has it open waits `LOCK_WAIT_S`."""
TRANSACTION_IDLE_S: Final = 120.0
"""A transaction that its process does not go on with (it was stopped, or its host is gone) is ended by the server."""
COMMIT_MARK_S: Final = 24 * 3600.0
"""How long the server keeps what it needs to say whether a commit without an answer was carried out."""
SESSION_HEARTBEAT_S: Final = 5.0
SESSION_TIMEOUT_S: Final = 60.0
ABANDONED_LOOK_S: Final = 30.0
"""A caretaker looks this often for SSD directories of this host whose process is gone."""
CARE_FIRST_S: Final = 120.0
CARE_INTERVAL_S: Final = 1800.0
"""A caretaker has garbage collected this long after it began, and then so often."""
CARE_WAIT_S: Final = 3500.0
"""Care that takes longer is given up, to be gone on with the next time."""
DEAD_BLOCK_GRACE_S: Final = 600.0
"""How long a block without references is kept, for readers in other processes that may still hold its extents."""
DUMP_INTERVAL_S: Final = 3600.0
"""A caretaker has a dump of the metadata put on the volume's disks when the newest one there is this old."""
DUMP_COPIES: Final = 3
DUMPS_KEPT: Final = 2
"""On so many disks, and the newest so many on each."""
DUMP_SITES_TRIED: Final = 6
"""Disks that are asked to take a copy, before there are fewer than `DUMP_COPIES`."""
DUMP_PIECE_BYTES: Final = 8 * MIB
"""In which a dump goes to nodes and buckets, and comes from them. A bucket takes 10,000 of at least 5 MiB: dumps of 78 GiB."""

# The curator.
CARE_BATCH: Final = 64
"""Blocks that are looked up, checked, rebuilt or forgotten together."""
CARE_THREADS: Final = 3
"""Blocks checked or rebuilt at a time; each works on all its chunks in parallel."""
SWEEP_BATCH: Final = 4096
"""Chunk names that are looked up in one snapshot."""
HEAL_LOOK_S: Final = 1.0
"""How often the healer looks whether there are blocks that lack chunks, and disks that take them."""
HEAL_AGAIN_S: Final = 30.0
"""After a pass that healed nothing the healer waits this long, or until other disks take chunks than did then."""
SHORT_COUNTED_MAX: Final = 100_000
"""Short blocks that a status counts, at 2.2 us each; there may be more."""
FINDINGS_MAX: Final = 10_000
"""What a check lists one by one; the rest is counted."""
PATHS_PER_LOSS_MAX: Final = 100
"""Files named for a lost block; up to `PACK_FILES_MAX` may share it."""
LINKS_WINDOW: Final = 1 << 22
"""Inodes whose names are counted in one pass of a check: 6 bytes each, 24 MiB."""
REPAIR_QUEUE_MAX: Final = 10_000
REPAIR_ATTEMPTS_MAX: Final = 12
"""With the pauses below, about 20 minutes: longer than a disk is away for a reboot."""
REPAIR_PAUSE_FIRST_S: Final = 1.0
REPAIR_PAUSE_LAST_S: Final = 300.0
REPAIR_STOP_S: Final = 60.0
"""How long closing waits for the repair under way."""

# The SSD tier.
CACHE_BYTES_DEFAULT: Final = 100 * GIB
CACHE_HIGH_WATERMARK: Final = 0.90
CACHE_LOW_WATERMARK: Final = 0.80
CACHE_FREE_RESERVE_BYTES: Final = 256 * MIB
"""The file system below the cache directory is never filled further than this by us."""
STORE_FREE_RESERVE_BYTES: Final = 64 * MIB
"""A disk with less than this free takes no new chunk."""
PACK_DELAY_S: Final = 5.0
"""A small file sealed this long ago is drained, with all that were sealed since: a burst of them shares blocks, and the syncs
of the drain do not slow the burst down."""
SEGMENT_BYTES: Final = 8 * MIB
"""Small contents that are written together go into files of this length (of less where the SSD tier is below a GiB), which are
made once and used again."""
SEGMENTS_IDLE_MAX: Final = 4
"""So many that have nothing in them are kept for that."""
SEGMENT_QUIET_S: Final = 5.0
"""Where room is short, one that nobody has written into for so long gives its rest back. Who writes next makes another, whole."""
SEGMENT_CONTENT_BYTES_MAX: Final = 1 * MIB
"""A larger content is a file of its own."""
DRAIN_DELAY_S: Final = 1.0
"""A file sealed this long ago is drained, oldest first: time for small files to gather into one block."""
DRAIN_DEADLINE_S: Final = 30.0
"""A file staged this long is drained even while it is open, once nobody has written to it for `DRAIN_QUIET_S`..."""
DRAIN_QUIET_S: Final = 5.0
DRAIN_BUSY_DEADLINE_S: Final = 300.0
"""...and after this long even while it is being written to: its bytes of that moment become its last safe content."""
BACKPRESSURE_WAIT_S: Final = 60.0
"""A writer waits at most this long for room on the SSD before it is told ENOSPC."""
FILL_WAIT_S: Final = 120.0

# Snapshots.
SNAPSHOT_PASSES_MAX: Final = 10
"""So often the copy of a tree that others change is held against it again; then the snapshot is refused."""
SNAPSHOT_CHANGES_MAX: Final = 1024
"""So many inodes that changed while the tree was copied are kept in memory, and written to the copy in one transaction."""

# What is staged on another host.
STAGED_PART_BYTES: Final = 8 * MIB
"""What one request to its host brings."""
STAGED_WAIT_S: Final = 10.0
"""How long a reader waits for a host that lives and does not serve it, or not any more: small files are stored by then."""
PEER_SILENCE_S: Final = 5.0
"""A host that says nothing for so long does not answer."""
PEER_TRANSFERS_MAX: Final = 8
"""Parts that one host reads and sends at a time, each in memory of its own; the others wait..."""
PEER_TRANSFER_WAIT_S: Final = 4.0
"""...and are refused after this long, to ask again."""
PEER_CONNECTIONS_MAX: Final = 1024
PEER_IDLE_S: Final = 30.0
"""A connection that says nothing for so long is closed."""
STAGED_RUNS_MAX: Final = 4096
"""Runs of data that a host tells of one sparse file; holes between more of them are sent as zeros."""

# The mount.
FUSE_REQUEST_BYTES_MAX: Final = 1 * MIB
FUSE_READER_THREADS: Final = 4
ENTRY_TIMEOUT_S: Final = 30.0
ATTRIBUTE_TIMEOUT_S: Final = 30.0
"""How long the kernel keeps names and attributes that nobody tells it to drop: others' changes are pushed, so this is the
bound for a daemon that does not run."""
STAGED_TIMEOUT_S: Final = 1.0
"""The same for attributes of a content that is only staged: it may be written to through a mapping, which nobody sees."""
FOLLOW_INTERVAL_S: Final = 0.05
"""A mount looks this often whether another process changed something."""
CHANGES_KEPT: Final = 4096
"""Transactions in the change feed: 0.1 s of the fastest that one host can commit."""
CHANGE_KEYS_MAX: Final = 4096
"""Names and inodes in one record of the feed; a transaction with more makes several."""
MOUNT_READY_S: Final = 30.0
UNMOUNT_WAIT_S: Final = 30.0
DAEMON_RESTARTS_MAX: Final = 30
"""Restarts of a crashing daemon within `DAEMON_RESTART_WINDOW_S` before its keeper gives up and unmounts."""
DAEMON_RESTART_WINDOW_S: Final = 300.0
"""Ten seconds a restart: the keeper waits 2 s before most of them, and a daemon that cannot start takes a while to find out."""
DAEMON_HANG_S: Final = 60.0
"""A daemon that its keeper has not heard of for so long hangs, and is replaced; it says something ten times as often."""
MEMORY_BYTES_DEFAULT: Final = 512 * MIB

# Who watches.
WATCH_INTERVAL_MIN_S: Final = 0.1
WATCH_INTERVAL_MAX_S: Final = 600.0
WATCHED_ROWS_MAX: Final = 100
"""Processes, files and directories that `top` names, of each."""
WATCHED_NAMES_MAX: Final = 20_000
"""Names of one directory that are read to find the path of a file that is much used: 40 ms."""

assert BLOCK_BYTES_DEFAULT <= BLOCK_BYTES_MAX
assert BLOCK_BYTES_MAX % CELL_BYTES == 0
assert CELL_BYTES % CHUNK_ALIGNMENT_BYTES == 0
assert CHUNK_HEADER_BYTES % CHUNK_ALIGNMENT_BYTES == 0, "payloads start aligned, for O_DIRECT"
assert CHUNK_FIXED_HEADER_BYTES + 4 * CELLS_PER_CHUNK_MAX <= CHUNK_HEADER_BYTES, (
    "the checksum table of the largest chunk fits"
)
assert 2 * CODE_WIDTH_MAX * CELL_BYTES <= SCRATCH_BYTES, "a window of the widest code is a cell at least"
assert PACKED_FILE_BYTES_MAX < BLOCK_BYTES_DEFAULT
assert CACHE_LOW_WATERMARK < CACHE_HIGH_WATERMARK < 1.0
assert READ_SIBLING_S < READ_FIRST_S < CHUNK_STALL_S < FILL_WAIT_S, "a slow disk is left before its reader gives up"
assert REMOTE_CONNECT_S < REMOTE_SILENCE_S < CHUNK_STALL_S <= REMOTE_CALL_S
assert PACK_DELAY_S < STAGED_WAIT_S
assert SEGMENT_CONTENT_BYTES_MAX < SEGMENT_BYTES
assert SEGMENT_CONTENT_BYTES_MAX <= PACKED_FILE_BYTES_MAX, "what shares a segment shares a block"
assert PEER_TRANSFER_WAIT_S < PEER_SILENCE_S < STAGED_WAIT_S
assert REMOTE_SPACE_WAIT_S < REMOTE_SPACE_FRESH_S < REMOTE_SPACE_STALE_S
assert SESSION_HEARTBEAT_S * 3 <= SESSION_TIMEOUT_S, "one lost heartbeat does not end a session"
assert SESSION_TIMEOUT_S < DEAD_BLOCK_GRACE_S
assert CARE_WAIT_S < DUMP_INTERVAL_S
assert DUMP_COPIES <= DUMP_SITES_TRIED
assert DUMP_PIECE_BYTES >= 5 * MIB, "a bucket's parts"
assert DRAIN_DELAY_S <= PACK_DELAY_S < DRAIN_DEADLINE_S < BACKPRESSURE_WAIT_S
assert OPEN_WAIT_S < LOCK_WAIT_S < TRANSACTION_IDLE_S < COMMIT_MARK_S
assert 2 * FOLLOW_INTERVAL_S < STAGED_TIMEOUT_S < ENTRY_TIMEOUT_S
assert DRAIN_QUIET_S < DRAIN_DEADLINE_S < DRAIN_BUSY_DEADLINE_S
assert 3 * BLOCK_BYTES_DEFAULT // 2 * 2 < MEMORY_BYTES_DEFAULT, "two encoded blocks in flight fit the default ceiling"
