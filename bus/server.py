"""A nats-server of our own: its settings, and a child process that is ready when `start` returns.

What matters in the settings: `sync_interval: always`, or a kill -9 loses messages that were acknowledged; a payload
limit that lets a large `apply` or table pass in one message.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
START_SECONDS = 15.0
STOP_SECONDS = 5.0


class ServerFailed(Exception):
    """The server did not come up; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class User:
    """One who may connect, and the subjects it may publish and subscribe (NATS permission patterns)."""

    name: str
    password: str
    publish: Sequence[str] = (">",)
    subscribe: Sequence[str] = (">",)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One server on one machine."""

    store: Path  # JetStream's directory; the configuration, log and pid file are written beside it
    host: str = "127.0.0.1"
    port: int = 4222
    users: Sequence[User] = field(default_factory=tuple)  # none: anyone who can connect may do everything

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"


def find_binary() -> str:
    """The nats-server program: beside this Python, else on PATH. Raises: ServerFailed."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise ServerFailed("nats-server is not installed: run `make setup`, or put it on PATH")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def configuration(settings: ServerSettings) -> str:
    """The server's configuration file (JSON is a form that it reads)."""
    config: dict[str, Any] = {
        "listen": f"{settings.host}:{settings.port}",
        "server_name": f"plexus-{settings.port}",
        "max_payload": MAX_PAYLOAD_BYTES,
        "max_pending": 256 * 1024 * 1024,
        "write_deadline": "10s",
        "ping_interval": "5s",
        "ping_max": 2,
        "jetstream": {"store_dir": str(settings.store), "sync_interval": "always"},
    }
    if settings.users:
        config["authorization"] = {"users": [_user(user) for user in settings.users]}
    return json.dumps(config, indent=2)


def _user(user: User) -> Mapping[str, Any]:
    return {
        "user": user.name,
        "password": user.password,
        "permissions": {
            "publish": {"allow": list(user.publish)},
            "subscribe": {"allow": list(user.subscribe)},
            "allow_responses": {"max": -1, "expires": "1m"},  # a snapshot is many answers to one question
        },
    }


class Server:
    """A running nats-server. It outlives this process only if nobody stops it."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return self.settings.url

    @property
    def pid(self) -> int:
        """Raises: ServerFailed: it is not running."""
        if self._process is None or self._process.returncode is not None:
            raise ServerFailed("nats-server is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start it and wait until it takes JetStream calls. Raises: ServerFailed."""
        store = self.settings.store
        store.mkdir(parents=True, exist_ok=True)
        config = store / "nats-server.conf"
        config.touch(mode=0o600)  # it holds passwords
        config.write_text(configuration(self.settings))
        with (store / "nats-server.log").open("ab") as output:  # a local file, once
            self._process = await asyncio.create_subprocess_exec(
                find_binary(), "-c", str(config), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready(self._process)
        except TimeoutError:
            await self.stop()
            raise ServerFailed(f"nats-server was not ready in {START_SECONDS} s: see {store}/nats-server.log") from None

    async def stop(self) -> None:
        """Ask it to end, and insist after a while."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """kill -9."""
        await self._end(signal.SIGKILL)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.send_signal(how)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        while True:
            if process.returncode is not None:
                log = self.settings.store / "nats-server.log"
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ServerFailed(f"nats-server ended at once: {' '.join(last)} (see {log})")
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(self.settings.host, self.settings.port)
                try:
                    greeting = await reader.readline()
                    if greeting.startswith(b"INFO ") and json.loads(greeting[5:]).get("jetstream"):
                        return
                finally:
                    writer.close()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(settings: ServerSettings) -> AsyncIterator[Server]:
    """A server for as long as the block lasts."""
    server = Server(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
