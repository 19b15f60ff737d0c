"""`Curator`: the jobs of caring for a volume, each one call.

Any of them may run while the volume is in use, in any process, and several at once; each may be interrupted anywhere
and run again.
"""

from collections.abc import Mapping

from tieredfs.block.store import BlockStore
from tieredfs.chunk.store import ChunkStore
from tieredfs.curator import garbage, rebuild, scrub
from tieredfs.curator.holdings import Holdings
from tieredfs.curator.report import CheckReport, GarbageReport, RebuildReport
from tieredfs.host import Host
from tieredfs.meta.metadata import Metadata
from tieredfs.model import Disk, DiskId, Progress, SessionId


class Curator:
    """Safe from any thread. `progress` is called from the calling thread only."""

    def __init__(
        self,
        metadata: Metadata,
        blocks: BlockStore,
        stores: Mapping[DiskId, tuple[Disk, ChunkStore | None]],
        session: SessionId,
        host: Host,
    ) -> None:
        """`stores`: as `blocks` was given: every disk that is not REMOVED, None while it cannot be opened."""
        self.holdings = Holdings(metadata, blocks, stores, session, host)

    def collect_garbage(self, progress: Progress) -> GarbageReport:
        """Delete what is certainly nobody's (`tieredfs.curator.garbage`)."""
        return garbage.collect_garbage(self.holdings, progress)

    def check(self, *, repair: bool, progress: Progress) -> CheckReport:
        """Look at every record and every byte; with `repair`, make right what can be (`tieredfs.curator.scrub`)."""
        return scrub.check(self.holdings, repair=repair, progress=progress)

    def rebuild_disk(self, disk: DiskId, progress: Progress) -> RebuildReport:
        """Declare the disk lost and make its chunks anew on others; then it is removed.

        Raises NotFoundError, InvalidRequestError, NoSpaceError and UnavailableError (with what was done preserved; run
        it again), BusyError.
        """
        return rebuild.rebuild_disk(self.holdings, disk, progress)

    def drain_disk(self, disk: DiskId, progress: Progress) -> RebuildReport:
        """Move the disk's chunks to others; then it is removed. Raises as `rebuild_disk`."""
        return rebuild.drain_disk(self.holdings, disk, progress)
