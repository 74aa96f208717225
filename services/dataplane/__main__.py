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
from services.dataplane import cni, effects, layouts, loader
from services.dataplane.batch import to_the_end
from services.dataplane.dump import dump
from services.dataplane.effects import Maps
from services.dataplane.journal import Journal
from services.dataplane.limits import limit
from services.dataplane.links import Links, TcProgram
from services.dataplane.node import Node
from services.dataplane.pods import NodePods
from services.dataplane.pressure import Pressure
from services.dataplane.settings import TUNNEL_DEVICE, VXLAN_OVERHEAD_BYTES, NodeSettings, memory_bytes
from services.dataplane.sweep import Sweep, Sweeper

log = logger(__name__)

LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


async def run(service: Service, settings: NodeSettings) -> None:
    async with AsyncExitStack() as stack:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(settings.state_dir / "endpoints.journal")
        stack.push_async_callback(journal.close)
        links = stack.enter_context(closing(Links()))
        node = await start(service, settings, links, journal, stack)
        await node.restore()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cni.Server(settings.cni_socket, NodePods(node)).run(), name="serve cni")
            tasks.create_task(node.hear(), name="hear the bus")
            tasks.create_task(node.publish(), name="publish endpoints")
            tasks.create_task(node.tell_flows(), name="tell flows")
            tasks.create_task(node.heal(), name="heal drift")
            watch_maps(service, settings, node, tasks)
            tasks.create_task(answer_dumps(node), name="answer dumps")


async def start(
    service: Service, settings: NodeSettings, links: Links, journal: Journal, stack: AsyncExitStack
) -> Node:
    """Device, tunnel, programs and maps, attached; nothing here touches a pod."""
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
        sizes=settings.map_sizes(memory_bytes()),
        seconds=settings.ct_seconds,
    )
    loaded = await loader.load(config, settings.pin_dir, settings.state_dir)
    log.info("datapath loaded", compiled=loaded.compiled, instructions=loaded.instructions)
    maps = stack.enter_context(closing(Maps(settings.pin_dir)))
    fds = {name: loader.open_program(settings.pin_dir, name) for name in loader.TC_PROGRAMS}
    for fd in fds.values():
        stack.callback(os.close, fd)
    effects.attach_socket_programs(settings.pin_dir, settings.cgroup)
    await links.attach_tc(device.index, fds["from_netdev"], "ingress", "from_netdev")
    if tunnel_index:
        await links.attach_tc(tunnel_index, fds["from_overlay"], "ingress", "from_overlay")
    programs = (
        TcProgram(fds["from_pod"], "ingress", "from_pod"),
        TcProgram(fds["to_pod"], "egress", "to_pod"),
    )
    return Node(settings, service, device, links, maps, journal, programs, mtu_bytes)


def watch_maps(service: Service, settings: NodeSettings, node: Node, tasks: asyncio.TaskGroup) -> None:
    """How full the maps are, and that what traffic left behind goes."""
    maps = node.maps
    tcp, other = ("ct_tcp", "ct_any") if "ct_tcp" in layouts.MAPS else ("connections", "connections")
    sweep = Sweep(ct_tcp=maps[tcp], ct_any=maps[other], nat=maps["nat"], choices=maps["choices"])
    sweeper = Sweeper(sweep, settings.conntrack_gc_interval, settings.conntrack_gc_max_interval)
    service.gauge("conntrack_gc_interval_seconds", lambda: sweeper.interval_seconds)
    tasks.create_task(sweeper.sweep_for_ever(), name="sweep maps")
    tasks.create_task(Pressure(service, maps, node.model.tables).watch(), name="watch maps")


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
        settings.map_sizes(memory_bytes())
    except BadSettings as problem:
        sys.stderr.write(f"dataplane: {problem}\n")
        sys.exit(2)
    os.environ.setdefault("PLEXUS_INSTANCE", settings.node)
    run_service("dataplane", lambda service: run(service, settings))


if __name__ == "__main__":
    main()
