"""How many DNS questions the proxy of names answers in a second of one core, and what it adds: `python -m bench.names`.

A client, the proxy and a resolver are three processes on loopback. The resolver answers every question with an address,
at once. Seconds are of the proxy's own CPU, so the two others and what else the machine does count little. Times are
taken with one question at a time, by turns directly and through the proxy. The bar is 30 000 questions a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

NAMES = 1000
WANTED = 10  # one name of so many is meant by some policy
QUESTIONS = 60_000
WINDOW = 64  # questions on the way at once
TIMED = 4_000
ANSWER = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1"  # the name of the question, A, 60 s, 192.0.2.1
EDNS = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


class Result(NamedTuple):
    per_core_second: float
    per_second: float
    direct: tuple[float, float]  # p50 and p99, microseconds
    proxied: tuple[float, float]


def questions(with_edns: bool) -> list[bytes]:
    """What follows the id."""
    found = []
    for number in range(NAMES):
        group = "wanted" if number % WANTED == 0 else "other"
        labels = (f"name{number}", group, "example", "com")
        name = b"".join(bytes([len(each)]) + each.encode() for each in labels) + b"\0"
        head = struct.pack("!HHHHH", 0x0100, 1, 0, 0, int(with_edns))
        found.append(head + name + b"\0\1\0\1" + (EDNS if with_edns else b""))
    return found


def resolve(server: socket.socket) -> None:
    while True:
        message, client = server.recvfrom(4096)
        end = message.index(b"\0", 12) + 5
        head = message[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
        server.sendto(head + message[12:end] + ANSWER, client)


def proxy(listening: socket.socket, resolver: tuple[str, int]) -> None:
    import uvloop

    from bus.patterns import Patterns
    from services.dns.judge import Judge
    from services.dns.names import Names
    from services.dns.proxy import UDP

    async def admit(name: str, new: frozenset[str]) -> None:
        await asyncio.sleep(0)

    async def run() -> None:
        names = Names(0.0, 1000)
        names.want(Patterns(patterns=["*.wanted.example.com"]))
        UDP(listening, Judge(Patterns(patterns=["**.example.com"]), names), admit, resolver)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@contextmanager
def process(body: Callable[[], None]) -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/schedstat") as stat:  # noqa: PTH123  # read often
        return int(stat.read().split()[0]) / 1e9


def bound() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    made.bind(("127.0.0.1", 0))
    return made


def flood(client: socket.socket, asked: list[bytes]) -> None:
    """All questions, so many at once, each answered."""
    for number in range(QUESTIONS + WINDOW):
        if number >= WINDOW:
            client.recv(4096)
        if number < QUESTIONS:
            client.send(struct.pack("!H", number & 0xFFFF) + asked[number % NAMES])


def one_by_one(client: socket.socket, asked: list[bytes], number: int) -> float:
    began = time.perf_counter()
    client.send(struct.pack("!H", number & 0xFFFF) + asked[number % NAMES])
    client.recv(4096)
    return (time.perf_counter() - began) * 1e6


def shares(times: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


def measure(with_edns: bool) -> Result:
    asked = questions(with_edns)
    server, listening = bound(), bound()
    with process(lambda: resolve(server)), process(lambda: proxy(listening, server.getsockname())) as pid:
        direct, through = bound(), bound()
        direct.connect(server.getsockname())
        through.connect(listening.getsockname())
        for client in (direct, through):
            client.settimeout(10)
            one_by_one(client, asked, 0)  # it is there
        before, began = cpu_seconds(pid), time.perf_counter()
        flood(through, asked)
        used, took = cpu_seconds(pid) - before, time.perf_counter() - began
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(TIMED):
            for client, found in zip((direct, through), times, strict=True):
                found.append(one_by_one(client, asked, number))
    return Result(QUESTIONS / used, QUESTIONS / took, shares(times[0]), shares(times[1]))


def main() -> None:
    for with_edns in (False, True):
        found = measure(with_edns)
        print(
            f"{'with' if with_edns else 'without'} EDNS: {found.per_core_second:.0f} questions a second of one core, "
            f"{found.per_second:.0f} a second on this machine; one at a time, p50 and p99 in us: directly "
            f"{found.direct[0]:.0f} and {found.direct[1]:.0f}, through the proxy "
            f"{found.proxied[0]:.0f} and {found.proxied[1]:.0f}"
        )


if __name__ == "__main__":
    main()
