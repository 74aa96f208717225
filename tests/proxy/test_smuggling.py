"""Requests that one reader takes for one thing, and another for another, never slip past a rule."""

from __future__ import annotations

import posixpath
import re
import selectors
import socket
from contextlib import ExitStack
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import pytest

from services.proxy.slots import HTTPRule, Slot
from tests.proxy.calling import Connection
from tests.proxy.running import Running, free_ports
from tests.proxy.upstream import Request

(PORT,) = free_ports(1)
HOST = "web"


LAST = b"GET /last HTTP/1.1\r\nHost: web\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def _slots(running: Running) -> None:
    rules = (
        HTTPRule(name="public", method="GET|POST", path="/public/.*", host=HOST),
        HTTPRule(name="last", method="GET", path="/last"),
    )
    running.want(Slot(port=PORT, direction="ingress", http=rules))


SILENCE_SECONDS = 0.5  # what is not answered by then was taken for the middle of a body


def sent(*streams: bytes) -> None:
    """Each by a connection of its own, with one more request at its end, until all are answered, closed, or silent."""
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        received: dict[int, bytes] = {}
        for data in streams:
            connection = stack.enter_context(Connection(PORT))
            connection.send(data + LAST)
            selector.register(connection.socket, selectors.EVENT_READ)
            received[connection.socket.fileno()] = b""
        while selector.get_map() and (ready := selector.select(SILENCE_SECONDS)):
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                try:
                    more = key.fileobj.recv(65536)
                except ConnectionResetError:
                    more = b""
                received[key.fd] += more
                if not more or b"GET /last" in received[key.fd] or b"connection: close" in received[key.fd]:
                    selector.unregister(key.fileobj)


def slipped(running: Running) -> list[Request]:
    """What reached the server, and no rule allows."""
    return [each for each in running.recorder.requests if each.target != "/last" and not is_allowed(each)]


def is_allowed(request: Request) -> bool:
    framed_once = len(request.all("content-length")) + len(request.all("transfer-encoding")) <= 1
    right = request.method in ("GET", "POST") and request.all("host") == [HOST]
    return right and framed_once and meant(request.target).startswith("/public/")


def meant(target: str) -> str:
    """The path as servers read it that resolve all that they can: parameters, escapes, backslashes, dots."""
    path = re.sub(r";[^/]*", "", target.partition("?")[0])
    return posixpath.normpath(unquote(path).replace("\\", "/")) + "/"


OTHER_PATHS = (
    "/public/../private",
    "/public/..",
    "/public/./../private",
    "/public//../../private",
    "/public/%2e%2e/private",
    "/public/%2E%2E/private",
    "/public/.%2e/private",
    "/public/..%2fprivate",
    "/public/..%2Fprivate",
    "/public/..%5cprivate",
    "/public/..\\private",
    "/public/.;/..;x=y/private",
    "/public/%2e%2e;/private",
    "/public/..%3b/private",
    "/public/..;/private",
    "//private/../public/../private",
    "/private/%70ublic",
    "/%70ublic/../private",
    "/PUBLIC/a",
    "/public/a#b",
    "/public/a%00",
    "/public/a%0d%0aX:%20y",
    "/public/a?x=/public/b",
    "public/a",
    "http://web/private",
    "http://other/public/a",
    "http://web@other/public/a",
    "http:///public/a",
    "*",
    "/public/\u00e4",
)


def test_a_path_that_means_another(running: Running) -> None:
    sent(*(f"GET {each} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode("latin-1") for each in OTHER_PATHS))
    assert slipped(running) == []


SAME_PATHS = (
    *("/public/a", "//public/a", "/x/../public/a", "/./public/a", "/publ%69c/a", "/public//../public/a"),
    f"http://{HOST}/public/a",
)


def test_what_is_the_same_path_is_allowed_and_arrives_as_such(running: Running) -> None:
    sent(*(f"GET {each} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode() for each in SAME_PATHS))
    assert [each.target for each in running.recorder.requests][:4] == ["/public/a"] * 4
    assert slipped(running) == []


INNER = "GET /private HTTP/1.1\r\nHost: web\r\n\r\n"


HEADS = (
    f"Content-Length: 0\r\nContent-Length: {len(INNER)}",
    f"Content-Length: {len(INNER)}\r\nContent-Length: 0",
    f"Content-Length: 0, {len(INNER)}",
    "Content-Length: -1",
    f"Content-Length: +{len(INNER)}",
    "Content-Length: 0x0",
    "Content-Length : 0",
    "Content-Length:\r\n 0",
    f"Transfer-Encoding: chunked\r\nContent-Length: {len(INNER)}",
    f"Content-Length: {len(INNER)}\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding:\x0bchunked",
    "X: a\r\n Transfer-Encoding: chunked",
    "X: a\r\n\tContent-Length: 5",
    "X: a\nContent-Length: 5",
    "X: a\rContent-Length: 5",
    "X\x00: a",
    "X: a\x00b",
    ": empty",
    " X: leading",
    "Host: other",
    "Host: web",
    "X-Forwarded-Host: other\r\nX-Original-URL: /private\r\nX-Rewrite-URL: /private",
    "Connection: Host\r\nX: y",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Upgrade: TLS/1.0\r\nConnection: Upgrade",
)


def test_where_a_request_ends(running: Running) -> None:
    """A chunked body ends at once, and what follows it would be a request of its own to some."""
    sent(
        *(
            f"{method} /public/a HTTP/1.1\r\nHost: {HOST}\r\nX-Case: {case}\r\n{head}\r\n\r\n{body}".encode("latin-1")
            for case, head in enumerate(HEADS)
            for method in ("GET", "POST")
            for body in (INNER, f"0\r\n\r\n{INNER}")
        )
    )
    assert slipped(running) == []
    assert running.recorder.other == []


CHUNKS = (
    "0\n\n" + INNER,
    "00000000000000000\r\n\r\n" + INNER,
    "1;x\r\na\r\n0\r\n\r\n" + INNER,
    "1;\nx\r\na\r\n0\r\n\r\n" + INNER,
    "0x0\r\n\r\n" + INNER,
    "fffffffffffffffff\r\n" + INNER,
    "1\r\naX0\r\n\r\n" + INNER,
    "0\r\nHost: other\r\nContent-Length: 9\r\n\r\n" + INNER,
    "-1\r\n\r\n" + INNER,
    " 0\r\n\r\n" + INNER,
)


def test_chunks_that_are_none(running: Running) -> None:
    head = f"POST /public/a HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nX-Case: "
    sent(*(f"{head}{case}\r\n\r\n{body}".encode("latin-1") for case, body in enumerate(CHUNKS)))
    assert slipped(running) == []


BEGINNINGS = (
    "GET /public/a HTTP/1.1\r\nHost: web\r\n\r\nGET /private HTTP/1.1\r\nHost: web",
    "GET  /public/a HTTP/1.1\r\nHost: web",
    "GET\t/public/a\tHTTP/1.1\r\nHost: web",
    "GET /public/a /private HTTP/1.1\r\nHost: web",
    "GET /public/a HTTP/1.1 HTTP/1.1\r\nHost: web",
    "GET /public/a HTTP/9.9\r\nHost: web",
    "GET /public/a HTTP/0.9\r\nHost: web",
    "GET /private\r\n",
    "GET /public/a HTTP/1.1",
    "GET /public/a HTTP/1.1\r\nHost: web, other",
    "GET /public/a HTTP/1.1\r\nHost: web\r\nHost: web",
    "\r\n\r\nGET /private HTTP/1.1\r\nHost: web",
    "PRI * HTTP/2.0\r\n\r\nSM",
)


def test_first_lines_that_are_more_than_one(running: Running) -> None:
    sent(*(f"{each}\r\nX-Case: {case}\r\n\r\n".encode("latin-1") for case, each in enumerate(BEGINNINGS)))
    assert slipped(running) == []
    assert running.recorder.other == []


GOOD = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/public/a")]


WRONG = (
    [*GOOD[:3], (":path", "/private")],
    [*GOOD, (":path", "/private")],
    [*GOOD[:3], (":path", "/public/../private")],
    [*GOOD[:3], (":path", "/public/%2e%2e/private")],
    [*GOOD[:3], (":path", "/public/a\r\nx: y")],
    [*GOOD[:3], (":path", "/public/a HTTP/1.1\r\nHost: web\r\n\r\nGET /private")],
    [*GOOD[:3], (":path", "")],
    [*GOOD[:3], (":path", "http://web/private")],
    GOOD[:3],
    [(":method", "GET /private"), *GOOD[1:]],
    [(":method", "PUT"), *GOOD[1:]],
    [*GOOD[:2], (":authority", "other"), GOOD[3]],
    [*GOOD, (":authority", "other")],
    [("x", "y"), *GOOD],
    [*GOOD, (":unknown", "x")],
    [*GOOD, ("content-length", "5")],
    [*GOOD, ("transfer-encoding", "chunked")],
    [*GOOD, ("connection", "close")],
    [*GOOD, ("x", "y\r\nz: a")],
    [*GOOD, ("x\r\ny", "z")],
    [*GOOD, ("X-UPPER", "z")],
    [*GOOD, ("x", "y\0z")],
    [(":method", "CONNECT"), (":authority", "other:443")],
    [(":method", "CONNECT"), (":protocol", "websocket"), *GOOD[1:3], (":path", "/private")],
)
MORE: tuple[list[tuple[str, str]], ...] = ([], [("host", "other")], [("cookie", "a=b")], [("te", "trailers")])


def test_http_2_pseudo_headers_and_header_values(running: Running) -> None:
    statuses = asked_by_http_2(*WRONG)
    assert set(statuses) <= {"", "400", "403", "404"}, list(zip(WRONG, statuses, strict=True))
    assert running.recorder.requests == []


def test_http_2_as_it_should_be(running: Running) -> None:
    assert asked_by_http_2(*([*GOOD, *more] for more in MORE)) == ["200"] * len(MORE)
    assert slipped(running) == []
    assert [request.target for request in running.recorder.requests] == ["/public/a"] * len(MORE)


def asked_by_http_2(*requests: list[tuple[str, str]]) -> list[str]:
    """The status of each answer; "": there is none."""
    lenient = h2.config.H2Configuration(
        client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    clients: list[tuple[Connection, h2.connection.H2Connection]] = []
    statuses: list[str] = []
    with ExitStack() as stack:
        for headers in requests:
            protocol = h2.connection.H2Connection(config=lenient)
            protocol.initiate_connection()
            protocol.send_headers(1, headers, end_stream=True)
            connection = stack.enter_context(Connection(PORT))
            connection.send(protocol.data_to_send())
            clients.append((connection, protocol))
        for connection, protocol in clients:
            statuses.append(_status(connection, protocol))
    return statuses


def _status(connection: Connection, protocol: h2.connection.H2Connection) -> str:
    while data := connection.socket.recv(65536):
        for event in protocol.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                return next(str(value) for name, value in event.headers if str(name) == ":status")
            if isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                return ""
        connection.send(protocol.data_to_send())
    return ""
