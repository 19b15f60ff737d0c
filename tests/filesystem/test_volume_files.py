"""What fsspec on a volume promises beyond fsspec's own suite, and bad input."""

import contextlib
import os
import pickle
import threading
from pathlib import Path

import fsspec
import pytest

from tieredfs.errors import TieredError
from tieredfs_client.filesystem import TieredFileSystem
from tieredfs_client.filesystem.connections import CONNECTIONS

MIB = 1 << 20


# ---- URLs and instances ----------------------------------------------------------------------------------------------


def test_a_url_that_names_the_volume_needs_no_option(fs: TieredFileSystem) -> None:
    url = fs.unstrip_protocol("runs/loss.txt")
    with fsspec.open(url, "w") as file:
        file.write("0.5\n")
    assert fs.cat_file("runs/loss.txt") == b"0.5\n"
    found, path = fsspec.url_to_fs(url)
    assert (found.meta_url, path) == (fs.meta_url, "runs/loss.txt")
    with fsspec.open(f"simplecache::{url}") as chained:
        assert chained.read() == b"0.5\n"
    assert fs.cat_file(url) == b"0.5\n"


def test_the_volume_comes_from_the_environment_too(fs: TieredFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "tieredfs", {"meta_url": fs.meta_url})
    fs.pipe_file("a", b"1")
    with fsspec.open("tieredfs://a") as file:
        assert file.read() == b"1"


def test_a_url_without_a_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="which volume"):
        fsspec.open("tieredfs://runs/a").open()


def test_a_volume_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"tieredfs://{tmp_path}/none.db!/a").open()


def test_a_meta_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="redis"):
        fsspec.filesystem("tieredfs", meta_url="redis://localhost")


def test_another_volumes_url_is_not_read_from_this_one(fs: TieredFileSystem) -> None:
    fs.pipe_file("a", b"1")
    for call in (fs.cat_file, fs.info, fs.open, fs.ls):
        with pytest.raises(ValueError, match="another volume"):
            call("tieredfs:///elsewhere/volume.db!/a")


def test_threads_and_pickles_share_one_open_volume(fs: TieredFileSystem) -> None:
    seen: list[object] = [fs.volume, pickle.loads(pickle.dumps(fs)).volume]
    thread = threading.Thread(target=lambda: seen.append(fsspec.filesystem("tieredfs", meta_url=fs.meta_url).volume))
    thread.start()
    thread.join(30)
    assert len(seen) == 3
    assert len(set(map(id, seen))) == 1


def test_a_child_made_by_fork_opens_its_own(fs: TieredFileSystem) -> None:
    fs.pipe_file("a", b"parent")
    before = fs.volume
    child = os.fork()
    if child == 0:
        try:
            again = fsspec.filesystem("tieredfs", meta_url=fs.meta_url)
            ok = again.cat_file("a") == b"parent" and again.volume is not before
            again.pipe_file("b", b"child")
            CONNECTIONS.close_all()
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert fs.volume is before
    assert fs.cat("a") == b"parent"
    assert fs.cat_file("b") == b"child"


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_closed(fs: TieredFileSystem) -> None:
    with fs.open("a", "wb") as file:
        file.write(b"x" * 3 * MIB)
        assert not fs.exists("a")
        os.fsync(file.fileno())
        assert file.tell() == 3 * MIB
        file.seek(1)
        file.write(b"y")
    assert fs.info("a")["size"] == 3 * MIB
    assert fs.cat_file("a", 0, 3) == b"xyx"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_an_exception_leaves_what_was_there(fs: TieredFileSystem, mode: str) -> None:
    fs.pipe_file("a", b"old")
    with contextlib.suppress(RuntimeError), fs.open("a", mode) as file:
        file.write(b"new" if mode == "wb" else "new")
        raise RuntimeError
    dropped = fs.open("a", "wb")
    dropped.write(b"newer")
    del dropped
    assert fs.cat_file("a") == b"old"


def test_append_keeps_what_was_there_and_fails_rather_than_lose(fs: TieredFileSystem) -> None:
    for text in (b"1", b"2"):
        with fs.open("log", "ab") as file:
            file.write(text)
    assert fs.cat_file("log") == b"12"
    late = fs.open("log", "ab")
    late.write(b"lost?")
    fs.pipe_file("log", b"other")
    with pytest.raises(OSError, match="changed by somebody else"):
        late.close()
    assert fs.cat_file("log") == b"other"


def test_of_two_exclusive_writers_one_wins(fs: TieredFileSystem) -> None:
    first, second = fs.open("a", "xb"), fs.open("a", "xb")
    first.write(b"first")
    first.close()
    with pytest.raises(FileExistsError):
        second.close()
    assert fs.cat_file("a") == b"first"


def test_a_transaction_names_its_files_together(fs: TieredFileSystem) -> None:
    with fs.transaction:
        fs.pipe_file("a", b"1")
        with fs.open("b", "wb") as file:
            file.write(b"2")
        assert fs.ls("", detail=False) == []
    assert fs.cat(["a", "b"]) == {"a": b"1", "b": b"2"}


def test_a_transaction_that_raises_changes_nothing(fs: TieredFileSystem) -> None:
    fs.pipe_file("a", b"old")
    with contextlib.suppress(RuntimeError), fs.transaction:
        fs.pipe_file("a", b"new")
        fs.pipe_file("b", b"2")
        raise RuntimeError
    assert fs.ls("", detail=False) == ["a"]
    assert fs.cat_file("a") == b"old"
    fs.pipe_file("b", b"3")
    assert fs.cat_file("b") == b"3", "the transaction is over"


def test_a_transaction_that_fails_half_way_raises_and_ends(fs: TieredFileSystem) -> None:
    fs.pipe_file("c", b"old")
    fs.start_transaction()
    fs.pipe_file("b", b"2")
    fs.pipe_file("c", b"3")
    fs.rm_file("c")
    fs.makedirs("c/d")
    with pytest.raises(IsADirectoryError):
        fs.end_transaction()
    assert fs.isdir("c/d")
    assert fs.cat_file("b") == b"2", "names come one after another; the first was given"
    fs.pipe_file("e", b"5")
    assert fs.cat_file("e") == b"5"


# ---- names -----------------------------------------------------------------------------------------------------------


def test_moving_keeps_the_inode_and_replaces_at_once(fs: TieredFileSystem) -> None:
    fs.pipe({"run/a": b"a", "run/b": b"b"})
    inode = fs.info("run/a")["ino"]
    fs.mv("run/a", "run/b")
    assert (fs.info("run/b")["ino"], fs.ls("run", detail=False)) == (inode, ["run/b"])
    directory = fs.info("run")["ino"]
    fs.mv("run", "kept/run")
    assert fs.info("kept/run")["ino"] == directory
    assert fs.find("") == ["kept/run/b"]
    fs.pipe_file("c", b"c")
    fs.mv("c", "kept/")
    assert fs.cat_file("kept/c") == b"c"


def test_moving_onto_itself_needs_something_there(fs: TieredFileSystem) -> None:
    fs.pipe("here", b"1")
    fs.mv("here", "here")
    assert fs.cat("here") == b"1"
    with pytest.raises(FileNotFoundError):
        fs.mv("gone", "gone")


def test_a_copy_of_a_stored_file_writes_nothing(fs: TieredFileSystem) -> None:
    fs.pipe_file("big", os.urandom(6 * MIB))
    fs.volume.flush(60)
    blocks = [extent.block for extent in fs.volume.volume.metadata.extents(fs.info("big")["ino"])]
    fs.cp_file("big", "copies/big")
    copied = fs.info("copies/big")
    assert copied["stored"], "it was never staged"
    assert [one.block for one in fs.volume.volume.metadata.extents(copied["ino"])] == blocks
    fs.rm("big")
    assert fs.cat_file("copies/big", -1, None) != b""


def test_bad_names(fs: TieredFileSystem) -> None:
    fs.pipe_file("dir/file", b"1")
    with pytest.raises(IsADirectoryError):
        fs.open("dir", "rb")
    with pytest.raises(IsADirectoryError):
        fs.open("dir", "wb")
    with pytest.raises(IsADirectoryError):
        fs.open("", "wb")
    with pytest.raises(IsADirectoryError):
        fs.rm("dir")
    with pytest.raises(NotADirectoryError):
        fs.open("dir/file/below", "wb")
    with pytest.raises(NotADirectoryError):
        fs.rmdir("dir/file")
    with pytest.raises(FileNotFoundError, match="none"):
        fs.open("none", "rb")
    with pytest.raises(FileExistsError):
        fs.mkdir("dir")
    with pytest.raises(FileExistsError):
        fs.makedirs("dir")
    with pytest.raises(OSError, match="has entries"):
        fs.rmdir("dir")
    with pytest.raises(ValueError, match="r\\+b"):
        fs.open("dir/file", "r+b")
    assert fs.cat_file("dir/file") == b"1"


@pytest.mark.parametrize("path", ["../etc/passwd", "a/../../b", "tieredfs://../x"])
def test_a_path_above_the_root_is_refused(fs: TieredFileSystem, path: str) -> None:
    for call in (fs.cat_file, fs.info, fs.rm_file, lambda name: fs.open(name, "wb")):
        with pytest.raises(ValueError, match=r"\.\."):
            call(path)


def test_a_full_name_and_odd_bytes(fs: TieredFileSystem) -> None:
    odd = os.fsdecode(b"caf\xe9!")
    fs.pipe_file(odd, b"1")
    assert fs.ls("", detail=False) == [odd]
    with pytest.raises(OSError, match="name"):
        fs.pipe_file("n" * 256, b"")


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_ranges_of_many_files_are_read_together(fs: TieredFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 4096
    fs.pipe({"a": data, "b": data[::-1]})
    opened: list[str] = []
    reading = fs._reading
    monkeypatch.setattr(fs, "_reading", lambda name: opened.append(name) or reading(name))
    starts = [0, 10, 100_000, None, 5]
    ends = [4, 20, 100_010, 3, 9]
    answers = fs.cat_ranges(["a", "a", "a", "b", "a"], starts, ends)
    assert answers == [data[0:4], data[10:20], data[100_000:100_010], data[::-1][:3], data[5:9]]
    assert sorted(opened) == ["a", "b"]
    missing, there = fs.cat_ranges(["none", "a"], 0, 2)
    assert isinstance(missing, FileNotFoundError)
    assert there == data[:2]
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["none", "a"], 0, 2, on_error="raise")
    with pytest.raises(ValueError, match="positions"):
        fs.cat_ranges(["a", "a"], [0], [1])


def test_a_reader_keeps_its_content_when_the_name_goes(fs: TieredFileSystem) -> None:
    fs.pipe_file("a", b"old" * MIB)
    with fs.open("a") as file, fs.open("a") as other:
        assert file.read(3) == b"old"
        fs.pipe_file("a", b"new")
        fs.rm("a")
        assert file.read() == b"old" * (MIB - 1) + b""
        assert os.pread(other.fileno(), 3, 3) == b"old"
    assert not fs.exists("a")


def test_an_open_resident_file_is_a_local_file(fs: TieredFileSystem) -> None:
    fs.pipe_file("a", b"0123456789")
    with fs.open("a") as one, fs.open("a") as two:
        assert os.read(one.fileno(), 4) == b"0123"
        assert os.read(two.fileno(), 4) == b"0123", "offsets of their own"
        with pytest.raises(OSError, match="descriptor"):
            os.write(one.fileno(), b"x")


def test_a_file_that_left_the_ssd_is_read_from_the_store(fs: TieredFileSystem, tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    fs.pipe_file("a", data)
    fs.volume.flush(60)
    inode = fs.info("a")["ino"]
    fs.close()
    local = [path for path in (tmp_path / "clients").rglob(f"*{inode:x}*") if path.is_file()]
    assert local
    for path in local:
        path.unlink()
    assert fs.cat_file("a", 5, MIB) == data[5:MIB]
    fs.get_file("a", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data


def test_a_key_that_changes_with_the_content(fs: TieredFileSystem) -> None:
    fs.pipe_file("a", b"1")
    before = (fs.ukey("a"), fs.checksum("a"))
    assert (fs.ukey("a"), fs.checksum("a")) == before
    fs.touch("a", truncate=False)
    assert fs.cat_file("a") == b"1"
    fs.pipe_file("a", b"2")
    assert fs.ukey("a") != before[0]
    assert fs.modified("a") <= fs.created("a")


def test_the_cause_of_an_error_is_kept(fs: TieredFileSystem) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fs.cat_file("none")
    assert isinstance(caught.value.__cause__, TieredError)
    assert caught.value.filename == "none"
