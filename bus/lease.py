"""A right that one holder has at a time, on a clock that each holder reads for itself.

The lease is one message in the stream LEASES. Its holder writes it anew three times per `seconds`; the server forgets
it when that stops. The holder counts from before it sent the renewal that succeeded last, so it has let go before
anyone else can take over: they wait until the message is gone, or until they have seen it unchanged for as long.
"""

from __future__ import annotations

import asyncio
import base64
import math
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus.interface import BusAway, BusError
from bus.link import REQUEST_SECONDS, ApiError, Link, Mailbox, NobodyAnswers, parse_api
from bus.log import leases_config, make_stream
from bus.subjects import LEASES, last_of, lease_of
from bus.telemetry import count, logger

log = logger(__name__)

RETRY_SECONDS = 0.1  # while the server is away
LOOK_SECONDS = 1.0  # how often one who waits looks, besides when it hears that something happened
_WRONG_SEQUENCE = (10071, 10164)
_NO_MESSAGE = 10037
_RELEASED = b""


class NatsLease:
    """`interface.Lease`: held until `deadline` on this process's monotonic clock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.deadline = 0.0
        self._ended = asyncio.Event()

    @property
    def held(self) -> bool:
        return time.monotonic() < self.deadline

    async def lost(self) -> None:
        while self.held:
            try:
                async with asyncio.timeout(self.deadline - time.monotonic()):
                    await self._ended.wait()
            except TimeoutError:
                pass

    def end(self) -> None:
        self.deadline = 0.0
        self._ended.set()


class _Taken(Exception):
    """Somebody else wrote the lease."""


@asynccontextmanager
async def hold(link: Link, name: str, *, holder: str, seconds: float) -> AsyncIterator[NatsLease]:
    """Bus.lease over NATS. `holder` is for people who look at the stream."""
    lease = NatsLease(name)
    claim = _Claim(link, lease, f"{holder} {secrets.token_hex(8)}".encode(), seconds)
    await claim.take()
    log.info("lease taken", lease=name, holder=holder)
    count("bus_lease_taken", lease=name)
    renewing = asyncio.create_task(claim.renew(), name=f"renew {name}")
    try:
        yield lease
    finally:
        renewing.cancel()
        (ended,) = await asyncio.gather(renewing, return_exceptions=True)
        still = lease.held
        lease.end()
        if still:
            await claim.release()
        if isinstance(ended, Exception):
            raise ended


class _Claim:
    """One holder's message in the stream. `body` is like no other's, so a lost acknowledgement can be looked up."""

    def __init__(self, link: Link, lease: NatsLease, body: bytes, seconds: float) -> None:
        self._link = link
        self._lease = lease
        self._body = body
        self._seconds = seconds
        self._subject = lease_of(lease.name)
        self._sequence = 0  # of our message

    async def take(self) -> None:
        """Wait until the lease is ours."""
        now = asyncio.get_running_loop().time
        seen = -1
        seen_at = now()
        async with Mailbox(self._link) as box:
            await box.join(self._subject)  # whoever writes the lease is heard here too: a release wakes us
            while True:
                try:
                    current, body = await self._look()
                    if current != seen:
                        seen, seen_at = current, now()
                    if body in (_RELEASED, self._body) or now() >= seen_at + self._seconds:
                        await self._write(current)
                        return
                    wait = min(LOOK_SECONDS, seen_at + self._seconds - now())
                except _Taken:
                    wait = 0.0
                except (BusAway, NobodyAnswers, ApiError):
                    await make_stream(self._link, leases_config())
                    wait = RETRY_SECONDS
                await box.get(now() + wait)

    async def renew(self) -> None:
        """Keep it; returns when it is lost."""
        while self._lease.held:
            await asyncio.sleep(min(self._seconds / 3, 1.0))
            await self._renew_once()
        count("bus_lease_lost", lease=self._lease.name)
        log.warning("lease lost", lease=self._lease.name)

    async def _renew_once(self) -> None:
        while self._lease.held:
            try:
                await self._write(self._sequence)
                return
            except (BusAway, NobodyAnswers, ApiError):
                await make_stream(self._link, leases_config())  # it may have been lost
                await asyncio.sleep(RETRY_SECONDS)
            except _Taken:
                try:
                    current, body = await self._look()
                except (BusAway, NobodyAnswers, ApiError):
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if current and body != self._body:  # 0: the stream has lost our message, and nobody has taken over
                    self._lease.end()
                self._sequence = current  # ours: an acknowledgement was lost, the renewal was not

    async def release(self) -> None:
        """Let others take it at once; without the server they wait until it has run out."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(self._sequence), "Nats-TTL": "1"}
        try:
            await self._link.request(self._subject, _RELEASED, timeout=0.5, headers=headers)
        except BusError:
            pass

    async def _look(self) -> tuple[int, bytes]:
        """(sequence, body) of the lease's message; (0, released) when there is none."""
        try:
            answer = await self._link.api(last_of(LEASES), {"last_by_subj": self._subject})
        except ApiError as problem:
            if problem.number == _NO_MESSAGE:
                return 0, _RELEASED
            raise
        message = answer["message"]
        return int(message["seq"]), base64.b64decode(message.get("data") or "")

    async def _write(self, expected: int) -> None:
        """Write our message over the one at `expected`. Raises: _Taken, BusAway, NobodyAnswers, ApiError."""
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(expected),
            "Nats-TTL": str(max(1, math.ceil(self._seconds))),  # the server takes whole seconds only
        }
        sent = time.monotonic()
        answer = await self._link.request(
            self._subject, self._body, timeout=min(REQUEST_SECONDS, self._seconds / 3), headers=headers
        )
        try:
            self._sequence = int(parse_api(answer.data)["seq"])
        except ApiError as problem:
            if problem.number in _WRONG_SEQUENCE:
                raise _Taken from None
            raise
        self._lease.deadline = sent + self._seconds
