"""A backend in memory: records what it is asked, answers what the test says, raises what the test says."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tieredfs.cli.backend import MountRequest, Progress, Quotas, RestoreRequest
from tieredfs.fuse.mountinfo import MountInfo
from tieredfs.model import Code, CodeKind, DiskId, Durability, VolumeConfig

META_URL = "sqlite:///data/volume.db"
MOUNT_ID = "0123456789abcdef"
CONFIG = VolumeConfig(
    uuid="6f5902ac237024bdd0c176cb93063dc4",
    name="train",
    format_version=1,
    created_ns=1_700_000_000_000_000_000,
    code=Code(CodeKind.REED_SOLOMON, 4, 2),
    block_bytes=64 << 20,
    durability=Durability.SSD,
)


def mount_at(point: str, name: str = "train", mount_id: str = MOUNT_ID) -> MountInfo:
    return MountInfo(point, "/", "fuse.tieredfs", f"tieredfs:{name}:{mount_id}", (0, 77), read_only=False)


@dataclass(frozen=True, slots=True)
class FakeStaged:
    file_count: int
    size_bytes: int
    oldest_age_s: float = 4.0


@dataclass(frozen=True, slots=True)
class FakeCache:
    path: str
    staged_files: int


@dataclass(frozen=True, slots=True)
class FakeDisk:
    disk: DiskId
    url: str
    domain: str
    reachable: bool
    free_bytes: int
    chunk_count: int | None


@dataclass(frozen=True, slots=True)
class FakeSession:
    purpose: str


@dataclass(frozen=True, slots=True)
class FakeStatus:
    volume: VolumeConfig
    staged: FakeStaged
    disks: tuple[FakeDisk, ...]
    caches: tuple[FakeCache, ...]
    sessions: tuple[FakeSession, ...]


@dataclass(frozen=True, slots=True)
class FakeFinding:
    kind: str
    subject: str
    detail: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class FakeReport:
    block_count: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class FakeSnapshot:
    path: str
    name: str
    place: str
    about: FakeReport


@dataclass(frozen=True, slots=True)
class FakeCheck:
    clean: bool
    findings: tuple[FakeFinding, ...]
    block_count: int


@dataclass(frozen=True, slots=True)
class FakeLoaded:
    dump: str
    away: dict[int, str]


@dataclass(frozen=True, slots=True)
class FakeMounted:
    driver: str
    reason: str
    mountpoint: str
    mount_id: str


DISKS = (
    FakeDisk(DiskId(1), "disk:///data/d0", "d0", True, 5 << 30, 12),
    FakeDisk(DiskId(2), "disk:///data/d1", "d1", False, 0, None),
)


@dataclass
class FakeVolume:
    backend: "FakeBackend"
    config: VolumeConfig = CONFIG

    def status(self) -> object:
        caches = (FakeCache("/ssd/cache", self.backend.staged.file_count),)
        sessions = tuple(FakeSession(purpose) for purpose in self.backend.purposes)
        return FakeStatus(self.config, self.backend.staged, DISKS, caches, sessions)

    def collect_garbage(self, progress: Progress) -> object:
        progress(1, 2, "blocks")
        return FakeReport(2, 3 << 20)

    def check(self, *, repair: bool, progress: Progress) -> FakeCheck:
        self.backend.record("check", repair)
        progress(5, 10, "bytes")
        findings = self.backend.findings
        return FakeCheck(not [one for one in findings if not repair], findings, 7)

    def add_disk(self, url: str, domain: str | None) -> object:
        self.backend.record("add_disk", url, domain)
        return FakeDisk(DiskId(3), url, domain or "3", True, 1 << 30, 0)

    def drain_disk(self, disk: DiskId, progress: Progress) -> object:
        self.backend.record("drain_disk", disk)
        return FakeReport(4, 0)

    def rebuild_disk(self, disk: DiskId, progress: Progress) -> object:
        self.backend.record("rebuild_disk", disk)
        return FakeReport(5, 0)

    def disks(self) -> Sequence[object]:
        return DISKS

    def set_config(
        self,
        *,
        name: str | None = None,
        code: Code | None = None,
        durability: Durability | None = None,
        block_bytes: int | None = None,
    ) -> VolumeConfig:
        self.backend.record("set_config", name, code, durability, block_bytes)
        return self.config

    def dump_to_file(self, path: str, progress: Progress) -> object:
        progress(1, 0, "records")
        self.backend.record("dump_to_file", path)
        return FakeReport(1, 0)

    def dump_to_disks(self, progress: Progress) -> object:
        self.backend.record("dump_to_disks")
        return FakeReport(3, 0)

    def staged(self) -> FakeStaged:
        return self.backend.staged

    @property
    def quotas(self) -> Quotas:
        raise NotImplementedError("the verbs of quotas are tested on a volume")


@dataclass
class FakeBackend:
    """`fails`: call name → error to raise. `answers`: verb → what a daemon says (an exception is raised)."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    fails: dict[str, BaseException] = field(default_factory=dict)
    answers: dict[str, object] = field(default_factory=dict)
    mounted: list[MountInfo] = field(default_factory=list)
    purposes: list[str] = field(default_factory=list)
    staged: FakeStaged = FakeStaged(0, 0)
    findings: tuple[FakeFinding, ...] = ()
    open_files: int = 0
    away: dict[int, str] = field(default_factory=dict)

    def record(self, name: str, *details: object) -> None:
        self.calls.append((name, *details))
        if name in self.fails:
            raise self.fails[name]

    def format_volume(
        self,
        meta_url: str,
        data_urls: Sequence[str],
        *,
        code: Code,
        durability: Durability,
        block_bytes: int,
        name: str,
        force: bool,
    ) -> VolumeConfig:
        self.record("format", meta_url, list(data_urls), str(code), durability, block_bytes, name, force)
        return CONFIG

    def destroy_volume(self, meta_url: str, *, progress: Progress) -> None:
        self.record("destroy", meta_url)

    @contextmanager
    def open_volume(self, meta_url: str, *, purpose: str) -> Iterator[FakeVolume]:
        self.record("open", meta_url, purpose)
        yield FakeVolume(self)

    def drain_volume(self, meta_url: str, progress: Progress) -> None:
        self.record("drain_volume", meta_url)
        self.staged = FakeStaged(0, 0)

    def load_volume(self, meta_url: str, sources: Sequence[str], progress: Progress) -> FakeLoaded:
        self.record("load", meta_url, list(sources))
        progress(1, 0, "records")
        return FakeLoaded("/data/d0/metadata/1.dump", self.away)

    def clone(self, meta_url: str, source: str, target: str, progress: Progress) -> object:
        self.record("clone", meta_url, source, target)
        progress(1, 0, "files")
        return FakeReport(1, 0)

    def create_snapshot(self, meta_url: str, mount_id: str, path: str, name: str, progress: Progress) -> object:
        self.record("create_snapshot", meta_url, mount_id, path, name)
        progress(1, 0, "files")
        return FakeSnapshot(path, name, f".snapshots/{path}/@{name}", FakeReport(1, 0))

    def snapshots(self, meta_url: str, path: str) -> Sequence[object]:
        self.record("snapshots", meta_url, path)
        return [FakeSnapshot("a", "s", ".snapshots/a/@s", FakeReport(1, 0))]

    def remove_snapshot(self, meta_url: str, path: str, name: str, progress: Progress) -> int:
        self.record("remove_snapshot", meta_url, path, name)
        progress(1, 0, "entries")
        return 1

    def restore_snapshot(self, request: RestoreRequest, progress: Progress) -> object:
        self.record("restore_snapshot", request)
        progress(1, 0, "files")
        return FakeReport(1, 0)

    def mount_volume(self, request: MountRequest) -> FakeMounted:
        self.record("mount", request)
        return FakeMounted("kernel", "Linux 6.18 and root: passthrough", request.mountpoint, MOUNT_ID)

    def unmount(self, mountpoint: str, *, flush: bool, progress: Progress) -> None:
        self.record("unmount", mountpoint, flush)

    def mounts(self) -> Sequence[MountInfo]:
        return self.mounted

    def locate(self, path: str) -> tuple[MountInfo, str] | None:
        for mount in self.mounted:
            if path == mount.mount_point or path.startswith(mount.mount_point + "/"):
                return mount, path
        return None

    def ask(self, mount_id: str, verb: str, arguments: Mapping[str, object], progress: Progress) -> object:
        self.record("ask", mount_id, verb, dict(arguments))
        progress(1, 2, "bytes")
        answer = self.answers.get(verb, {})
        if isinstance(answer, Exception):
            raise answer
        if verb == "drain":
            self.staged = FakeStaged(self.open_files, 0)
        return answer
