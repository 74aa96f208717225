"""Sockets that stay connected to a backend which their Service has no more: they are ended, so that their owner learns.

A connected socket was pointed at its backend by connect(), and nothing asks again: with the backend's pod deleted,
what it sends is lost without a word. `sock_reverse` says which socket came to which backend by which Service, so a
socket that called the pod itself is never met. Its owner gets ECONNABORTED, connects again, and reaches a backend that
lives.

Nothing is remembered of who went when: the map is compared with what the Services have now, when they lost a backend
and once after the start, so what went while this process was away is met too. One walk through the node's namespaces
serves all that went meanwhile. An entry whose socket is gone leaves the map with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from bus.service import Service
from bus.telemetry import count, logger
from services.dataplane.kernel.bpf import Map
from services.dataplane.kernel.sock_diag import TCP, UDP, Peer, Walk, walk
from services.dataplane.parts.services import Services
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.layouts import (
    LivingKey,
    ServiceEntry,
    ServiceKey,
    SockReverse,
    SockReverseKey,
    pack_address,
)

log = logger(__name__)

CHECK = "sockets"
IDLE_PER_BUSY = 3.0  # a pause after each turn is so much longer than the turn: at most a quarter of one CPU
PROBLEMS_SHOWN = 3
NAMES = {UDP: "udp", TCP: "tcp"}
ANY4, ANY6 = pack_address("0.0.0.0"), bytes(16)


def is_outdated(key: bytes, value: bytes, services: Mapping[bytes, bytes], serves: Callable[[bytes], bool]) -> bool:
    """Whether a socket was connected by a Service to a backend that it does not have now, not even as one that drains:
    an entry of `sock_reverse` against what the map `services` should hold, and `Services.serves`."""
    _, backend, backend_port = SockReverseKey.layout.unpack(key)
    address, port, protocol, is_datagram = SockReverse.layout.unpack(value)
    if is_datagram:
        return False
    for each in (protocol,) if protocol else NAMES:
        for called in (
            address,
            ANY4 if address.startswith(ANY4[:12]) else ANY6,
        ):  # as frontend.h looks: a node port is there
            service = services.get(ServiceKey.layout.pack(called, port, each))
            if service is not None:
                number, *_ = ServiceEntry.layout.unpack(service)
                if serves(LivingKey.layout.pack(number, backend_port, backend)):
                    return False
    return True


@dataclass(frozen=True, slots=True)
class Gone:
    """The other ends of one socket that are gone. A walk takes a while, and a Service may have its backend again by the
    time that the socket is found, so `is_gone` is asked of the entry once more before the socket is ended."""

    cookie: int
    entries: Container[bytes]
    is_gone: Callable[[bytes], bool]

    def __contains__(self, end: object) -> bool:
        address, port = cast("Peer", end)
        key = SockReverseKey.layout.pack(self.cookie, address, port)
        return key in self.entries and self.is_gone(key)


@dataclass(frozen=True, slots=True)
class Outdated:
    """Entries of `sock_reverse` whose backend is gone."""

    entries: Mapping[bytes, int]  # key -> protocol, 0: not known

    def wanted(self, is_gone: Callable[[bytes], bool]) -> dict[int, Gone]:
        """By cookie: the other ends that are gone."""
        cookies = {SockReverseKey.layout.unpack(key)[0] for key in self.entries}
        return {cookie: Gone(cookie, self.entries, is_gone) for cookie in cookies}

    def protocols(self, may_end: Iterable[int]) -> list[int]:
        """Those to look at."""
        are = set(self.entries.values())
        return [each for each in may_end if each in are or 0 in are]

    def settled(self, done: Walk, looked_at: Container[int], *, is_certain: bool) -> Iterator[bytes]:
        """Keys of entries that nobody needs: the socket was ended, or, if it `is_certain` that all were seen, is closed
        or speaks to another by now. One that is not connected to anything may need its entry for a late answer.
        """
        ended = {cookie for _, cookie in done.ended}
        for key, protocol in self.entries.items():
            cookie, _, _ = SockReverseKey.layout.unpack(key)
            is_known = is_certain and all(each in looked_at for each in ((protocol,) if protocol else NAMES))
            if cookie in ended or (is_known and cookie not in done.unconnected):
                yield key


def find_outdated(
    entries: Iterable[tuple[bytes, bytes]],
    services: Mapping[bytes, bytes],
    serves: Callable[[bytes], bool],
    may_end: Container[int],
) -> Outdated:
    """Those of the protocols that may be ended."""
    found = {}
    for key, value in entries:
        _, _, protocol, _ = SockReverse.layout.unpack(value)
        if (not protocol or protocol in may_end) and is_outdated(key, value, services, serves):
            found[key] = protocol
    return Outdated(found)


class Sockets:
    """Ends them when `written` has told of a loss."""

    def __init__(self, service: Service, settings: NodeSettings, tables: Services) -> None:
        self._service = service
        self._tables = tables
        self._cgroup = settings.cgroup if settings.terminate_pod_connections else None
        self._may_end = (UDP, TCP) if settings.terminate_all_protocols else (UDP,)
        self._losses = -1  # as of the last look
        self._due = asyncio.Event()
        self._is_news = False  # since the last look
        self._once_more = False

    def written(self) -> None:
        """The maps hold what the Services are now, and all of it is known."""
        if self._losses != self._tables.losses:
            self._losses = self._tables.losses
            self._is_news = True
            self._due.set()

    def look_again(self) -> None:
        """Some seconds later: a connect() may have been under way when the maps were read, or something failed."""
        if self._once_more:
            self._once_more = False
            self._due.set()

    async def run(self, reverse: Map) -> None:
        """For ever, or until it is known that this kernel cannot do it."""
        while True:
            await self._due.wait()
            self._due.clear()
            began = time.monotonic()
            is_news, self._is_news = self._is_news, False
            done = await self._turn(reverse, is_news)
            if done.lacks:
                why = f"this kernel {done.lacks}: a socket stays connected to a backend that is gone"
                log.warning("sockets cannot be ended", why=why)
                self._service.check(CHECK, True, why)
                return
            self._once_more |= is_news or bool(done.problems)
            shown = "; ".join(dict.fromkeys(done.problems[:PROBLEMS_SHOWN]))
            self._service.check(CHECK, not shown, shown)
            await asyncio.sleep((time.monotonic() - began) * IDLE_PER_BUSY)

    async def _turn(self, reverse: Map, is_news: bool) -> Walk:
        """One look at the map, and a walk if it found something, on a thread that ends with it."""
        stop = threading.Event()
        thread = ThreadPoolExecutor(1, "end sockets")
        work = asyncio.wrap_future(thread.submit(self.turn, reverse, is_news, stop))
        thread.shutdown(wait=False)  # takes no more work
        try:
            done = await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])
            raise
        except OSError as problem:
            return Walk(problems=[str(problem)])
        ended = {NAMES[each]: sum(protocol == each for protocol, _ in done.ended) for each in NAMES}
        for protocol, number in ended.items():
            count("sockets_ended", number, protocol=protocol)
        if done.ended:
            log.info("sockets ended: their backend is gone", **ended)
        return done

    def turn(self, reverse: Map, is_news: bool, stop: threading.Event) -> Walk:
        """On the calling thread, which is in any namespace of the node afterwards. `is_news`: a Service has lost a
        backend a moment ago, and so a connect() to that one may not be at its end. Raises: OSError.
        """
        services, serves = self._tables.services.wanted, self._tables.serves
        outdated = find_outdated(reverse.items(), services, serves, self._may_end)
        protocols = outdated.protocols(self._may_end)
        if not protocols:
            return Walk()

        def is_gone(key: bytes) -> bool:
            value = reverse.get(key)
            return value is not None and is_outdated(key, value, services, serves)

        done = walk(outdated.wanted(is_gone), protocols, self._cgroup, stop)
        is_certain = done.is_whole and self._cgroup is not None and not is_news
        for key in outdated.settled(done, protocols, is_certain=is_certain):
            value = reverse.take(key)
            if value is not None and not is_outdated(key, value, services, serves):
                reverse.add(key, value)
        return done
