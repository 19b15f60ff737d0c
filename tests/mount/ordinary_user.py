"""What an ordinary user does with a mount: `ordinary_user.py FOLDER DRIVER`, run as that user; prints JSON.

Run by root it first makes itself an ordinary user (`ordinary_user.py FOLDER DRIVER --as UID`), in a mount namespace of its own
where the machine is as a user's: /dev/fuse is open to everybody, and the interpreter can be reached though it may lie in
root's home. The mount goes with the namespace, whatever happens.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tieredfs.fuse.control import ControlClient, find_mount
from tieredfs.host import libc

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
COMMAND_S = 60


def become(uid: int, folder: Path) -> None:
    """An ordinary user on an ordinary machine. Raises OSError when this root may not."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount("none", "/", "", _MS_REC | _MS_PRIVATE, "")
    if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
        device = folder / "fuse"
        os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        device.chmod(0o666)
        libc.mount(str(device), "/dev/fuse", "", _MS_BIND, "")
    _open_the_ways((Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2], folder / "home"), folder)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _open_the_ways(paths: Sequence[Path], folder: Path) -> None:
    """Cover each directory that others may not pass by one that shows only those of `paths` that lie below it."""
    within = {path: os.open(path, os.O_PATH) for path in paths}
    closed = {parent for path in paths for parent in path.parents if not parent.stat().st_mode & stat.S_IXOTH}
    outermost = [parent for parent in closed if not closed & set(parent.parents)]
    covers = [Path(tempfile.mkdtemp(dir=folder)) for _ in outermost]
    sources = [os.open(cover, os.O_PATH) for cover in covers]
    for cover in covers:
        cover.chmod(0o755)
    for parent, source in zip(outermost, sources, strict=True):
        libc.mount(f"/proc/self/fd/{source}", str(parent), "", _MS_BIND, "")
        os.close(source)
    for path, descriptor in within.items():
        if not path.exists():
            path.mkdir(parents=True)
            libc.mount(f"/proc/self/fd/{descriptor}", str(path), "", _MS_BIND, "")
        os.close(descriptor)


def run(*arguments: str) -> str:
    """`tieredfs`, as this user; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "tieredfs", *arguments], check=False, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def tell(folder: Path, driver: str) -> dict[str, Any]:
    """The story. What it returns, the test looks at."""
    url, mnt = f"sqlite://{folder}/volume.db", folder / "mnt"
    mnt.mkdir()
    run("format", url, "--data", f"disk://{folder}/d{{0..2}}", "--code", "rs:2+1")
    run("mount", url, str(mnt), "--driver", driver)
    told: dict[str, Any] = {"uid": os.getuid()}
    daemon = 0
    try:
        found = find_mount(str(mnt))
        assert found is not None
        status: Any = ControlClient(found.mount_id).call("status", {}, lambda *_: None)
        served = status["mount"]
        told["driver"], told["refused"] = served["driver"], served.get("passthrough_refused", "")
        daemon = served["process"]
        content = os.urandom(3 << 20)
        told["written"] = hashlib.sha256(content).hexdigest()
        (mnt / "folder").mkdir(mode=0o750)
        with (mnt / "folder" / "new").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (mnt / "folder" / "new").rename(mnt / "file")
        told["owner"], told["mode"] = (mnt / "file").stat().st_uid, (mnt / "folder").stat().st_mode & 0o777
        run("drain", str(mnt))
        run("evict", str(mnt / "file"))
        if driver == "kernel":
            os.kill(daemon, signal.SIGKILL)  # its keeper starts another
        told["read"] = hashlib.sha256((mnt / "file").read_bytes()).hexdigest()
        run("umount", str(mnt))
        told["left"] = sorted(path.name for path in mnt.iterdir())
    finally:
        if os.path.ismount(mnt):
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                subprocess.run(["fusermount3", "-u", "-z", str(mnt)], check=False, timeout=COMMAND_S)
    return told


if __name__ == "__main__":
    signal.alarm(2 * COMMAND_S)
    place, wanted = Path(sys.argv[1]), sys.argv[2]
    if "--as" in sys.argv:
        become(int(sys.argv[4]), place)
        os.execv(sys.executable, [sys.executable, "-m", "tests.mount.ordinary_user", str(place / "home"), wanted])
    sys.stdout.write(json.dumps(tell(place, wanted)))
