"""The proxy between a stock client and a resolver, on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import pytest

from bus.patterns import Patterns
from services.dns import proxy
from services.dns.judge import Judge, Rcode
from services.dns.names import Names
from tests.unit.dns.resolver import Resolver, resolving

SECONDS = 20.0


@dataclass
class Proxied:
    resolver: Resolver
    names: Names
    port: int
    admitted: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    opens: asyncio.Event = field(default_factory=asyncio.Event)  # until then nothing is admitted

    async def admit(self, name: str, new: frozenset[str]) -> None:
        self.admitted.append((name, new))
        await self.opens.wait()

    async def ask(self, name: str, kind: str = "A", tcp: bool = False, **options: int) -> dns.message.Message:
        question = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]  # options of any kind
        way = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        answer: dns.message.Message = await way(question, "127.0.0.1", timeout=SECONDS, port=self.port)
        return answer


@asynccontextmanager
async def proxied(
    patterns: Iterable[str] = ("*.example.com",), wanted: Iterable[str] = (), rcode: Rcode = "refused"
) -> AsyncIterator[Proxied]:
    async with resolving() as resolver:
        names = Names(0.0, 10)
        names.want(Patterns(patterns=wanted))
        judge = Judge(Patterns(patterns=patterns), names, rcode)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            made = Proxied(resolver, names, port)
            made.opens.set()
            where = ("127.0.0.1", resolver.port)
            udp = proxy.UDP(listening, judge, made.admit, where)
            server = await asyncio.start_server(proxy.TCP(judge, made.admit, where).serve, "127.0.0.1", port)
            try:
                yield made
            finally:
                udp.close()
                server.close()


def texts(answer: dns.message.Message) -> list[str]:
    return sorted(item.to_text() for each in answer.answer for item in each)


@pytest.mark.parametrize("tcp", [False, True])
async def test_an_allowed_name_is_answered_by_the_resolver(tcp: bool) -> None:
    async with proxied() as made:
        made.resolver.records["a.example.com"] = ["60 A 192.0.2.1", "60 A 192.0.2.2"]
        assert texts(await made.ask("a.example.com", tcp=tcp)) == ["192.0.2.1", "192.0.2.2"]
        assert (await made.ask("none.example.com", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN
        assert made.resolver.asked == ["a.example.com", "none.example.com"]
        assert made.admitted == []  # no policy means the name


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(("rcode", "code"), [("refused", dns.rcode.REFUSED), ("nameError", dns.rcode.NXDOMAIN)])
async def test_a_name_that_is_not_allowed_is_refused_and_nobody_is_asked(rcode: Rcode, code: int, tcp: bool) -> None:
    async with proxied(rcode=rcode) as made:
        assert (await made.ask("other.org", tcp=tcp)).rcode() == code
        assert (await made.ask("other.org", "AAAA", tcp=tcp, use_edns=0)).rcode() == code
        assert made.resolver.asked == []


@pytest.mark.parametrize("tcp", [False, True])
async def test_an_answer_waits_until_its_addresses_are_in_the_map(tcp: bool) -> None:
    async with proxied(wanted=["*.example.com"]) as made:
        made.resolver.records["a.example.com"] = ["60 CNAME b.example.net.", "60 b.example.net=A 192.0.2.1"]
        made.resolver.records["b.example.com"] = []
        made.opens.clear()
        waits = asyncio.create_task(made.ask("a.example.com", tcp=tcp))
        assert (await made.ask("b.example.com", tcp=tcp)).rcode() == dns.rcode.NOERROR  # others do not wait
        while not made.admitted:
            await asyncio.sleep(0)
        assert not waits.done()
        assert made.admitted == [("a.example.com", frozenset({"192.0.2.1"}))]
        made.opens.set()
        assert texts(await waits) == ["192.0.2.1", "b.example.net."]


async def test_addresses_that_are_known_wait_for_nobody() -> None:
    async with proxied(wanted=["*.example.com"]) as made:
        made.resolver.records["a.example.com"] = ["60 A 192.0.2.1"]
        await made.ask("a.example.com")
        made.opens.clear()
        assert texts(await made.ask("a.example.com")) == ["192.0.2.1"]
        assert len(made.admitted) == 1


async def test_an_answer_goes_on_when_the_map_is_not_told_of_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "ADMIT_SECONDS", 0.01)
    async with proxied(wanted=["*.example.com"]) as made:
        made.resolver.records["a.example.com"] = ["60 A 192.0.2.1"]
        made.opens.clear()
        assert texts(await made.ask("a.example.com")) == ["192.0.2.1"]


@pytest.mark.parametrize("payload", [1232, 4096])
async def test_large_answers_come_as_large_as_they_are_asked_for(payload: int) -> None:
    async with proxied() as made:
        made.resolver.records["a.example.com"] = [f"60 A 192.0.2.{number}" for number in range(120)]
        answer = await made.ask("a.example.com", use_edns=0, payload=payload)
        assert bool(answer.flags & dns.flags.TC) is (payload == 1232)
        assert len(texts(await made.ask("a.example.com", tcp=True))) == 120


async def test_a_name_keeps_the_case_in_which_it_was_asked_for() -> None:
    async with proxied() as made:
        made.resolver.records["a.example.com"] = ["60 A 192.0.2.1"]
        answer = await made.ask("A.exAMple.com")
        assert answer.question[0].name.to_text() == "A.exAMple.com."


async def test_many_at_once_are_each_answered_with_what_they_asked_for() -> None:
    async with proxied() as made:
        for number in range(200):
            made.resolver.records[f"{number}.example.com"] = [f"60 A 192.0.2.{number}"]
        found = await asyncio.gather(*(made.ask(f"{number}.example.com") for number in range(200)))
        assert [texts(each) for each in found] == [[f"192.0.2.{number}"] for number in range(200)]


async def test_several_over_one_connection() -> None:
    async with proxied() as made:
        made.resolver.records["a.example.com"] = ["60 A 192.0.2.1"]
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        for name in ("a.example.com", "other.org", "a.example.com"):
            wire = dns.message.make_query(name, "A").to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
        codes = []
        for _ in range(3):
            size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), SECONDS), "big")
            codes.append(dns.message.from_wire(await reader.readexactly(size)).rcode())
        assert sorted(codes) == [dns.rcode.NOERROR, dns.rcode.NOERROR, dns.rcode.REFUSED]
        writer.close()


async def test_what_is_no_question_is_refused_or_dropped() -> None:
    async with proxied() as made:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", made.port))
            client.setblocking(False)
            answer = dns.message.make_query("a.example.com", "A")
            answer.flags |= dns.flags.QR
            two = dns.message.make_query("a.example.com", "A").to_wire()
            client.send(b"short")
            client.send(answer.to_wire())
            client.send(two[:5] + b"\2" + two[6:])
            reply = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 512), SECONDS)
            assert (reply[:2], reply[3] & 0xF) == (two[:2], dns.rcode.REFUSED)
        assert made.resolver.asked == []


async def test_an_answer_to_another_question_is_not_believed() -> None:
    """With the right id, from the right address, before the right one."""
    async with proxied(wanted=["*.example.com"]) as made:
        made.resolver.forged = ["b.example.com", "xa.example.com", "a.example.co"]
        made.resolver.records["a.example.com"] = ["60 A 192.0.2.1"]
        assert texts(await made.ask("a.example.com")) == ["192.0.2.1"]
        assert made.admitted == [("a.example.com", frozenset({"192.0.2.1"}))]


async def test_a_resolver_that_is_away_and_comes_back() -> None:
    async with proxied() as made:
        made.resolver.records["a.example.com"] = ["60 A 192.0.2.1"]
        made.resolver.silent = True
        question = dns.message.make_query("a.example.com", "A")
        with pytest.raises(dns.exception.Timeout):
            await dns.asyncquery.udp(question, "127.0.0.1", timeout=0.1, port=made.port)
        made.resolver.silent = False
        assert texts(await made.ask("a.example.com")) == ["192.0.2.1"]
