"""The machine: clock, files, buffers, native routines, crash points.

The only package that touches clock, files and randomness directly. Everything above takes a `Host`, so that one seed
replays a run, and a test's host can lie: files that forget what was not synced, a clock that jumps.
"""

from tieredfs.host.clock import Clock, SystemClock
from tieredfs.host.files import Files, LocalFiles
from tieredfs.host.machine import Host, local_host

__all__ = ["Clock", "Files", "Host", "LocalFiles", "SystemClock", "local_host"]
