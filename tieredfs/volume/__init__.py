"""The volume: what every front end speaks to. Wiring of engine, layers, disks and tier lives here."""

from tieredfs.volume import snapshots
from tieredfs.volume.cloning import clone
from tieredfs.volume.filesystem import FileSystem
from tieredfs.volume.lifecycle import destroy_volume, format_volume
from tieredfs.volume.loading import load_volume
from tieredfs.volume.ssd import SsdTier, drain_volume
from tieredfs.volume.status import DiskStatus, StagedSummary, VolumeStatus
from tieredfs.volume.volume import Volume

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
    "snapshots",
]
