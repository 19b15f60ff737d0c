"""Random histories of names and contents against a tree of plain Python objects, errors included.

The model knows nothing of keys and records; what is on the medium is checked apart from it (`broken_invariants`).
"""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.meta.conftest import CODE, SecondThoughts, Volume, make_volume
from tieredfs import errors
from tieredfs.kv.sqlite import SqliteEngine
from tieredfs.meta.metadata import Creation
from tieredfs.model import (
    NOBODY,
    ROOT,
    AttributeChange,
    Block,
    BlockId,
    ChunkLocation,
    DiskId,
    Extent,
    FileKind,
    InodeId,
    SessionId,
    StoredContent,
)
from tieredfs.testing.metadata_check import broken_invariants

DIRECTORY, REGULAR, SYMLINK = FileKind.DIRECTORY, FileKind.REGULAR, FileKind.SYMLINK
HOLDER = SessionId(77)


@dataclass(eq=False)
class Node:
    """An inode of the model. `alive`: it can still be asked for."""

    inode: InodeId
    kind: FileKind
    parent: "Node | None" = None
    children: dict[bytes, "Node"] = field(default_factory=dict)
    links: int = 1
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    alive: bool = True
    orphan: bool = False
    version: int = 0
    staged: bool = False
    size: int = 0
    stored_size: int = 0
    extents: tuple[Extent, ...] = ()

    def child(self, name: bytes) -> "Node":
        if name not in self.directory().children:
            raise errors.NotFoundError
        return self.children[name]

    def directory(self) -> "Node":
        if not self.alive:
            raise errors.NotFoundError
        if self.kind is not DIRECTORY:
            raise errors.NotDirectoryError
        return self

    def is_below(self, other: "Node") -> bool:
        node: Node | None = self
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False

    def drop_link(self, holder: SessionId) -> None:
        self.links -= 1
        if self.links == 0:
            self.orphan = bool(holder)
            self.alive = self.orphan

    @property
    def link_count(self) -> int:
        if self.kind is not DIRECTORY:
            return self.links
        return 2 + sum(child.kind is DIRECTORY for child in self.children.values())


def outcome(function: Callable[[], object]) -> object:
    """What a call returned, or the type of the domain error that it raised."""
    try:
        return function()
    except errors.TieredError as error:
        return type(error)


names = st.sampled_from([b"a", b"b", b"c", b"\xff"])
picks = st.integers(0, 1 << 16)


class MetadataMachine(RuleBasedStateMachine):
    volume: Volume
    engine_kind = SqliteEngine

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="tieredfs-model-")
        self.root = Node(ROOT, DIRECTORY)
        self.nodes = [self.root]
        self.blocks: dict[BlockId, int] = {}
        self.sizes = itertools.count(1)

    @initialize()
    def start(self) -> None:
        self.volume = make_volume(str(Path(self.directory.name) / "volume.db"), self.engine_kind)
        self.metadata = self.volume.metadata
        self.session = self.metadata.open_session("host", 1, "test").session
        for where, name, kind in ((0, b"a", DIRECTORY), (1, b"b", DIRECTORY), (2, b"a", REGULAR), (0, b"c", REGULAR)):
            parent = self.nodes[where]
            inode = self.metadata.create(parent.inode, name, Creation(kind, 0o755, 1, 2)).inode
            parent.children[name] = Node(inode, kind, parent)
            self.nodes.append(parent.children[name])

    def teardown(self) -> None:
        if hasattr(self, "volume"):
            self.volume.engine.close()
        self.directory.cleanup()

    def pick(self, number: int, *, directory: bool = False) -> Node:
        """Any node ever made, one in eight times; else one that is alive, and with `directory` a directory."""
        if number % 8 == 0:
            return self.nodes[number // 8 % len(self.nodes)]
        pool = [node for node in self.nodes if node.alive and (not directory or node.kind is DIRECTORY)]
        return pool[number % len(pool)]

    def pick_entry(self, number: int, name: bytes, *, empty_directories: bool = False) -> tuple[Node, bytes]:
        """A directory and a name in it, five in six times one that exists: most of what is asked should succeed."""
        entries = [(node, child) for node in self.nodes if node.alive for child in sorted(node.children)]
        if empty_directories:
            shown = [(node, child, node.children[child]) for node, child in entries]
            entries = [(node, child) for node, child, it in shown if it.kind is DIRECTORY and not it.children]
        if number % 6 == 0 or not entries:
            return self.pick(number // 6, directory=True), name
        return entries[number % len(entries)]

    # ---- names --------------------------------------------------------------------------------------------------

    @rule(where=picks, name=names, kind=st.sampled_from([DIRECTORY, DIRECTORY, REGULAR, SYMLINK]), staged=st.booleans())
    def create(self, where: int, name: bytes, kind: FileKind, staged: bool) -> None:
        parent = self.pick(where, directory=True)
        staged = staged and kind is REGULAR
        target = b"target" if kind is SYMLINK else b""
        creation = Creation(kind, 0o755, 1, 2, target=target, staged_in=self.volume.cache if staged else 0)  # type: ignore[arg-type]
        found = outcome(lambda: self.metadata.create(parent.inode, name, creation).inode)

        def model() -> Node:
            if name in parent.directory().children:
                raise errors.AlreadyExistsError
            return Node(found, kind, parent, version=int(staged), staged=staged, size=len(target))  # type: ignore[arg-type]

        node = outcome(model)
        if isinstance(node, Node):
            assert isinstance(found, int), found
            parent.children[name] = node
            self.nodes.append(node)
        else:
            assert found is node

    @rule(what=picks, where=picks, name=names)
    def link(self, what: int, where: int, name: bytes) -> None:
        node, parent = self.pick(what), self.pick(where, directory=True)

        def model() -> int:
            parent.directory()
            if not node.alive:
                raise errors.NotFoundError
            if node.kind is DIRECTORY:
                raise errors.NotPermittedError
            if node.orphan:
                raise errors.NotFoundError
            if name in parent.children:
                raise errors.AlreadyExistsError
            parent.children[name] = node
            node.links += 1
            return node.links

        found = outcome(lambda: self.metadata.link(node.inode, parent.inode, name).link_count)
        assert found == outcome(model)

    @rule(where=picks, name=names, held=st.booleans())
    def unlink(self, where: int, name: bytes, held: bool) -> None:
        (parent, name), holder = self.pick_entry(where, name), HOLDER if held else NOBODY

        def model() -> tuple[InodeId, bool]:
            node = parent.child(name)
            if node.kind is DIRECTORY:
                raise errors.IsDirectoryError
            del parent.children[name]
            node.drop_link(holder)
            return node.inode, node.links == 0

        def real() -> tuple[InodeId, bool]:
            removed = self.metadata.unlink(parent.inode, name, holder)
            return removed.inode, removed.gone

        assert outcome(real) == outcome(model)

    @rule(where=picks, name=names)
    def remove_directory(self, where: int, name: bytes) -> None:
        parent, name = self.pick_entry(where, name, empty_directories=where % 3 > 0)

        def model() -> InodeId:
            node = parent.child(name)
            if node.kind is not DIRECTORY:
                raise errors.NotDirectoryError
            if node.children:
                raise errors.DirectoryNotEmptyError
            del parent.children[name]
            node.alive = False
            return node.inode

        assert outcome(lambda: self.metadata.remove_directory(parent.inode, name).inode) == outcome(model)

    @rule(where=picks, name=names, to=picks, new_name=names, mode=st.sampled_from("rrrrnx"), held=st.booleans())
    def rename(self, *, where: int, name: bytes, to: int, new_name: bytes, mode: str, held: bool) -> None:
        old, name = self.pick_entry(where, name)
        new, new_name = self.pick_entry(to, new_name) if to % 2 else (self.pick(to // 2, directory=True), new_name)
        holder = HOLDER if held else NOBODY

        def real() -> InodeId | None:
            removed = self.metadata.rename(
                old.inode, name, new.inode, new_name, replace=mode != "n", exchange=mode == "x", holder=holder
            )
            return None if removed is None else removed.inode

        assert outcome(real) == outcome(lambda: self.model_rename(old, name, new, new_name, mode=mode, holder=holder))

    def model_rename(
        self, old: Node, name: bytes, new: Node, new_name: bytes, *, mode: str, holder: SessionId
    ) -> InodeId | None:
        new.directory()
        source = old.child(name)
        target = new.children.get(new_name)
        if mode == "x" and target is None:
            raise errors.NotFoundError
        if mode == "n" and target is not None:
            raise errors.AlreadyExistsError
        if target is source:
            return None
        if new.is_below(source) or (mode == "x" and target is not None and old.is_below(target)):
            raise errors.InvalidRequestError
        if mode == "x":
            assert target is not None
            old.children[name], new.children[new_name] = target, source
            target.parent = old
        else:
            if target is not None:
                self.model_replace(source, target, holder)
            del old.children[name]
            new.children[new_name] = source
        source.parent = new
        return None if target is None else target.inode

    @staticmethod
    def model_replace(source: Node, target: Node, holder: SessionId) -> None:
        if source.kind is DIRECTORY and target.kind is not DIRECTORY:
            raise errors.NotDirectoryError
        if target.kind is DIRECTORY:
            if source.kind is not DIRECTORY:
                raise errors.IsDirectoryError
            if target.children:
                raise errors.DirectoryNotEmptyError
            target.alive = False
        else:
            target.drop_link(holder)

    # ---- attributes ---------------------------------------------------------------------------------------------

    @rule(what=picks, name=names, value=st.binary(max_size=3), flag=st.sampled_from(["", "create", "replace"]))
    def set_xattr(self, what: int, name: bytes, value: bytes, flag: str) -> None:
        node = self.pick(what)

        def model() -> None:
            if not node.alive:
                raise errors.NotFoundError
            if flag == "create" and name in node.xattrs:
                raise errors.AlreadyExistsError
            if flag == "replace" and name not in node.xattrs:
                raise errors.NoAttributeError
            node.xattrs[name] = value

        flags = {"create": flag == "create", "replace": flag == "replace"}
        assert outcome(lambda: self.metadata.set_xattr(node.inode, name, value, **flags)) == outcome(model)

    @rule(what=picks, name=names)
    def remove_xattr(self, what: int, name: bytes) -> None:
        node = self.pick(what)

        def model() -> None:
            if not node.alive:
                raise errors.NotFoundError
            if node.xattrs.pop(name, None) is None:
                raise errors.NoAttributeError

        assert outcome(lambda: self.metadata.remove_xattr(node.inode, name)) == outcome(model)

    @rule(what=picks, mode=st.integers(0, 0o7777))
    def change_mode(self, what: int, mode: int) -> None:
        node = self.pick(what)
        if node.kind is DIRECTORY:
            mode &= 0o5777  # set-gid is inherited: a test of its own
        found = outcome(lambda: self.metadata.set_attributes(node.inode, AttributeChange(mode=mode)).mode)
        assert found == (mode if node.alive else errors.NotFoundError)

    # ---- contents -----------------------------------------------------------------------------------------------

    @rule(what=picks, truncate=st.booleans(), published=st.booleans())
    def write(self, what: int, truncate: bool, published: bool) -> None:
        node = self.pick(what)
        found = outcome(lambda: self.metadata.begin_write(node.inode, self.volume.cache, truncate=truncate).version)
        if not node.alive:
            assert found is errors.NotFoundError
        elif node.kind is not REGULAR:
            assert found in {errors.IsDirectoryError, errors.InvalidRequestError}
        else:
            node.version, node.staged = node.version + 1, True
            assert found == node.version
            node.size = 0 if truncate else node.size
            if published:
                node.size = next(self.sizes)
                self.metadata.publish(node.inode, node.version, node.size, 5)
            self.metadata.publish(node.inode, node.version - 1, 1 << 30, 5)

    @rule(what=picks, late=st.booleans())
    def abandon(self, what: int, late: bool) -> None:
        node = self.pick(what)
        self.metadata.abandon_write(node.inode, node.version - int(late))
        if node.staged and not late:
            node.staged, node.size = False, node.stored_size

    @rule(
        chosen=st.sets(st.integers(0, 6), max_size=5), late=st.integers(0, 10), complete=st.booleans(), data=st.data()
    )
    def store(self, chosen: set[int], late: int, complete: bool, data: st.DataObject) -> None:
        """Drain some files into one block; the `late`-th has a newer version by now. Old blocks may be used again."""
        pool = [node for node in self.nodes if node.kind is REGULAR and (node.alive or node.inode % 8 == 0)]
        nodes = [pool[number] for number in sorted(chosen) if number < len(pool)]
        block = self.metadata.reserve_block(self.session)
        old = data.draw(st.sampled_from([None, *self.blocks]))
        contents = []
        for place, node in enumerate(nodes):
            extents = [Extent(data.draw(st.integers(0, 5)), 10, block, 10 * place)]
            if old is not None:
                extents.append(Extent(15, 5, old, 0))
            version = node.version - int(place == late)
            contents.append(StoredContent(node.inode, version, 20, 5, tuple(extents), complete))
        chunks = tuple(ChunkLocation(index, DiskId(index + 1), index) for index in range(3))
        taken = self.metadata.commit_stored(contents, [Block(block, CODE, 1000, 500, chunks)])
        self.blocks[block] = 1000
        expected = [(node, content) for node, content in zip(nodes, contents, strict=True)
                    if node.alive and content.version == node.version]  # fmt: skip
        assert taken == {node.inode for node, _ in expected}
        for node, content in expected:
            node.extents, node.stored_size = content.extents, 20
            if complete:
                node.staged, node.size = False, 20

    @precondition(lambda self: self.blocks)
    @rule(limit=st.integers(1, 3))
    def forget_dead_blocks(self, limit: int) -> None:
        dead = [block.block for block in self.metadata.dead_blocks(1 << 62, limit)]
        self.metadata.forget_blocks([*dead, *self.blocks])
        for block in set(self.blocks) - self.used_blocks():
            del self.blocks[block]

    # ---- orphans ------------------------------------------------------------------------------------------------

    @rule(what=picks)
    def reclaim(self, what: int) -> None:
        node = self.pick(what)
        self.metadata.reclaim_orphan(node.inode, SessionId(HOLDER + 1))
        self.metadata.reclaim_orphan(node.inode, HOLDER)
        if node.orphan:
            node.alive = node.orphan = False

    @rule()
    def end_session(self) -> None:
        expected = [node for node in self.nodes if node.orphan]
        assert sorted(self.metadata.end_session(HOLDER)) == [node.inode for node in expected]
        for node in expected:
            node.alive = node.orphan = False

    # ---- the whole ----------------------------------------------------------------------------------------------

    def used_blocks(self) -> set[BlockId]:
        return {extent.block for node in self.nodes if node.alive for extent in node.extents}

    @invariant()
    def every_node_shows_what_the_model_has(self) -> None:
        for node in self.nodes:
            found = outcome(lambda node=node: self.metadata.attributes(node.inode))  # type: ignore[misc]
            if not node.alive:
                assert found is errors.NotFoundError
                continue
            shown = (found.kind, found.link_count, found.size_bytes, found.version, bool(found.staged_in))  # type: ignore[attr-defined]
            assert shown == (node.kind, node.link_count, node.size, node.version, node.staged)
            assert self.metadata.extents(node.inode) == list(node.extents)
            assert self.metadata.list_xattrs(node.inode) == sorted(node.xattrs)
            if node.kind is DIRECTORY:
                listed = self.metadata.list_directory_plus(node.inode, b"", 100)
                assert [(entry.name, shown.inode) for entry, shown in listed] == [
                    (name, child.inode) for name, child in sorted(node.children.items())
                ]

    @invariant()
    def lists_agree(self) -> None:
        assert self.metadata.orphans() == [(HOLDER, node.inode) for node in self.nodes if node.orphan]
        staged = {(record.inode, record.version) for record in self.metadata.staged()}
        assert staged == {(node.inode, node.version) for node in self.nodes if node.alive and node.staged}
        assert self.metadata.count_inodes() == sum(node.alive for node in self.nodes)
        assert {block.block for block in self.metadata.list_blocks(BlockId(0), 1000)} == set(self.blocks)
        assert {block.block for block in self.metadata.dead_blocks(1 << 62, 1000)} == (
            set(self.blocks) - self.used_blocks()
        )

    @invariant()
    def medium_is_sound(self) -> None:
        assert broken_invariants(self.volume.engine) == []


TestMetadataModel = MetadataMachine.TestCase
TestMetadataModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


class AgainMachine(MetadataMachine):
    """Whatever runs in a transaction may run more than once."""

    engine_kind = SecondThoughts


TestAgainModel = AgainMachine.TestCase
TestAgainModel.settings = settings(
    max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
