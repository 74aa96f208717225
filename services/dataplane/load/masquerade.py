"""That the node's own connections leave masqueraded ones their ports (shapes/ports.py, docs/adr/0006)."""

from __future__ import annotations

from pathlib import Path

from bus.telemetry import logger
from services.dataplane.shapes.ports import ports_beside
from settings.ports import LAST, LEAST, NODE_PORTS_END, Ports, ports_of

log = logger(__name__)

SYSCTLS = Path("/proc/sys/net/ipv4")  # these hold for both families


def settle(asked: str) -> Ports:
    """The range, kept free of the node's own connections. `asked` "": as many as the node's own use permits."""
    low, high = (SYSCTLS / "ip_local_port_range").read_text().split()
    own = Ports(int(low), int(high))
    wanted = ports_of(asked) if asked else ports_beside(own)
    if wanted is None:
        wanted = Ports(LAST - LEAST + 1)
        log.warning(
            "few ports are left for masqueraded connections: lower the first number of net.ipv4.ip_local_port_range",
            own=str(own), masquerade=str(wanted),
        )  # fmt: skip
    if wanted.first <= own.first and wanted.last >= own.last:
        log.error("masqueraded connections take every port of the node's own: choose another range", own=str(own))
    if wanted.first > own.last or wanted.last < own.first or reserve(wanted):
        return wanted
    return wanted if asked else Ports(max(NODE_PORTS_END, min(own.last + 1, LAST - LEAST + 1)))


def reserve(ports: Ports) -> bool:
    """Have the kernel give none of these to who asks for any port; what was reserved before stays so, until the node
    boots. False: the kernel did not take it, which is logged."""
    file = SYSCTLS / "ip_local_reserved_ports"
    try:
        before = file.read_text().strip()
        if str(ports) not in before.split(","):
            file.write_text(",".join(filter(None, (before, str(ports)))))
    except OSError as problem:
        log.warning(
            "the node's own connections may take ports of masqueraded ones: mount /proc/sys writable",
            file=str(file), why=problem.strerror,
        )  # fmt: skip
        return False
    return True
