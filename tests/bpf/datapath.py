"""The real programs in the real kernel, given packets one by one (BPF_PROG_TEST_RUN), with maps that a test fills."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from services.dataplane import bpf_syscall, layouts, loader
from services.dataplane.bpf_syscall import ProgramRun
from services.dataplane.effects import Maps
from services.dataplane.layouts import EndpointEntry, Event, IpcacheEntry, IpcacheKey, pack_address
from services.dataplane.policy import PolicyEntry, PolicyKey

TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT = 0xFFFFFFFF, 0, 2, 7
LOOPBACK_INDEX = 1  # the one interface that is always there
CONTEXT_BYTES = 192  # struct __sk_buff
IFINDEX_AT = 40
NODE, OTHER_NODE = "192.0.2.1", "192.0.2.2"
POD_MAC, GATEWAY_MAC = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\xfe"


class Datapath:
    """Programs by name, and the maps that they share."""

    def __init__(self, pin_dir: Path) -> None:
        self.maps = Maps(pin_dir)
        self._programs = {name: loader.open_program(pin_dir, name) for name in loader.TC_PROGRAMS}
        self._context = bytearray(CONTEXT_BYTES)
        struct.pack_into("=I", self._context, IFINDEX_AT, LOOPBACK_INDEX)
        self._ports = itertools.cycle(range(20000, 60000))
        self._consumed = 0

    def close(self) -> None:
        self.maps.close()
        for fd in self._programs.values():
            os.close(fd)

    def run(self, program: str, packet: bytes, repeat: int = 1) -> ProgramRun:
        """On the loopback interface. Packets shorter than an Ethernet header are refused by the kernel."""
        return bpf_syscall.run_program(self._programs[program], packet, repeat=repeat, context=bytes(self._context))

    def clear(self) -> None:
        """Empty every map but counters; connections are judged anew."""
        for name in ("endpoints", "ipcache", "policy", "connections", "nat", "services", "backends"):
            self.maps[name].remove_many([key for key, _ in self.maps[name].items()])

    def free_port(self) -> int:
        """A source port that no connection of this test has."""
        return next(self._ports)

    def endpoint(
        self, address: str, identity: int = 256, policy: int = 0, flags: int = 0, interface: int = LOOPBACK_INDEX
    ) -> None:
        entry = EndpointEntry(interface, identity, policy, flags, POD_MAC, GATEWAY_MAC)
        self.maps["endpoints"].set(pack_address(address), entry.pack())

    def who(self, address: str, identity: int, node: str = "0.0.0.0", bits: int = 32) -> None:
        self.maps["ipcache"].set(IpcacheKey(address, bits).pack(), IpcacheEntry(identity, node).pack())

    def policy(self, policy: int, entries: Iterable[tuple[PolicyKey, PolicyEntry]]) -> None:
        for key, entry in entries:
            raw = layouts.PolicyMapKey(policy, key.identity, key.direction, key.protocol, key.port, key.l4_bits).pack()
            value = layouts.PolicyMapEntry(
                entry.precedence, entry.cookie, entry.proxy_port, int(entry.deny), key.l4_bits
            )
            self.maps["policy"].set(raw, value.pack())

    def drops(self) -> dict[int, int]:
        """Packets dropped so far, by reason."""
        found: dict[int, int] = {}
        for (reason, _), (packets, _) in self.maps.counters().items():
            if reason:
                found[reason] = found.get(reason, 0) + packets
        return found

    def dropped_for(self, program: str, packet: bytes) -> int:
        """The reason for which `program` drops `packet`; 0 when it does not."""
        before = self.drops()
        result = self.run(program, packet).result
        new = {reason: count - before.get(reason, 0) for reason, count in self.drops().items()}
        reasons = [reason for reason, count in new.items() if count]
        assert (result == TC_ACT_SHOT) == bool(reasons), f"result {result}, counted {reasons}: a drop without a reason"
        return reasons[0] if reasons else 0

    def connection(
        self, low: str, high: str, low_port: int, high_port: int, protocol: int
    ) -> layouts.Connection | None:
        raw = self.maps["connections"].get(layouts.ConnectionKey(low, high, low_port, high_port, protocol).pack())
        return layouts.Connection.unpack(raw) if raw else None


def last_events(events: list[Event], count: int) -> list[Event]:
    return events[-count:]
