"""What traffic has left behind: connections that are over, and what only they needed.

The programs never wait for this: an entry that is over is as good as absent to them, and a full map evicts what was
used longest ago. A sweep makes room before that, so that what is evicted is not what somebody still uses. An entry that
expires later than a week from now, and than the settings allow, is none that a program has made: it is as good as
absent to them too (bpf/include/flow.h, is_over), and goes as well.

It runs on a thread, in small bites with pauses, and gives the interpreter away with every system call, so the event
loop goes on. It never removes what is alive: what it takes out it looks at once more, and puts back if it came to life
in the meantime, unless a program was faster. Entries of the maps `UNSWEPT` do not say whether they are over: those only
evict.

Source: bpf/include/types.h for the layouts; the intervals are those of Cilium's connection tracking
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from bus.telemetry import count, logger
from services.dataplane.kernel.bpf import Map
from services.dataplane.shapes.layouts import TICK_NS
from services.dataplane.shapes.limits import limit
from services.dataplane.shapes.protocols import TCP, WITH_TYPES
from services.dataplane.shapes.sizes import SWEEP_SECONDS_LEAST, SWEEP_SECONDS_MOST
from services.dataplane.shapes.substitutes import substitute_port

log = logger(__name__)

UNSWEPT = ("affinity", "fragments", "sock_reverse", "sock_choices")
FIRST_SECONDS = 300.0  # after the start
LONGEST_SECONDS = float(limit("CT_WEEK_SECONDS"))
"""What expires within this is believed whatever the settings are now: they may have been others when it was made."""
MANY, FEW = 0.25, 0.05  # of a map's room: more is found, sweep sooner; less, later
CHUNK = 1024  # entries a bite
IDLE_PER_BUSY = 3.0  # pauses are so much longer than bites: a sweep takes a quarter of one CPU
GRACE_TICKS = 1  # a program that still held the entry when its time was up is done with it by then

EXPIRES_BYTES = 4  # the first field of a connection
NAT_PORT = slice(16, 18)  # in a connection (types.h)


def interval_after(seconds: float, share: float, most: float = SWEEP_SECONDS_MOST) -> float:
    """How long to wait after a sweep that came `seconds` after the one before and found so large a share of a map to be
    over."""
    if share > MANY:
        seconds *= 1 - share
    elif share < FEW:
        seconds *= 1.5
    return min(max(seconds, SWEEP_SECONDS_LEAST), most)


@dataclass(slots=True)
class Swept:
    """What one sweep found, by map."""

    seen: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    put_back: dict[str, int] = field(default_factory=dict)  # came to life between the look and the removal
    share: float = 0.0  # of the map with the most: removed entries against its room
    seconds: float = 0.0

    def _count(self, name: str, room: int, seen: int, removed: int, put_back: int) -> None:
        self.seen[name], self.removed[name], self.put_back[name] = seen, removed, put_back
        self.share = max(self.share, removed / room)


class Sweep:
    """The maps that are swept. Keys and values are raw bytes throughout: a sweep looks at millions."""

    def __init__(self, *, ct_tcp: Map, ct_any: Map, nat: Map, choices: Map, longest_seconds: float) -> None:
        """`longest_seconds`: that a connection may be silent by this process's settings."""
        self._longest_ticks = round(max(longest_seconds, LONGEST_SECONDS) * 1e9 / TICK_NS) + GRACE_TICKS
        self._ct_tcp = ct_tcp
        self._ct_any = ct_any
        self._nat = nat
        self._choices = choices

    async def run(self) -> Swept:
        """One sweep. A caller that is cancelled is so when the bite that is being taken has gone down."""
        stop = threading.Event()
        work = asyncio.ensure_future(asyncio.to_thread(self.sweep, stop))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])
            raise

    def sweep(self, stop: threading.Event) -> Swept:
        """One sweep, on the calling thread, until it is done or told to stop. Connections come first: what goes with
        them is found in the same sweep."""
        began = time.monotonic()
        found = Swept()
        for name, each in (("ct_tcp", self._ct_tcp), ("ct_any", self._ct_any)):
            self._one(found, name, each, self._expired, self._is_expired, stop)
        self._one(found, "nat", self._nat, self._over(self._is_mapping_over), self._is_mapping_over, stop)
        self._one(found, "choices", self._choices, self._over(self._is_choice_over), self._is_choice_over, stop)
        found.seconds = time.monotonic() - began
        return found

    def _one(
        self,
        found: Swept,
        name: str,
        swept: Map,
        candidates: Callable[[Map, int, bytes, bytes], Iterator[bytes]],
        is_over: Callable[[bytes, bytes], bool],
        stop: threading.Event,
    ) -> None:
        seen = removed = put_back = 0
        began = time.monotonic()
        for number, keys, values in swept.chunks(CHUNK):
            seen += number
            for key in candidates(swept, number, keys, values):
                value = swept.take(key)
                if value is None:
                    continue
                if is_over(key, value):
                    removed += 1
                elif swept.add(key, value):
                    put_back += 1
            if stop.wait((time.monotonic() - began) * IDLE_PER_BUSY):
                break
            began = time.monotonic()
        found._count(name, swept.info.max_entries, seen, removed, put_back)

    def _living(self) -> tuple[int, int]:
        """The first and the last tick at which a connection that is alive may expire."""
        now = _tick()
        return now - GRACE_TICKS, now + self._longest_ticks + GRACE_TICKS

    def _expired(self, swept: Map, number: int, keys: bytes, values: bytes) -> Iterator[bytes]:
        """The keys of connections that are over, out of one bite."""
        size, step = swept.info.key_bytes, swept.value_bytes // EXPIRES_BYTES
        first, last = self._living()
        for at, expires in enumerate(memoryview(values).cast("I")[::step].tolist()[:number]):
            if not first <= expires <= last:
                yield keys[at * size : (at + 1) * size]

    def _is_expired(self, key: bytes, value: bytes) -> bool:
        first, last = self._living()
        return not first <= int.from_bytes(value[:EXPIRES_BYTES], "little") <= last

    @staticmethod
    def _over(is_over: Callable[[bytes, bytes], bool]) -> Callable[[Map, int, bytes, bytes], Iterator[bytes]]:
        def candidates(swept: Map, number: int, keys: bytes, values: bytes) -> Iterator[bytes]:
            key_bytes, value_bytes = swept.info.key_bytes, swept.value_bytes
            for at in range(number):
                key = keys[at * key_bytes : (at + 1) * key_bytes]
                if is_over(key, values[at * value_bytes : (at + 1) * value_bytes]):
                    yield key

        return candidates

    def _connection(self, one: bytes, one_port: bytes, other: bytes, other_port: bytes, protocol: int) -> bytes | None:
        """The connection between two ends, if it is alive."""
        key = connection_key(one, one_port, other, other_port, protocol)
        value = (self._ct_tcp if protocol == TCP else self._ct_any).get(key)
        return None if value is None or self._is_expired(key, value) else value

    def _is_mapping_over(self, key: bytes, value: bytes) -> bool:
        """bpf/include/nat.h, is_abandoned: its connection is gone or has another port by now."""
        size = (len(key) - 8) // 2  # of an address; behind two of them ports, protocol, padding
        remote_port, node_port = key[2 * size : 2 * size + 2], key[2 * size + 2 : 2 * size + 4]
        pod_port, protocol = value[size : size + 2], key[2 * size + 4]
        if protocol in WITH_TYPES:
            remote_port = answering_port(pod_port)
        found = self._connection(value[:size], pod_port, key[:size], remote_port, protocol)
        return found is None or found[NAT_PORT] not in (node_port, b"\0\0")  # 0: it is about to take one, maybe this

    def _is_choice_over(self, key: bytes, value: bytes) -> bool:
        """The connection to the backend that was chosen, from the port that stands for the client's, is gone."""
        size = (len(key) - 8) // 2
        own_port = int.from_bytes(key[2 * size : 2 * size + 2], "big")
        client_port = substitute_port(own_port, value[size + 2]).to_bytes(2, "big")
        return (
            self._connection(key[:size], client_port, value[:size], value[size : size + 2], key[2 * size + 4]) is None
        )


def answering_port(identifier: bytes) -> bytes:
    """The end that answers an echo has this for a port in its connection. Source: bpf/include/parse.h."""
    return ((int.from_bytes(identifier, "big") + 1) & 0xFFFF).to_bytes(2, "big")


def connection_key(one: bytes, one_port: bytes, other: bytes, other_port: bytes, protocol: int) -> bytes:
    """The key under which both directions are found. Addresses and ports as they are on the wire.

    Source: bpf/include/flow.h, key_of: the low end is that whose address, read as the machine reads numbers from the
    last word on, and then port is lower.
    """
    low, high = (one, one_port), (other, other_port)
    if (int.from_bytes(one, "little"), int.from_bytes(one_port, "little")) > (
        int.from_bytes(other, "little"),
        int.from_bytes(other_port, "little"),
    ):
        low, high = high, low
    return b"".join((low[0], high[0], low[1], high[1], bytes((protocol, 0, 0, 0))))


def _tick() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS


class Sweeper:
    """Sweeps for ever. `fixed_seconds` 0: the interval follows what is found."""

    def __init__(self, sweep: Sweep, fixed_seconds: float = 0.0, most_seconds: float = SWEEP_SECONDS_MOST) -> None:
        self._sweep = sweep
        self._fixed_seconds = fixed_seconds
        self._most_seconds = most_seconds
        self.interval_seconds = fixed_seconds or min(FIRST_SECONDS, most_seconds)
        self.turns = 0  # sweeps that went to the end
        self._hurry = asyncio.Event()

    def hasten(self) -> None:
        """The next sweep is due now: a map is nearly full, maybe of what is over."""
        self._hurry.set()

    async def sweep_for_ever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.interval_seconds):
                    await self._hurry.wait()
            self._hurry.clear()
            await self.turn()

    async def turn(self) -> Swept:
        """One sweep, counted, and the interval to the next."""
        try:
            found = await self._sweep.run()
        except OSError as problem:  # the maps only evict until the next one
            log.warning("not swept to the end, trying again", why=str(problem))
            count("conntrack_gc_failed")
            return Swept()
        self.turns += 1
        for name in found.seen:
            count("conntrack_gc_seen", found.seen[name], map=name)
            count("conntrack_gc_removed", found.removed[name], map=name)
            count("conntrack_gc_put_back", found.put_back[name], map=name)
        count("conntrack_gc_runs")
        count("conntrack_gc_milliseconds", int(found.seconds * 1000))
        if not self._fixed_seconds:
            self.interval_seconds = interval_after(self.interval_seconds, found.share, self._most_seconds)
        log.debug("swept", seen=found.seen, removed=found.removed, next_seconds=round(self.interval_seconds))
        return found
