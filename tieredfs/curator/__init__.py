"""Care for what is stored: garbage collection, checks, repair, and the rebuilding and emptying of disks.

Names are imported when they are used: every process that has a volume open repairs and heals, few ever check or collect.
"""

from typing import TYPE_CHECKING, Final

from tieredfs.faces import names_of

if TYPE_CHECKING:
    from tieredfs.core.care import RepairCounts
    from tieredfs.curator.curator import Curator
    from tieredfs.curator.healer import HealCounts, Healer
    from tieredfs.curator.holdings import Holdings
    from tieredfs.curator.repairer import Repairer
    from tieredfs.curator.report import CheckReport, DataLoss, Finding, FindingKind, GarbageReport, RebuildReport
    from tieredfs.curator.reunion import Reunion, reunite

_HOME: Final = {
    "CheckReport": ".report",
    "Curator": ".curator",
    "DataLoss": ".report",
    "Finding": ".report",
    "FindingKind": ".report",
    "GarbageReport": ".report",
    "HealCounts": ".healer",
    "Healer": ".healer",
    "Holdings": ".holdings",
    "RebuildReport": ".report",
    "RepairCounts": "tieredfs.core.care",
    "Repairer": ".repairer",
    "Reunion": ".reunion",
    "reunite": ".reunion",
}

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

__getattr__ = names_of(__name__, _HOME)
