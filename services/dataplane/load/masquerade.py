"""Which ports masqueraded connections take, and that the node's own take others (docs/adr/0006)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bus.telemetry import logger

log = logger(__name__)

SYSCTLS = Path("/proc/sys/net/ipv4")  # these hold for both families
NODE_PORTS_END = 32_768  # below it are Kubernetes' node ports, 30000 to 32767
LAST = 65_535
LEAST = 1024  # fewer run out too soon
OWN_LEAST = 4096  # what the node keeps for connections of its own, for each remote address and port


@dataclass(frozen=True)
class Ports:
    """First and last of a range."""

    first: int
    last: int = LAST

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def ports_beside(own: Ports) -> Ports | None:
    """What masqueraded connections may have, where the node's own take `own` (net.ipv4.ip_local_port_range): all above
    these, and of these all but the first `OWN_LEAST`; None: that leaves too few."""
    first = max(NODE_PORTS_END, min(own.first + OWN_LEAST, own.last + 1))
    return Ports(first) if LAST - first >= LEAST - 1 else None


def ports_of(text: str) -> Ports:
    """ "36864-65535". Raises: ValueError: says what would be right."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise ValueError(f'is a range like "40000-65535", not {text!r}')
    found = Ports(int(first), int(last))
    if found.first < NODE_PORTS_END or found.last > LAST or found.last - found.first < LEAST - 1:
        raise ValueError(f"is {LEAST} or more ports within {NODE_PORTS_END}-{LAST}, not {text}")
    return found


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
