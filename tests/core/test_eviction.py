"""Eviction against a model of sizes and membership, and against LRU where scans are concerned."""

from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tieredfs.core.eviction import ResidentIndex
from tieredfs.model import InodeId

INODES = st.integers(1, 12).map(InodeId)
SIZES = st.integers(0, 1000)


class IndexMachine(RuleBasedStateMachine):
    """`ResidentIndex` is a set of files with sizes, whatever order it would evict them in."""

    def __init__(self) -> None:
        super().__init__()
        self.index = ResidentIndex()
        self.model: dict[InodeId, tuple[int, int]] = {}
        self.pinned: set[InodeId] = set()

    @rule(inode=INODES, version=st.integers(1, 9), size=SIZES, uses=st.integers(0, 9))
    def admit(self, inode: InodeId, version: int, size: int, uses: int) -> None:
        self.index.admit(inode, version, size, uses=uses)
        self.model[inode] = version, size

    @rule(inode=INODES)
    def touch(self, inode: InodeId) -> None:
        self.index.touch(inode)

    @rule(inode=INODES)
    def take(self, inode: InodeId) -> None:
        taken = self.index.take(inode)
        assert (None if taken is None else (taken.version, taken.size_bytes)) == self.model.pop(inode, None)

    @rule(inode=INODES)
    def pin(self, inode: InodeId) -> None:
        self.index.pin(inode)
        self.pinned.add(inode)

    @rule(inode=INODES)
    def unpin(self, inode: InodeId) -> None:
        self.index.unpin(inode)
        self.pinned.discard(inode)

    @precondition(lambda self: self.model)
    @rule(wanted=st.integers(1, 4000))
    def evict(self, wanted: int) -> None:
        victims = self.index.victims(wanted)
        freed = 0
        for number, (inode, version, size_counted) in enumerate(victims):
            assert inode not in self.pinned
            assert freed < wanted, f"victim {number} was not needed"
            known_version, size = self.model.pop(inode)
            assert (version, size_counted) == (known_version, size)
            freed += size
        assert freed >= wanted or set(self.model) <= self.pinned, "it stops early only when nothing more may go"

    @invariant()
    def same_membership_and_size(self) -> None:
        assert sorted(self.index) == sorted(self.model)
        assert len(self.index) == len(self.model)
        assert self.index.bytes == sum(size for _, size in self.model.values())
        assert all(inode in self.index for inode in self.model)
        assert self.index.pinned == self.pinned


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Lru:
    """The plain policy, for comparison: hits of a sequence of uses in a cache of so many files of one size."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.order: OrderedDict[InodeId, None] = OrderedDict()

    def use(self, inode: InodeId) -> bool:
        hit = inode in self.order
        self.order[inode] = None
        self.order.move_to_end(inode)
        if len(self.order) > self.capacity:
            self.order.popitem(last=False)
        return hit


class Indexed:
    """The same cache with `ResidentIndex`, used as the tier does: a file is taken out while it is open."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.index = ResidentIndex()

    def use(self, inode: InodeId) -> bool:
        resident = self.index.take(inode)
        self.index.admit(inode, 1, 1, uses=0 if resident is None else resident.uses + 1)
        if self.index.bytes > self.capacity:
            self.index.victims(self.index.bytes - self.capacity)
        return resident is not None


def hits_of_working_set(cache: Lru | Indexed, scan_length: int) -> int:
    """60 files used in rounds, and between the rounds files that are used once each."""
    working_set = [InodeId(number) for number in range(1, 61)]
    once = iter(range(1000, 1_000_000))
    for _ in range(3):
        for inode in working_set:
            cache.use(inode)
    hits = 0
    for _ in range(10):
        for _ in range(scan_length):
            cache.use(InodeId(next(once)))
        hits += sum(cache.use(inode) for inode in working_set)
    return hits


def test_a_scan_does_not_drive_out_a_working_set() -> None:
    """A cache of 100 files; scans of 150, so LRU has forgotten everything when the working set is used again."""
    assert hits_of_working_set(Lru(100), 150) == 0
    assert hits_of_working_set(Indexed(100), 150) >= 0.9 * 600


@given(st.integers(0, 400))
@settings(max_examples=20, deadline=None)
def test_scans_of_any_length_cost_little(scan_length: int) -> None:
    assert hits_of_working_set(Indexed(100), scan_length) >= 0.8 * 600


def test_a_file_that_comes_back_soon_after_a_scan_is_kept_the_next_time() -> None:
    index = ResidentIndex()
    index.admit(InodeId(1), 1, 100)
    assert index.victims(1) == [(InodeId(1), 1, 100)]
    index.admit(InodeId(1), 2, 100)
    for number in range(2, 20):
        index.admit(InodeId(number), 1, 100)
    evicted = {victim.inode for victim in index.victims(1500)}
    assert InodeId(1) not in evicted


def test_what_recovery_found_is_admitted() -> None:
    index = ResidentIndex()
    index.admit_all([(InodeId(1), 3, 10), (InodeId(2), 4, 20)])
    assert index.bytes == 30
    assert index.victims(100) == [(InodeId(1), 3, 10), (InodeId(2), 4, 20)]
