"""A stranger's headers say when a change began and in which trace: they go on into what is written because of it, and
must not be what stops that."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import subjects
from bus.codec import encode
from bus.log import cause_of, entry_headers
from bus.messages.resources import Applied, Apply, Namespace
from bus.server import Server
from bus.telemetry import Cause, new_trace
from tests.bus.test_control import Numbers, addresses, control
from tests.bus.watcher import buses, watching

HOSTILE: list[dict[bytes, bytes]] = [
    {b"traceparent": b"x" * 60_000},
    {b"traceparent": b"\xff" * 30_000},  # read with replacements, each byte would become three
    {b"traceparent": b"\xff" * 30_000, b"Plexus-Caused-At": b"1e300"},
    {b"Plexus-Caused-At": b"1e300"},
    {b"Plexus-Caused-At": b"9" * 60_000},
    {b"Plexus-Caused-At": b"nan"},
    {b"Plexus-Caused-At": b"-1"},
    {b"traceparent": b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"tracestate": b"s" * 60_000},
    {b"tracestate": b"a=\x00"},
]
LARGER = {b"traceparent": b"x" * 900_000}  # more than the log takes at all: only a question comes through with it
TRACE = new_trace()


@given(st.dictionaries(st.sampled_from(["Plexus-Caused-At", "traceparent", "tracestate", "x"]), st.text()))
def test_of_any_headers_little_goes_on_and_it_is_read_again_as_it_was(headers: dict[str, str]) -> None:
    cause = cause_of(headers)
    assert cause.at <= time.time() + 60
    again = entry_headers(cause)
    assert len("".join(again.values())) < 700
    assert cause_of(again) == cause


def test_an_honest_cause_is_kept() -> None:
    cause = Cause(1700000000.25, {**TRACE, "tracestate": "a=1,b=2"})
    assert cause_of(entry_headers(cause)) == cause
    assert cause_of(None) == cause_of({"tracestate": "a=1"}) == Cause(0.0, {})


async def test_whoever_writes_because_of_a_message_with_hostile_headers_goes_on(server: Server) -> None:
    """One who answers a question by writing, and a control service whose turn began with such a state."""
    async with asyncio.timeout(90), buses(server, "resources", "identity", "reader") as (resources, identity, reader):
        outbox = await resources.own("resources")

        async def write(_: Apply) -> Applied:
            await outbox.say(subjects.NAMESPACE.of("asked"), Namespace(name="asked", labels={"at": str(time.time())}))
            return Applied(revision=outbox.position)

        answering = asyncio.create_task(resources.answer(subjects.APPLY, handler=write))
        host, _, port = server.url.removeprefix("nats://").partition(":")
        _, raw = await asyncio.open_connection(host, int(port))
        raw.write(b'CONNECT {"verbose":false,"headers":true}\r\n')

        def send(subject: str, body: bytes, headers: dict[bytes, bytes], reply: str = "") -> None:
            block = b"NATS/1.0\r\n" + b"".join(b"%s: %s\r\n" % item for item in headers.items()) + b"\r\n"
            where = f"{subject} {reply}".strip().encode()
            raw.write(b"HPUB %s %d %d\r\n%s%s\r\n" % (where, len(block), len(block) + len(body), block, body))

        async with control(identity, Numbers()), watching(reader, subjects.ADDRESS) as told:
            for number, headers in enumerate([*HOSTILE, LARGER]):
                name = f"n{number}"
                send("req.resources.apply", encode(Apply(documents=[])), headers, reply="_INBOX.nobody")
                if headers is not LARGER:
                    send(subjects.NAMESPACE.of(name), encode(Namespace(name=name)), headers)
                    await raw.drain()
                    await told.until(lambda told, name=name: name in addresses(told))  # type: ignore[misc]
            await raw.drain()
            applied = await reader.ask(subjects.APPLY, message=Apply(documents=[]), timeout=20.0)
            assert applied.revision >= outbox.position - 1
        answering.cancel()
        raw.close()


@pytest.mark.parametrize("headers", HOSTILE)
def test_hostile_headers_are_passed_over(headers: dict[bytes, bytes]) -> None:
    read = {name.decode(): value.decode("utf-8", "replace") for name, value in headers.items()}
    found = cause_of(read)
    assert found.at == 0.0
    assert set(found.trace) <= {"traceparent"}
