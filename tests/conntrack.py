"""Connections as the book says them: what a node should keep of each packet, and what should become of it.

The other half of the twin in tests/bpf/test_connection_twin.py. Written from docs/adr/0004, ARCHITECTURE.md and the
comments of bpf/include, in the words of ends and connections; keys, bytes and flags are the kernel's affair.
Native routing, both families, masquerade on; one node, whose pods all lie behind one interface.

Nothing here chooses at random or reads a clock: `Seen` says which backend and which port the kernel took, and the model
says whether it might; `Node.now` is set by who asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from tests.packets import ECHO, ICMP, ICMP6, SCTP, TCP, UDP, End, Packet, bare

HOST, WORLD4, WORLD6 = 1, 9, 10
EGRESS, INGRESS = "egress", "ingress"
MASQUERADE_PORTS = range(61000, 65536)  # tests/bpf/conftest.py
TICK_NS = 1 << 30
SUBSTITUTES = range(1, 9)  # by number, of each port
CLOSED_SECONDS, UNANSWERED_SECONDS, ANSWERED_SECONDS, OTHERS_SECONDS = 10, 60, 8000, 60
REDIRECT4 = 5


class Drop(Enum):
    """Numbers are those of bpf/include/reasons.h."""

    INVALID_SOURCE = 132
    POLICY = 133
    INVALID = 134
    UNROUTABLE = 151
    NO_BACKEND = 158
    UNKNOWN_CONNECTION = 163
    NO_MAPPING = 167
    NOT_MASQUERADABLE = 168
    NO_FRAGMENT = 175
    DENIED = 181


class Refused(Exception):
    """The packet goes no further."""

    def __init__(self, why: Drop) -> None:
        super().__init__(why)
        self.why = why


class Disagreement(AssertionError):
    """The kernel chose what it must not choose."""


class Goes(Enum):
    REDIRECTED = "past the host's stack"
    TO_STACK = "to the host's stack"
    NOT_OURS = "left alone"
    NOWHERE = "dropped"


def substitute(port: int, number: int) -> int:
    """The port that stands for `port` where another connection has that; 0: itself. Those below 1024 stay there."""
    first, ports = (0, 1024) if port < 1024 else (1024, 64512)
    return first + (port - first + 32768 + 439 * number) % ports if number else port


def ticks(seconds: int) -> int:
    """As many as the seconds need, and one."""
    return seconds * 10**9 // TICK_NS + 1


@dataclass
class Connection:
    """Of `origin`, which sent the first packet, with `called`."""

    protocol: int
    origin: End
    called: End
    epoch: int
    expires: int = 0  # the last tick of its life
    replied: bool = False
    origin_fin: bool = False
    reply_fin: bool = False
    reset: bool = False
    origin_way: str = "unknown"  # where the origin's packets go: unknown, local, host, pod, out
    reply_way: str = "unknown"
    hop: str = ""  # of the way that is "pod"
    service: End | None = None  # whom the origin believes to speak to
    substitute: int = 0  # number of the port that stands for the origin's own, of which it knows nothing
    masqueraded: bool = False
    mapped_port: int = 0  # of the node, once it is masqueraded
    by_stack: bool = False  # the node's stack has the origin's packets, so it gets the replies

    @property
    def is_closing(self) -> bool:
        return self.reset or self.origin_fin or self.reply_fin

    @property
    def has_ended(self) -> bool:
        return self.reset or (self.origin_fin and self.reply_fin)

    def is_settled(self, now: int) -> bool:
        """Both ends have spoken, and it has not ended; a reset that anybody may have sent does not end it."""
        return self.replied and not (self.has_ended and self.expires <= now + ticks(CLOSED_SECONDS))

    @property
    def own_end(self) -> End:
        """The origin, as it knows itself."""
        ports = [port for port in range(65536) if substitute(port, self.substitute) == self.origin.port]
        return End(self.origin.address, ports[0]) if self.substitute else self.origin

    @property
    def lifetime(self) -> int:
        """Ticks from the last packet on: as many as the seconds need, and one."""
        seconds = OTHERS_SECONDS
        if self.protocol == TCP:
            seconds = CLOSED_SECONDS if self.has_ended else ANSWERED_SECONDS if self.replied else UNANSWERED_SECONDS
        return ticks(seconds)

    def notice(self, packet: Packet, is_from_origin: bool, now: int, is_vouched: bool) -> None:
        """`is_vouched`: who sends the packet is known, not only said."""
        other_has_finished = self.reply_fin if is_from_origin else self.origin_fin
        if "R" in packet.flags and self.replied and not is_vouched and not other_has_finished:
            self.reset = True  # and all goes on
            return
        self.replied |= not is_from_origin
        self.reset = False
        if "R" in packet.flags:
            self.reset = True
        elif "F" in packet.flags and is_from_origin:
            self.origin_fin = True
        elif "F" in packet.flags:
            self.reply_fin = True
        self.expires = now + self.lifetime


@dataclass(frozen=True)
class Pod:
    identity: int
    enforced: frozenset[str] = frozenset()  # directions


@dataclass(frozen=True)
class Known:
    """Who an address is, and the node that it lives on; "" for none."""

    identity: int
    node: str = ""


@dataclass(frozen=True)
class Choice:
    """The backend to which a client's packets to a service go, since which epoch it is known to serve it, and the
    number of the port that stands for the client's there."""

    backend: End
    epoch: int
    substitute: int = 0


@dataclass(frozen=True)
class Seen:
    """What the kernel did, where it is free to do one thing or another."""

    destination: str = ""  # of the packet afterwards
    reason: int = 0
    mappings: frozenset[tuple[End, int, int]] = frozenset()  # as in `Node.mappings`, all that there are now


@dataclass(frozen=True)
class Fate:
    goes: Goes
    packet: Packet | None = None  # as it goes on
    why: Drop | None = None


# A rule's peer, protocol and called port (ICMP: type + 1); protocol 0: all.
Rule = tuple[int, str, int, int, int]  # identity of the pod, direction, identity of the peer, protocol, port


@dataclass
class Node:
    addresses: dict[bool, str]  # by "is IPv6"
    now: int = 0
    epoch: int = 0
    pods: dict[str, Pod] = field(default_factory=dict)  # of this node
    known: dict[str, Known] = field(default_factory=dict)  # addresses of the cluster
    blocks: tuple[str, ...] = ()  # prefixes of this node's own addresses, as text
    rules: dict[Rule, bool] = field(default_factory=dict)  # True: allow
    services: dict[tuple[End, int], tuple[End, ...]] = field(default_factory=dict)
    connections: dict[tuple[int, frozenset[End]], Connection] = field(default_factory=dict)
    mappings: dict[tuple[End, int, int], End] = field(default_factory=dict)  # remote end, port, protocol: the pod's end
    fragments: dict[tuple[object, ...], Packet] = field(default_factory=dict)  # the first of each datagram
    choices: dict[tuple[End, End, int], Choice] = field(default_factory=dict)  # client, service, protocol

    def meets(self, hook: str, packet: Packet, seen: Seen) -> Fate:
        """`packet` comes to the hook "from_pod", "to_pod" or "from_netdev"."""
        try:
            if hook == "from_pod":
                return _Passage(self, seen).from_pod(packet)
            if hook == "to_pod":
                return _Passage(self, seen).to_pod(packet)
            return _Passage(self, seen).from_netdev(packet)
        except Refused as refused:
            return Fate(Goes.NOWHERE, why=refused.why)

    def identity(self, address: str) -> int:
        known = self.lookup(address)
        return known.identity if known else WORLD6 if ":" in address else WORLD4

    def lookup(self, address: str) -> Known | None:
        is_own = address.startswith(self.blocks)
        return self.known.get(address) or (Known(3, self.addresses[":" in address]) if is_own else None)

    def connection_of(self, protocol: int, one: End, other: End) -> Connection | None:
        """The one that is alive between these ends, whoever began it."""
        found = self.connections.get((protocol, frozenset((one, other))))
        return found if found and found.expires >= self.now else None

    def keep(self, connection: Connection) -> None:
        self.connections[connection.protocol, frozenset((connection.origin, connection.called))] = connection

    def is_abandoned(self, mapping: tuple[End, int, int]) -> bool:
        """The connection that held it is over, or holds another. One without a port may just be about to take it."""
        remote, port, protocol = mapping
        pod = self.mappings[mapping]
        if protocol in (ICMP, ICMP6):
            remote = End(remote.address, (pod.port + 1) & 0xFFFF)
        holder = self.connection_of(protocol, pod, remote)
        return holder is None or holder.mapped_port not in (0, port)


def is_of_services(address: str) -> bool:
    """Of the range of ClusterIPs (tests/bpf/datapath.py)."""
    return address.startswith(("10.96.", "fd00:96::"))


class _Passage:
    """One packet at one hook."""

    def __init__(self, node: Node, seen: Seen) -> None:
        self.node = node
        self.seen = seen
        self.kept: Packet | None = None
        self.is_vouched = True  # whose packet it is

    # hooks

    def from_pod(self, packet: Packet) -> Fate:
        node = self.node
        packet = self.whole(packet)
        if packet.source not in node.pods:
            raise Refused(Drop.INVALID_SOURCE)
        self.remember(packet)
        if packet.is_error:
            return self.pod_complains(packet)
        connection = self.find(packet)
        client = packet.ends[0]
        called: End | None = None
        choice: Choice | None = None
        is_anothers = connection and connection.service and self.is_from_origin(connection, packet)
        if connection is None or is_anothers or self.is_unsettled(connection, packet):
            balanced = self.balance(packet)
            if balanced:
                called = packet.ends[1]
                packet = packet.with_destination(balanced.backend)
                if balanced.backend.address == client.address:  # as if the service had called
                    packet = packet.with_source(End(called.address, client.port))
                choice = self.keep_apart(packet, called, balanced)
                packet = packet.with_source(End(packet.source, substitute(client.port, choice.substitute)))
                connection = self.find(packet)
        if connection and connection.service and not self.is_from_origin(connection, packet):
            is_to_itself = connection.service.address == packet.destination
        else:
            is_to_itself = called is not None and called.address == packet.source
        if not is_to_itself and is_of_services(packet.destination):
            raise Refused(Drop.NO_BACKEND)
        connection = self.admit(packet, connection, is_to_itself=is_to_itself)
        is_from_origin = self.is_from_origin(connection, packet)
        sent = packet
        if is_from_origin:
            if called and choice:
                node.choices[client, called, packet.protocol] = choice
            connection.service = called
            connection.substitute = choice.substitute if choice else 0
        elif connection.service:
            sent = self.as_service(packet, connection)
            if is_to_itself:
                sent = sent.with_destination(End(packet.source, sent.dport))
        if is_to_itself:
            return Fate(Goes.REDIRECTED, bare(sent))
        # Where it goes is asked of the connection first, and of maps once.
        way = connection.origin_way if is_from_origin else connection.reply_way
        if way == "unknown" or (way == "local" and sent.destination not in node.pods):  # or the pod there is gone
            way, hop, is_foreign = self.way_to(sent.destination)
            if way == "pod":
                connection.hop = hop
            if is_from_origin:
                connection.origin_way = way
                connection.masqueraded |= is_foreign
            else:
                connection.reply_way = way
        if way == "out" and is_from_origin and connection.masqueraded:
            sent = self.masquerade(packet, connection)
        if way == "local" and sent.destination not in node.pods:
            raise Refused(Drop.UNROUTABLE)
        return Fate(Goes.TO_STACK if way == "host" else Goes.REDIRECTED, bare(sent))

    def to_pod(self, packet: Packet) -> Fate:
        """What the host's stack sends to a pod."""
        packet = self.whole(packet)
        if packet.destination not in self.node.pods:
            raise Refused(Drop.UNROUTABLE)
        if packet.is_error:
            is_nodes = self.node.identity(packet.source) == HOST
            return Fate(Goes.TO_STACK, packet if is_nodes else self.error_arrives(packet))
        connection = self.find(packet)
        is_expected = connection and connection.epoch == self.node.epoch and self.way_back(connection, packet) == "host"
        if not is_expected and packet.source in self.node.pods:
            raise Refused(Drop.INVALID_SOURCE)
        self.remember(packet)
        connection = self.admit(packet, connection, is_from_stack=True)
        if self.way_back(connection, packet) == "unknown":  # answers take the same way
            self.came_by(connection, packet, "host", connection.hop)
        connection.by_stack |= self.is_from_origin(connection, packet)
        return Fate(Goes.TO_STACK, bare(self.as_service(packet, connection)))

    def from_netdev(self, packet: Packet) -> Fate:
        node = self.node
        self.is_vouched = False
        own = node.addresses[":" in packet.destination]
        if packet.destination == own:
            try:
                packet = self.whole(packet)
            except Refused:
                return Fate(Goes.NOT_OURS)
            packet = self.unmasquerade(packet)
            if packet.destination == own:
                return Fate(Goes.NOT_OURS)
            if packet.destination not in node.pods:
                raise Refused(Drop.UNROUTABLE)
        elif packet.destination not in node.pods:
            return Fate(Goes.NOT_OURS)
        else:
            packet = self.whole(packet)
        if packet.is_error:
            self.identify(packet.source)
            return Fate(Goes.REDIRECTED, self.error_arrives(packet))
        connection = self.find(packet)
        came: tuple[str, str] | None = None
        if (
            connection is None
            or connection.epoch != node.epoch
            or self.way_back(connection, packet)
            in (
                "unknown",
                "local",
                "host",
            )
        ):
            came = self.identify(packet.source)
        self.remember(packet)
        connection = self.admit(packet, connection, is_from_stack=True)
        if came:
            self.came_by(connection, packet, *came)
        return Fate(Goes.REDIRECTED, bare(self.as_service(packet, connection)))

    # fragments

    def whole(self, packet: Packet) -> Packet:
        """A later fragment is judged like the first one of its datagram, which must have come before it."""
        if packet.fragment != "later":
            return packet
        first = self.node.fragments.get(self.datagram(packet))
        if first is None:
            raise Refused(Drop.NO_FRAGMENT)
        return replace(first, fragment="later", flags="")

    def remember(self, packet: Packet) -> None:
        """A first fragment whose source address is the sender's own, as it came: any other does not count."""
        if packet.fragment == "first":
            self.kept = self.kept or packet
            self.node.fragments[self.datagram(self.kept)] = self.kept

    @staticmethod
    def datagram(packet: Packet) -> tuple[object, ...]:
        kind = 0 if ":" in packet.source else packet.protocol
        return packet.source, packet.destination, packet.datagram, kind

    # connections

    def find(self, packet: Packet) -> Connection | None:
        """The connection that this packet belongs to; None: it is the first of one."""
        connection = self.node.connection_of(packet.protocol, *packet.ends)
        if connection is None or not packet.begins:
            return connection
        if not self.is_from_origin(connection, packet):
            return None  # nobody turns a connection round
        return None if connection.is_closing else connection

    @staticmethod
    def is_from_origin(connection: Connection, packet: Packet) -> bool:
        return packet.ends[0] == connection.origin

    def way_back(self, connection: Connection, packet: Packet) -> str:
        """Where the packets of the other direction go, and so where this one should come from."""
        return connection.reply_way if self.is_from_origin(connection, packet) else connection.origin_way

    def came_by(self, connection: Connection, packet: Packet, way: str, hop: str) -> None:
        """So packets of the other direction go there."""
        connection.hop = hop
        if self.is_from_origin(connection, packet):
            connection.reply_way = way
        else:
            connection.origin_way = way

    def admit(
        self,
        packet: Packet,
        connection: Connection | None,
        is_from_stack: bool = False,
        is_to_itself: bool = False,
    ) -> Connection:
        """Judge a connection when it is new and when something has changed. The kept connection; or refused."""
        node = self.node
        if connection and connection.epoch == node.epoch:
            connection.notice(packet, self.is_from_origin(connection, packet), node.now, self.is_vouched)
            return connection
        origin, called = (connection.origin, connection.called) if connection else packet.ends
        unhooked = packet.source if is_from_stack else ""  # no pod of this node, whatever address it bears
        # Denied, it stays as it is: or the other end's next packet would begin a connection of its own.
        if not is_to_itself:
            self.judge(packet, origin.address, called, unhooked, connection)
        if connection is None:
            other = node.connection_of(packet.protocol, *packet.ends)
            if other and other.is_settled(node.now) and not self.is_from_origin(other, packet):
                raise Refused(Drop.UNKNOWN_CONNECTION)  # one packet of a stranger's would end it
            connection = Connection(packet.protocol, origin, called, node.epoch)
            node.keep(connection)
        connection.epoch = node.epoch
        connection.origin_way = "unknown"
        connection.reply_way = "host" if connection.by_stack else "unknown"
        connection.notice(packet, self.is_from_origin(connection, packet), node.now, self.is_vouched)
        return connection

    def judge(self, packet: Packet, origin: str, called: End, unhooked: str, connection: Connection | None) -> None:
        """Egress of the pod that began, ingress of the pod that was called, whichever live here."""
        node = self.node
        port = called.port
        if packet.is_icmp:  # an echo is all that has packets of the other direction
            is_answer = connection is not None and not self.is_from_origin(connection, packet)
            port = (ECHO[":" in origin] if is_answer else packet.icmp) + 1
        sender = node.pods.get(origin) if origin != unhooked else None
        receiver = node.pods.get(called.address) if called.address != unhooked else None
        if sender and EGRESS in sender.enforced:
            self.ask(sender.identity, EGRESS, node.identity(called.address), packet.protocol, port)
        if receiver and INGRESS in receiver.enforced:
            peer = node.identity(origin)
            if peer != HOST:  # the node itself may always reach its pods
                self.ask(receiver.identity, INGRESS, peer, packet.protocol, port)

    def ask(self, pod: int, direction: str, peer: int, protocol: int, port: int) -> None:
        rules = self.node.rules
        verdict = rules.get((pod, direction, peer, protocol, port), rules.get((pod, direction, peer, 0, 0)))
        if verdict is None:
            raise Refused(Drop.POLICY)
        if not verdict:
            raise Refused(Drop.DENIED)

    # ways

    def way_to(self, address: str) -> tuple[str, str, bool]:
        """Way, hop, and whether the node's address must stand for the pod's there."""
        node = self.node
        if address in node.pods:
            return "local", "", False
        known = node.lookup(address)
        if known is None:
            if is_of_services(address):
                raise Refused(Drop.NO_BACKEND)
            return "out", "", True
        if known.identity == HOST:
            return "host", "", False
        if known.node == node.addresses[":" in address]:
            raise Refused(Drop.UNROUTABLE)
        return ("pod", known.node, False) if known.node else ("out", "", False)

    def identify(self, address: str) -> tuple[str, str]:
        """By which way, and hop, it comes from outside. Nobody out there is this node or one of its pods."""
        known = self.node.lookup(address)
        if known is None:
            return "out", ""
        if known.identity == HOST or known.node == self.node.addresses[":" in address]:
            raise Refused(Drop.INVALID_SOURCE)
        return ("pod", known.node) if known.node else ("out", "")

    # services

    def is_unsettled(self, connection: Connection, packet: Packet) -> bool:
        """It may have begun before its service was known: nobody has answered it, or nobody need."""
        is_old = connection.epoch != self.node.epoch and self.is_from_origin(connection, packet)
        return is_old and (packet.protocol == UDP or not connection.replied)

    def balance(self, packet: Packet) -> Choice | None:
        """The backend for a packet to a service: the client's own while it may keep it, else one of those there."""
        node = self.node
        client, called = packet.ends
        backends = None if packet.is_icmp else node.services.get((called, packet.protocol))
        at = (client, called, packet.protocol)
        choice = node.choices.get(at)
        if backends is None:
            place = node.connection_of(packet.protocol, *packet.ends)
            if place is None or place.service is None or not self.is_from_origin(place, packet):
                return None
            place.expires = max(place.expires, self.held_until(packet.protocol))
            return choice if choice and choice.backend == called else Choice(called, node.epoch)
        if choice and choice.epoch != node.epoch and (packet.protocol != TCP or packet.begins):
            if choice.backend in backends:
                choice = node.choices[at] = replace(choice, epoch=node.epoch)
            else:
                choice = None
        possible = [choice.backend] if choice else list(backends)
        if not possible:
            raise Refused(Drop.NO_BACKEND)
        taken = [backend for backend in possible if backend.address == self.seen.destination]
        refusals = {self.unreachable(backend, packet) for backend in possible}
        if self.seen.destination == packet.destination:  # it was refused as it was
            for why in refusals:
                if why and why.value == self.seen.reason:
                    raise Refused(why)
        if not taken or self.unreachable(taken[0], packet):
            raise Disagreement(f"{self.seen} for one of {possible}")
        return choice or Choice(taken[0], node.epoch)

    def held_until(self, protocol: int) -> int:
        """Who goes by a substitute without a service is known by the connection in whose place it would else be."""
        return self.node.now + ticks(ANSWERED_SECONDS if protocol == TCP else OTHERS_SECONDS)

    def keep_apart(self, packet: Packet, called: End, choice: Choice) -> Choice:
        """With the port from which nobody else speaks to the backend. `packet` is to that, from the client's own."""
        own, backend = packet.ends

        def other(number: int) -> bool | None:
            """Is there a connection from this port that is another's? None: there is none."""
            end = End(own.address, substitute(own.port, number))
            found = self.node.connection_of(packet.protocol, end, backend)
            return None if found is None else (found.origin, found.service, found.substitute) != (end, called, number)

        if not other(choice.substitute):
            return choice
        if packet.protocol == SCTP:
            raise Refused(Drop.NOT_MASQUERADABLE)
        found = {number: other(number) for number in (0, *SUBSTITUTES)}
        numbers = [number for number, is_taken in found.items() if is_taken is False]  # it has one
        numbers = numbers or [number for number, is_taken in found.items() if is_taken is None]
        if not numbers:
            raise Refused(Drop.NO_MAPPING)
        return replace(choice, substitute=numbers[0])

    @staticmethod
    def unreachable(backend: End, packet: Packet) -> Drop | None:
        """SCTP keeps its ports."""
        is_kept = packet.protocol != SCTP or backend.port == packet.dport
        return None if is_kept else Drop.NOT_MASQUERADABLE

    def as_service(self, packet: Packet, connection: Connection) -> Packet:
        if connection.service is None or self.is_from_origin(connection, packet):
            return packet
        own = connection.own_end
        if connection.substitute and connection.service == connection.called:
            place = self.node.connection_of(packet.protocol, own, connection.called)
            if place and place.service:
                place.expires = max(place.expires, self.held_until(packet.protocol))
        return packet.with_source(connection.service).with_destination(End(packet.destination, own.port))

    # masquerade

    def masquerade(self, packet: Packet, connection: Connection) -> Packet:
        """As the node, from the port that the connection holds: always the same, and nobody else's."""
        node = self.node
        if packet.is_icmp and not packet.is_echo:
            raise Refused(Drop.NOT_MASQUERADABLE)
        pod, remote = packet.ends[0], self.remote_of(packet.ends[1], packet.protocol)
        if not connection.mapped_port:
            connection.mapped_port = self.take_port(pod, remote, packet.protocol)
        holder = node.mappings.setdefault((remote, connection.mapped_port, packet.protocol), pod)
        if holder != pod:
            connection.mapped_port = 0  # the next packet finds another
            raise Refused(Drop.NO_MAPPING)
        return packet.with_source(End(node.addresses[":" in pod.address], connection.mapped_port))

    def take_port(self, pod: End, remote: End, protocol: int) -> int:
        node = self.node
        if protocol == SCTP:  # keeps its own: nobody can mend its checksum
            mapping = (remote, pod.port, protocol)
            holder = node.mappings.get(mapping)
            if holder not in (None, pod) and not node.is_abandoned(mapping):
                raise Refused(Drop.NO_MAPPING)
            node.mappings[mapping] = pod
            return pod.port
        for mapping, holder in node.mappings.items():
            if holder == pod and (mapping[0], mapping[2]) == (remote, protocol):
                return mapping[1]  # of an earlier connection between the same ends
        new = self.seen.mappings - node.mappings.keys()
        if len(new) != 1:
            raise Disagreement(f"one new mapping for {pod} with {remote}, not {new}")
        [(to, port, of)] = new
        if (to, of) != (remote, protocol) or port not in MASQUERADE_PORTS:
            raise Disagreement(f"a mapping for {pod} with {remote}, not {new}")
        node.mappings[to, port, of] = pod
        return port

    def mapping_of(self, remote: End, port: int, protocol: int) -> tuple[End, int, int] | None:
        mapping = (self.remote_of(remote, protocol), port, protocol)
        return mapping if mapping in self.node.mappings else None

    @staticmethod
    def remote_of(end: End, protocol: int) -> End:
        """As a mapping names it: who answers an echo has no port of its own."""
        return End(end.address, 0) if protocol in (ICMP, ICMP6) else end

    def unmasquerade(self, packet: Packet) -> Packet:
        """To the pod that it answers; nobody outside begins a connection by a mapping."""
        if packet.is_error:
            return self.unmasquerade_error(packet)
        if packet.is_icmp and not packet.is_reply:
            return packet  # it answers nothing
        remote, own = packet.ends
        mapping = self.mapping_of(remote, own.port, packet.protocol)
        if mapping is None or self.node.is_abandoned(mapping):
            return packet  # the node's own affair
        if packet.begins:
            raise Refused(Drop.NO_MAPPING)
        self.remember(packet)
        return packet.with_destination(self.node.mappings[mapping])

    # ICMP errors

    def unmasquerade_error(self, packet: Packet) -> Packet:
        """The pod is told, in the words that it used itself."""
        about = packet.about
        assert about
        own, remote = about.ends
        mapping = self.mapping_of(remote, own.port, about.protocol)
        if about.source != packet.destination or mapping is None or self.node.is_abandoned(mapping):
            return packet
        pod = self.node.mappings[mapping]
        return replace(packet, destination=pod.address, about=about.with_source(pod))

    def admit_error(self, packet: Packet, about: Packet) -> Connection:
        """It passes where the packet that it is about has passed and still may, to who sent that. No redirects."""
        if about.source != packet.destination or (packet.protocol, packet.icmp) == (ICMP, REDIRECT4):
            raise Refused(Drop.INVALID)
        connection = self.node.connection_of(about.protocol, *about.ends)
        if connection is None:
            raise Refused(Drop.UNKNOWN_CONNECTION)
        if connection.epoch != self.node.epoch:  # and nothing is written: it says nothing new of the connection
            self.judge(about, connection.origin.address, connection.called, "", connection)
        return connection

    def error_arrives(self, packet: Packet) -> Packet:
        """As about the service, where the pod that called one knows no backend."""
        assert packet.about
        return self.about_service(packet, self.admit_error(packet, packet.about))

    def about_service(self, packet: Packet, connection: Connection) -> Packet:
        about = packet.about
        assert about
        if connection.service is None or not self.is_from_origin(connection, about):
            return packet
        source = connection.service.address if packet.source == about.destination else packet.source
        about = about.with_destination(connection.service).with_source(connection.own_end)
        return replace(packet, source=source, about=about)

    def pod_complains(self, packet: Packet) -> Fate:
        """A pod is an end of what it complains about, never a router."""
        about = packet.about
        assert about
        if about.destination != packet.source:
            raise Refused(Drop.INVALID)
        choice = self.node.choices.get((about.ends[1], about.ends[0], about.protocol))
        as_it_is = self.node.connection_of(about.protocol, *about.ends)
        is_of_earlier = choice and choice.backend == about.ends[0] and as_it_is and not as_it_is.service
        if choice and choice.substitute and is_of_earlier:
            choice = None
        if choice and about.source == packet.destination:  # it knows the service; speak of the backend
            client = about.ends[1]
            about = about.with_source(choice.backend)
            about = about.with_destination(End(client.address, substitute(client.port, choice.substitute)))
            packet = replace(packet, destination=choice.backend.address, about=about)
        connection = self.admit_error(packet, about)
        packet = self.about_service(packet, connection)
        way, _, _ = self.way_to(packet.destination)
        is_to_origin = self.is_from_origin(connection, about)
        if way == "out" and not is_to_origin and connection.masqueraded and connection.mapped_port:
            own = self.node.addresses[":" in packet.source]
            masked = about.with_destination(End(own, connection.mapped_port))
            packet = replace(packet, source=own, about=masked)
        return Fate(Goes.TO_STACK if way == "host" else Goes.REDIRECTED, packet)
