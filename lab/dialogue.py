"""Questions to the supervisor: one JSON object a line over its unix socket, one back.

    {"do": "status"}                  {"processes": [...], "ready": bool, "waiting": ["node1.dataplane: ..."]}
    {"do": "start", "process": name}  {} once it is ready, {"problem": text} when it is not within its time

A question that cannot be read is answered {"problem": text}.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lab.errors import LabError

Answer = dict[str, Any]
LONGEST = 1 << 20  # bytes of one line


class SupervisorGone(LabError):
    """Nobody listens on the supervisor's socket."""


def ask(path: Path, question: dict[str, Any], timeout: float = 30.0) -> Answer:
    """Ask, and wait for the answer. Raises SupervisorGone; LabError with the answer's problem."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(LONGEST)
    except TimeoutError:
        raise LabError(f"the lab's supervisor did not answer within {timeout:.0f} s") from None
    except OSError as error:
        again = f"plexus lab up --name {path.parent.name}, with the settings that it has, starts another"
        raise SupervisorGone(f"the lab's supervisor is not there ({error.strerror}); {again}") from None
    if not line.endswith(b"\n"):
        raise SupervisorGone("the lab's supervisor ended before it answered")
    answer: Answer = json.loads(line)
    if "problem" in answer:
        raise LabError(answer["problem"])
    return answer


async def serve(path: Path, handler: Callable[[dict[str, Any]], Awaitable[Answer]]) -> None:
    """Answer questions until cancelled."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await one_answer(await reader.readline(), handler)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError):
            pass  # who asked is gone, or does not end its line
        finally:
            writer.close()

    server = await asyncio.start_unix_server(converse, sock=listener(path), limit=LONGEST)
    async with server:
        await server.serve_forever()


def listener(path: Path) -> socket.socket:
    """A socket that only root may connect to; in place of one that an earlier supervisor left."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    path.chmod(0o600)
    return made


async def one_answer(line: bytes, handler: Callable[[dict[str, Any]], Awaitable[Answer]]) -> Answer:
    """The answer to one line; a problem when it cannot be read or was refused."""
    try:
        question = json.loads(line)
    except ValueError:
        return {"problem": "the question is not JSON"}
    if not isinstance(question, dict):
        return {"problem": "the question is not an object"}
    try:
        return await handler(question)
    except LabError as error:
        return {"problem": str(error)}
