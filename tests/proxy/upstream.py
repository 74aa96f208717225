"""A server that tells what reaches it, byte by byte: it reads HTTP/1.1 as the standard has it and not a bit more
generously, answers each request with its own first line, and echoes after an upgrade."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
TUNNELLED = b"HTTP/1.1 200 OK\r\n\r\n"


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known == name]


@dataclass
class Recorder:
    """What it was asked since the last `clear`, and how many connections were made to it in all."""

    requests: list[Request] = field(default_factory=list)
    other: list[bytes] = field(default_factory=list)  # what came and was not HTTP/1.1: the first bytes of connections
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await self._read(reader, writer)) is not None:
                self.requests.append(request)
                if request.method == "CONNECT" or request.all("upgrade"):
                    writer.write(TUNNELLED if request.method == "CONNECT" else UPGRADED)
                    await echo(reader, writer)
                    return
                body = f"{request.method} {request.target}".encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                writer.write(b"" if request.method == "HEAD" else body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as end:
            if end.partial:
                self.other.append(end.partial)
            return None
        if head == H2_PREFACE:
            await self._serve_http_2(reader, writer)
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        pairs = [line.split(":", 1) for line in lines]
        fields = tuple((name.lower(), value.strip()) for name, value in pairs)
        request = Request(method, target, fields, b"")
        if request.all("transfer-encoding"):
            body = b""
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            while (await reader.readline()).strip():
                pass
        else:
            body = await reader.readexactly(int((request.all("content-length") or ["0"])[0]))
        return Request(method, target, fields, body)

    async def _serve_http_2(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests as those of HTTP/1.1, with their authority as Host."""
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        connection.initiate_connection()
        connection.receive_data(H2_PREFACE)
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    fields = tuple((str(name), str(value)) for name, value in event.headers)
                    known = dict(fields)
                    others = tuple(each for each in fields if not each[0].startswith(":"))
                    host = ("host", known[":authority"])
                    self.requests.append(Request(known[":method"], known[":path"], (host, *others), b""))
                    connection.send_headers(event.stream_id or 0, [(":status", "200")], end_stream=True)
            writer.write(connection.data_to_send())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what is heard, until its end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
