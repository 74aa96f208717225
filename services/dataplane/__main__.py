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
from services.dataplane import cni, loader
from services.dataplane.attach import Hook
from services.dataplane.batch import to_the_end
from services.dataplane.dump import dump
from services.dataplane.effects import Maps
from services.dataplane.hooks import Hooks
from services.dataplane.journal import Journal
from services.dataplane.limits import limit
from services.dataplane.links import Links, TcProgram
from services.dataplane.migrate import Migration
from services.dataplane.node import Node
from services.dataplane.pods import NodePods
from services.dataplane.recall import Recall
from services.dataplane.settings import TUNNEL_DEVICE, VXLAN_OVERHEAD_BYTES, NodeSettings

log = logger(__name__)

LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


async def run(service: Service, settings: NodeSettings) -> None:
    async with AsyncExitStack() as stack:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(settings.state_dir / "endpoints.journal")
        stack.push_async_callback(journal.close)
        links = stack.enter_context(closing(Links()))
        node, migration = await start(service, settings, links, journal, stack)
        await node.restore()
        await to_the_end(asyncio.to_thread(migration.finish))  # every program is attached
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cni.Server(settings.cni_socket, NodePods(node)).run(), name="serve cni")
            tasks.create_task(node.hear(), name="hear the bus")
            tasks.create_task(node.recall(), name="recall what was heard")
            tasks.create_task(node.keep(), name="keep what is heard")
            tasks.create_task(node.publish(), name="publish endpoints")
            tasks.create_task(node.tell_flows(), name="tell flows")
            tasks.create_task(node.heal(), name="heal drift")
            tasks.create_task(node.heal_hooks(), name="heal programs")
            tasks.create_task(answer_dumps(node), name="answer dumps")


async def start(
    service: Service, settings: NodeSettings, links: Links, journal: Journal, stack: AsyncExitStack
) -> tuple[Node, Migration]:
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
        masquerade=settings.masquerade,
        sizes={
            "CT_TCP_MAX": settings.ct_max,
            "NAT_MAX": settings.nat_max,
            "SOCK_REVERSE_MAX": settings.sock_reverse_max,
        },
    )
    loaded = await loader.load(config, settings.pin_dir, settings.state_dir)
    log.info("datapath loaded", compiled=loaded.compiled, instructions=loaded.instructions)
    maps = stack.enter_context(closing(Maps(settings.pin_dir)))
    maps.set_masq_exclude([settings.native_routing_cidr] if settings.native_routing_cidr else [])
    fds = {name: loader.open_program(settings.pin_dir, name) for name in loader.TC_PROGRAMS}
    for fd in fds.values():
        stack.callback(os.close, fd)
    hooks = stack.enter_context(closing(Hooks(settings.pin_dir, settings.cgroup, fds, enable_tcx=settings.enable_tcx)))
    await hooks.keep_sockets()
    await hooks.keep(Hook(device.name, device.index, "ingress", "from_netdev"))
    if tunnel_index:
        await hooks.keep(Hook(TUNNEL_DEVICE, tunnel_index, "ingress", "from_overlay"))
    programs = (
        TcProgram(fds["from_pod"], "ingress", "from_pod"),
        TcProgram(fds["to_pod"], "egress", "to_pod"),
    )
    recall = Recall(settings.state_dir / "heard.state", settings.pin_dir / "ahead")
    return Node(settings, service, device, links, hooks, maps, journal, programs, mtu_bytes, recall), loaded.migration


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
    run_service("dataplane", lambda service: run(service, settings), wait=False)


if __name__ == "__main__":
    main()
