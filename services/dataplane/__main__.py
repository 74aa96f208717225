"""Wiring of one node's dataplane: kernel first, then what was here before, then CNI and the bus."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import cast

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
from services.dataplane.links import DeviceInfo, Links, TcProgram
from services.dataplane.migrate import Migration
from services.dataplane.node import Node
from services.dataplane.pods import NodePods
from services.dataplane.pressure import Pressure
from services.dataplane.recall import Recall
from services.dataplane.rtnl import Protocol
from services.dataplane.settings import TUNNEL_DEVICES, NodeSettings, memory_bytes, nat_port_min
from services.dataplane.sweep import Sweep, Sweeper

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
            watch_maps(service, settings, node, tasks)
            tasks.create_task(answer_dumps(node), name="answer dumps")


async def start(
    service: Service, settings: NodeSettings, links: Links, journal: Journal, stack: AsyncExitStack
) -> tuple[Node, Migration]:
    """Device, tunnel, programs and maps, attached; nothing here touches a pod."""
    device = await links.device_info(settings.device)
    underlay = settings.underlay(bool(device.address))
    check_own_addresses(settings, device, underlay)
    mtu_bytes = settings.pod_mtu_bytes(device.mtu_bytes, underlay)
    for name in set(TUNNEL_DEVICES.values()) - {settings.tunnel_device}:
        await links.delete_tunnel(name)  # of an earlier start with other settings: nobody answers there any more
    tunnel_index = 0
    if settings.is_tunnel:
        protocol = cast(Protocol, settings.tunnel_protocol)
        tunnel = await links.ensure_tunnel(settings.tunnel_device, protocol, settings.udp_port, mtu_bytes)
        tunnel_index = tunnel.index
    if settings.endpoint_routes:
        log.info("endpointRoutes.enabled changes nothing: every pod has a route of its own anyway")
    await links.ensure_sysctls(filter(None, [device.name, settings.tunnel_device]), settings.families)
    config = loader.DatapathConfig(
        node_address=device.address if settings.ipv4_enabled else "",
        node_address6=device.address6 if settings.ipv6_enabled or underlay == 6 else "",
        ipv4=settings.ipv4_enabled,
        ipv6=settings.ipv6_enabled,
        device_index=device.index,
        tunnel_index=tunnel_index,
        tunnel_port=settings.udp_port if settings.is_tunnel else loader.DatapathConfig.tunnel_port,
        underlay_ipv6=underlay == 6,
        legacy_routing=settings.host_legacy_routing,
        masquerade=settings.masquerade,
        masquerade6=settings.masquerade6,
        nat_port_min=masquerade_ports(),
        sizes=settings.map_sizes(memory_bytes()),
        seconds=settings.ct_seconds,
    )
    loaded = await loader.load(config, settings.pin_dir, settings.state_dir)
    log.info("datapath loaded", compiled=loaded.compiled, instructions=loaded.instructions)
    maps = stack.enter_context(closing(Maps(settings.pin_dir)))
    maps.set_masq_exclude(settings.not_masqueraded)
    fds = {name: loader.open_program(settings.pin_dir, name) for name in loader.TC_PROGRAMS}
    for fd in fds.values():
        stack.callback(os.close, fd)
    hooks = stack.enter_context(closing(Hooks(settings.pin_dir, settings.cgroup, fds, enable_tcx=settings.enable_tcx)))
    await hooks.keep_sockets()
    await hooks.keep(Hook(device.name, device.index, "ingress", "from_netdev"))
    leaving = Hook(device.name, device.index, "egress", "to_netdev")
    await (hooks.keep(leaving) if settings.host_legacy_routing else hooks.remove(leaving))
    if tunnel_index:
        await hooks.keep(Hook(settings.tunnel_device, tunnel_index, "ingress", "from_overlay"))
    programs = (
        TcProgram(fds["from_pod"], "ingress", "from_pod"),
        TcProgram(fds["to_pod"], "egress", "to_pod"),
    )
    recall = Recall(settings.state_dir / "heard.state", settings.pin_dir / "ahead")
    node = Node(settings, service, device, links, hooks, maps, journal, programs, mtu_bytes, underlay, recall)
    return node, loaded.migration


def check_own_addresses(settings: NodeSettings, device: DeviceInfo, underlay: int) -> None:
    """Raises: BadSettings: others could not send to this node."""
    for version in [underlay] if underlay else settings.families:
        if not device.own(version):
            raise BadSettings(
                f"the device {device.name} has no global IPv{version} address, by which other nodes reach pods here: "
                f"give it one, name another device, or set ipv{version}.enabled=false"
            )


def watch_maps(service: Service, settings: NodeSettings, node: Node, tasks: asyncio.TaskGroup) -> None:
    """How full the maps are, and that what traffic left behind goes."""
    maps = node.maps
    sweep = Sweep(ct_tcp=maps["ct_tcp"], ct_any=maps["ct_any"], nat=maps["nat"], choices=maps["choices"])
    sweeper = Sweeper(sweep, settings.conntrack_gc_interval, settings.conntrack_gc_max_interval)
    service.gauge("conntrack_gc_interval_seconds", lambda: sweeper.interval_seconds)
    tasks.create_task(sweeper.sweep_for_ever(), name="sweep maps")
    tasks.create_task(Pressure(service, maps, node.model.tables).watch(), name="watch maps")


def masquerade_ports() -> int:
    """The first port of masqueraded connections, which must not share ports with the node's own (docs/adr/0006)."""
    last = int(LOCAL_PORTS.read_text().split()[1])  # it holds for both families
    first = nat_port_min(last)
    if first is not None:
        return first
    default = limit("NAT_PORT_MIN")
    log.error(
        "the node's own connections may take ports of masqueraded ones: "
        "lower the second number of net.ipv4.ip_local_port_range",
        last_local_port=last,
        first_masquerade_port=default,
    )
    return default


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
    run_service("dataplane", lambda service: run(service, settings), wait=False)


if __name__ == "__main__":
    main()
