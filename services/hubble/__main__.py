"""Wiring of one node's observer: the API first, then what the bus says, then the kernel's events."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

from bus.service import REFUSED, BadSettings, Service, run_service, version
from bus.telemetry import Labels
from services.hubble.api import flow_pb2 as pb
from services.hubble.flow import Place
from services.hubble.hearing import HEARS, Hearing
from services.hubble.names import Names
from services.hubble.naming import Naming
from services.hubble.observed import Observed
from services.hubble.peers import peers
from services.hubble.ring import PATIENCE_SECONDS, observe_for_ever
from services.hubble.server import ObserverServer, PeerServer
from services.hubble.serving import serve, serve_tcp
from services.hubble.settings import Settings
from services.hubble.telling import tell

NAMES_SECONDS = 2.0  # that the first flows wait for names, at most


async def run(service: Service, settings: Settings) -> None:
    """For ever."""
    names = Names(settings.node)
    place = Place(
        settings.node, version=version(), is_tunnel=settings.routing_mode == "tunnel", token=secrets.randbits(64)
    )
    observed = Observed(names, place, capacity=settings.hubble_event_buffer_capacity, started=time.time())
    hearing = Hearing(observed)
    service.counts("hubble_lost_events", partial(lost, observed))
    service.counts("hubble_flows", lambda: {(): observed.flows.seen})
    peers_now = partial(peers, names.nodes, port=settings.place[1], tls=settings.hubble_tls)
    servers = ObserverServer(observed), PeerServer(observed, peers_now)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve(settings.hubble_socket, *servers))
        if settings.hubble_listen_address:
            tls = settings.files.server() if settings.files else None
            await stack.enter_async_context(serve_tcp(*settings.place, tls, *servers))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        service.ready()
        tasks.create_task(hear(service, hearing), name="hear the bus")
        tasks.create_task(notice_silence(service, hearing), name="notice silence")
        tasks.create_task(tell(service.bus, settings.node, observed), name="tell the bus")
        try:
            async with asyncio.timeout(NAMES_SECONDS):
                await hearing.synced.wait()
        except TimeoutError:
            pass  # what comes now is better than nothing
        naming = Naming(service.bus, settings.node, names, observed.joiner)
        await observe_for_ever(settings.pin_dir, observed, naming.name, partial(tell_events, service))


async def hear(service: Service, hearing: Hearing) -> None:
    async for batch in service.bus.watch_state(*HEARS):
        hearing.hear(batch, time.time())
        service.check("names", not hearing.problem, hearing.problem)


async def notice_silence(service: Service, hearing: Hearing) -> None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await hearing.synced.wait()
    except TimeoutError:
        service.check("names", False, "the bus has not said who is who; flows lack names")


def tell_events(service: Service, there: bool) -> None:
    service.check(
        "events", there, "" if there else "no events: the node's programs are not loaded, plexus status says why"
    )


def lost(observed: Observed) -> Mapping[Labels, int]:
    return {(("source", pb.LostEventSource.Name(source)),): count for source, count in observed.losses.counts.items()}


def main() -> None:
    try:
        settings = Settings.of(os.environ)
    except BadSettings as problem:
        sys.stderr.write(f"hubble: {problem}\n")
        sys.exit(REFUSED)
    os.environ.setdefault("PLEXUS_INSTANCE", settings.node)
    run_service("hubble", lambda service: run(service, settings), wait=False)


if __name__ == "__main__":
    main()
