"""A client that sends exactly the bytes it is given, and reads answers as http.client does."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from typing import NamedTuple, Self

DENIED = (403, b"Access denied\n")


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str] = {}

    @property
    def short(self) -> tuple[int, bytes]:
        return self.status, self.body


class Connection:
    def __init__(self, port: int, seconds: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, method: str = "GET") -> Answer:
        """Raises: http.client.RemoteDisconnected, ConnectionError: there is none."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        is_tunnel = method == "CONNECT" and response.status == 200
        body = b"" if is_tunnel else response.read()
        return Answer(response.status, body, {name.lower(): value for name, value in response.getheaders()})

    def ask(self, method: str, target: str, body: bytes | None = None, fields: Mapping[str, str] = {}) -> Answer:
        """One request, and its answer. Host is "web" when it is not given."""
        given = {"host": "web"} | dict(fields)
        if body is not None:
            given["content-length"] = str(len(body))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))
        return self.answer(method)


def ask(
    port: int, method: str, target: str, body: bytes | None = None, fields: Mapping[str, str] = {}
) -> tuple[int, bytes]:
    """By a connection of its own."""
    with Connection(port) as connection:
        return connection.ask(method, target, body, fields).short
