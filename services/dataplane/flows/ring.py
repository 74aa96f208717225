"""The kernel's ring buffer of events, read in batches.

Events carry no wake-up of their own: the kernel wakes us at most every 67 ms a CPU, and once awake we come back every
`DRAIN_SECONDS` until the buffer is empty. An idle node is never woken.

Source: kernel Documentation/bpf/ringbuf.rst: a page of our position, a page of the kernel's, the data, the data again.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import AsyncIterator

from services.dataplane.kernel.bpf import Map
from services.dataplane.shapes.events import Event

DRAIN_SECONDS = 0.1
BATCH_MAX = 1024  # events decoded at a time, so that the loop is not held: about 3 ms

_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER = 8


class Ring:
    """The consumer's side; there is one for a buffer."""

    def __init__(self, events: Map) -> None:
        self._fd = events.fd
        self._size = events.info.max_entries
        page = mmap.PAGESIZE
        self._position = mmap.mmap(self._fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._data = mmap.mmap(self._fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._at: int = struct.unpack_from("=Q", self._position)[0]

    def close(self) -> None:
        self._position.close()
        self._data.close()

    def take(self, most: int = BATCH_MAX) -> list[Event]:
        """The next events, oldest first; what is longer or shorter than an event of ours is passed over."""
        found: list[Event] = []
        data, page, mask = self._data, mmap.PAGESIZE, self._size - 1
        produced: int = struct.unpack_from("=Q", data)[0]
        while self._at < produced and len(found) < most:
            start = page + (self._at & mask)
            length: int = struct.unpack_from("=I", data, start)[0]
            if length & _BUSY:  # reserved, not yet written
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED and size == Event.layout.size:
                found.append(Event.unpack(data[start + _HEADER : start + _HEADER + size]))
            self._at += (_HEADER + size + 7) // 8 * 8
        struct.pack_into("=Q", self._position, 0, self._at)
        return found

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Every event from now on."""
        while True:
            batch = self.take()
            if batch:
                yield batch
            if len(batch) == BATCH_MAX:
                await asyncio.sleep(0)
            elif batch:
                await asyncio.sleep(DRAIN_SECONDS)
            else:
                await self._readable()

    async def _readable(self) -> None:
        """Returns when there is something to take. Only meanwhile is the buffer polled: what comes while we sleep must
        not turn the event loop round and round."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        loop.add_reader(self._fd, woken.set)
        try:
            await woken.wait()
        finally:
            loop.remove_reader(self._fd)
