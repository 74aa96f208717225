"""What packets meet on a node, made ready: its devices, and the programs and maps in the kernel. Nothing here touches
a pod, and nothing here decides what to do when the kernel refuses (`__main__.start`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from typing import cast

from bus.service import BadSettings
from bus.telemetry import logger
from services.dataplane.batch import to_the_end
from services.dataplane.kernel import namespace, pins
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import LinkError, Links, TcProgram
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.pins import open_program
from services.dataplane.kernel.rtnl import Protocol
from services.dataplane.kernel.steps import Steps
from services.dataplane.load import loader, masquerade
from services.dataplane.load.loader import DatapathConfig
from services.dataplane.load.migrate import Migration
from services.dataplane.model import NodeModel
from services.dataplane.part import Fact
from services.dataplane.parts.devices import Devices
from services.dataplane.settings import TUNNEL_DEVICES, NodeSettings, memory_bytes
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.devices import DeviceInfo, NoDevice, Route, choose, main_of
from services.dataplane.shapes.programs import TC_PROGRAMS
from services.dataplane.shapes.table import Table
from settings.devices import patterns
from settings.ports import LEAST, Ports

log = logger(__name__)


@dataclass
class Known:
    """By what a node chose its devices; handed on from one life to the next in the same process (`__main__.run`)."""

    addresses: frozenset[str] = frozenset()  # by which others knew the node
    chosen: frozenset[int] = frozenset()  # indexes

    def learn(self, addresses: Iterable[str], chosen: Iterable[DeviceInfo]) -> None:
        self.addresses, self.chosen = frozenset(addresses), frozenset(each.index for each in chosen)


@dataclass(frozen=True)
class Ground:
    """A node's devices, as they are, and what follows from them and the settings."""

    device: DeviceInfo  # the one that has the node's own address
    devices: tuple[DeviceInfo, ...]  # all that lead out, it among them
    routes: tuple[Route, ...]
    underlay: int  # the family of tunnel endpoints; 0: native
    tunnel_index: int  # 0: native
    mtu_bytes: int  # of pods
    config: DatapathConfig
    known: Known = field(default_factory=Known)

    def hooks(self, settings: NodeSettings) -> list[Hook]:
        """The node's own, without the pods': all that may have a program, whatever the settings were."""
        found = [hook for device in self.devices for hook in device_hooks(device)]
        if self.tunnel_index:
            found.append(Hook(settings.tunnel_device, self.tunnel_index, "ingress", "from_overlay"))
        return found


def device_hooks(device: DeviceInfo) -> list[Hook]:
    """Of a device that leads out."""
    name, index = device.name, device.index
    return [Hook(name, index, "ingress", "from_netdev"), Hook(name, index, "egress", "to_netdev")]


@dataclass(frozen=True)
class Datapath:
    """Maps, and programs on every hook but the pods'. `migration` is to be finished when those have theirs."""

    maps: Maps
    hooks: Hooks
    pod_programs: tuple[TcProgram, ...]  # what belongs on each pod's link
    migration: Migration


async def prepare(settings: NodeSettings, links: Links, known: Known) -> Ground:
    """The tunnel device and the node's switches, as the settings want them, with the devices of before.

    Raises: BadSettings: they do not fit this node. LinkError: the kernel has no such devices.
    """
    seen = await links.list_devices()
    try:
        devices = choose(seen.devices, patterns(settings.devices), known.addresses, known.chosen)
    except NoDevice as problem:
        raise LinkError(str(problem)) from problem
    underlay, device = own_end(settings, devices)
    check_own_addresses(settings, device, underlay)
    links.speak_to_pods_from((device.address, device.address6))
    mtu_bytes = pod_mtu_bytes(settings, devices, underlay)
    tunnel_index = await ensure_tunnel(settings, links, mtu_bytes)
    if settings.endpoint_routes:
        log.info("endpointRoutes.enabled changes nothing: every pod has a route of its own anyway")
    await links.ensure_sysctls(
        filter(None, [*(each.name for each in devices), settings.tunnel_device]), settings.families
    )
    is_masquerading = settings.masquerade or settings.masquerade6
    ports = masquerade.settle(settings.masquerade_ports) if is_masquerading else Ports(LEAST)
    config = DatapathConfig(
        node_address=device.address if settings.ipv4_enabled or underlay == 4 else "",
        node_address6=device.address6 if settings.ipv6_enabled or underlay == 6 else "",
        ipv4=settings.ipv4_enabled,
        ipv6=settings.ipv6_enabled,
        device_index=device.index,
        tunnel_index=tunnel_index,
        tunnel_port=settings.udp_port if settings.is_tunnel else DatapathConfig.tunnel_port,
        underlay_ipv6=underlay == 6,
        services=settings.service_cidr if settings.ipv4_enabled else "",
        services6=settings.service_cidr6 if settings.ipv6_enabled else "",
        switches=settings.switches,
        masquerade=settings.masquerade,
        masquerade6=settings.masquerade6,
        nat_port_min=ports.first,
        nat_port_max=ports.last,
        node_port_min=settings.node_ports.first,
        node_port_max=settings.node_ports.last,
        hooked_namespace=namespace.cookie() if settings.socket_lb_host_namespace_only else 0,
        sizes=settings.map_sizes(memory_bytes()),
        seconds=settings.ct_seconds,
    )
    return Ground(device, devices, seen.routes, underlay, tunnel_index, mtu_bytes, config, known)


def own_end(settings: NodeSettings, devices: Sequence[DeviceInfo]) -> tuple[int, DeviceInfo]:
    """The family of tunnel endpoints (0: native), and the device by whose address other nodes know this one."""
    underlay = settings.underlay(any(each.address for each in devices))
    return underlay, main_of(devices, [underlay] if underlay else settings.families)


def pod_mtu_bytes(settings: NodeSettings, devices: Iterable[DeviceInfo], underlay: int) -> int:
    """Of pods: what fits through every device. Raises: BadSettings: it is too little."""
    least = min(devices, key=lambda each: each.mtu_bytes)
    return settings.pod_mtu_bytes(least.mtu_bytes, underlay, least.name)


async def ensure_tunnel(settings: NodeSettings, links: Links, mtu_bytes: int) -> int:
    """Index of the tunnel device; 0 with native routing. Those of earlier settings go: nobody answers there any more.

    Raises: LinkError: the kernel has no such devices; then the earlier ones stay.
    """
    others = set(TUNNEL_DEVICES.values()) - {settings.tunnel_device}
    if settings.is_tunnel:
        protocol = cast(Protocol, settings.tunnel_protocol)
        made = await links.ensure_tunnel(settings.tunnel_device, protocol, settings.udp_port, mtu_bytes, others)
        return made.index
    for name in others:
        await links.delete_tunnel(name)
    return 0


async def write_before_programs(maps: Maps, tables: Iterable[Table]) -> None:
    """Those of `tables` that programs go by from their first packet on; then the node's model keeps them.

    Raises: OSError.
    """
    known = tuple(table for table in tables if table.before_programs)
    for table in known:
        table.adopt(await maps.read(table.name))
    await maps.write(known)


async def write_devices(maps: Maps, ground: Ground) -> None:
    """The same of `devices`. Who is reached by which is not known yet: by one that is new, pods may come.

    Raises: OSError.
    """
    part = Devices(None if ground.underlay else Fact("elsewhere").keep())
    held = await maps.read(part.table.name)
    part.remember(held)
    part.are(ground.devices)
    part.settle()
    part.table.adopt(held)
    await maps.write((part.table,))


async def load(settings: NodeSettings, ground: Ground, stack: AsyncExitStack) -> Datapath:
    """Programs and maps in the kernel, and on the node's own hooks; open until `stack` ends.

    Raises: LoadError, LinkError, OSError: the kernel refused; some hooks may have their program.
    """
    async with AsyncExitStack() as opened:
        await to_the_end(asyncio.to_thread(pins.recover, settings.pin_dir))
        loaded = await loader.load(ground.config, settings.pin_dir, settings.state_dir)
        log.info("datapath loaded", anew=loaded.is_anew, instructions=loaded.instructions)
        maps = opened.enter_context(closing(Maps(settings.pin_dir)))
        parts = NodeModel(settings.node, not_masqueraded=settings.not_masqueraded)
        await write_before_programs(maps, parts.tables)
        await write_devices(maps, ground)
        fds = {name: open_program(settings.pin_dir, name) for name in TC_PROGRAMS}
        for fd in fds.values():
            opened.callback(os.close, fd)
        made = Hooks(settings.pin_dir, settings.cgroup, fds, enable_tcx=settings.enable_tcx)
        hooks = opened.enter_context(closing(made))
        generation = loader.generation(ground.config)
        await hooks.keep_pins(loader.pin_paths(settings.pin_dir, generation))
        steps = Steps(settings.pin_dir, generation)
        opened.callback(steps.close)
        await hooks.keep_steps(steps)
        await hooks.keep_sockets()
        for hook in ground.hooks(settings):
            is_wanted = hook.program != "to_netdev" or ground.config.acts_on_leaving
            await (hooks.keep(hook) if is_wanted else hooks.remove(hook))
        stack.push_async_exit(opened.pop_all())
    pod_programs = (
        TcProgram(fds["from_pod"], "ingress", "from_pod"),
        TcProgram(fds["to_pod"], "egress", "to_pod"),
    )
    return Datapath(maps, hooks, pod_programs, loaded.migration)


def check_own_addresses(settings: NodeSettings, device: DeviceInfo, underlay: int) -> None:
    """Raises: BadSettings: others could not send to this node."""
    for version in [underlay] if underlay else settings.families:
        if not device.own(version):
            raise BadSettings(
                f"the device {device.name} has no global IPv{version} address, by which other nodes reach pods here: "
                f"give it one, name another device, or set ipv{version}.enabled=false"
            )
