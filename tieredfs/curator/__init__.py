"""Care for what is stored: garbage collection, checks, repair, and the rebuilding and emptying of disks."""

from tieredfs.core.care import RepairCounts
from tieredfs.curator.curator import Curator
from tieredfs.curator.healer import HealCounts, Healer
from tieredfs.curator.holdings import Holdings
from tieredfs.curator.repairer import Repairer
from tieredfs.curator.report import CheckReport, DataLoss, Finding, FindingKind, GarbageReport, RebuildReport
from tieredfs.curator.reunion import Reunion, reunite

__all__ = [
    "CheckReport",
    "Curator",
    "DataLoss",
    "Finding",
    "FindingKind",
    "GarbageReport",
    "HealCounts",
    "Healer",
    "Holdings",
    "RebuildReport",
    "RepairCounts",
    "Repairer",
    "Reunion",
    "reunite",
]
