"""HTTP rules, as a real Envoy does them."""

from __future__ import annotations

import pytest

from services.proxy.routes import BUFFER_BYTES
from services.proxy.slots import HeaderMatch, HTTPRule, Slot
from tests.proxy.calling import DENIED, Connection, ask
from tests.proxy.running import Running, free_ports

RULES, HEADERS, ANY, NONE, CHANGES = free_ports(5)

SLOTS = (
    Slot(
        port=RULES,
        direction="ingress",
        http=(
            HTTPRule(name="land", method="POST", path="/v1/request-landing"),
            HTTPRule(name="read", method="GET|HEAD", path="/public/.*"),
            HTTPRule(name="query", method="GET", path=r"/search\?q=[a-z]+"),
            HTTPRule(name="host", host=r"(api|www)\.example\.com(:80)?"),
            HTTPRule(name="options", method="OPTIONS"),
        ),
    ),
    Slot(
        port=HEADERS,
        direction="ingress",
        http=(
            HTTPRule(
                name="must", path="/must", headers=(HeaderMatch(name="X-Key", value="1"), HeaderMatch(name="X-Any"))
            ),
            HTTPRule(name="add", path="/add", headers=(HeaderMatch(name="X-Key", value="1", mismatch="ADD"),)),
            HTTPRule(name="delete", path="/delete", headers=(HeaderMatch(name="X-Key", value="1", mismatch="DELETE"),)),
            HTTPRule(
                name="replace", path="/replace", headers=(HeaderMatch(name="X-Key", value="1", mismatch="REPLACE"),)
            ),
            HTTPRule(name="log", path="/log", headers=(HeaderMatch(name="X-Key", value="1", mismatch="LOG"),)),
            HTTPRule(
                name="several",
                path="/several",
                headers=(
                    HeaderMatch(name="X-Key", value="1", mismatch="ADD"),
                    HeaderMatch(name="X-Other", value="2", mismatch="DELETE"),
                    HeaderMatch(name="X-Must", value="3"),
                ),
            ),
        ),
    ),
    Slot(port=ANY, direction="egress", http=(HTTPRule(name="any"),)),
    Slot(port=NONE, direction="ingress", http=()),
)


@pytest.fixture(scope="module", autouse=True)
def _slots(running: Running) -> None:
    running.want(*SLOTS)


@pytest.mark.parametrize(
    ("method", "target", "is_allowed"),
    [
        ("POST", "/v1/request-landing", True),
        ("PUT", "/v1/request-landing", False),
        ("PUT", "/v1/exhaust-port", False),
        ("POST", "/v1/request-landing/", False),
        ("POST", "/x/v1/request-landing", False),
        ("POST", "/V1/REQUEST-LANDING", False),
        ("GET", "/public/a", True),
        ("HEAD", "/public/a", True),
        ("GETX", "/public/a", False),
        ("get", "/public/a", False),
        ("GET", "/public", False),
        ("GET", "/search?q=abc", True),
        ("GET", "/search?q=abc&r=1", False),
        ("GET", "/search", False),
        ("OPTIONS", "/", True),
    ],
)
def test_a_rule_takes_the_whole_of_method_and_path(
    running: Running, method: str, target: str, is_allowed: bool
) -> None:
    status, body = ask(RULES, method, target)
    if is_allowed:
        assert (status, body) == (200, b"" if method == "HEAD" else f"{method} {target}".encode())
        assert len(running.recorder.requests) == 1
    else:
        assert (status, body) == DENIED
        assert running.recorder.requests == []


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [("api.example.com", True), ("www.example.com:80", True), ("apiXexample.com", False), ("x.api.example.com", False)],
)
def test_a_rule_takes_the_whole_of_the_host(host: str, is_allowed: bool) -> None:
    assert (ask(RULES, "PATCH", "/any", fields={"host": host})[0] == 200) is is_allowed


def test_a_slot_without_rules_denies_everything() -> None:
    assert ask(NONE, "GET", "/") == DENIED


def test_an_empty_rule_allows_everything() -> None:
    assert ask(ANY, "DELETE", "/what/ever?x=1") == (200, b"DELETE /what/ever?x=1")


@pytest.mark.parametrize(
    ("fields", "is_allowed"),
    [
        ({"x-key": "1", "x-any": "whatever"}, True),
        ({"x-key": "1"}, False),
        ({"x-key": "2", "x-any": "whatever"}, False),
        ({"x-any": "whatever"}, False),
        ({"X-KEY": "1", "X-ANY": ""}, True),
    ],
)
def test_headers_that_must_be_there(fields: dict[str, str], is_allowed: bool) -> None:
    assert (ask(HEADERS, "GET", "/must", fields=fields)[0] == 200) is is_allowed


@pytest.mark.parametrize(
    ("path", "sent", "arrives"),
    [
        ("/add", [], ["1"]),
        ("/add", ["1"], ["1"]),
        ("/add", ["9"], ["9", "1"]),
        ("/delete", [], []),
        ("/delete", ["1"], ["1"]),
        ("/delete", ["9"], []),
        ("/replace", [], ["1"]),
        ("/replace", ["1"], ["1"]),
        ("/replace", ["9"], ["1"]),
        ("/log", [], []),
        ("/log", ["1"], ["1"]),
        ("/log", ["9"], ["9"]),
    ],
)
def test_what_becomes_of_a_header_that_is_another(
    running: Running, path: str, sent: list[str], arrives: list[str]
) -> None:
    with Connection(HEADERS) as connection:
        lines = "".join(f"x-key: {value}\r\n" for value in sent)
        connection.send(f"GET {path} HTTP/1.1\r\nhost: web\r\n{lines}\r\n".encode())
        assert connection.answer().status == 200
    assert running.recorder.requests[0].all("x-key") == arrives


@pytest.mark.parametrize(
    ("fields", "keys", "others"),
    [
        ({"x-must": "3"}, ["1"], []),
        ({"x-must": "3", "x-key": "1", "x-other": "2"}, ["1"], ["2"]),
        ({"x-must": "3", "x-key": "1", "x-other": "8"}, ["1"], []),
        ({"x-must": "3", "x-key": "7", "x-other": "2"}, ["7", "1"], ["2"]),
        ({"x-must": "3", "x-key": "7", "x-other": "8"}, ["7", "1"], []),
    ],
)
def test_several_headers_in_one_rule(
    running: Running, fields: dict[str, str], keys: list[str], others: list[str]
) -> None:
    assert ask(HEADERS, "GET", "/several", fields=fields)[0] == 200
    request = running.recorder.requests[0]
    assert (request.all("x-key"), request.all("x-other")) == (keys, others)
    assert ask(HEADERS, "GET", "/several", fields=fields | {"x-must": "4"}) == DENIED


def test_a_connection_lives_on_after_a_denial(running: Running) -> None:
    with Connection(RULES) as connection:
        for _ in range(3):
            assert connection.ask("PUT", "/v1/exhaust-port").short == DENIED
            assert connection.ask("POST", "/v1/request-landing").status == 200
            assert connection.ask("PUT", "/v1/exhaust-port", body=b"x" * 100).short == DENIED
    assert [request.method for request in running.recorder.requests] == ["POST"] * 3


@pytest.mark.parametrize("fields", [{}, {"expect": "100-continue"}])
def test_a_denied_body_that_is_too_long_to_wait_for_is_denied_at_once(fields: dict[str, str]) -> None:
    with Connection(RULES) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        connection.send(f"PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: {1 << 30}\r\n{head}\r\n".encode())
        if not fields:
            connection.send(b"x" * (BUFFER_BYTES + 1))
        assert connection.answer().short == DENIED


def test_a_denied_body_without_an_end_is_denied_at_once() -> None:
    with Connection(RULES) as connection:
        connection.send(b"PUT / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert connection.answer().short == DENIED


def test_a_request_without_a_path_is_nobodys(running: Running) -> None:
    """`OPTIONS *`: Envoy has no route for it."""
    assert ask(ANY, "OPTIONS", "*")[0] == 404
    assert running.recorder.requests == []


def test_connect_goes_through_where_a_rule_says_nothing_of_paths(running: Running) -> None:
    with Connection(ANY) as connection:
        assert connection.ask("CONNECT", "example.com:443").status == 200
        connection.send(b"hello")
        assert connection.socket.recv(5) == b"hello"
    assert running.recorder.requests[0].target == "example.com:443"
    assert ask(NONE, "CONNECT", "example.com:443") == DENIED


def test_what_is_said_is_changed_by_nothing_but_the_rules(running: Running) -> None:
    fields = {"user-agent": "ship/1", "x-forwarded-for": "192.0.2.1", "cookie": "a=b", "authorization": "Basic x"}
    assert ask(ANY, "GET", "/?a=%20b", fields=fields)[0] == 200
    (request,) = running.recorder.requests
    assert request.target == "/?a=%20b"
    assert dict(request.fields) == {
        "host": "web",
        "user-agent": "ship/1",
        "x-forwarded-for": "192.0.2.1",
        "x-forwarded-proto": "http",  # by Envoy
        "cookie": "a=b",
        "authorization": "Basic x",
    }


def test_a_long_body_is_streamed(running: Running) -> None:
    body = b"0123456789abcdef" * (1 << 18)  # 4 MiB
    assert ask(RULES, "POST", "/v1/request-landing", body)[0] == 200
    assert running.recorder.requests[0].body == body


def test_a_chunked_body_arrives(running: Running) -> None:
    with Connection(RULES) as connection:
        head = b"POST /v1/request-landing HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.send(head + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
        assert connection.answer().status == 200
    assert running.recorder.requests[0].body == b"hello world"


def test_a_client_of_http_1_0(running: Running) -> None:
    with Connection(RULES) as connection:
        connection.send(b"GET /public/old HTTP/1.0\r\n\r\n")
        assert connection.answer().short == (200, b"GET /public/old")
    with Connection(RULES) as connection:
        connection.send(b"GET /private HTTP/1.0\r\n\r\n")
        assert connection.answer().short == DENIED


def test_a_websocket_speaks_both_ways_where_a_rule_allows_it(running: Running) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-key": "x", "sec-websocket-version": "13"}
    with Connection(RULES) as connection:
        assert connection.ask("GET", "/public/socket", fields=upgrade).status == 101
        for word in (b"\x81\x05hello", b"\x00" * 4096):
            connection.send(word)
            echoed = b""
            while len(echoed) < len(word):
                echoed += connection.socket.recv(65536)
            assert echoed == word
    with Connection(RULES) as connection:
        assert connection.ask("GET", "/private/socket", fields=upgrade).short == DENIED


def test_changed_rules_hold_for_connections_that_are_there(running: Running) -> None:
    before = Slot(port=CHANGES, direction="ingress", http=(HTTPRule(name="a", path="/a"),))
    after = Slot(port=CHANGES, direction="ingress", http=(HTTPRule(name="b", path="/b"),))
    running.want(*SLOTS, before)
    with Connection(CHANGES) as connection:
        assert connection.ask("GET", "/a").status == 200
        running.want(*SLOTS, after)
        assert connection.ask("GET", "/a").short == DENIED
        assert connection.ask("GET", "/b").status == 200
        running.want(*SLOTS)
        while connection.ask("GET", "/b").short != DENIED:  # the slot is gone: nothing is allowed there
            pass


def test_what_envoy_refuses_leaves_what_was_good(running: Running) -> None:
    good = Slot(port=CHANGES, direction="ingress", http=(HTTPRule(name="a", path="/a"),))
    bad = Slot(port=CHANGES, direction="ingress", http=(HTTPRule(name="a", path="/(a"),))
    running.want(*SLOTS, good)
    running.want(*SLOTS, bad)
    assert "missing )" in running.discovery.why_refused(bad.name)
    assert not running.discovery.in_force(bad.name)
    assert ask(CHANGES, "GET", "/a")[0] == 200
    running.want(*SLOTS, good)
    assert running.discovery.why_refused(good.name) == ""
    assert running.discovery.in_force(good.name)
    running.want(*SLOTS)


def test_what_envoy_refuses_denies_where_nothing_was_good(running: Running) -> None:
    bad = Slot(port=CHANGES, direction="ingress", http=(HTTPRule(name="a", path="/(a"),))
    running.want(*SLOTS, bad)
    assert "missing )" in running.discovery.why_refused(bad.name)
    assert ask(CHANGES, "GET", "/a") == DENIED
    running.want(*SLOTS)
