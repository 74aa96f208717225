"""The node's devices that lead out, as programs have them: the map `devices`. Pure.

An entry for an address comes after `ipcache` knows that the node has it: what leaves bears it, and answers to it are
the node's to take in. With a tunnel, what the node itself sends into it bears the router's address of one of its
blocks, by which others know where the answer goes; the entry of that is at the index of no device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from bus import subjects
from bus.messages.ipam import Block
from services.dataplane.part import Fact, Hears, Held, Maps, Part, Row, Shows
from services.dataplane.parts.routing import check_block
from services.dataplane.shapes.devices import DeviceInfo, Route, address_of, devices_toward
from services.dataplane.shapes.ip import block_of, router_of
from services.dataplane.shapes.layouts import DeviceEntry, DeviceKey
from services.dataplane.shapes.table import Table

IN_TUNNEL = 0
"""The index of what enters the tunnel."""


class Devices(Part):
    """See the module.

    Args:
        elsewhere: blocks of other nodes, each with the address that is sent to where that is a neighbour's; None: there
            is a tunnel, and no pod comes by any of the devices.
        node: this one.
        uplinks: what it knows, for other parts.
    """

    by_rules = True

    def __init__(
        self,
        elsewhere: Fact[str, str] | None = None,
        node: str = "",
        uplinks: Fact[int, DeviceInfo] | None = None,
    ) -> None:
        super().__init__()
        self.hears = (Hears(subjects.BLOCK, self._put_block, self._delete_block, check_block),)
        self._node = node
        self._routers: dict[str, str] = {}  # of this node's blocks
        self._uplinks = Fact[int, DeviceInfo]("uplinks") if uplinks is None else uplinks
        self.table = Table("devices", after=("ipcache",))
        self.tables = (self.table,)
        self.shows = (Shows("devices", "Devices that lead to other nodes and to the outside.", self._rows),)
        self._elsewhere = elsewhere
        self._changed: Final[set[str]] = set() if elsewhere is None else elsewhere.follow()
        self._devices: tuple[DeviceInfo, ...] = ()
        self._routes: tuple[Route, ...] = ()
        self._is_stale = False
        self._before: dict[int, DeviceEntry] = {}

    @property
    def names(self) -> Mapping[int, str]:
        """By index."""
        return {each.index: each.name for each in self._devices}

    def adopt(self, held: Held) -> None:
        self.remember(held("devices"))

    def remember(self, entries: Mapping[bytes, bytes]) -> None:
        """What programs have had: an address that is still there stays the one that packets bear."""
        self._before = {DeviceKey.unpack(key).index: DeviceEntry.unpack(value) for key, value in entries.items()}

    def _rows(self, maps: Maps, now: int) -> Iterator[Row]:
        names = {each.index: each.name for each in self._devices} | {IN_TUNNEL: "tunnel"}
        for key, value in maps["devices"].items():
            index, v = DeviceKey.unpack(key).index, DeviceEntry.unpack(value)
            yield {
                "device": names.get(index, ""),
                "device_index": index,
                "masqueraded_as": list(filter(None, (v.address, v.address6))),
                "has_pods": v.has_pods,
            }

    def are(self, devices: Iterable[DeviceInfo], routes: Iterable[Route] = ()) -> None:
        """These lead out, and these are the node's routes."""
        self._devices, self._routes, self._is_stale = tuple(devices), tuple(routes), True
        for index in self._uplinks.keys() - {each.index for each in self._devices}:
            self._uplinks.delete(index)
        for each in self._devices:
            self._uplinks.put(each.index, each)

    def _put_block(self, block: Block) -> None:
        self._delete_block(block.cidr)
        if block.node == self._node and self._elsewhere is None:
            self._routers[block.cidr] = router_of(block_of(block.cidr))
            self._is_stale = True

    def _delete_block(self, cidr: str) -> None:
        self._is_stale |= self._routers.pop(cidr, None) is not None

    def settle(self) -> None:
        if self._is_stale or self._changed:
            self._changed.clear()
            self._is_stale = not self.tried("devices", self._settle)

    def _with_pods(self) -> set[int]:
        """Those by which the node's routes lead to other nodes' pods. While it knows none: those of before, and by one
        that is new they may come."""
        if self._elsewhere is None:
            return set()
        here = {each.index for each in self._devices}
        if not self._elsewhere:
            return {index for index in here if index not in self._before or self._before[index].has_pods}
        toward = {neighbour or block for block, neighbour in self._elsewhere.items()}
        return devices_toward(toward, self._routes) & here

    def _in_tunnel(self) -> DeviceEntry:
        """The routers' addresses; those of before for as long as they are, and while none is known."""
        before = self._before.get(IN_TUNNEL, DeviceEntry())
        found = {}
        for version, had in ((4, before.address), (6, before.address6)):
            routers = sorted(each for each in self._routers.values() if (":" in each) == (version == 6))
            found[version] = had if had in routers or not self._routers else next(iter(routers), "")
        return DeviceEntry(found[4], found[6])

    def _settle(self) -> None:
        with_pods = self._with_pods()
        wanted = {}
        if self._elsewhere is None and (tunnel := self._in_tunnel()) != DeviceEntry():
            wanted[IN_TUNNEL] = tunnel
        for each in self._devices:
            before = self._before.get(each.index, DeviceEntry())
            addresses = address_of(each, 4, before.address), address_of(each, 6, before.address6)
            wanted[each.index] = DeviceEntry(*addresses, has_pods=each.index in with_pods)
        for index in self._before.keys() | {DeviceKey.unpack(key).index for key in self.table.wanted}:
            if index not in wanted:
                self.table.delete(DeviceKey(index).pack())
        for index, entry in wanted.items():
            self.table.put(DeviceKey(index).pack(), entry.pack())
        self._before = wanted
