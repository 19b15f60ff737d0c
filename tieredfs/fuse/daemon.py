"""The process that serves a mount: volume, SSD tier, operations and control socket, under one of the two drivers.

    python -m tieredfs.fuse.daemon SETTINGS     SETTINGS is the JSON of `DaemonSettings`

Under the kernel driver it is the child of a keeper (`tieredfs.fuse.kernel.keeper`), and may be the successor of one that
was killed: then it adopts that one's session, recovers the tier, and binds the handles that programs hold, before the
drain starts: a content that a program goes on writing must not be taken for a closed one.
"""

import contextlib
import gc
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

from tieredfs.errors import TieredError
from tieredfs.fuse.control import ControlServer, mount_source
from tieredfs.fuse.kernel.pushing import Pusher
from tieredfs.fuse.settings import DaemonSettings
from tieredfs.fuse.verbs import MountVerbs
from tieredfs.fuse.volume_operations import VolumeOperations
from tieredfs.fuse.watch_verbs import WatchVerbs
from tieredfs.fuse.watching import Watchable
from tieredfs.host.memory import keep_freed_memory_low
from tieredfs.limits import ATTRIBUTE_TIMEOUT_S, ENTRY_TIMEOUT_S
from tieredfs.volume import SsdTier, Volume
from tieredfs.volume.caretaker import Caretaker

_log: Final = logging.getLogger("tieredfs.fuse.daemon")
_PORTABLE: Final = "fuse-python"


class ServedMount:
    """What is open while a mount is served. `driver_facts`, `watchable` and `pusher` are set by the driver."""

    def __init__(self, settings: DaemonSettings, volume: Volume, ssd: SsdTier, operations: VolumeOperations) -> None:
        self.settings = settings
        self.volume = volume
        self.ssd = ssd
        self.operations = operations
        self.caretaker = Caretaker(volume, ssd.tier.cache)
        self.driver_facts: Callable[[], Mapping[str, object]] = dict
        self.watchable: Watchable | None = None
        self.pusher: Pusher | None = None

    def describe(self) -> dict[str, object]:
        """The `mount` part of `status`."""
        return {
            "mount_id": self.settings.mount_id,
            "mountpoint": self.settings.mountpoint,
            "driver": self.settings.driver,
            "reason": self.settings.reason,
            "read_only": self.settings.read_only,
            "process": os.getpid(),
            "kernel": os.uname().release,
        } | dict(self.driver_facts())

    def start(self) -> None:
        """Every handle of an earlier daemon is bound again: drain and eviction may begin."""
        self.ssd.start()
        self.caretaker.start()
        if self.pusher is not None:
            self.pusher.start()
        gc.collect()
        gc.freeze()

    def pushed(self) -> int:
        return self.pusher.pushed if self.pusher is not None else 0

    def stop_pushing(self) -> None:
        if self.pusher is not None:
            self.pusher.close()


@contextmanager
def serving(settings: DaemonSettings) -> Iterator[ServedMount]:
    """Volume, tier and control socket, open. Raises domain errors when any of them cannot be."""
    _raise_descriptor_limit()
    keep_freed_memory_low()
    with contextlib.ExitStack() as stack:
        purpose = f"mount {settings.mount_id}"
        volume = stack.enter_context(
            Volume.open(settings.meta_url, purpose=purpose, adopt=True, memory_bytes=settings.memory_bytes)
        )
        ssd = SsdTier(volume, settings.cache_dir, settings.cache_bytes)
        stack.callback(ssd.close)
        mount = int(settings.mount_id, 16)
        operations = VolumeOperations(
            volume, ssd, mount, read_only=settings.read_only, told_when_forgotten=settings.driver != _PORTABLE
        )
        stack.callback(_release_all, operations)
        served = ServedMount(settings, volume, ssd, operations)
        watching = WatchVerbs(volume, ssd, lambda: served.watchable)
        verbs = MountVerbs(volume, ssd, served.describe).table() | watching.table()
        control = ControlServer(settings.mount_id, verbs)
        stack.callback(control.close)
        stack.callback(served.caretaker.close)
        stack.callback(served.stop_pushing)
        yield served
        volume.metadata.forget_receipts(mount)


def _release_all(operations: VolumeOperations) -> None:
    for error in operations.close():
        _log.warning("a file that was open at the end could not be closed: %s", error)


def _raise_descriptor_limit() -> None:
    """Every open file is a descriptor of ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve_kernel(settings: DaemonSettings) -> int:
    from tieredfs.fuse.kernel.daemon import Guard, serve_for_keeper
    from tieredfs.fuse.kernel.session import Session, SessionOptions

    mounted: list[ServedMount] = []

    @contextmanager
    def open_operations() -> Iterator[VolumeOperations]:
        with serving(settings) as served:
            mounted.append(served)
            yield served.operations

    def options() -> SessionOptions:
        metadata = mounted[0].volume.metadata
        metadata.follow(mounted[0].volume.session)
        return SessionOptions(attribute_timeout_s=ATTRIBUTE_TIMEOUT_S, entry_timeout_s=ENTRY_TIMEOUT_S)

    def observe(session: Session, guard: Guard) -> None:
        served = mounted[0]
        metadata = served.volume.metadata
        served.watchable = session
        served.pusher = Pusher(metadata.stamp, metadata.changes, session)
        served.driver_facts = lambda: asdict(session.snapshot()) | {"pushed": served.pushed(), "guarded": guard.lives}

    return serve_for_keeper(open_operations, options, observe=observe, on_ready=lambda: mounted[0].start())  # noqa: PLW0108 - it is filled later


def _serve_portable(settings: DaemonSettings) -> int:
    from tieredfs.fuse.kernel.keeper import error_message
    from tieredfs.fuse.portable import serve_portable

    def ready(served: ServedMount) -> None:
        served.start()
        os.write(settings.report, json.dumps({"say": "ready"}).encode())
        os.close(settings.report)

    try:
        with serving(settings) as served:
            serve_portable(
                served.operations,
                settings.mountpoint,
                source=mount_source(served.volume.config.name, settings.mount_id),
                read_only=settings.read_only,
                allow_other=settings.allow_other,
                on_ready=lambda: ready(served),
                foreground=False,
            )
    except (TieredError, OSError) as error:
        with contextlib.suppress(OSError):  # said ready before
            os.write(settings.report, error_message(error))
        _log.error("%s: %s", type(error).__name__, error)
        return 1
    return 0


def main() -> int:
    """The process."""
    settings = DaemonSettings.decode(sys.argv[1])
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s {settings.mount_id} %(levelname)s %(name)s: %(message)s"
    )
    return _serve_portable(settings) if settings.driver == _PORTABLE else _serve_kernel(settings)


if __name__ == "__main__":
    sys.exit(main())
