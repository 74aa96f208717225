"""Wiring of one node's dataplane: kernel first, then what was here before, then CNI and the bus."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from contextlib import AsyncExitStack, closing

from bus import subjects
from bus.messages.dataplane import Deciders, Dump, DumpRows, WhoDecided, Why, WhyAnswer
from bus.service import BadSettings, CannotStart, Service, run_service
from services.dataplane.batch import to_the_end
from services.dataplane.deciders import deciders
from services.dataplane.dump import dump
from services.dataplane.fallback import handover
from services.dataplane.fallback.handover import Fallback, Recovered
from services.dataplane.keep.pressure import Pressure
from services.dataplane.keep.recall import Recall
from services.dataplane.keep.sweep import Sweep, Sweeper
from services.dataplane.keep.uplinks import DeviceChanged
from services.dataplane.kernel import notrack
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import LinkError, Links, TcProgram, TunnelGone
from services.dataplane.kernel.maps import Maps
from services.dataplane.load import datapath, loader
from services.dataplane.load.datapath import Known
from services.dataplane.load.migrate import DoesNotFit, Migration
from services.dataplane.node import Node
from services.dataplane.parts.counters import dropped
from services.dataplane.pods import cni_server
from services.dataplane.pods.verbs import NodePods
from services.dataplane.settings import NodeSettings, memory_bytes
from services.dataplane.shapes.sizes import SECONDS
from services.dataplane.store.journal import Journal, JournalError
from services.dataplane.why import why


async def run(service: Service, settings: NodeSettings) -> None:
    """For ever: by BPF, or by rules until BPF loads, and then anew; and anew with another tunnel device, or another end
    of its own."""
    filled = False
    known = Known()
    while True:
        try:
            await live(service, settings, known, filled=filled)
        except* Recovered:
            filled = True
        except* (TunnelGone, DeviceChanged):
            filled = False


async def live(service: Service, settings: NodeSettings, known: Known, *, filled: bool) -> None:
    """`known`: by the life before. `filled`: see handover.held_back.

    Raises: CannotStart. Recovered, TunnelGone and DeviceChanged, among others in a group.
    """
    async with AsyncExitStack() as stack:
        try:
            journal = Journal.open(settings.state_dir / "endpoints.journal")
        except JournalError as problem:
            raise CannotStart(str(problem)) from problem
        stack.push_async_callback(journal.close)
        links = stack.enter_context(closing(Links()))
        try:
            node, migration, fallback = await start(service, settings, links, journal, stack, known, filled=filled)
        except (LinkError, loader.LoadError) as problem:
            raise CannotStart(str(problem)) from problem
        stack.push_async_callback(node.asked.end)
        stack.callback(setattr, service, "compare", None)  # who asks meanwhile must not meet maps that are closed
        service.counts("drop_packets", lambda: dropped(node.maps["counters"]))
        stack.callback(service.counts, "drop_packets", dict)
        await node.restore()
        if migration is not None:
            try:
                await to_the_end(asyncio.to_thread(migration.finish))  # every program is attached
            except DoesNotFit as problem:
                raise CannotStart(str(problem)) from problem
        async with asyncio.TaskGroup() as tasks:
            server = cni_server.Server(
                settings.cni_socket, NodePods(node), lambda wrong: service.check("cni", not wrong, wrong)
            )
            tasks.create_task(server.run(), name="serve cni")
            tasks.create_task(node.hear(), name="hear the bus")
            tasks.create_task(node.recall(), name="recall what was heard")
            tasks.create_task(node.keep(), name="keep what is heard")
            tasks.create_task(node.publish.run(), name="publish endpoints")
            tasks.create_task(node.heal.run_for_ever(), name="heal drift")
            tasks.create_task(node.audit.run_for_ever(), name="compare maps")
            tasks.create_task(node.looks.run_for_ever(), name="heal programs")
            tasks.create_task(node.uplinks.run_for_ever(), name="follow devices")
            tasks.create_task(answer_dumps(node), name="answer dumps")
            tasks.create_task(answer_why(node), name="answer why")
            tasks.create_task(answer_deciders(node), name="answer deciders")
            if fallback is not None:
                tasks.create_task(fallback.run(), name="go back to BPF")
            else:
                tasks.create_task(end_rules(node), name="end rules")
                if settings.l2_announcements:
                    tasks.create_task(announce(node), name="announce")
                watch_maps(service, settings, node, tasks)


async def start(
    service: Service,
    settings: NodeSettings,
    links: Links,
    journal: Journal,
    stack: AsyncExitStack,
    known: Known,
    *,
    filled: bool,
) -> tuple[Node, Migration | None, Fallback | None]:
    """Device, tunnel, programs and maps, attached: then what is left of their migration; or rules in their place.

    Nothing here touches a pod.
    """
    ground = await datapath.prepare(settings, links, known)

    def node(hooks: Hooks, maps: Maps, pod_programs: tuple[TcProgram, ...]) -> Node:
        return Node(
            settings,
            service,
            ground.device,
            links,
            hooks,
            maps,
            journal,
            pod_programs,
            ground.mtu_bytes,
            Recall.of(settings),
            ground.underlay,
            ground,
        )

    try:
        if held := handover.held_back(settings, filled=filled):
            raise handover.HeldBack(held)
        made = await handover.load(settings, links, ground, stack)
    except loader.LayoutError:
        raise
    except handover.UNLOADABLE as problem:
        fallback = Fallback(service, settings, links, ground, problem)
        stack.callback(fallback.hooks.close)
        await fallback.begin()
        fallback.node = node(fallback.hooks, fallback.maps, ())
        return fallback.node, None, fallback
    return node(made.hooks, made.maps, made.pod_programs), made.migration, None


async def end_rules(node: Node) -> None:
    """Rules of a time without BPF go, and those against connection tracking come, for as long as this runs."""
    await handover.leave(node)
    if node.settings.no_conntrack_rules:
        await notrack.keep(lambda: node.addresses.blocks)
    await notrack.remove()


async def announce(node: Node) -> None:
    """Addresses of Services, as soon as all was heard once. Not where rules stand in for programs: they do not answer,
    so another node is to."""
    await node.synced()
    await node.announce.run()


def watch_maps(service: Service, settings: NodeSettings, node: Node, tasks: asyncio.TaskGroup) -> None:
    """How full the maps are, and that what traffic left behind goes."""
    maps = node.maps
    swept = {name: maps[name] for name in ("ct_tcp", "ct_any", "nat", "choices")}
    sweep = Sweep(**swept, longest_seconds=max({**SECONDS, **settings.ct_seconds}.values()))
    sweeper = Sweeper(sweep, settings.conntrack_gc_interval, settings.conntrack_gc_max_interval)
    service.gauge("conntrack_gc_interval_seconds", lambda: sweeper.interval_seconds)
    tasks.create_task(sweeper.sweep_for_ever(), name="sweep maps")
    tasks.create_task(node.sockets.run(maps["sock_reverse"]), name="end sockets")
    tasks.create_task(Pressure(service, maps, node.model.tables, sweeper).watch(), name="watch maps")


async def answer_dumps(node: Node) -> None:
    async def answer(question: Dump) -> DumpRows:
        return await to_the_end(asyncio.to_thread(dump, node.settings.node, question, node.maps, node.model))

    await node.bus.answer(subjects.DUMP, node.settings.node, handler=answer)


async def answer_why(node: Node) -> None:
    async def answer(question: Why) -> WhyAnswer:
        try:
            return await to_the_end(asyncio.to_thread(why, node.settings.node, question, node.maps, node.model))
        except OSError as problem:
            return WhyAnswer(node=node.settings.node, problem=str(problem))

    await node.bus.answer(subjects.WHY, node.settings.node, handler=answer)


async def answer_deciders(node: Node) -> None:
    async def answer(question: WhoDecided) -> Deciders:
        return deciders(node.settings.node, node.service.started_at, question, node.model)

    await node.bus.answer(subjects.DECIDERS, node.settings.node, handler=answer)


def main() -> None:
    try:
        settings = NodeSettings.of(os.environ)
        settings.map_sizes(memory_bytes())
    except BadSettings as problem:
        sys.stderr.write(f"dataplane: {problem}\n")
        sys.exit(2)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two links a pod are held open
    os.environ.setdefault("PLEXUS_INSTANCE", settings.node)
    run_service("dataplane", lambda service: run(service, settings), wait=False)


if __name__ == "__main__":
    main()
