"""A nats-server of our own: its settings, and a child process that is ready when `start` returns.

What matters in the settings: `sync_interval: always`, or a kill -9 loses messages that were acknowledged; a payload
limit that lets a large `apply` or table pass in one message.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bus.subjects import READING

MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
TENANT_PAYLOAD_BYTES = (4096 + 64) * 1024  # the largest answer (bus/questions.py), with its headers
TENANT_CONNECTIONS = 4  # its services', and one while one of them starts anew
PENDING_BYTES = 64 << 20  # that wait for one who reads too slowly, before it is cut off
UNANSWERED_SECONDS = 30  # then the server forgets the way back of a node's question
ACCOUNT = "plexus"  # the cluster's own
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
class Tenant:
    """A user with an account of its own: it sees nothing of the cluster's but what is handed into it.

    Whatever it names as the reply to a question is a subject of its own account, so nothing that the server or a
    service answers comes to anybody else.
    """

    user: User
    asks: Sequence[str] = ()  # subjects on which it speaks to the cluster; answers come back
    hears: Sequence[str] = ()  # subjects that it may subscribe to
    answers: Sequence[str] = ()  # subjects on which the cluster asks it


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. `verify`: whoever connects needs a certificate of the same authority."""

    certificate: Path
    key: Path
    authority: Path
    verify: bool = False


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One server on one machine."""

    store: Path  # JetStream's directory; the configuration, log and pid file are written beside it
    host: str = "127.0.0.1"
    port: int = 4222
    users: Sequence[User] = field(default_factory=tuple)  # none: anyone who can connect may do everything
    tenants: Sequence[Tenant] = field(default_factory=tuple)
    tls: Tls | None = None  # None: in the clear

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
        "max_pending": PENDING_BYTES,
        "write_deadline": "10s",
        "ping_interval": "5s",
        "ping_max": 2,
        "jetstream": {"store_dir": str(settings.store), "sync_interval": "always"},
    }
    if settings.tls:
        config["tls"] = {
            "cert_file": str(settings.tls.certificate),
            "key_file": str(settings.tls.key),
            "ca_file": str(settings.tls.authority),
            "verify": settings.tls.verify,
            "min_version": "1.3",
            "handshake_first": "300ms",  # who has said nothing by then is told in the clear that this is TLS
        }
    if settings.users:
        config["accounts"] = {ACCOUNT: _account(settings)} | {
            tenant.user.name: _tenant(tenant) for tenant in settings.tenants
        }
    else:
        config["mappings"] = READING
    return json.dumps(config, indent=2)


def _account(settings: ServerSettings) -> Mapping[str, Any]:
    """The cluster's own: all logs, the control services, and what of it is handed to whom.

    Everything is exported by name of who may have it; one answer is expected, but to reading and to snapshots.
    """
    exports: dict[tuple[str, str], list[str]] = {}
    for tenant in settings.tenants:
        for subject in tenant.asks:
            exports.setdefault(("service", subject), []).append(tenant.user.name)
        for subject in tenant.hears:
            exports.setdefault(("stream", subject), []).append(tenant.user.name)
    return {
        "jetstream": "enabled",
        "mappings": READING,
        "users": [_user(user) for user in settings.users],
        "exports": [
            {kind: subject, "accounts": names, **(_answers(subject) if kind == "service" else {})}
            for (kind, subject), names in exports.items()
        ],
        "imports": [
            {"service": {"account": tenant.user.name, "subject": subject}}
            for tenant in settings.tenants
            for subject in tenant.answers
        ],
    }


def _answers(subject: str) -> dict[str, Any]:
    many = subject.startswith("log.read.") or subject.endswith(".snapshot")
    return {"response": "stream" if many else "singleton", "threshold": f"{UNANSWERED_SECONDS}s"}


def _tenant(tenant: Tenant) -> Mapping[str, Any]:
    imports = [{"service": {"account": ACCOUNT, "subject": subject}} for subject in tenant.asks]
    imports += [{"stream": {"account": ACCOUNT, "subject": subject}} for subject in tenant.hears]
    return {
        "users": [_user(tenant.user)],
        "imports": imports,
        "exports": [{"service": subject, "accounts": [ACCOUNT]} for subject in tenant.answers],
        "limits": {
            "max_payload": TENANT_PAYLOAD_BYTES,
            "max_connections": TENANT_CONNECTIONS,
            "max_subscriptions": 1000,
        },
    }


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

    @property
    def _configuration(self) -> Path:
        return self.settings.store / "nats-server.conf"

    async def start(self) -> None:
        """Start it and wait until it takes JetStream calls. Raises: ServerFailed."""
        store = self.settings.store
        store.mkdir(parents=True, exist_ok=True)
        config = self._configuration
        _write(config, configuration(self.settings))
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

    def read_anew(self, settings: ServerSettings) -> None:
        """It goes by these from now on, as far as a running server can: users and accounts. Raises: ServerFailed."""
        self.settings = settings
        _write(self._configuration, configuration(settings))
        os.kill(self.pid, signal.SIGHUP)

    async def ended(self) -> None:
        """Returns when it runs no more."""
        if self._process is not None:
            await self._process.wait()

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


def _write(file: Path, text: str) -> None:
    """At once, or not at all. It holds passwords."""
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(file)


@asynccontextmanager
async def running(settings: ServerSettings) -> AsyncIterator[Server]:
    """A server for as long as the block lasts."""
    server = Server(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
