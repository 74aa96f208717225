"""The kernel's ring buffer of events, read in batches. A buffer has one reader.

Events carry no wake-up of their own: the kernel wakes us at most every 67 ms a CPU, and once awake we come back every
`DRAIN_SECONDS` until the buffer is empty. An idle node is never woken. What we are too slow for the kernel refuses, and
counts in `event_rate`.

Source: kernel Documentation/bpf/ringbuf.rst: a page of our position, a page of the kernel's, the data, the data again.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.hubble import pinned
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import Flow
from services.hubble.observed import Observed
from services.hubble.records import Taken, take

DRAIN_SECONDS = 0.1
BATCH_MAX = 1024  # records joined at a time, so that the loop is not held: about 2 ms
LOOK_SECONDS = 2.0  # between two looks at whether the pin is of another buffer
RETRY_SECONDS = 0.1  # while there is no buffer
PATIENCE_SECONDS = 10.0  # until it is a fault that there is none: the dataplane makes it when it starts
EVENTS_PIN, RATE_PIN = "events_v2", "event_rate"  # below the node's pin directory, in "maps"
EVENT_TYPES = 8
RATE = struct.Struct("=QQQI4x")  # struct event_rate: window, woken, lost, sent


class Ring:
    """The reader's side of a buffer of `size` bytes. Keeps `fd` and closes it."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._size = size
        page = mmap.PAGESIZE
        self._ours = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._theirs = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data = memoryview(self._theirs)[page:]
        self._position: int = struct.unpack_from("=Q", self._ours)[0]

    def close(self) -> None:
        self._data.release()
        self._theirs.close()
        self._ours.close()
        os.close(self.fd)

    def take(self, most: int = BATCH_MAX) -> Taken:
        """The next records, oldest first; their room is the kernel's again."""
        produced: int = struct.unpack_from("=Q", self._theirs)[0]
        taken = take(self._data, self._position, produced, self._size, most)
        self._position = taken.position
        struct.pack_into("=Q", self._ours, 0, taken.position)
        return taken

    async def readable(self, seconds: float) -> None:
        """Returns when there is something to take, or the time is over. Only meanwhile is the buffer polled: what comes
        while we sleep must not turn the event loop round and round."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        loop.add_reader(self.fd, woken.set)
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(self.fd)


class Events:
    """A node's buffer, and how many events did not get into it; both as its dataplane has pinned them.

    Raises: OSError: they are not there, or may not be opened.
    """

    def __init__(self, pin_dir: Path) -> None:
        self._pin = pin_dir / "maps" / EVENTS_PIN
        fd = pinned.open_pinned(self._pin)
        info = pinned.info(fd)
        self._number = info.number
        self.ring = Ring(fd, info.max_entries)
        try:
            self._rate = pinned.open_pinned(pin_dir / "maps" / RATE_PIN)
        except OSError:
            self.ring.close()
            raise

    def close(self) -> None:
        os.close(self._rate)
        self.ring.close()

    def lost(self) -> int:
        """Since the maps were made: over the rate, or no room."""
        return sum(
            row[2]
            for kind in range(EVENT_TYPES)
            for row in RATE.iter_unpack(pinned.of_every_cpu(self._rate, kind, RATE.size))
        )

    def is_replaced(self) -> bool:
        """Another buffer is at the pin: programs write to that one. What is not there is on its way back."""
        try:
            fd = pinned.open_pinned(self._pin)
        except OSError:
            return False
        try:
            return pinned.info(fd).number != self._number
        finally:
            os.close(fd)


Naming = Callable[[list[Flow]], Awaitable[None]]


async def observe(events: Events, observed: Observed, name: Naming, now: Callable[[], float] = time.time) -> None:
    """What the kernel tells becomes flows, what it could not tell is counted; until another buffer takes this one's
    place and it is empty.

    Args:
        name: gives flows the names that only the dataplane knows; awaited where there are such.
        now: seconds since the epoch.
    """
    lost_before, looked = events.lost(), time.monotonic()
    while True:
        taken = events.ring.take()
        if taken.records:
            offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            flows = observed.joiner.join(taken.records, offset)
            if observed.joiner.has_unnamed:
                await name(flows)
            observed.keep(flows, now())
        lost = events.lost()
        observed.lose(pb.PERF_EVENT_RING_BUFFER, lost - lost_before, now())
        observed.lose(pb.OBSERVER_EVENTS_QUEUE, taken.strange, now())
        lost_before = lost
        if len(taken.records) == BATCH_MAX:
            await asyncio.sleep(0)
        elif taken.records:
            await asyncio.sleep(DRAIN_SECONDS)
        elif time.monotonic() - looked < LOOK_SECONDS:
            await events.ring.readable(LOOK_SECONDS)
        elif events.is_replaced():
            return
        else:
            looked = time.monotonic()


async def observe_for_ever(
    pin_dir: Path, observed: Observed, name: Naming, tell: Callable[[bool], None], patience: float = PATIENCE_SECONDS
) -> None:
    """`tell`: whether there is a buffer to read; that there is none yet counts after `patience` seconds."""
    began = time.monotonic()
    while True:
        try:
            events = Events(pin_dir)
        except OSError:
            if time.monotonic() - began > patience:
                tell(False)
            await asyncio.sleep(RETRY_SECONDS)  # bpf's file system tells nobody of what is made in it
            continue
        tell(True)
        began = time.monotonic()
        try:
            await observe(events, observed, name)
        finally:
            events.close()
