"""Short TCP connections at a steady pace, however long each takes: a program of its own, run where they begin and end.

    python paced.py server ADDRESS PORT                     serves until killed; prints "ready" once it listens
    python paced.py client ADDRESS PORT A_SECOND SECONDS    prints one JSON line and ends

A connection is one byte there and one byte back, and the server closes first, as most servers of short connections do:
the address and port that it came from rest there for a minute (TIME-WAIT), and who has that port next is told apart by
its sequence numbers alone.

JSON: {"count": connections, "failed": without the answer, "slow": with it, after SLOW_SECONDS or more, "worst_seconds"}
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass

SLOW_SECONDS = 0.5  # a packet was lost and sent again, which takes a second; a busy machine seldom waits for so long
FAILED_SECONDS = 10.0
BACKLOG = 1024


@dataclass
class Counts:
    """What became of the connections. `worst_seconds`: of those that were answered."""

    count: int = 0
    failed: int = 0
    slow: int = 0
    worst_seconds: float = 0.0


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(await reader.readexactly(1))
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass  # the client counts it
    finally:
        writer.close()


async def serve(address: str, port: int) -> None:
    async with await asyncio.start_server(answer, address, port, backlog=BACKLOG) as server:
        print("ready", flush=True)
        await server.serve_forever()


async def exchange(address: str, port: int) -> None:
    """One connection. Raises OSError, IncompleteReadError: it was not answered."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"x")
        await reader.readexactly(1)
        await reader.read()  # the server's close
    finally:
        writer.close()


async def ask(address: str, port: int, counts: Counts) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    counts.count += 1
    try:
        async with asyncio.timeout(FAILED_SECONDS):
            await exchange(address, port)
    except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
        counts.failed += 1
        return
    took = clock() - began
    counts.slow += took >= SLOW_SECONDS
    counts.worst_seconds = max(counts.worst_seconds, took)


async def connect(address: str, port: int, a_second: float, seconds: float) -> Counts:
    counts = Counts()
    clock = asyncio.get_running_loop().time
    began = clock()
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(a_second * seconds)):
            await asyncio.sleep(began + number / a_second - clock())
            tasks.create_task(ask(address, port, counts))
    return counts


if __name__ == "__main__":
    role, address, port, *pace = sys.argv[1:]
    if role == "server":
        asyncio.run(serve(address, int(port)))
    else:
        print(json.dumps(asdict(asyncio.run(connect(address, int(port), *map(float, pace))))))
