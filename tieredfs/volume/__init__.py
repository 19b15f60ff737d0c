"""The volume: what every front end speaks to. Wiring of engine, layers, disks and tier lives here.

Names are imported when they are used: a command that looks at a volume, or only asks where its log is, loads no SSD tier.
"""

from typing import TYPE_CHECKING, Final

from tieredfs.faces import names_of

if TYPE_CHECKING:
    from tieredfs.volume.cloning import clone
    from tieredfs.volume.filesystem import FileSystem
    from tieredfs.volume.lifecycle import destroy_volume, format_volume
    from tieredfs.volume.loading import load_volume
    from tieredfs.volume.ssd import SsdTier, drain_volume
    from tieredfs.volume.status import DiskStatus, StagedSummary, VolumeStatus
    from tieredfs.volume.volume import Volume

_HOME: Final = {
    "DiskStatus": ".status",
    "FileSystem": ".filesystem",
    "SsdTier": ".ssd",
    "StagedSummary": ".status",
    "Volume": ".volume",
    "VolumeStatus": ".status",
    "clone": ".cloning",
    "destroy_volume": ".lifecycle",
    "drain_volume": ".ssd",
    "format_volume": ".lifecycle",
    "load_volume": ".loading",
}

__all__ = [
    "DiskStatus",
    "FileSystem",
    "SsdTier",
    "StagedSummary",
    "Volume",
    "VolumeStatus",
    "clone",
    "destroy_volume",
    "drain_volume",
    "format_volume",
    "load_volume",
]

__getattr__ = names_of(__name__, _HOME)
