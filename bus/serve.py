"""`python -m bus.serve`: the bus of a cluster, a nats-server that lets in whom the cluster has.

Its configuration has an account for each node (bus/accounts.py). Which nodes there are the bus itself tells:
`resources` says them. When that is another set the configuration is written anew and the server reads it (SIGHUP);
connections of others stay. What is known is kept beside the store, so after a restart nobody waits for `resources`.

Everybody's password is made of two secrets, one for control services and one for nodes: who is handed a password knows
no other one, and a node that is new needs nobody to have thought of it.

When the bus stops: see ARCHITECTURE.md; nothing is lost, and everybody comes back to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bus.accounts import CONTROL, ON_NODES, OPERATOR, tenants, users
from bus.client import connect
from bus.interface import Bus
from bus.server import Server, ServerFailed, ServerSettings, Tls
from bus.subjects import NODE
from bus.telemetry import logger
from bus.tls import ClientTls

log = logger(__name__)

LEAST_SECRET = 32  # characters
WAIT_SECONDS = 0.5
"""From one reading of the configuration to the next. nats-server 2.15 has to read it twice: what an account that came
with the first says to the cluster's goes nowhere before the second."""


class BadServing(Exception):
    """A variable or a file cannot be used; the text names it."""


@dataclass(frozen=True, slots=True)
class Secrets:
    control: str
    nodes: str

    @staticmethod
    def of(folder: Path) -> Secrets:
        """The files `control` and `nodes`. Raises: BadServing."""
        found = []
        for name in ("control", "nodes"):
            try:
                secret = (folder / name).read_text().strip()
            except (OSError, UnicodeDecodeError) as problem:
                raise BadServing(f"the secret {folder / name} cannot be read: {problem}") from None
            if len(secret) < LEAST_SECRET:
                raise BadServing(f"the secret {folder / name} has to have {LEAST_SECRET} characters at least")
            found.append(secret)
        return Secrets(*found)

    def passwords(self, nodes: Iterable[str]) -> dict[str, str]:
        """Of everybody, by the user's name."""
        control = [OPERATOR, *(each.name for each in CONTROL)]
        on_nodes = [each.user_on(node) for node in nodes for each in ON_NODES]
        found = {user: password_of(user, self.control) for user in control}
        return found | {user: password_of(user, self.nodes) for user in on_nodes}


def password_of(user: str, secret: str) -> str:
    """As the chart computes it too: of the name, a colon and the secret. In this order no digest leads to another's."""
    return hashlib.sha256(f"{user}:{secret}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Serving:
    """What is said in the environment."""

    store: Path
    host: str
    port: int
    secrets: Secrets
    tls: Tls | None

    @staticmethod
    def of(environment: Mapping[str, str]) -> Serving:
        """Raises: BadServing."""
        host, _, port = environment.get("PLEXUS_BUS_LISTEN", "0.0.0.0:4222").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise BadServing('PLEXUS_BUS_LISTEN is "host:port"')
        names = ("PLEXUS_BUS_TLS_CERT", "PLEXUS_BUS_TLS_KEY", "PLEXUS_BUS_TLS_CA")
        files = [Path(environment[name]) for name in names if environment.get(name)]
        if files and len(files) < len(names):
            raise BadServing(f"{', '.join(names)} are set together, or not at all")
        for file in files:
            if not file.is_file():
                raise BadServing(f"{file} is not there")
        return Serving(
            Path(environment.get("PLEXUS_BUS_STORE", "/var/lib/plexus-bus")),
            host,
            int(port),
            Secrets.of(Path(environment.get("PLEXUS_BUS_SECRETS", "/etc/plexus/bus"))),
            Tls(files[0], files[1], files[2]) if files else None,
        )

    def settings(self, nodes: Iterable[str]) -> ServerSettings:
        nodes = sorted(nodes)
        passwords = self.secrets.passwords(nodes)
        return ServerSettings(
            self.store / "store", self.host, self.port, users(passwords), tenants(nodes, passwords), self.tls
        )

    @property
    def known(self) -> Path:
        return self.store / "nodes.json"


async def serve(serving: Serving) -> None:
    """Until cancelled, or the server ends. Raises: ServerFailed."""
    serving.store.mkdir(parents=True, exist_ok=True)
    nodes = _known(serving.known)
    server = Server(serving.settings(nodes))
    async with AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.stop)
        url = f"nats://127.0.0.1:{serving.port}"
        tls = ClientTls(str(serving.tls.authority)) if serving.tls else None
        password = serving.secrets.passwords(())[OPERATOR]
        connection = connect(url, name="bus", user=OPERATOR, password=password, tls=tls)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(_follow(serving, server, connection, nodes), name="follow nodes")
            await server.ended()
            following.cancel()
    raise ServerFailed(f"nats-server ended: see {serving.store}/store/nats-server.log")


async def _follow(serving: Serving, server: Server, connection: object, nodes: set[str]) -> None:
    async with connection as bus:  # type: ignore[attr-defined]  # `connect` says no more of what it returns
        await follow(serving, server, bus, nodes)


async def follow(serving: Serving, server: Server, bus: Bus, nodes: set[str]) -> None:
    """Lets in the nodes that `resources` says, for ever. Nobody is turned away before it has said all of them."""
    there: set[str] = set()
    async for batch in bus.watch_state(NODE):
        for change in batch.changes:
            name = NODE.parse(change.subject)[0]
            (there.add if change.message is not None else there.discard)(name)
        wanted = there if batch.synced else nodes | there
        if wanted == nodes:
            continue
        for _ in range(2):
            server.read_anew(serving.settings(wanted))
            await asyncio.sleep(WAIT_SECONDS)
        _keep(serving.known, wanted)
        log.info("the bus lets in", nodes=len(wanted), new=sorted(wanted - nodes), gone=sorted(nodes - wanted))
        nodes.clear()
        nodes |= wanted


def _known(file: Path) -> set[str]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return set()
    return {each for each in found if isinstance(each, str)} if isinstance(found, list) else set()


def _keep(file: Path, nodes: set[str]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(sorted(nodes)))
    new.replace(file)


async def _until_told(serving: Serving) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await serve(serving)


def main() -> None:
    try:
        asyncio.run(_until_told(Serving.of(os.environ)))
    except (BadServing, ServerFailed, OSError) as problem:
        sys.stderr.write(f"bus: {problem}\n")
        sys.exit(1)
    except asyncio.CancelledError:
        pass


if __name__ == "__main__":
    main()
