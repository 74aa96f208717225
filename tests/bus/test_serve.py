"""The bus of a cluster lets in whom the cluster has: by what `resources` says, without a restart."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus.client import connect
from bus.interface import TurnedAway
from bus.messages.dataplane import Endpoint
from bus.messages.resources import Node
from bus.serve import BadServing, Secrets, Serving, password_of
from bus.server import free_port
from bus.services import BY_NAME
from bus.subjects import ENDPOINT, NODE

SECRETS = Secrets("c" * 32, "n" * 32)
USER_ON = BY_NAME["dataplane"].user_on


def environment(folder: Path, port: int) -> dict[str, str]:
    secrets = folder / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "control").write_text(SECRETS.control + "\n")
    (secrets / "nodes").write_text(SECRETS.nodes)
    return {
        "PLEXUS_BUS_STORE": str(folder / "bus"),
        "PLEXUS_BUS_LISTEN": f"127.0.0.1:{port}",
        "PLEXUS_BUS_SECRETS": str(secrets),
    }


@asynccontextmanager
async def serving(variables: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bus.serve", env=dict(variables))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def endpoint(node: str) -> Endpoint:
    return Endpoint(
        node=node, namespace="default", pod="a", address="10.0.0.1", mac="", interface="", interface_index=1,
        identity=0, state="ready",
    )  # fmt: skip


async def test_a_node_is_let_in_when_the_cluster_has_it_and_turned_away_when_it_has_not(tmp_path: Path) -> None:
    port = free_port()
    url, variables = f"nats://127.0.0.1:{port}", environment(tmp_path, port)

    def as_node(name: str, patient: bool = True) -> object:
        user = USER_ON(name)
        return connect(url, name=user, user=user, password=password_of(user, SECRETS.nodes), patient=patient)

    def as_resources() -> object:
        password = password_of("resources", SECRETS.control)
        return connect(url, name="resources", user="resources", password=password)

    async with asyncio.timeout(60):
        async with serving(variables), as_resources() as resources:  # type: ignore[attr-defined]
            await resources.ensure_streams()
            box = await resources.own("resources")
            with pytest.raises(TurnedAway):
                async with as_node("node-1", patient=False):  # type: ignore[attr-defined]
                    pass
            await box.say(NODE.of("node-1"), Node(name="node-1", addresses=["192.0.2.1"]))
            async with as_node("node-1") as node:  # type: ignore[attr-defined]
                await node.publish_state(ENDPOINT.of("node-1", "default", "a"), endpoint("node-1"))
                await box.say(NODE.of("node-2"), Node(name="node-2", addresses=["192.0.2.2"]))
                async with as_node("node-2"):  # type: ignore[attr-defined]
                    await node.publish_state(ENDPOINT.of("node-1", "default", "b"), endpoint("node-1"))
            await box.unsay(NODE.of("node-2"))
            await _turned_away(as_node, "node-2")
        async with serving(variables), as_node("node-1") as node:  # type: ignore[attr-defined]
            await node.publish_state(ENDPOINT.of("node-1", "default", "c"), endpoint("node-1"))


async def _turned_away(as_node: object, name: str) -> None:
    """Waits until it is."""
    while True:
        try:
            async with as_node(name, patient=False):  # type: ignore[operator]
                await asyncio.sleep(0.05)
        except TurnedAway:
            return


async def test_who_cannot_serve_says_why_in_one_line(tmp_path: Path) -> None:
    variables = environment(tmp_path, free_port())
    for changed, why in (
        ({"PLEXUS_BUS_LISTEN": "here"}, "host:port"),
        ({"PLEXUS_BUS_SECRETS": "/nowhere"}, "/nowhere/control cannot be read"),
        ({"PLEXUS_BUS_TLS_CERT": "/a.crt"}, "are set together"),
        ({f"PLEXUS_BUS_TLS_{each}": "/a.pem" for each in ("CERT", "KEY", "CA")}, "/a.pem is not there"),
    ):
        with pytest.raises(BadServing, match=why):
            Serving.of(variables | changed)
    (tmp_path / "secrets" / "nodes").write_text("short")
    with pytest.raises(BadServing, match="32 characters"):
        Serving.of(variables)
