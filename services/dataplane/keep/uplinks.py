"""The devices that lead to other nodes and to the outside, as they come and go while the node runs.

The kernel tells of every change (rtnetlink); then all are looked at once, and what is other is made so: programs on a
device that has come, its reverse path filter, the address that what leaves by it bears (the part `devices`), where
neighbours are. Where routes by them are others, connections look for their way again. A device that is gone takes its
programs with it; what went out by it looks for another way. What fails is told by the check "devices", and tried again
with the next look at programs; so is what could not be taken off a device that went.

One of them is the node's own end: programs get its index and address when they are loaded. When that is another
(removed and made anew, another name or address), the datapath is begun anew in the same process (`__main__.run`), with
whichever device is its own end now; while there is none that could be, all else stays as it is. The next life chooses
by what this one knew (`Known`), or it might choose others, and begin anew for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Protocol

from bus.service import BadSettings, Service
from bus.telemetry import logger
from services.dataplane.keep.own_addresses import OwnAddresses
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import LinkError, Links
from services.dataplane.load.datapath import Ground, Known, device_hooks, own_end, pod_mtu_bytes
from services.dataplane.model import NodeModel
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.devices import DeviceInfo, NoDevice, Route, choose, device_toward
from settings.devices import patterns

log = logger(__name__)

CHECK = "devices"
TOGETHER_SECONDS = 0.02  # changes come in bursts: a link, its addresses, its routes
JUDGE_SECONDS = 5.0  # at least between two times that routes have every connection judged again


class DeviceChanged(Exception):
    """The node's own end is not as programs know it, and there is one to begin anew with. The text says which."""


class Host(Protocol):
    """The node whose devices they are."""

    settings: NodeSettings
    service: Service
    device: DeviceInfo
    links: Links
    hooks: Hooks
    model: NodeModel
    own_addresses: OwnAddresses
    mtu_bytes: int

    async def write(self) -> None:
        """Bring the kernel to what the model says now; returns when it is there."""

    async def judge_again(self) -> None:
        """Every connection is judged again, and its way looked for. Raises: OSError."""

    def routes_are_stale(self) -> None:
        """What was routed by a device may not be any more."""


class Uplinks:
    """Those of `node`. `ground`: as the start found them; without one its own end alone."""

    def __init__(self, node: Host, underlay: int, ground: Ground | None) -> None:
        self._node = node
        self._underlay = underlay
        self._acts_on_leaving = ground is not None and ground.config.acts_on_leaving
        self._asked = patterns(node.settings.devices)
        self._following = asyncio.Lock()
        self.problem = ""
        self._is_owed = False  # the last look did not come to its end
        self._told: frozenset[str] = frozenset()  # addresses by which others knew the node
        self.chosen: tuple[DeviceInfo, ...] = ground.devices if ground else (node.device,)
        self._routes = _routes_by(self.chosen, ground.routes if ground else ())  # by which connections found their way
        self._judged_at = -JUDGE_SECONDS  # on a clock that nobody sets
        self._known = ground.known if ground else Known()
        self._hooks = _hooks_of(self.chosen)  # that may have a program
        self._fits = self._mtu_bytes(self.chosen)  # bytes, as pods are given them
        node.model.devices.are(self.chosen, ground.routes if ground else ())
        self._reach()
        self._tell("")

    @property
    def networks(self) -> str:
        """In words: "eth0 (192.0.2.0/24), eth1 (198.51.100.0/24)"."""
        return ", ".join(f"{each.name} ({', '.join(each.networks)})" for each in self.chosen)

    def toward(self, neighbour: str) -> str:
        """The name of the device that a neighbour is on."""
        own = self._own()
        return (device_toward(neighbour, [own, *self.chosen]) or own).name

    async def run_for_ever(self) -> None:
        """Raises: DeviceChanged."""
        while True:
            await self._node.links.devices_told()
            await asyncio.sleep(TOGETHER_SECONDS)
            await self.follow()

    async def look(self) -> None:
        """What was not followed to its end, or follows from what was heard. Raises: DeviceChanged."""
        if self._is_owed or self._told != self._node.model.network.told:
            await self.follow()

    async def follow(self) -> None:
        """Bring everything to the devices that there are now. Raises: DeviceChanged."""
        async with self._following:
            self._is_owed = False
            try:
                await self._follow()
            except (LinkError, OSError, NoDevice, BadSettings) as problem:
                self._is_owed = True
                self._tell(str(problem))

    async def _follow(self) -> None:
        node = self._node
        told = frozenset(node.model.network.told)
        seen = await node.links.list_devices()
        before = {each.index: each for each in self.chosen}
        own = seen.at(node.device.index)
        try:
            chosen = choose(seen.devices, self._asked, told, before)
        except NoDevice as failure:  # those that are there go on
            chosen = tuple(each for each in seen.devices if each.index in before)
            problem = self._own_problem((), own) or str(failure)
        else:
            self._known.learn(told, chosen)
            problem = self._own_problem(chosen, own)
        self._told = told
        now = {each.index: each for each in chosen}
        changed = [each for each in chosen if before.get(each.index) != each]
        gone = [each for index, each in before.items() if index not in now or now[index].name != each.name]
        if changed or gone:
            await node.links.ensure_sysctls(
                filter(None, [*(each.name for each in chosen), node.settings.tunnel_device]), node.settings.families
            )
            await self._attach(changed)
            await node.own_addresses.follow()
        self.chosen = chosen
        node.model.devices.are(chosen, seen.routes)
        self._reach()
        try:
            await node.write()
            await self._find_ways_again(_routes_by(chosen, seen.routes))
            for hook in self._hooks - _hooks_of(chosen):
                await node.hooks.remove(hook)
                self._hooks.discard(hook)
        finally:
            if changed or gone:
                node.routes_are_stale()
        if changed or gone:
            log.info("devices that lead out", devices=[str(each) for each in chosen], gone=[each.name for each in gone])
        self._tell(problem)

    async def _find_ways_again(self, routes: frozenset[Route]) -> None:
        """Of connections that are there, if routes are others than when theirs were found. A router that changes its
        mind all the time has it done now and then."""
        if routes != self._routes:
            now = time.monotonic()
            self._is_owed = now - self._judged_at < JUDGE_SECONDS
            if not self._is_owed:
                await self._node.judge_again()
                self._routes, self._judged_at = routes, now

    async def _attach(self, devices: Iterable[DeviceInfo]) -> None:
        for hook in _hooks_of(devices):
            self._hooks.add(hook)
            if hook.program != "to_netdev" or self._acts_on_leaving:
                await self._node.hooks.keep(hook)

    def _own_problem(self, chosen: tuple[DeviceInfo, ...], now: DeviceInfo | None) -> str:
        """Why the node's own end is not as programs know it, "" when it is. `chosen`: with which a start would begin.
        Raises: DeviceChanged."""
        node = self._node
        before = node.device
        versions = {*node.settings.families, self._underlay} - {0}
        wanted = {own for version in versions if (own := before.own(version))}
        if now is None or now.why_not:
            problem = f"{before.name} is gone"
        elif now.name != before.name:
            problem = f"{before.name} is named {now.name}"
        elif missing := wanted - {*now.addresses}:
            problem = f"{before.name} has {', '.join(sorted(missing))} no more"
        elif (fits := self._mtu_bytes(chosen)) not in (0, self._fits):
            problem = f"{fits} bytes fit through every device, and pods have {node.mtu_bytes}"
        else:
            return ""
        if chosen and self._mtu_bytes(chosen):
            underlay, end = own_end(node.settings, chosen)
            if underlay == self._underlay and all(map(end.own, [underlay] if underlay else node.settings.families)):
                raise DeviceChanged(f"{problem}: beginning anew with {end}")
        return f"{problem}, and no other device has the node's own addresses: bring it back"

    def _mtu_bytes(self, chosen: tuple[DeviceInfo, ...]) -> int:
        """0: they have too little, and pods keep what they have."""
        try:
            return pod_mtu_bytes(self._node.settings, chosen, self._underlay)
        except (BadSettings, ValueError):  # ValueError: of none
            return 0

    def _own(self) -> DeviceInfo:
        own = self._node.device
        return next((each for each in self.chosen if each.index == own.index), own)

    def _reach(self) -> None:
        own = self._own()
        others = [each for each in self.chosen if each.index != own.index]
        near = [network for each in others for network in map(ip_network, each.networks)]
        self._node.model.reach(map(ip_network, own.networks), near)

    def _tell(self, problem: str) -> None:
        before, self.problem = self.problem, problem
        if problem and problem != before:
            log.warning("devices are not as they should be, trying again", why=problem)
        self._node.service.check(CHECK, not problem, problem or ", ".join(map(str, self.chosen)))


def _hooks_of(devices: Iterable[DeviceInfo]) -> set[Hook]:
    return {hook for each in devices for hook in device_hooks(each)}


def _routes_by(devices: Iterable[DeviceInfo], routes: Iterable[Route]) -> frozenset[Route]:
    """Those that lead out by any of the devices."""
    here = {each.index for each in devices}
    return frozenset(each for each in routes if not each.devices.isdisjoint(here))
