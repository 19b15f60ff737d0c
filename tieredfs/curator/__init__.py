"""Care for what is stored: garbage collection, checks, repair, and the rebuilding and emptying of disks.

Names are imported when they are used: every process that has a volume open repairs and heals, few ever check or collect.
"""

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tieredfs.core.care import RepairCounts
    from tieredfs.curator.curator import Curator
    from tieredfs.curator.healer import HealCounts, Healer
    from tieredfs.curator.holdings import Holdings
    from tieredfs.curator.repairer import Repairer
    from tieredfs.curator.report import CheckReport, DataLoss, Finding, FindingKind, GarbageReport, RebuildReport
    from tieredfs.curator.reunion import Reunion, reunite

_HOME: Final = {
    "CheckReport": "tieredfs.curator.report",
    "Curator": "tieredfs.curator.curator",
    "DataLoss": "tieredfs.curator.report",
    "Finding": "tieredfs.curator.report",
    "FindingKind": "tieredfs.curator.report",
    "GarbageReport": "tieredfs.curator.report",
    "HealCounts": "tieredfs.curator.healer",
    "Healer": "tieredfs.curator.healer",
    "Holdings": "tieredfs.curator.holdings",
    "RebuildReport": "tieredfs.curator.report",
    "RepairCounts": "tieredfs.core.care",
    "Repairer": "tieredfs.curator.repairer",
    "Reunion": "tieredfs.curator.reunion",
    "reunite": "tieredfs.curator.reunion",
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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
