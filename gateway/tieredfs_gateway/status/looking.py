"""Looking at a volume: its metadata and disks, the mounts of this host, and what was seen before.

A look costs 1.5 ms of metadata queries, more where much is staged; so one is good for a second, and for ten times as
long as those took: however many people watch, a tenth of one core is the most that it takes. The count of all blocks
(`census`) goes on a step at a time between looks. When the metadata does not answer, the last look stays, and says so.
"""

import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from tieredfs.core.activity import Activity, Counters, between, counters_from
from tieredfs.errors import TieredError
from tieredfs.fuse.control import ControlClient
from tieredfs.fuse.mountinfo import MountInfo, our_mounts
from tieredfs.host import Clock
from tieredfs.volume import Volume, VolumeStatus
from tieredfs_gateway.status.census import Census, counting
from tieredfs_gateway.status.concerns import MountFacts, concerns_of
from tieredfs_gateway.status.document import DiskSpeed, Document, MountLook
from tieredfs_gateway.status.history import History

FRESH_S: Final = 1.0
FRESH_FACTOR: Final = 10.0
DAEMON_SILENCE_S: Final = 2.0
LOOK_WAIT_S: Final = 5.0
"""A look that takes longer, because the metadata do not answer, is not waited for: the last one is shown."""
SPEED_WINDOW_S: Final = 60.0
LOOKS_KEPT: Final = 120
CENSUS_FACTOR: Final = 50.0
CENSUS_EVERY_MIN_S: Final = 5.0
CENSUS_EVERY_MAX_S: Final = 3600.0
"""The blocks are counted again after fifty times as long as that took."""
MOUNTS_AT_ONCE: Final = 8

assert DAEMON_SILENCE_S < LOOK_WAIT_S, "a daemon that says nothing is not taken for metadata that do not answer"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A mount now. `counters`: None when its daemon does not answer; `activity`: None for one that was not seen before."""

    mount: MountInfo
    counters: Counters | None
    activity: Activity | None


class Looker:
    """Safe from any thread."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._clock: Clock = volume.host.clock
        self._mounts = Mounts(volume.config.name, volume.config.uuid)
        self._counter = _Counter(volume)
        self._history = History()
        self._looking = threading.Lock()
        self._latest: Document | None = None
        self._fresh_until_s = 0.0
        self._volume_took_s = 0.0

    def look(self) -> Document:
        """As of now, or of a moment ago. Raises what the metadata raises where nothing was ever seen."""
        latest = self._latest
        if latest is not None and self._clock.monotonic_s() < self._fresh_until_s:
            return latest
        if not self._looking.acquire(timeout=-1 if latest is None else LOOK_WAIT_S):
            assert latest is not None
            return _grown_old(latest, f"a look takes over {LOOK_WAIT_S:.0f} s")
        try:
            if self._latest is not None and self._clock.monotonic_s() < self._fresh_until_s:
                return self._latest
            return self._look_again()
        finally:
            self._looking.release()

    def look_anew(self) -> Document:
        """As of now."""
        self._fresh_until_s = 0.0
        return self.look()

    def _look_again(self) -> Document:
        try:
            self._latest = self._look_now()
        except TieredError as error:
            if self._latest is None:
                raise
            self._latest = _grown_old(self._latest, str(error))
            self._volume_took_s = 0.0
        now_s = self._clock.monotonic_s()
        self._fresh_until_s = now_s + max(FRESH_S, FRESH_FACTOR * self._volume_took_s)
        return self._latest

    def _look_now(self) -> Document:
        began_s = self._clock.monotonic_s()
        status = self._volume.status()
        self._volume_took_s = self._clock.monotonic_s() - began_s
        seen = self._mounts.look({session.purpose for session in status.sessions})
        census, age_s = self._counter.latest()
        mounts = tuple(_described(one) for one in seen)
        made_ns = self._clock.wall_ns()
        self._history.note(made_ns, status, mounts)
        return Document(
            made_ns=made_ns,
            problem=None,
            concerns=concerns_of(status, [facts_of(mount) for mount in mounts], None),
            volume=status,
            census=census,
            census_age_s=age_s,
            mounts=mounts,
            speeds=_speeds(status, [one.activity for one in seen if one.activity]),
            healing=self._history.healing(),
            history=self._history.samples(),
        )

    def count_on(self) -> float:
        """A step of the count of all blocks, if it is time for one; after how many seconds to come again. Never raises."""
        return self._counter.step()

    def count_whole(self, most_s: float) -> None:
        """The count, as far as it gets in `most_s` seconds."""
        until_s = self._clock.monotonic_s() + most_s
        while self._counter.latest()[0] is None and self._clock.monotonic_s() < until_s:
            self._counter.step()


def _grown_old(document: Document, problem: str) -> Document:
    facts = [facts_of(mount) for mount in document.mounts]
    return replace(document, problem=problem, concerns=concerns_of(document.volume, facts, problem))


class _Counter:
    """A census that is renewed again and again, in steps that take a tenth of the time at most."""

    def __init__(self, volume: Volume) -> None:
        self._metadata = volume.metadata
        self._clock = volume.host.clock
        self._steps: Iterator[Census | None] | None = None
        self._latest: Census | None = None
        self._made_s = self._again_s = self._busy_s = 0.0

    def latest(self) -> tuple[Census | None, float | None]:
        latest = self._latest
        return latest, None if latest is None else self._clock.monotonic_s() - self._made_s

    def step(self) -> float:
        began_s = self._clock.monotonic_s()
        if self._steps is None:
            if self._latest is not None and began_s < self._again_s:
                return FRESH_S
            self._steps, self._busy_s = counting(self._metadata), 0.0
        try:
            found = next(self._steps)
        except TieredError:  # the looks say what is the matter
            self._steps = None
            return FRESH_S
        now_s = self._clock.monotonic_s()
        self._busy_s += now_s - began_s
        if found is not None:
            self._latest, self._made_s, self._steps = found, now_s, None
            pause_s = max(CENSUS_EVERY_MIN_S, CENSUS_FACTOR * self._busy_s)
            self._again_s = now_s + min(pause_s, CENSUS_EVERY_MAX_S)
        return FRESH_FACTOR * (now_s - began_s)


class Mounts:
    """The mounts of one volume on this host, by the kernel's table and their daemons' own word. One caller at a time."""

    def __init__(self, volume_name: str, volume_uuid: str) -> None:
        self._name = volume_name
        self._uuid = volume_uuid
        self._before: dict[str, deque[Counters]] = {}

    def look(self, purposes: Collection[str]) -> list[_Seen]:
        """`purposes`: of the volume's sessions; the kernel's table knows names only, and another volume may have the same."""
        mounts = [mount for mount in our_mounts() if mount.volume_name == self._name]
        if not mounts:
            self._before.clear()
            return []
        with ThreadPoolExecutor(min(MOUNTS_AT_ONCE, len(mounts)), thread_name_prefix="look") as pool:
            answers = list(pool.map(_ask, mounts))
        self._before = {mount.mount_id: self._before.get(mount.mount_id, deque(maxlen=LOOKS_KEPT)) for mount in mounts}
        ours = [
            (mount, answer)
            for mount, answer in zip(mounts, answers, strict=True)
            if (f"mount {mount.mount_id}" in purposes if answer is None else answer.get("volume_uuid") == self._uuid)
        ]
        return [self._seen(mount, answer) for mount, answer in ours]

    def _seen(self, mount: MountInfo, answer: Mapping[str, object] | None) -> _Seen:
        try:
            counters = None if answer is None else counters_from(answer)
        except TieredError:
            counters = None
        if counters is None:
            return _Seen(mount, None, None)
        before = self._before[mount.mount_id]
        while before and (before[0].process != counters.process or counters.at_s - before[0].at_s > SPEED_WINDOW_S):
            before.popleft()
        activity = between(before[0], counters, {}) if before and before[0].at_s < counters.at_s else None
        before.append(counters)
        return _Seen(mount, counters, activity)


def _ask(mount: MountInfo) -> Mapping[str, object] | None:
    """None when its daemon does not answer, or does not know how."""
    try:
        answer = ControlClient(mount.mount_id, silence_max_s=DAEMON_SILENCE_S).call("counters")
    except TieredError:
        return None
    return answer if isinstance(answer, dict) else None


def _described(seen: _Seen) -> MountLook:
    counters, activity, mount = seen.counters, seen.activity, seen.mount
    if counters is None:
        return MountLook(mount.mount_point, mount.mount_id, answers=False)
    look = MountLook(
        mount.mount_point,
        mount.mount_id,
        answers=True,
        staged_files=counters.staged_files,
        staged_bytes=counters.staged_bytes,
        staged_oldest_age_s=counters.staged_oldest_age_s,
        ssd_full=counters.ssd_full,
        resident_bytes=counters.resident_bytes,
        drain_error=counters.drain_error,
    )
    if activity is None:
        return look
    return replace(
        look,
        interval_s=activity.interval_s,
        operations_per_s=activity.operations.per_s if activity.operations else None,
        stored_bytes_per_s=activity.stored_bytes_per_s,
        filled_bytes_per_s=activity.filled_bytes_per_s,
        hit_ratio=activity.hit_ratio,
        room_waits_per_s=activity.room_waits_per_s,
        cpu_ratio=activity.cpu_ratio,
    )


def facts_of(mount: MountLook) -> MountFacts:
    return MountFacts(mount.mount_point, mount.answers, mount.ssd_full, mount.drain_error)


def _speeds(status: VolumeStatus, activities: Sequence[Activity]) -> tuple[DiskSpeed, ...]:
    """Of each disk, over all mounts: means are weighted by how often."""
    return tuple(_speed(disk.disk, activities) for disk in status.disks)


def _speed(disk: int, activities: Sequence[Activity]) -> DiskSpeed:
    found = [activity.disks[disk] for activity in activities if disk in activity.disks]
    reads, writes = sum(one.reads_per_s for one in found), sum(one.writes_per_s for one in found)
    read_load = sum(one.reads_per_s * (one.read_mean_s or 0.0) for one in found)
    write_load = sum(one.writes_per_s * (one.write_mean_s or 0.0) for one in found)
    return DiskSpeed(disk, reads, read_load / reads if reads else None, writes, write_load / writes if writes else None)
