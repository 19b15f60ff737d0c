"""Quotas: what counts, what is refused, what moves, and that no history makes a record differ from a recount."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.meta.conftest import CONFIG, SecondThoughts, Volume, make_volume
from tieredfs import errors
from tieredfs.format import keys, records
from tieredfs.host import local_host
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.meta import cloning, quotas
from tieredfs.meta.metadata import Content, Creation, Metadata, Placement
from tieredfs.meta.placing import Wanted
from tieredfs.model import NOBODY, ROOT, Attributes, FileKind, InodeId, Quota, SessionId
from tieredfs.testing.metadata_check import broken_invariants

DIRECTORY, REGULAR = FileKind.DIRECTORY, FileKind.REGULAR
HOLDER = SessionId(77)
UNIT = 4096
"""Written out here: what quotas round to is part of the format."""


def make(metadata: Metadata, parent: InodeId, name: bytes, kind: FileKind = DIRECTORY) -> InodeId:
    return metadata.create(parent, name, Creation(kind, 0o755, 1, 2)).inode


def write(volume: Volume, inode: InodeId, size_bytes: int) -> None:
    """As a mount does: the version rises, and the size is published as the file is closed."""
    version = volume.metadata.begin_write(inode, volume.cache, truncate=False).version
    volume.metadata.publish(inode, version, size_bytes, 5)


def create_written(volume: Volume, parent: InodeId, name: bytes, size_bytes: int) -> InodeId:
    creation = Creation(REGULAR, 0o644, 1, 2, staged_in=volume.cache)
    made = volume.metadata.create(parent, name, creation)
    volume.metadata.publish(made.inode, made.version, size_bytes, 5)
    return made.inode


def used(metadata: Metadata, path: bytes) -> tuple[int, int]:
    quota = metadata.quota(path)
    return quota.used_bytes, quota.used_inodes


@pytest.fixture
def team(volume: Volume) -> InodeId:
    """A directory with room for 10 units and 5 inodes."""
    directory = make(volume.metadata, ROOT, b"team")
    volume.metadata.set_quota(b"/team", 10 * UNIT, 5)
    return directory


# ---- what counts -----------------------------------------------------------------------------------------------------


def test_what_is_there_counts_when_a_quota_is_set(volume: Volume) -> None:
    top = make(volume.metadata, ROOT, b"team")
    below = make(volume.metadata, top, b"sub")
    create_written(volume, below, b"file", UNIT + 1)
    volume.metadata.create(top, b"link", Creation(FileKind.SYMLINK, 0o777, 1, 2, target=b"sub"))
    assert volume.metadata.set_quota(b"/team/", 1 << 30, None) == Quota(top, b"/team", 1 << 30, 0, 2 * UNIT, 3)


def test_sizes_are_rounded_up_and_follow_what_is_written(volume: Volume, team: InodeId) -> None:
    inode = create_written(volume, team, b"file", 1)
    assert used(volume.metadata, b"team") == (UNIT, 1)
    write(volume, inode, UNIT)
    assert used(volume.metadata, b"team") == (UNIT, 1)
    write(volume, inode, 3 * UNIT + 1)
    assert used(volume.metadata, b"team") == (4 * UNIT, 1)
    volume.metadata.begin_write(inode, volume.cache, truncate=True)
    assert used(volume.metadata, b"team") == (0, 1)
    volume.metadata.unlink(team, b"file", NOBODY)
    assert used(volume.metadata, b"team") == (0, 0)


def test_an_open_file_without_a_name_counts_nowhere(volume: Volume, team: InodeId) -> None:
    inode = create_written(volume, team, b"file", UNIT)
    volume.metadata.unlink(team, b"file", HOLDER)
    assert used(volume.metadata, b"team") == (0, 0)
    volume.metadata.publish(inode, 1, 9 * UNIT, 6)
    volume.metadata.reclaim_orphan(inode, HOLDER)
    assert used(volume.metadata, b"team") == (0, 0)


def test_nested_quotas_all_count_and_all_hold(volume: Volume, team: InodeId) -> None:
    run = make(volume.metadata, team, b"run")
    volume.metadata.set_quota(b"team/run", 2 * UNIT, None)
    volume.metadata.set_quota(b"/", None, 100)
    create_written(volume, run, b"a", 2 * UNIT)
    assert used(volume.metadata, b"team/run") == (2 * UNIT, 1)
    assert used(volume.metadata, b"team") == (2 * UNIT, 2)
    assert used(volume.metadata, b"/") == (2 * UNIT, 3)
    with pytest.raises(errors.QuotaExceededError, match=r"/team/run has 8\.00 KiB of 8\.00 KiB used: nothing is left"):
        volume.metadata.create(run, b"b", Creation(REGULAR, 0o644, 1, 2, staged_in=volume.cache))
    for name in (b"b", b"c", b"d"):
        make(volume.metadata, run, name)
    with pytest.raises(errors.QuotaExceededError, match=r"/team has .* 5 of 5 inodes used: 1 more inode was asked for"):
        make(volume.metadata, run, b"e")


def test_a_directory_that_goes_takes_its_quota_along(volume: Volume, team: InodeId) -> None:
    make(volume.metadata, team, b"run")
    volume.metadata.set_quota(b"team/run", UNIT, None)
    volume.metadata.remove_directory(team, b"run")
    assert [quota.path for quota in volume.metadata.quotas()] == [b"/team"]
    make(volume.metadata, team, b"other")
    volume.metadata.rename(team, b"other", ROOT, b"other")
    make(volume.metadata, ROOT, b"source")
    volume.metadata.set_quota(b"other", 1, None)
    volume.metadata.rename(ROOT, b"source", ROOT, b"other")
    assert [quota.path for quota in volume.metadata.quotas()] == [b"/team"]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_was_written_already_is_counted_and_what_follows_is_refused(volume: Volume, team: InodeId) -> None:
    inode = create_written(volume, team, b"file", 25 * UNIT)
    assert used(volume.metadata, b"team") == (25 * UNIT, 1)
    with pytest.raises(errors.QuotaExceededError, match=r"/team has 100 KiB of 40\.0 KiB used"):
        volume.metadata.begin_write(inode, volume.cache, truncate=False)
    with pytest.raises(errors.QuotaExceededError):
        create_written(volume, team, b"more", 1)
    make(volume.metadata, team, b"a-directory-needs-no-bytes")
    volume.metadata.begin_write(inode, volume.cache, truncate=True)
    create_written(volume, team, b"more", 1)


def test_a_file_that_is_placed_needs_room(volume: Volume, team: InodeId) -> None:
    metadata, holder = volume.metadata, volume.metadata.open_session("host", 1, "test").session

    def unnamed(size_bytes: int) -> InodeId:
        made = metadata.create_unnamed(Creation(REGULAR, 0o644, 1, 2, staged_in=volume.cache), holder)
        metadata.publish(made.inode, made.version, size_bytes, 5)
        return made.inode

    metadata.place(Placement(unnamed(10 * UNIT), team, b"file", 0o644), holder)
    larger = unnamed(10 * UNIT + 1)
    with pytest.raises(errors.QuotaExceededError, match=r": 4\.00 KiB more"):
        metadata.place(Placement(larger, team, b"file", 0o644), holder)
    assert used(metadata, b"team") == (10 * UNIT, 1)
    metadata.place(Placement(unnamed(10 * UNIT), team, b"file", 0o644), holder)
    assert used(metadata, b"team") == (10 * UNIT, 1), "replaced"
    metadata.place(Placement(larger, ROOT, b"file", 0o644), holder)


def test_of_several_that_are_placed_those_that_have_room_are(volume: Volume, team: InodeId) -> None:
    metadata, holder = volume.metadata, volume.metadata.open_session("host", 1, "test").session
    creation = Creation(REGULAR, 0o644, 1, 2, staged_in=volume.cache)

    def wanted(name: bytes, units: int) -> Wanted:
        size = units * UNIT
        return Wanted(Placement(metadata.new_inode_id(), team, name, 0o644), Content(size, 5, size))

    several = [wanted(b"a", 6), wanted(b"b", 6), wanted(b"c", 4), wanted(b"a", 1), wanted(b"b", 5)]
    made = metadata.create_placed(several, creation, holder, lambda inode: inode == several[0].placement.inode)
    assert [isinstance(each, errors.QuotaExceededError) for each in made] == [False, True, False, False, False]
    assert used(metadata, b"team") == (10 * UNIT, 3)


def test_growth_through_the_daemon_is_asked_for(volume: Volume, team: InodeId) -> None:
    metadata = volume.metadata
    metadata.set_quota(b"/", 1 << 40, None)
    inode = create_written(volume, team, b"file", 4 * UNIT)
    create_written(volume, team, b"other", UNIT)
    assert metadata.check_size(inode, 9 * UNIT) == 9 * UNIT
    with pytest.raises(errors.QuotaExceededError, match="/team"):
        metadata.check_size(inode, 9 * UNIT + 1)
    metadata.set_quota(b"team", UNIT, None)
    metadata.check_size(inode, 3 * UNIT)
    outside = create_written(volume, ROOT, b"outside", 1)
    metadata.delete_quota(b"/")
    assert metadata.check_size(outside, 1 << 60) is None
    metadata.set_quota(b"team", None, 10)
    assert metadata.check_size(outside, 1 << 60) is None


@pytest.mark.parametrize("path", [b"/absent", b"/team/absent/x"])
def test_no_such_path(volume: Volume, team: InodeId, path: bytes) -> None:
    calls: list[Callable[[], object]] = [
        lambda: volume.metadata.set_quota(path, 1, None),
        lambda: volume.metadata.quota(path),
    ]
    for call in calls:
        with pytest.raises(errors.NotFoundError, match=path.decode()):
            call()
    assert len(volume.metadata.quotas()) == 1


def test_a_file_has_no_quota(volume: Volume, team: InodeId) -> None:
    make(volume.metadata, team, b"file", REGULAR)
    with pytest.raises(errors.NotDirectoryError, match="/team/file is not a directory"):
        volume.metadata.set_quota(b"team/file", 1, None)
    with pytest.raises(errors.NotFoundError, match="/ has no quota"):
        volume.metadata.quota(b"/")


# ---- what moves ------------------------------------------------------------------------------------------------------


def test_a_file_moves_with_what_it_counts(volume: Volume, team: InodeId) -> None:
    create_written(volume, ROOT, b"file", 3 * UNIT)
    volume.metadata.rename(ROOT, b"file", team, b"file")
    assert used(volume.metadata, b"team") == (3 * UNIT, 1)
    create_written(volume, ROOT, b"large", 8 * UNIT)
    with pytest.raises(errors.QuotaExceededError):
        volume.metadata.rename(ROOT, b"large", team, b"large")
    volume.metadata.rename(ROOT, b"large", team, b"file", exchange=True)
    assert used(volume.metadata, b"team") == (8 * UNIT, 1)
    volume.metadata.rename(team, b"file", ROOT, b"large")
    assert used(volume.metadata, b"team") == (0, 0)


def test_a_small_directory_moves_and_a_large_one_does_not(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = volume.metadata
    make(metadata, ROOT, b"team")
    metadata.set_quota(b"team", 1 << 30, None)
    team = metadata.lookup(ROOT, b"team").inode
    run = make(metadata, make(metadata, ROOT, b"above"), b"run")
    for name in (b"a", b"b"):
        create_written(volume, run, name, UNIT)
    metadata.rename(metadata.lookup(ROOT, b"above").inode, b"run", team, b"run")
    assert used(metadata, b"team") == (2 * UNIT, 3)
    create_written(volume, run, b"c", UNIT)
    monkeypatch.setattr("tieredfs.meta.quota_walks.QUOTA_MOVED_MAX", 2)
    with pytest.raises(errors.QuotaBoundaryError, match="more than 2 entries"):
        metadata.rename(team, b"run", ROOT, b"run")
    metadata.set_quota(b"team/run", None, 3)
    metadata.rename(team, b"run", ROOT, b"run")
    assert (used(metadata, b"team"), used(metadata, b"run")) == ((0, 0), (3 * UNIT, 3))
    assert metadata.quotas()[0].path == b"/run"


def test_names_of_one_file_are_below_the_same_quotas(volume: Volume, team: InodeId) -> None:
    metadata = volume.metadata
    inode = create_written(volume, team, b"file", UNIT)
    below = make(metadata, team, b"below")
    metadata.link(inode, below, b"again")
    assert used(metadata, b"team") == (UNIT, 2)
    with pytest.raises(errors.QuotaBoundaryError):
        metadata.link(inode, ROOT, b"outside")
    with pytest.raises(errors.QuotaBoundaryError):
        metadata.rename(team, b"file", ROOT, b"outside")
    with pytest.raises(errors.QuotaBoundaryError, match="names elsewhere"):
        metadata.rename(team, b"below", ROOT, b"outside")
    metadata.unlink(team, b"file", NOBODY)
    assert used(metadata, b"team") == (UNIT, 2)
    metadata.rename(below, b"again", team, b"again")
    metadata.remove_directory(team, b"below")
    write(volume, inode, 2 * UNIT)
    assert used(metadata, b"team") == (2 * UNIT, 1)
    metadata.rename(team, b"again", ROOT, b"outside")
    assert used(metadata, b"team") == (0, 0)


def test_names_on_both_sides_count_in_what_holds_all_of_them(volume: Volume) -> None:
    metadata = volume.metadata
    team = make(metadata, ROOT, b"team")
    run = make(metadata, team, b"run")
    inode = create_written(volume, run, b"file", UNIT)
    metadata.link(inode, team, b"outside")
    metadata.set_quota(b"team", 1 << 30, None)
    metadata.set_quota(b"team/run", 1 << 30, None)
    assert (used(metadata, b"team"), used(metadata, b"team/run")) == ((UNIT, 2), (0, 0))
    metadata.unlink(run, b"file", NOBODY)
    write(volume, inode, 2 * UNIT)
    assert (used(metadata, b"team"), used(metadata, b"team/run")) == ((2 * UNIT, 2), (0, 0))
    other = create_written(volume, run, b"version", UNIT)
    metadata.link(other, team, b"shelf", across=True)
    assert (used(metadata, b"team"), used(metadata, b"team/run")) == ((3 * UNIT, 3), (0, 0))
    metadata.unlink(run, b"version", NOBODY)
    assert used(metadata, b"team") == (3 * UNIT, 3)


def test_a_recount_finds_what_came_wholly_below_and_repair_counts_it(volume: Volume) -> None:
    metadata = volume.metadata
    team = make(metadata, ROOT, b"team")
    inode = create_written(volume, team, b"file", UNIT)
    metadata.link(inode, ROOT, b"outside")
    metadata.set_quota(b"team", 1 << 30, None)
    metadata.unlink(ROOT, b"outside", NOBODY)
    found = metadata.check_quota(b"team", repair=False)
    assert (found.right, found.used_bytes, found.used_inodes) == (False, UNIT, 1)
    assert used(metadata, b"team") == (0, 0)
    assert metadata.check_quota(b"team", repair=True).quota == found.quota
    assert metadata.check_quota(b"team", repair=False).right
    write(volume, inode, 2 * UNIT)
    assert used(metadata, b"team") == (2 * UNIT, 1)


def test_a_clone_counts_and_its_quota_is_not_copied(volume: Volume, team: InodeId) -> None:
    metadata = volume.metadata
    make(metadata, team, b"below")
    metadata.set_quota(b"team/below", None, 100)

    def clone() -> None:
        new = [metadata.new_inode_id() for _ in range(8)]
        metadata.amend(lambda writer: cloning.clone_entries(writer, team, b"", copy, new, {}, b"", 1))

    copy = make(metadata, team, b"copy")
    metadata.amend(lambda writer: writer.delete(keys.name(copy, b"")))
    new = metadata.new_inode_id()
    below = metadata.lookup(team, b"below").inode
    metadata.amend(lambda writer: cloning.clone_one(writer, below, copy, b"below", new, {}, 1))
    assert used(metadata, b"team") == (0, 3)
    assert len(metadata.quotas()) == 2
    metadata.set_quota(b"team", None, 3)
    with pytest.raises(errors.QuotaExceededError):
        clone()
    assert used(metadata, b"team") == (0, 3)


# ---- older volumes, and older programs -------------------------------------------------------------------------------


def test_files_that_were_moved_before_quotas_were_known_count_where_they_are(volume: Volume) -> None:
    """Their records say where they were made."""
    metadata = volume.metadata
    team, other = make(metadata, ROOT, b"team"), make(metadata, ROOT, b"other")
    came, went = create_written(volume, other, b"came", UNIT), create_written(volume, team, b"went", UNIT)
    metadata.rename(other, b"came", team, b"came")
    metadata.rename(team, b"went", other, b"went")
    assert (metadata.attributes(came).parent, metadata.attributes(went).parent) == (other, team), "as it ever was"
    metadata.set_quota(b"team", 1 << 30, None)
    assert used(metadata, b"team") == (UNIT, 1)
    write(volume, went, 5 * UNIT)
    metadata.unlink(other, b"went", NOBODY)
    assert used(metadata, b"team") == (UNIT, 1)
    write(volume, came, 5 * UNIT)
    assert used(metadata, b"team") == (5 * UNIT, 1)


def test_programs_that_know_no_quotas_refuse_a_volume_in_which_one_was_set(volume: Volume) -> None:
    assert volume.metadata.config().format_version == CONFIG.format_version == 1
    volume.metadata.set_quota(b"/", 1, None)
    assert volume.metadata.config().format_version == 2
    volume.metadata.set_config(volume.metadata.config())


def test_a_quota_that_was_taken_away_holds_nothing(volume: Volume, team: InodeId) -> None:
    inode = create_written(volume, team, b"file", 20 * UNIT)
    assert volume.metadata.delete_quota(b"team").used_bytes == 20 * UNIT
    write(volume, inode, 30 * UNIT)
    volume.metadata.rename(team, b"file", ROOT, b"file")
    assert volume.metadata.quotas() == []
    assert volume.metadata.quotas_over(inode) == []


# ---- any history -----------------------------------------------------------------------------------------------------

picks = st.integers(0, 1 << 16)
NAMES = [b"a", b"b", b"c"]


class QuotaMachine(RuleBasedStateMachine):
    """Random histories; after each step all records are what a recount by names says (`broken_invariants`), and nothing that asked
    for room went over a limit."""

    engine_kind = SqliteEngine

    @initialize()
    def start(self) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="tieredfs-quotas-")
        self.volume = self.open_volume()
        self.metadata = self.volume.metadata
        self.session = self.metadata.open_session("host", 1, "test").session
        self.directories = [ROOT]
        self.files: list[InodeId] = []
        for where, name in ((0, b"a"), (1, b"b"), (2, b"c"), (0, b"b")):
            self.directories.append(make(self.metadata, self.directories[where], name))
        self.metadata.set_quota(b"/a", 12 * UNIT, 9)
        self.metadata.set_quota(b"/a/b", 6 * UNIT, None)

    def open_volume(self) -> Volume:
        return make_volume(str(Path(self.place.name) / "volume.db"), self.engine_kind)

    def teardown(self) -> None:
        if hasattr(self, "volume"):
            self.volume.engine.close()
            self.place.cleanup()

    @precondition(lambda self: hasattr(self, "volume"))
    @invariant()
    def records_are_right(self) -> None:
        assert broken_invariants(self.volume.engine) == []

    def directory(self, number: int) -> InodeId:
        return self.directories[number % len(self.directories)]

    def attempt(self, function: Callable[[], object], *, asks: bool = True) -> object:
        """With `asks`: what is used may not come to more than the limit, or than it was."""
        before = {quota.directory: quota for quota in self.metadata.quotas()}
        try:
            result = function()
        except errors.TieredError as error:
            return error
        for quota in self.metadata.quotas() if asks else []:
            known = before.get(quota.directory)
            if known is not None and quota.limit_bytes:
                assert quota.used_bytes <= max(quota.limit_bytes, known.used_bytes)
            if known is not None and quota.limit_inodes:
                assert quota.used_inodes <= max(quota.limit_inodes, known.used_inodes)
        return result

    @rule(where=picks, name=st.sampled_from(NAMES))
    def make_directory(self, where: int, name: bytes) -> None:
        made = self.attempt(lambda: make(self.metadata, self.directory(where), name))
        if isinstance(made, int):
            self.directories.append(InodeId(made))

    @rule(where=picks, name=st.sampled_from(NAMES), units=st.integers(0, 4))
    def create(self, where: int, name: bytes, units: int) -> None:
        creation = Creation(REGULAR, 0o644, 1, 2, staged_in=self.volume.cache)
        made = self.attempt(lambda: self.metadata.create(self.directory(where), name, creation))
        if isinstance(made, Attributes):
            self.files.append(made.inode)
            self.attempt(lambda: self.metadata.publish(made.inode, 1, units * UNIT - units % 3, 5), asks=False)

    @precondition(lambda self: self.files)
    @rule(what=picks, units=st.integers(0, 8), truncate=st.booleans(), abandon=st.booleans())
    def write(self, what: int, units: int, truncate: bool, abandon: bool) -> None:
        inode = self.files[what % len(self.files)]
        begun = self.attempt(lambda: self.metadata.begin_write(inode, self.volume.cache, truncate=truncate))
        if isinstance(begun, Attributes):
            self.attempt(lambda: self.metadata.publish(inode, begun.version, units * UNIT, 5), asks=False)
            if abandon:
                self.attempt(lambda: self.metadata.abandon_write(inode, begun.version), asks=False)

    @rule(where=picks, name=st.sampled_from(NAMES), units=st.integers(0, 8))
    def place_file(self, where: int, name: bytes, units: int) -> None:
        made = self.metadata.create_unnamed(Creation(REGULAR, 0o644, 1, 2, staged_in=self.volume.cache), self.session)
        self.metadata.publish(made.inode, 1, units * UNIT, 5)
        placement = Placement(made.inode, self.directory(where), name, 0o644)
        if isinstance(self.attempt(lambda: self.metadata.place(placement, self.session)), tuple):
            self.files.append(made.inode)

    @rule(where=picks, name=st.sampled_from(NAMES), other=picks, units=st.integers(0, 8), held=st.booleans())
    def place_several(self, where: int, name: bytes, other: int, units: int, held: bool) -> None:
        creation = Creation(REGULAR, 0o644, 1, 2, staged_in=self.volume.cache)
        several = [
            Wanted(
                Placement(self.metadata.new_inode_id(), self.directory(at), name, 0o644), Content(units * UNIT, 5, 0)
            )
            for at in (where, other)
        ]
        self.attempt(lambda: self.metadata.create_placed(several, creation, self.session, lambda _: held))

    @rule(where=picks, name=st.sampled_from(NAMES), held=st.booleans())
    def unlink(self, where: int, name: bytes, held: bool) -> None:
        holder = self.session if held else NOBODY
        self.attempt(lambda: self.metadata.unlink(self.directory(where), name, holder))

    @rule(where=picks, name=st.sampled_from(NAMES))
    def remove_directory(self, where: int, name: bytes) -> None:
        self.attempt(lambda: self.metadata.remove_directory(self.directory(where), name))

    @rule(where=picks, name=st.sampled_from(NAMES), to=picks, new=st.sampled_from(NAMES), exchange=st.booleans())
    def rename(self, where: int, name: bytes, to: int, new: bytes, exchange: bool) -> None:
        old, into = self.directory(where), self.directory(to)
        self.attempt(lambda: self.metadata.rename(old, name, into, new, exchange=exchange))

    @precondition(lambda self: self.files)
    @rule(what=picks, where=picks, name=st.sampled_from(NAMES))
    def link(self, what: int, where: int, name: bytes) -> None:
        inode = self.files[what % len(self.files)]
        self.attempt(lambda: self.metadata.link(inode, self.directory(where), name))

    @rule(what=picks, where=picks, name=st.sampled_from(NAMES))
    def clone(self, what: int, where: int, name: bytes) -> None:
        new, source, target = self.metadata.new_inode_id(), self.directory(what), self.directory(where)

        def copy() -> None:
            self.metadata.lookup(target, name)

        if not isinstance(self.attempt(copy), errors.NotFoundError):
            return
        made = self.attempt(
            lambda: self.metadata.amend(
                lambda writer: cloning.clone_one(writer, source, target, name, new, {}, self.volume.clock.wall_ns())
            )
        )
        if isinstance(made, cloning.Cloned):
            self.directories.append(new)

    @rule(where=picks, units=st.one_of(st.none(), st.integers(1, 12)), inodes=st.one_of(st.none(), st.integers(1, 12)))
    def set_quota(self, where: int, units: int | None, inodes: int | None) -> None:
        """Only where no file has names on both sides: one that comes wholly below counts when it is recounted, not before."""
        path = self.path_of(self.directory(where))
        if path is not None and not self.has_links_across(path):
            self.metadata.set_quota(path, None if units is None else units * UNIT, inodes)

    @rule(where=picks)
    def delete_quota(self, where: int) -> None:
        path = self.path_of(self.directory(where))
        if path is not None:
            self.attempt(lambda: self.metadata.delete_quota(path))

    @rule()
    def end_session(self) -> None:
        self.metadata.end_session(self.session)
        self.session = self.metadata.open_session("host", 1, "test").session

    def path_of(self, directory: InodeId) -> bytes | None:
        for path in self.paths():
            if self.metadata.resolve(path).inode == directory:
                return path
        return None

    def paths(self) -> list[bytes]:
        found, pending = [], [b"/"]
        while pending:
            path = pending.pop()
            found.append(path)
            entries = self.metadata.list_directory(self.metadata.resolve(path).inode, b"", 100)
            pending += [path + entry.name + b"/" for entry in entries if entry.kind is DIRECTORY]
        return found

    def has_links_across(self, path: bytes) -> bool:
        inside: dict[InodeId, int] = {}
        for below in self.paths():
            if below.startswith(path):
                for entry in self.metadata.list_directory(self.metadata.resolve(below).inode, b"", 100):
                    if entry.kind is REGULAR:
                        inside[entry.inode] = inside.get(entry.inode, 0) + 1
        return any(self.metadata.attributes(inode).link_count != count for inode, count in inside.items())


class QuotaMachineThatThinksTwice(QuotaMachine):
    engine_kind = SecondThoughts


TestQuotas = QuotaMachine.TestCase
TestQuotas.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestQuotasTwice = QuotaMachineThatThinksTwice.TestCase
TestQuotasTwice.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


# ---- several processes, and a crash ----------------------------------------------------------------------------------


def fill(path: str, number: int, directory: int, made: "multiprocessing.Queue[int]") -> None:
    """Create files until told that there is no room."""
    metadata = Metadata(SqliteEngine(path), local_host().clock)
    count = 0
    while True:
        try:
            metadata.create(InodeId(directory), b"%d-%d" % (number, count), Creation(REGULAR, 0o644, 1, 2))
        except errors.QuotaExceededError:
            made.put(count)
            return
        count += 1


def test_two_processes_fill_a_quota_exactly(tmp_path: Path) -> None:
    volume = make_volume(str(tmp_path / "volume.db"))
    directory = make(volume.metadata, ROOT, b"team")
    volume.metadata.set_quota(b"team", None, 300)
    spawn = multiprocessing.get_context("spawn")
    made: multiprocessing.Queue[int] = spawn.Queue()
    processes = [spawn.Process(target=fill, args=(volume.path, number, directory, made)) for number in range(2)]
    for process in processes:
        process.start()
    counts = [made.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sum(counts) == 300
    assert used(volume.metadata, b"team") == (0, 300)
    assert broken_invariants(volume.engine) == []
    volume.engine.close()


def test_a_transaction_that_does_not_commit_counts_nothing(volume: Volume, team: InodeId) -> None:
    before = volume.metadata.quota(b"team")

    class DiedError(Exception):
        pass

    def die(writer: object) -> None:
        directory = records.decode_inode(team, writer.get(keys.inode(team)))  # type: ignore[attr-defined]
        quotas.charge(writer, quotas.above(writer, directory), quotas.Usage(UNIT, 1))  # type: ignore[arg-type]
        raise DiedError

    with pytest.raises(DiedError):
        volume.engine.write(die)
    assert volume.metadata.quota(b"team") == before


def test_growth_is_asked_for_soon_after_another_process_sets_the_first_quota(volume: Volume) -> None:
    inode = create_written(volume, make(volume.metadata, ROOT, b"team"), b"file", 1)
    assert volume.metadata.check_size(inode, 1 << 40) is None
    Metadata(volume.engine, volume.clock).set_quota(b"team", UNIT, None)
    volume.clock.sleep(1.0)
    with pytest.raises(errors.QuotaExceededError):
        volume.metadata.check_size(inode, 1 << 40)
