"""A kernel in memory that carries out what it is told: maps that hold what is written, links that are there."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from services.dataplane.kernel.bpf import Map, MapInfo
from services.dataplane.kernel.hooks import Hooks
from services.dataplane.kernel.links import (
    Direction,
    LinkError,
    Links,
    NodeRoute,
    PodLink,
    SeenLink,
    TcProgram,
    TunnelGone,
)
from services.dataplane.kernel.maps import Maps
from services.dataplane.kernel.pins import Pins
from services.dataplane.kernel.pod_links import Mended, Wanted
from services.dataplane.shapes import layouts
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.devices import Seen
from services.dataplane.shapes.ip import PodIp


class MemoryMap(Map):
    """One map. `room`: entries at most."""

    __slots__ = ("entries", "room")

    def __init__(self, name: str, room: int = 1_000_000) -> None:
        shape = layouts.MAPS[name]
        self.info = MapInfo(1, 1, shape.key_bytes, shape.value_bytes, room)
        self.value_bytes = shape.value_bytes
        self.entries: dict[bytes, bytes] = {}
        self.room = room

    def close(self) -> None:
        """Nothing is open."""

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        assert (len(key), len(value)) == (self.info.key_bytes, self.info.value_bytes)
        if key not in self.entries and len(self.entries) >= self.room:
            raise OSError(errno.E2BIG, "full")
        self.entries[key] = value

    def remove(self, key: bytes) -> bool:
        return self.entries.pop(key, None) is not None

    def set_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        written = 0
        for key, value in entries:
            try:
                self.set(key, value)
            except OSError:
                break
            written += 1
        return written

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        yield from list(self.entries.items())

    def chunks(self, size: int = Map.BATCH) -> Iterator[tuple[int, bytes, bytes]]:
        yield len(self.entries), b"".join(self.entries), b"".join(self.entries.values())


class MemoryMaps(Maps):
    """The maps of a node; they outlive the process, as pinned ones do."""

    def __init__(self) -> None:
        self.memory = {name: MemoryMap(name) for name in layouts.MAPS}
        self._maps = dict(self.memory)
        self._state = layouts.NodeState(seed=1)


class MemoryLinks(Links):
    """The links of a node. `broken`: the kernel refuses everything, with this text."""

    def __init__(self) -> None:
        self.pods: dict[str, SeenLink] = {}
        self.routes: dict[str, NodeRoute] = {}
        self.attached: dict[int, dict[Direction, str]] = {}
        self.pod_routes: dict[str, int] = {}  # address -> index
        self.routers: dict[int, str] = {}  # by family
        self.addresses: dict[str, str] = {}  # of the node -> device
        self.broken = ""
        self.stuck: set[str] = set()  # links that do not go, nor get back their names
        self.tunnel_wrong = ""  # what somebody did to the tunnel device
        self.is_tunnel_gone = False
        self.links_changed = False  # and nobody asked yet
        self.sysctls = {"net.ipv4.ip_forward": "1"}
        self.seen = Seen()
        self.told = asyncio.Event()  # of devices

    def close(self) -> None:
        """Nothing is open."""

    def _work(self) -> None:
        if self.broken:
            raise LinkError(self.broken)

    async def create_pod_link(
        self,
        netns_fd: int,
        container_id: str,
        ifname: str,
        ips: Sequence[PodIp],
        mtu_bytes: int,
        programs: Sequence[TcProgram] = (),
    ) -> PodLink:
        self._work()
        name = f"lxc{container_id}"
        index = self.pods[name].index if name in self.pods else 10 + len(self.pods)
        self.pods[name] = SeenLink(name, index, "02:00:00:00:00:02", mtu_bytes, "veth", 0, 2, True)
        for program in programs:
            self.attached.setdefault(index, {})[program.direction] = program.name
        self.pod_routes |= {ip.address: index for ip in ips}
        return PodLink(name, index, "02:00:00:00:00:02", "02:00:00:00:00:01", 2)

    async def delete_pod_link(self, name: str) -> None:
        self._work()
        if name in self.stuck:
            raise LinkError("busy")
        gone = self.pods.pop(name, None)
        self.pod_routes = {each: index for each, index in self.pod_routes.items() if not gone or index != gone.index}

    def host_name(self, container_id: str, ifname: str) -> str:
        return f"lxc{container_id}"

    async def list_pod_routes(self) -> dict[str, int]:
        return dict(self.pod_routes)

    async def list_router_addresses(self) -> list[str]:
        return list(self.routers.values())

    async def list_used_addresses(self) -> set[str]:
        self._work()
        return self.pod_routes.keys() | self.addresses.keys()

    async def list_pod_links(self) -> list[SeenLink]:
        return list(self.pods.values())

    async def check_pod_link(
        self, netns_fd: int, container_id: str, ifname: str, ips: Sequence[PodIp]
    ) -> tuple[str, ...]:
        return () if f"lxc{container_id}" in self.pods else ("the host side is gone",)

    async def mend_pod_routes(self, wanted: Mapping[str, int]) -> list[str]:
        self._work()
        mended = [address for address, index in wanted.items() if self.pod_routes.get(address) != index]
        self.pod_routes = dict(wanted)
        return mended

    async def mend_tunnel(self) -> str:
        self._work()
        if self.is_tunnel_gone:
            raise TunnelGone("plexus_vxlan was removed")
        wrong, self.tunnel_wrong = self.tunnel_wrong, ""
        return wrong

    def take_links_changed(self) -> bool:
        changed, self.links_changed = self.links_changed, False
        return changed

    async def mend_pod_links(self, wanted: Iterable[Wanted]) -> Mended:
        self._work()
        mended, gone, refused = [], [], []
        for each in wanted:
            found = self.pods.get(each.name)
            if found is None or found.index != each.index:
                gone.append(each.name)
            elif each.name in self.stuck:
                refused.append(f"{each.name} was named other: cannot rename it")
            elif not found.up:
                self.pods[each.name] = replace(found, up=True)
                mended.append(f"{each.name} was down")
        return Mended(mended, gone, refused)

    async def mend_sysctls(self, pods: Iterable[str] = ()) -> list[str]:
        self._work()
        wrong = [f"{name} was {value}" for name, value in self.sysctls.items() if value != "1"]
        self.sysctls = dict.fromkeys(self.sysctls, "1")
        return wrong

    async def list_devices(self) -> Seen:
        self._work()
        return self.seen

    async def devices_told(self) -> None:
        await self.told.wait()
        self.told.clear()

    async def ensure_sysctls(self, devices: Iterable[str] = (), families: Iterable[int] = (4,)) -> None:
        self._work()

    @property
    def is_quiet(self) -> bool:
        return True

    async def own_addresses(self) -> dict[str, str]:
        self._work()
        return dict(self.addresses)

    async def ensure_router_address(self, address: str) -> None:
        self._work()
        self.routers[ip_address(address).version] = address

    async def ensure_node_route(self, route: NodeRoute) -> None:
        self._work()
        self.routes[route.cidr] = route

    async def delete_node_route(self, cidr: str) -> None:
        self._work()
        self.routes.pop(cidr, None)

    async def list_node_routes(self) -> list[NodeRoute]:
        return list(self.routes.values())


class MemoryHooks(Hooks):
    """The hooks of `links`' pods: what is attached outlives the process. Refuses when `links` does."""

    def __init__(self, links: MemoryLinks) -> None:
        self.pins = Pins(Path("/nowhere"))
        self._kernel = links
        self._missing: list[str] = []
        self._kept: list[Hook] = []
        self.routes_gone = False
        self.addresses_changed = False

    def close(self) -> None:
        """Nothing is open."""

    def _bring(self, hook: Hook, may_move: bool = False) -> bool:
        if self._kernel.broken:
            raise LinkError(self._kernel.broken)
        attached = self._kernel.attached.setdefault(hook.index, {})
        is_drift = attached.get(hook.direction) != hook.program
        attached[hook.direction] = hook.program
        return is_drift

    async def keep(self, hook: Hook) -> None:
        self._bring(hook)
        self._kept.append(hook)

    async def remove(self, hook: Hook) -> None:
        if self._kernel.broken:
            raise LinkError(self._kernel.broken)
        self._kept = [each for each in self._kept if each != hook]
        if any(each.is_at(hook) for each in self._kept):
            return
        self._kernel.attached.get(hook.index, {}).pop(hook.direction, None)

    async def adopt(self, hooks: Collection[Hook]) -> dict[Hook, str]:
        failed = {}
        for hook in hooks:
            try:
                self._bring(hook)
            except LinkError as problem:
                failed[hook] = str(problem)
        return failed

    async def heal(self, pods: Callable[[], Iterable[Hook]], is_quiet: Callable[[], bool]) -> None:
        self._missing = list((await self.adopt(list(pods()))).values())

    def has(self, hooks: Iterable[Hook]) -> bool:
        return all(self._kernel.attached.get(each.index, {}).get(each.direction) == each.program for each in hooks)

    def take_routes_gone(self) -> bool:
        gone, self.routes_gone = self.routes_gone, False
        return gone

    def take_addresses_changed(self) -> bool:
        changed, self.addresses_changed = self.addresses_changed, False
        return changed

    @property
    def differing(self) -> dict[str, str]:
        return {}

    @property
    def state(self) -> tuple[bool, str]:
        return not self._missing, "; ".join(self._missing) or "memory"
