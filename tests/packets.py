"""Packets as the twins of connections speak of them: what is on the wire, without bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
ECHO, ECHO_REPLY = (8, 128), (0, 129)
ERRORS = {ICMP: (3, 4, 5, 11, 12), ICMP6: (1, 2, 3, 4)}


@dataclass(frozen=True)
class End:
    address: str
    port: int


@dataclass(frozen=True)
class Packet:
    """What is on the wire. Ports of ICMP: `sport` is an echo's identifier. A later fragment has no ports: 0."""

    source: str
    destination: str
    protocol: int
    sport: int = 0
    dport: int = 0
    flags: str = ""  # TCP: some of S, A, F, R
    icmp: int = 0  # type
    fragment: str = ""  # "first", "later"
    datagram: int = 0  # identification, of fragments
    about: Packet | None = None  # what an ICMP error quotes

    @property
    def is_icmp(self) -> bool:
        return self.protocol in (ICMP, ICMP6)

    @property
    def is_echo(self) -> bool:
        return self.is_icmp and self.icmp in ECHO

    @property
    def is_reply(self) -> bool:
        return self.is_icmp and self.icmp in ECHO_REPLY

    @property
    def is_error(self) -> bool:
        return self.icmp in ERRORS.get(self.protocol, ())

    @property
    def begins(self) -> bool:
        """Only the end that begins sends this."""
        return self.is_echo if self.is_icmp else "S" in self.flags and "A" not in self.flags

    @property
    def ends(self) -> tuple[End, End]:
        """An echo has its identifier at the end that asks and the next one at the other; other types stand for both."""
        ports = (self.sport, self.dport)
        if self.is_echo:
            ports = (self.sport, (self.sport + 1) & 0xFFFF)
        elif self.is_reply:
            ports = ((self.sport + 1) & 0xFFFF, self.sport)
        elif self.is_icmp:
            ports = (self.icmp, 0xFF00 | self.icmp)
        return End(self.source, ports[0]), End(self.destination, ports[1])

    def with_source(self, end: End) -> Packet:
        return replace(self, source=end.address, sport=self.sport if self.is_error else end.port)

    def with_destination(self, end: End) -> Packet:
        if self.is_icmp:  # either end's port is the identifier
            return replace(self, destination=end.address, sport=self.sport if self.is_error else end.port)
        return replace(self, destination=end.address, dport=end.port)


def bare(packet: Packet) -> Packet:
    """What the wire says for sure: nothing of a later fragment's transport (RFC 8200, 4.5)."""
    if packet.fragment != "later":
        return packet
    return replace(packet, protocol=0, sport=0, dport=0, icmp=0, flags="")
