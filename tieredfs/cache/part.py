"""`TierPart`: what the parts of one tier share."""

from dataclasses import dataclass

from tieredfs.block.store import BlockStore
from tieredfs.cache.borrow import Neighbours
from tieredfs.cache.elsewhere import Elsewhere
from tieredfs.cache.layout import CacheDirectory
from tieredfs.host import Host
from tieredfs.meta.metadata import Metadata
from tieredfs.model import CacheId


@dataclass(frozen=True, slots=True)
class TierPart:
    """Where the tier's content is named, stored and kept; fixed for its life."""

    metadata: Metadata
    blocks: BlockStore
    host: Host
    directory: CacheDirectory
    cache: CacheId
    neighbours: Neighbours
    elsewhere: Elsewhere
