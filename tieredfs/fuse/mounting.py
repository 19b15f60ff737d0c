"""Mounting a volume, and taking the mount away: what `tieredfs mount`, `up` and `umount` do.

`mount_volume` returns when programs can use the mount, or raises what is in the way, with nothing mounted. The processes
that serve it write their log beside the metadata file (`volume.db.log`), or where `volume.places` has it.
"""

import contextlib
import os
import platform
import re
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tieredfs.config import MetaUrl, parse_meta_url
from tieredfs.errors import (
    ConfigurationError,
    DeadlineError,
    NotAMountError,
    NotSupportedError,
    TieredError,
    UnavailableError,
)
from tieredfs.fuse.control import ControlClient, find_mount, mount_source
from tieredfs.fuse.kernel import keeper
from tieredfs.fuse.kernel import mounting as kernel_mounting
from tieredfs.fuse.settings import DaemonSettings
from tieredfs.host import SystemClock, local_host
from tieredfs.limits import CACHE_BYTES_DEFAULT, MEMORY_BYTES_DEFAULT, MOUNT_READY_S, UNMOUNT_WAIT_S
from tieredfs.model import Progress, VolumeConfig
from tieredfs.volume.places import local_directory, log_path

DRIVERS: Final = ("auto", "kernel", "fuse-python")
_PASSTHROUGH_SINCE: Final = (6, 9)
_KERNEL_DRIVER_SINCE: Final = (5, 4)
_CAP_SYS_ADMIN: Final = 21
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `tieredfs mount` was asked for. `cache_dir` None: `cache` in the volume's place on this host."""

    meta_url: str
    mountpoint: str
    cache_dir: str | None = None
    cache_bytes: int = CACHE_BYTES_DEFAULT
    memory_bytes: int = MEMORY_BYTES_DEFAULT
    driver: str = "auto"
    read_only: bool = False
    allow_other: bool = False
    foreground: bool = False


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """A mount that is ready. `reason`: why that driver. `process`: its keeper, or its daemon under fuse-python."""

    driver: str
    reason: str
    mountpoint: str
    mount_id: str
    process: "subprocess.Popen[bytes]"


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides between the drivers."""

    kernel: tuple[int, int]
    has_device: bool
    may_mount: bool
    """root, for mount(2)."""
    may_pass_through: bool
    """CAP_SYS_ADMIN in the initial namespace, for FUSE_DEV_IOC_BACKING_OPEN."""
    has_fusermount: bool


def choose_driver(wanted: str, machine: Machine) -> tuple[str, str]:
    """The driver, and why. Pure. Raises ConfigurationError, NotSupportedError with what to do about it."""
    if wanted not in DRIVERS:
        raise ConfigurationError(f"--driver {wanted}: one of {', '.join(DRIVERS)}")
    version = ".".join(str(part) for part in machine.kernel)
    if not machine.has_device:
        raise NotSupportedError("this machine has no /dev/fuse: load the module (modprobe fuse), or pass the device in")
    if not (machine.may_mount or machine.has_fusermount):
        raise NotSupportedError("mounting needs root, or fusermount (Debian: apt install fuse3)")
    if wanted == "fuse-python":
        return wanted, "asked for; bytes pass through the daemon"
    if machine.kernel < _KERNEL_DRIVER_SINCE:
        if wanted == "kernel":
            raise NotSupportedError(f"the kernel driver needs Linux 5.4; this is {version}. Use --driver fuse-python")
        return "fuse-python", f"Linux {version} is older than 5.4, which the kernel driver needs"
    if machine.kernel < _PASSTHROUGH_SINCE:
        return "kernel", f"Linux {version} has no FUSE passthrough (6.9 has): bytes pass through the daemon"
    if not machine.may_pass_through:
        return "kernel", "FUSE passthrough needs root (CAP_SYS_ADMIN): bytes pass through the daemon"
    return "kernel", f"Linux {version} and root: the kernel reads and writes the SSD itself (passthrough)"


def this_machine() -> Machine:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    kernel = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    root = os.geteuid() == 0
    return Machine(
        kernel,
        os.path.exists(kernel_mounting.DEVICE),
        root,
        root and _has_capability(_CAP_SYS_ADMIN),
        kernel_mounting.fusermount() is not None,
    )


def _has_capability(number: int) -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> number & 1)


def mount_volume(options: MountOptions) -> MountedVolume:
    """Mount, and return when the mount answers. With `foreground`, return when it has been unmounted.

    Raises MountPointError, NotSupportedError, BusyError (the cache directory), and what opening the volume raises.
    """
    location = parse_meta_url(options.meta_url)
    driver, reason = choose_driver(options.driver, this_machine())
    mountpoint = kernel_mounting.check_mountpoint(options.mountpoint)
    config = _config_of(location)
    mount_id = secrets.token_hex(8)
    settings = DaemonSettings(
        str(location),
        mountpoint,
        mount_id,
        os.path.abspath(options.cache_dir or os.path.join(local_directory(str(location), config.uuid), "cache")),
        options.cache_bytes,
        options.memory_bytes,
        driver,
        reason,
        options.read_only,
        options.allow_other,
    )
    start = _start_portable if driver == "fuse-python" else _start_kernel
    process = start(settings, mount_source(config.name, mount_id), log_path(str(location), config.uuid))
    mounted = MountedVolume(driver, reason, mountpoint, mount_id, process)
    if options.foreground:
        _wait_in_foreground(mounted)
    return mounted


def _config_of(location: MetaUrl) -> VolumeConfig:
    """Also the earliest place to learn that there is no such volume."""
    from tieredfs.kv.databases import open_engine
    from tieredfs.meta.metadata import Metadata

    engine = open_engine(location)
    try:
        return Metadata(engine, SystemClock()).config()
    finally:
        engine.close()


def _command(settings: DaemonSettings) -> tuple[str, ...]:
    return (sys.executable, "-m", "tieredfs.fuse.daemon", settings.encode())


def _start_kernel(settings: DaemonSettings, source: str, log: str) -> "subprocess.Popen[bytes]":
    mount = kernel_mounting.MountOptions(source, settings.read_only, settings.allow_other)
    return keeper.start(keeper.KeeperOptions(settings.mountpoint, _command(settings), mount, log))


def _start_portable(settings: DaemonSettings, source: str, log: str) -> "subprocess.Popen[bytes]":
    from dataclasses import replace

    del source  # the daemon makes it from the same facts
    ours, theirs = os.pipe()
    try:
        with open(log, "ab") as output:
            daemon = subprocess.Popen(
                _command(replace(settings, report=theirs)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        os.close(theirs)
        keeper.await_ready(ours, daemon, MOUNT_READY_S)
    finally:
        os.close(ours)
    return daemon


def _wait_in_foreground(mounted: MountedVolume) -> None:
    """Until the mount is gone; Ctrl-C and SIGTERM unmount it."""

    def stop(*_: object) -> None:
        if mounted.driver == "fuse-python":
            with contextlib.suppress(TieredError):
                kernel_mounting.unmount(mounted.mountpoint, lazy=True)
        else:
            mounted.process.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        mounted.process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def unmount(mountpoint: str, *, flush: bool, progress: Progress) -> None:
    """Take a mount away, and return when its daemon has closed the volume. `flush`: first store what is staged.

    Raises NotAMountError, BusyError (in use), and with `flush` what the drain raises.
    """
    found = find_mount(mountpoint)
    if found is None or os.path.realpath(found.mount_point) != os.path.realpath(mountpoint):
        raise NotAMountError(f"{mountpoint} is not a TieredFS mount (tieredfs status shows those there are)")
    client = ControlClient(found.mount_id)
    with _daemon_of(client) as daemon:
        if flush:
            client.call("flush", {}, progress)
        kernel_mounting.unmount(found.mount_point, lazy=daemon is None)
        if daemon is not None and not daemon.ends_within(UNMOUNT_WAIT_S):
            raise DeadlineError(f"{mountpoint} is unmounted, but its daemon still runs after {UNMOUNT_WAIT_S:.0f} s")


@dataclass(frozen=True, slots=True)
class _Daemon:
    """One that answers. `descriptor`: its process (pidfd_open(2)); -1 where there is none to be had."""

    client: ControlClient
    descriptor: int

    def ends_within(self, timeout_s: float) -> bool:
        """It closes its control socket first, then the volume, and ends."""
        if self.descriptor >= 0:
            return bool(select.select([self.descriptor], [], [], timeout_s)[0])
        clock = local_host().clock
        deadline_s = clock.monotonic_s() + timeout_s
        while _answers(self.client):
            if clock.monotonic_s() > deadline_s:
                return False
            clock.sleep(_POLL_S)
        return True


@contextmanager
def _daemon_of(client: ControlClient) -> Iterator[_Daemon | None]:
    """None: nobody answers."""
    if not _answers(client):
        yield None
        return
    try:
        descriptor = os.pidfd_open(client.process())
    except (OSError, UnavailableError):  # Linux before 5.3; it is in another namespace (process 0); it has just ended
        descriptor = -1
    try:
        yield _Daemon(client, descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _answers(client: ControlClient) -> bool:
    try:
        client.ping()
    except UnavailableError:
        return False
    return True
