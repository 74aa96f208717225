"""Wiring of the relay: the nodes as the bus says them, and the API of all of them."""

from __future__ import annotations

import asyncio
import os
import sys
from ssl import SSLContext

from grpclib.client import Channel
from grpclib.config import Configuration

from bus import subjects
from bus.messages.resources import Node
from bus.service import REFUSED, BadSettings, Service, run_service, version
from services.hubble.api import observer_pb2 as api
from services.hubble.nodes import Nodes
from services.hubble.peers import Peer, peers
from services.hubble.relay.server import RelayServer
from services.hubble.serving import serve_tcp
from services.hubble.settings import RelaySettings
from services.hubble.tls import place

LOOK_SECONDS = 5.0  # between two looks at which observers answer
KEEPALIVE_SECONDS = 10.0  # of silence, until a node is asked whether it is there
KEEPALIVE_ANSWER_SECONDS = 5.0


def connect(peer: Peer, tls: SSLContext | None) -> Channel:
    """Who follows hears of a node that is cut off by this alone: nobody closes the connection."""
    host, _, port = peer.address.rpartition(":")
    alive = Configuration(
        _keepalive_time=KEEPALIVE_SECONDS,
        _keepalive_timeout=KEEPALIVE_ANSWER_SECONDS,
        _keepalive_permit_without_calls=False,
        _http2_max_pings_without_data=0,
        ssl_target_name_override=peer.server_name or None,
    )
    return Channel(host.strip("[]"), int(port), ssl=tls, config=alive)


async def run(service: Service, settings: RelaySettings) -> None:
    """For ever."""
    tls = settings.files.client() if settings.files else None
    nodes = Nodes(lambda peer: connect(peer, tls))
    where = place("PLEXUS_RELAY_LISTEN_ADDRESS", settings.relay_listen_address)
    try:
        async with serve_tcp(*where, None, RelayServer(nodes, version())), asyncio.TaskGroup() as tasks:
            tasks.create_task(hear(service, nodes, settings), name="hear of nodes")
            tasks.create_task(look(service, nodes), name="look who answers")
    finally:
        nodes.close()


async def hear(service: Service, nodes: Nodes, settings: RelaySettings) -> None:
    known: dict[str, Node] = {}
    async for batch in service.bus.watch_state(subjects.NODE):
        for change in batch.changes:
            if isinstance(change.message, Node):
                known[change.subject] = change.message
            else:
                known.pop(change.subject, None)
        if batch.synced:
            there = {node.name: node for node in known.values()}
            nodes.become(peers(there, port=settings.place[1], tls=settings.hubble_tls))
            service.ready()


async def look(service: Service, nodes: Nodes) -> None:
    """Says who does not answer, twice in a row."""
    silent: set[str] = set()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        before, asked = silent, nodes.all()
        request = api.ServerStatusRequest()
        answers = await asyncio.gather(*(each.ask("ServerStatus", request, api.ServerStatusResponse) for each in asked))
        silent = {node.name for node, answer in zip(asked, answers, strict=True) if answer is None}
        lacking = sorted(silent & before)
        service.check("observers", not lacking, f"no answer of {', '.join(lacking)}: their flows are missing")


def main() -> None:
    try:
        settings = RelaySettings.of(os.environ)
    except BadSettings as problem:
        sys.stderr.write(f"relay: {problem}\n")
        sys.exit(REFUSED)
    run_service("relay", lambda service: run(service, settings))


if __name__ == "__main__":
    main()
