"""The HTTP servers that pods run: `pod_server.py whoami PORT` and `pod_server.py starwars PORT` (images.py says when).

Runs on a bare interpreter (-I -S): it imports next to nothing, starts in milliseconds and stays below 10 MB. A thread
for each connection is enough; a pod has few.
"""

import _thread
import os
import socket
import sys
from collections.abc import Callable

Answer = Callable[[str, str, str, str], tuple[int, str]]
"""(method, path, head, the peer's "address:port") -> (status, body)"""

_BACKLOG = 1024
_LONGEST = 65536  # bytes of a request's head
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

_DEATHSTAR = """{
  "name": "Death Star",
  "hostname": "%s",
  "api": {
    "GET   /v1": "this description",
    "POST  /v1/request-landing": "ask for a place to land",
    "PUT   /v1/exhaust-port": "do not"
  }
}
"""
_PANIC = "Panic: deathstar exploded\nA torpedo came in by the exhaust port and met the main reactor.\n"


def whoami(method: str, path: str, head: str, peer: str) -> tuple[int, str]:
    """traefik/whoami: who answered, who asked, and the request as it came."""
    if path == "/health":
        return 200, ""
    addresses = ["127.0.0.1", *filter(None, os.environ.get("POD_IP", "").split(","))]
    lines = [f"Hostname: {os.environ.get('HOSTNAME', '')}", *(f"IP: {address}" for address in addresses)]
    return 200, "\n".join([*lines, f"RemoteAddr: {peer}", *head.split("\r\n"), "", ""])


def starwars(method: str, path: str, head: str, peer: str) -> tuple[int, str]:
    """cilium/starwars: the deathstar's API. It is built so that one request too many is fatal."""
    if path == "/v1/request-landing":
        return (200, "Ship landed\n") if method == "POST" else (405, "POST to land\n")
    if path == "/v1/exhaust-port":
        return (503, _PANIC) if method == "PUT" else (405, "PUT, if you must\n")
    if path.rstrip("/") in ("", "/v1"):
        return 200, _DEATHSTAR % os.environ.get("HOSTNAME", "")
    return 404, "no such deck\n"


def serve(port: int, answer: Answer) -> None:
    """Answer on a TCP port for ever."""
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # one socket for both families
        listener.bind(("::", port))
        listener.listen(_BACKLOG)
        while True:
            connection, peer = listener.accept()
            _thread.start_new_thread(converse, (connection, peer_name(peer[0], peer[1]), answer))


def peer_name(address: str, port: int) -> str:
    """As Go's programs write it: "[fd00::1]:80", and "10.0.0.1:80" for what the socket sees as ::ffff:10.0.0.1."""
    address = address.removeprefix("::ffff:")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def converse(connection: socket.socket, peer: str, answer: Answer) -> None:
    """All requests of one connection."""
    received = b""
    with connection:
        try:
            while True:
                while b"\r\n\r\n" not in received:
                    more = connection.recv(_LONGEST)
                    if not more or len(received) > _LONGEST:
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                keep, received = one_request(connection, head.decode("latin-1"), received, peer, answer)
                if not keep:
                    return
        except OSError:
            pass  # the peer left


def one_request(connection: socket.socket, head: str, received: bytes, peer: str, answer: Answer) -> tuple[bool, bytes]:
    """Answer one request. Whether the connection stays open, and what was received beyond the request."""
    lines = head.split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = headers.get("content-length", "0")
    words = lines[0].split(" ")
    if len(words) != 3 or not length.isdigit():
        reply(connection, 400, "not HTTP\n", keep=False)
        return False, b""
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    left = int(length) - len(received)
    while left > 0:
        more = connection.recv(min(left, _LONGEST))
        if not more:
            return False, b""
        left -= len(more)
    status, body = answer(words[0], words[1].partition("?")[0], head, peer)
    keep = headers.get("connection", "").lower() != "close" and words[2] == "HTTP/1.1"
    reply(connection, status, "" if words[0] == "HEAD" else body, keep=keep)
    return keep, received[int(length) :]


def reply(connection: socket.socket, status: int, body: str, *, keep: bool) -> None:
    content = body.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(content)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)


if __name__ == "__main__":
    serve(int(sys.argv[2]), {"whoami": whoami, "starwars": starwars}[sys.argv[1]])
