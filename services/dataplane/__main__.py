"""Wiring of one node's dataplane: kernel first, then what was here before, then CNI and the bus."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path

from bus import subjects
from bus.messages.dataplane import Dump, DumpRows
from bus.service import BadSettings, Service, run_service
from bus.telemetry import logger
from services.dataplane import cni, effects, loader, notrack
from services.dataplane.batch import to_the_end
from services.dataplane.dump import dump
from services.dataplane.effects import Maps
from services.dataplane.fallback import handover
from services.dataplane.fallback.handover import Fallback, Recovered
from services.dataplane.journal import Journal
from services.dataplane.limits import limit
from services.dataplane.links import Links, TcProgram
from services.dataplane.node import Node
from services.dataplane.pods import NodePods
from services.dataplane.settings import TUNNEL_DEVICE, VXLAN_OVERHEAD_BYTES, NodeSettings

log = logger(__name__)

LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


async def run(service: Service, settings: NodeSettings) -> None:
    """For ever: by BPF, or by rules until BPF loads, and then anew."""
    filled = False
    while True:
        try:
            await live(service, settings, filled=filled)
        except* Recovered:
            filled = True


async def live(service: Service, settings: NodeSettings, *, filled: bool) -> None:
    async with AsyncExitStack() as stack:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(settings.state_dir / "endpoints.journal")
        stack.push_async_callback(journal.close)
        links = stack.enter_context(closing(Links()))
        node, fallback = await start(service, settings, links, journal, stack, filled=filled)
        await node.restore()
        if fallback is None:
            await handover.leave(settings.state_dir)
        if fallback or not settings.no_conntrack_rules:
            await notrack.remove()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cni.Server(settings.cni_socket, NodePods(node)).run(), name="serve cni")
            tasks.create_task(node.hear(), name="hear the bus")
            tasks.create_task(node.publish(), name="publish endpoints")
            if fallback is None:
                tasks.create_task(node.tell_flows(), name="tell flows")
            else:
                tasks.create_task(fallback.run(), name="go back to BPF")
            if settings.no_conntrack_rules and fallback is None:
                tasks.create_task(notrack.keep(lambda: node.addresses.blocks), name="keep pods untracked")
            tasks.create_task(node.heal(), name="heal drift")
            tasks.create_task(answer_dumps(node), name="answer dumps")


async def start(
    service: Service, settings: NodeSettings, links: Links, journal: Journal, stack: AsyncExitStack, *, filled: bool
) -> tuple[Node, Fallback | None]:
    """Device, tunnel, programs and maps, attached, or rules in their place; nothing here touches a pod."""
    device = await links.device_info(settings.device)
    mtu_bytes = settings.mtu or device.mtu_bytes - VXLAN_OVERHEAD_BYTES * settings.is_tunnel
    tunnel_index = 0
    if settings.is_tunnel:
        tunnel = await links.ensure_vxlan(TUNNEL_DEVICE, settings.tunnel_port, mtu_bytes)
        tunnel_index = tunnel.index
    else:
        await links.delete_vxlan(TUNNEL_DEVICE)  # of an earlier start in tunnel mode: nobody answers there any more
    if settings.masquerade:
        check_local_ports()
    await links.ensure_sysctls([device.name, *([TUNNEL_DEVICE] if tunnel_index else [])])
    config = loader.DatapathConfig(
        node_address=device.address,
        device_index=device.index,
        tunnel_index=tunnel_index,
        direct_routes=settings.auto_direct_node_routes,
        masquerade=settings.masquerade,
        native_cidr=settings.native_routing_cidr if not settings.is_tunnel else "",
        ct_max=settings.ct_max,
        nat_max=settings.nat_max,
        sock_reverse_max=settings.sock_reverse_max,
    )
    try:
        if held := handover.held_back(settings, filled=filled):
            raise handover.HeldBack(held)
        maps, programs = await load(settings, links, config, stack)
    except loader.LayoutError:
        raise
    except handover.UNLOADABLE as problem:
        fallback = Fallback(service, settings, links, config, device, tunnel_index, problem)
        await fallback.begin()
        fallback.node = Node(settings, service, device, links, fallback.maps, journal, (), mtu_bytes)
        return fallback.node, fallback
    service.check(handover.CHECK, True)
    return Node(settings, service, device, links, maps, journal, programs, mtu_bytes), None


async def load(
    settings: NodeSettings, links: Links, config: loader.DatapathConfig, stack: AsyncExitStack
) -> tuple[Maps, tuple[TcProgram, ...]]:
    """Maps, and programs on every hook but the pods'. Returns the maps, and what belongs on the pods' links."""
    loaded = await loader.load(config, settings.pin_dir, settings.state_dir)
    log.info("datapath loaded", compiled=loaded.compiled, instructions=loaded.instructions)
    maps = stack.enter_context(closing(Maps(settings.pin_dir)))
    fds = {name: loader.open_program(settings.pin_dir, name) for name in loader.TC_PROGRAMS}
    for fd in fds.values():
        stack.callback(os.close, fd)
    effects.attach_socket_programs(settings.pin_dir, settings.cgroup)
    await links.attach_tc(config.device_index, fds["from_netdev"], "ingress", "from_netdev")
    if config.tunnel_index:
        await links.attach_tc(config.tunnel_index, fds["from_overlay"], "ingress", "from_overlay")
    programs = (
        TcProgram(fds["from_pod"], "ingress", "from_pod"),
        TcProgram(fds["to_pod"], "egress", "to_pod"),
    )
    return maps, programs


def check_local_ports() -> None:
    """The node's own connections and masqueraded ones must not share ports (docs/adr/0006)."""
    last = int(LOCAL_PORTS.read_text().split()[1])
    first = limit("NAT_PORT_MIN")
    if last >= first:
        log.error(
            "the node's own connections may take ports of masqueraded ones: "
            "lower the second number of net.ipv4.ip_local_port_range",
            last_local_port=last,
            first_masquerade_port=first,
        )


async def answer_dumps(node: Node) -> None:
    async def answer(question: Dump) -> DumpRows:
        return await to_the_end(asyncio.to_thread(dump, node.settings.node, question, node.maps, node.model))

    await node.bus.answer(subjects.DUMP, node.settings.node, handler=answer)


def main() -> None:
    try:
        settings = NodeSettings.of(os.environ)
    except BadSettings as problem:
        sys.stderr.write(f"dataplane: {problem}\n")
        sys.exit(2)
    os.environ.setdefault("PLEXUS_INSTANCE", settings.node)
    run_service("dataplane", lambda service: run(service, settings))


if __name__ == "__main__":
    main()
