"""What images mean, and that their servers answer as they should."""

from __future__ import annotations

import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from bus.server import free_port
from lab import images, pod_server
from tests.labs import eventually


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("traefik/whoami", "traefik/whoami"),
        ("docker.io/traefik/whoami:v1.10", "traefik/whoami"),
        ("quay.io/cilium/starwars@sha256:abc", "cilium/starwars"),
        ("localhost:5000/cilium/starwars:v2.1", "cilium/starwars"),
        ("nginx:1.25", "nginx"),
    ],
)
def test_registry_tag_and_digest_do_not_matter(image: str, repository: str) -> None:
    assert images.repository(image) == repository


@pytest.mark.parametrize(
    ("container", "port"),
    [
        ({}, 80),
        ({"args": ["--port", "8080"]}, 8080),
        ({"args": ["--port=8080", "--verbose"]}, 8080),
        ({"env": [{"name": "WHOAMI_PORT_NUMBER", "value": "81"}]}, 81),
        ({"args": ["--port", "none"]}, 80),
        ({"args": ["--port"]}, 80),
    ],
)
def test_whoami_listens_where_the_real_one_would(container: dict[str, Any], port: int) -> None:
    assert images.start({"image": "traefik/whoami", **container}).port == port


@pytest.mark.parametrize(
    "container",
    [
        {"image": "nginx"},
        {"image": "alpine", "command": ["/bin/sh", "-c", "echo gone"]},
        {"image": "traefik/whoami", "command": ["sh"]},
        {"image": "alpine", "args": ["sh"]},
        {},
    ],
)
def test_what_is_not_known_sleeps(container: dict[str, Any]) -> None:
    assert images.start(container).arguments == images.SLEEP


def test_a_known_program_is_run_as_given() -> None:
    assert images.start({"image": "x", "command": ["iperf3"], "args": ["-s"]}).arguments == ("iperf3", "-s")


@pytest.fixture(params=["whoami", "starwars"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    port = free_port()
    environment = {"HOSTNAME": "pod-1", "POD_IP": "10.0.0.7"}
    with subprocess.Popen(images.server(request.param, port), env=environment) as process:
        assert eventually(lambda: can_connect(port))
        yield request.param, port
        process.kill()


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def ask(port: int, method: str, path: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, data=b"x" * 100_000)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_pods_server_says_what_its_image_says(server: tuple[str, int]) -> None:
    kind, port = server
    if kind == "whoami":
        status, body = ask(port, "GET", "/")
        assert status == 200
        assert body.splitlines()[:3] == ["Hostname: pod-1", "IP: 127.0.0.1", "IP: 10.0.0.7"]
        assert "RemoteAddr: 127.0.0.1:" in body
        assert "GET / HTTP/1.1" in body
    else:
        assert ask(port, "POST", "/v1/request-landing") == (200, "Ship landed\n")
        assert ask(port, "PUT", "/v1/exhaust-port")[0] == 503
        assert "Panic" in ask(port, "PUT", "/v1/exhaust-port")[1]
        assert "Death Star" in ask(port, "GET", "/v1")[1]
        assert ask(port, "GET", "/v2")[0] == 404


def test_two_requests_on_one_connection_are_both_answered(server: tuple[str, int]) -> None:
    _, port = server
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = b""
        while more := connection.recv(65536):
            received += more
    assert received.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("sent", [b"\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"])
def test_what_is_not_http_is_told_so(server: tuple[str, int], sent: bytes) -> None:
    _, port = server
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(sent)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_the_panic_is_in_our_own_words() -> None:
    assert "goroutine" not in pod_server.starwars("PUT", "/v1/exhaust-port", "", "")[1]
