"""The threads that read requests from one /dev/fuse descriptor.

**One leads, the others follow.** Only the leader reads; it carries out what it has read and reads again, so a stream of
quick requests is served by one thread that nobody wakes and with whom nobody fights for the interpreter's lock. Before a
request that may wait or moves bytes it steps aside (`Request.step_aside`, called by the session for such opcodes, and
through `host.waiting` by whatever finds out that it must wait), and a follower, an idle one or a new one, reads on.
Should a leader wait and not say so, `run` sees it stand still for `STUCK_S` and has a follower read on: a place that was
forgotten costs a moment, never the mount.

With four threads that read at once each RELEASE of a file was carried out beside the OPEN of the next one: two threads
handing the interpreter to and fro, 8 futex calls a request.

A request may wait for minutes (the bytes of a file that is being filled, room on the SSD), so there is always one more
thread than requests that wait, up to `THREADS_MAX`. Threads beyond `threads` leave when they find enough others idle.
`_followers` is a list used as a bag of tokens: `append` and `pop` are atomic.

The leader never sleeps in a read: the descriptor is non-blocking, and how to wait is a decision of its own (`attention.py`).

Measured on two cores: a descriptor per thread (FUSE_DEV_IOC_CLONE) gave nothing, and a cloned descriptor that dies with
its daemon fails its requests instead of keeping them for the next one.
"""

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from tieredfs.fuse.kernel.attention import Attention
from tieredfs.fuse.kernel.request import Request
from tieredfs.host.waiting import when_waiting

_log = logging.getLogger(__name__)

THREADS_MAX: Final = 64
STUCK_S: Final = 0.2
GONE: Final = frozenset({errno.ENODEV, errno.EBADF, errno.ECONNABORTED})
"""What reads and writes say after an unmount."""
_AGAIN: Final = frozenset({errno.EINTR, errno.ENOENT})
"""ENOENT from a read: the request was withdrawn between queue and read."""


def _is_ready(poll: select.poll) -> bool:
    """Asked instead of reading in vain: 0.4 us, where an exception costs 1.4."""
    return bool(poll.poll(0))


class Readers:
    """All reader threads of a mount. `serve` carries out and answers one request. `catch_up` is called when there is none, and
    does a piece of what was put off until then; False: there is nothing. Neither ever raises."""

    def __init__(
        self, device: int, threads: int, serve: Callable[[Request], None], catch_up: Callable[[Request], bool]
    ) -> None:
        self._device = device
        os.set_blocking(device, False)
        poll = select.poll()
        poll.register(device, select.POLLIN)
        self._attention = Attention(poll.poll, os.sched_yield, partial(_is_ready, poll), time.perf_counter)
        self._spare = threads
        self._serve = serve
        self._catch_up = catch_up
        self._lead = threading.Lock()
        """Held by the thread that reads."""
        self._leader: Request | None = None
        self._handing_over = threading.Lock()
        self._followers: list[int] = []
        self._lock = threading.Lock()
        self.requests: list[Request] = []
        """Of every slot that was ever used; a slot is reused when its thread has left."""
        self._free_slots: list[int] = []
        self.threads = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Until the mount is gone."""
        for _ in range(self._spare):
            self._start_thread()
        seen = 0
        while not self._ended.wait(STUCK_S):
            seen = self._look_after_leader(seen)
        self._join()

    def _look_after_leader(self, seen: int) -> int:
        """Relieve a leader that is carrying out the same request as the last time. Returns how far it is now."""
        leader = self._leader
        if leader is None:
            return 0
        if leader.turns == seen and leader.turns % 2:
            self._hand_over(leader)
        return leader.turns

    def _start_thread(self) -> None:
        with self._lock:
            if self.threads >= THREADS_MAX or self._ended.is_set():
                return
            self.threads += 1
            if self._free_slots:
                request = self.requests[self._free_slots.pop()]
            else:
                request = Request(self._device, len(self.requests))
                self.requests.append(request)
        threading.Thread(target=self._live, args=(request,), name=f"fuse-{request.slot}", daemon=True).start()

    def _live(self, request: Request) -> None:
        request.step_aside = partial(self._step_aside, request)
        when_waiting(request.step_aside)
        try:
            self._follow(request)
        finally:
            with self._lock:
                self.threads -= 1
                self._free_slots.append(request.slot)

    def _follow(self, request: Request) -> None:
        """Wait for the turn to read, again and again; returns at the end, or when there are enough others."""
        while True:
            self._followers.append(0)
            self._lead.acquire()
            self._followers.pop()
            request.leading, self._leader = True, request
            if not self._read_on(request):
                self._ended.set()
                self._lead.release()
                return
            if len(self._followers) >= self._spare:
                return

    def _read_on(self, request: Request) -> bool:
        """Lead, until a request made this thread step aside (True) or the mount is gone."""
        device, serve, catch_up, wait, readv, buffers = (
            self._device,
            self._serve,
            self._catch_up,
            self._attention.wait,
            os.readv,
            (request.buffer,),
        )
        while request.leading:
            try:
                request.length = readv(device, buffers)
            except BlockingIOError:
                request.turns += 1
                late = catch_up(request)
                request.turns += 1
                if not late:
                    wait()
                continue
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno not in GONE:
                    _log.error("reading from /dev/fuse failed, the mount is given up: %s", error.strerror)
                return False
            if not request.length:
                return False
            request.turns += 1
            serve(request)
            request.turns += 1
        return True

    def _step_aside(self, request: Request) -> None:
        if request.leading:
            self._hand_over(request)

    def _hand_over(self, leader: Request) -> None:
        with self._handing_over:
            if not leader.leading:
                return
            leader.leading = False
        if not self._followers:
            self._start_thread()
        self._lead.release()

    def _join(self) -> None:
        """Give the requests under way a moment; their answers have nowhere to go."""
        deadline = time.monotonic() + 1.0
        while self.threads and time.monotonic() < deadline:
            time.sleep(0.005)
