"""TLS by the server's name, without termination."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.proxy.slots import ServerName, Slot
from tests.proxy.calling import Connection
from tests.proxy.running import free_ports, running_envoy
from tests.proxy.upstream import echo

PORT, NONE = free_ports(2)


@pytest.fixture(scope="module", autouse=True)
def _slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Before a server that says what it hears."""
    (port,) = free_ports(1)
    with running_envoy(Path(tmp_path_factory.mktemp("envoy")), tls=port) as running:
        server = running.background.run(asyncio.start_server(echo, "127.0.0.1", port))
        names = ("web.example.com", "*.one.example.com", "**.many.example.com", "pre-*.example.com")
        rules = tuple(ServerName(name="names", pattern=each) for each in names)
        running.want(Slot(port=PORT, direction="egress", tls=rules), Slot(port=NONE, direction="egress", tls=()))
        yield
        running.background.loop.call_soon_threadsafe(server.close)


def hello(name: str | None) -> bytes:
    """The first message of TLS to a server of this name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def passes(port: int, data: bytes) -> bool:
    """The bytes come out at the other end, as they are; else the connection is cut off."""
    echoed = b""
    with Connection(port) as connection:
        connection.send(data)
        try:
            while len(echoed) < len(data) and (more := connection.socket.recv(65536)):
                echoed += more
        except ConnectionResetError:
            pass
    assert echoed in (b"", data)
    return echoed == data


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        ("web.example.com", True),
        ("WEB.Example.Com", True),
        ("xweb.example.com", False),
        ("webXexample.com", False),
        ("a.one.example.com", True),
        ("a.b.one.example.com", False),
        ("one.example.com", False),
        ("a.many.example.com", True),
        ("a.b.many.example.com", True),
        ("many.example.com", False),
        ("pre-.example.com", True),
        ("pre-a.example.com", True),
        ("pre-a.b.example.com", False),
        ("other.org", False),
        (None, False),
    ],
)
def test_a_name_is_allowed_by_its_pattern(name: str | None, is_allowed: bool) -> None:
    assert passes(PORT, hello(name)) is is_allowed


def test_what_is_not_tls_does_not_pass() -> None:
    assert not passes(PORT, b"GET / HTTP/1.1\r\nhost: web.example.com\r\n\r\n")


def test_a_slot_without_names_lets_nobody_through() -> None:
    assert not passes(NONE, hello("web.example.com"))
