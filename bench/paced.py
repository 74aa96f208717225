"""Short TCP connections at a steady pace, however long each takes: a program of its own, run where they begin and end.

    python paced.py server ADDRESS PORT                     serves until killed; prints "ready" once it listens
    python paced.py client ADDRESS PORT A_SECOND SECONDS    prints one JSON line and ends

A connection is one byte there and one byte back, and the server closes first, as most servers of short connections do:
the address and port that it came from rest there for a minute (TIME-WAIT), and who has that port next is told apart by
its sequence numbers alone.

JSON: {"count": connections, "failed": without the answer, "slow": with it, but a packet had to be sent again: a second
      at least. The kernel tells that: on a busy machine, time does not.}
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import asdict, dataclass

FAILED_SECONDS = 10.0
BACKLOG = 1024
TOTAL_RETRANS = slice(100, 104)  # tcpi_total_retrans in struct tcp_info of linux/tcp.h


@dataclass
class Counts:
    """What became of the connections."""

    count: int = 0
    failed: int = 0
    slow: int = 0


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


async def exchange(address: str, port: int) -> int:
    """One connection. Returns how many packets were sent again. Raises OSError, IncompleteReadError: no answer."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"x")
        await reader.readexactly(1)
        await reader.read()  # the server's close
        info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TOTAL_RETRANS.stop)
        return int.from_bytes(info[TOTAL_RETRANS], sys.byteorder)
    finally:
        writer.close()


async def ask(address: str, port: int, counts: Counts) -> None:
    counts.count += 1
    try:
        async with asyncio.timeout(FAILED_SECONDS):
            sent_again = await exchange(address, port)
        counts.slow += sent_again > 0  # not in one line with the await: others count meanwhile
    except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
        counts.failed += 1


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
