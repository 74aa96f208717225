"""A resolver on loopback, over UDP and TCP, that knows what the test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset


@dataclass
class Resolver:
    """`records` by name in lower case, as "60 A 192.0.2.1"; names without are NXDOMAIN."""

    records: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    silent: bool = False
    forged: list[str] = field(default_factory=list)  # names to which answers with the right id come first
    port: int = 0

    def answer(self, wire: bytes, most: int) -> bytes | None:
        question = dns.message.from_wire(wire)
        name = question.question[0].name
        text = name.to_text(omit_final_dot=True)
        self.asked.append(text)
        if self.silent:
            return None
        response = dns.message.make_response(question)
        found = self.records.get(text.lower())
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        for each in found or ():
            ttl, kind, data = each.split(" ", 2)
            owner = name
            if "=" in kind:  # "60 c.d=A 192.0.2.1" is another name's
                other, kind = kind.split("=")
                owner = dns.name.from_text(other)
            response.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, data))
        full = response.to_wire(max_size=65535)
        if len(full) <= most:
            return full
        short = dns.message.make_response(question)
        short.flags |= dns.flags.TC
        return short.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        payload = dns.message.from_wire(data).payload
        for name in self._resolver.forged:
            other = dns.message.make_response(dns.message.make_query(name, "A", id=int.from_bytes(data[:2], "big")))
            other.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "A", "198.51.100.66"))
            self._transport.sendto(other.to_wire(), addr)
        if (answer := self._resolver.answer(data, max(512, payload))) is not None:
            self._transport.sendto(answer, addr)


@asynccontextmanager
async def resolving() -> AsyncIterator[Resolver]:
    resolver = Resolver()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                answer = resolver.answer(await reader.readexactly(size), 65535)
                if answer is not None:
                    writer.write(len(answer).to_bytes(2, "big") + answer)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    resolver.port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(resolver), ("127.0.0.1", resolver.port))
    try:
        yield resolver
    finally:
        transport.close()
        server.close()
