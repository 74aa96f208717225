"""One source port to two services of one backend, or to a service and to its backend: each keeps its own connection."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP

from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import FLAG_ENFORCE_EGRESS
from services.dataplane.shapes.substitutes import own_port, substitute_port
from tests.bpf.conftest import loaded
from tests.bpf.datapath import (
    LOOPBACK_INDEX,
    V4,
    V6,
    Datapath,
    Family,
    Routed,
    echo,
    error,
    key_between,
    sctp,
    tcp,
    udp,
)
from tests.bpf.fragmented import cut, datagram
from tests.bpf.test_errors import ports, translated

POLICY_DENIED, NO_MAPPING, PROTOCOL = 133, 167, 168
BACKEND_PORT = 8080
SUBSTITUTES = 8
CALLED = ("service", "other service", "other port", "backend")
PLACES = ("neighbour", "remote", "outside")  # of the backend


def serve(node: Datapath, at: Family, backend: str) -> None:
    """All that is called leads to one port of one backend."""
    for number in (6, 17):
        for called in CALLED[:3]:
            address, port = target(at, backend, called)
            node.service(address, port, number, [(backend, BACKEND_PORT)], number=number * 4 + CALLED.index(called))
        node.service(*target(at, backend, "keeps ports"), 132, [(backend, BACKEND_PORT)], number=99)
    node.service(at.service + "1", BACKEND_PORT, 132, [(backend, BACKEND_PORT)], number=98)


def target(at: Family, backend: str, called: str) -> tuple[str, int]:
    return {
        "service": (at.service, 80),
        "other service": (at.service + "1", 80),
        "other port": (at.service, 81),
        "backend": (backend, BACKEND_PORT),
        "keeps ports": (at.service, BACKEND_PORT),
    }[called]


def people(node: Datapath, backend_flags: int = 0) -> None:
    for at in (V4, V6):
        node.endpoint(at.pod, 256)
        node.endpoint(at.neighbour, 257, flags=backend_flags)
        node.who(at.remote, 300, at.other_node)
        node.who(at.second, 301, at.other_node)
        node.who(at.node, 1)
    node.maps.raise_epoch()


@dataclass
class Client:
    """A pod that speaks from one port to one backend, in whatever name."""

    node: Datapath
    at: Family
    backend: str
    make: Any
    port: int

    @property
    def layer(self) -> Any:
        return TCP if self.make is tcp else UDP

    def packet(self, source: str, destination: str, sport: int, dport: int, flags: str) -> bytes:
        made: bytes = self.make(source, destination, sport, dport, *([flags] if self.make is tcp else []))
        return made

    def send(self, called: str, flags: str = "A") -> tuple[str, int]:
        """The source of what reaches the backend."""
        packet = self.packet(self.at.pod, *self.with_port(called), flags)
        there = self.node.passes("from_pod", packet)
        assert (there[self.at.ip].dst, there[self.layer].dport) == (self.backend, BACKEND_PORT)
        return there[self.at.ip].src, there[self.layer].sport

    def with_port(self, called: str) -> tuple[str, int, int]:
        address, port = target(self.at, self.backend, called)
        return address, self.port, port

    def answer(self, to: tuple[str, int], flags: str = "A") -> tuple[str, int]:
        """Who the client takes for the sender of the backend's answer to that end."""
        packet = self.packet(self.backend, to[0], BACKEND_PORT, to[1], flags)
        back = self.node.passes("from_pod" if self.backend == self.at.neighbour else "from_netdev", packet)
        assert (back[self.at.ip].dst, back[self.layer].dport) == (self.at.pod, self.port)
        return back[self.at.ip].src, back[self.layer].sport

    def connects(self, called: str) -> tuple[str, int]:
        """The end that the backend knows it by, after an exchange."""
        end = self.send(called, "S")
        assert self.answer(end, "SA") == target(self.at, self.backend, called)
        assert self.send(called) == end
        return end


@pytest.fixture(params=[tcp, udp], ids=["tcp", "udp"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=PLACES)
def client(routed: Routed, at: Family, make: Any, request: pytest.FixtureRequest) -> Client:
    people(routed)
    backend = getattr(at, request.param)
    serve(routed, at, backend)
    return Client(routed, at, backend, make, routed.free_port())


@pytest.fixture
def near(routed: Routed, at: Family, make: Any) -> Client:
    """Of a backend on the same node."""
    people(routed)
    serve(routed, at, at.neighbour)
    return Client(routed, at, at.neighbour, make, routed.free_port())


@pytest.mark.parametrize("order", list(itertools.permutations(CALLED, 2)), ids=" then ".join)
def test_whichever_comes_second_goes_by_another_port_and_both_are_answered(
    client: Client, order: tuple[str, str]
) -> None:
    first, second = order
    ends = {called: client.connects(called) for called in order}
    assert ends[first] != ends[second]
    if client.backend != client.at.outside:  # masqueraded, both have a port of the node's
        assert ends[first] == (client.at.pod, client.port)
        assert ends[second][0] == client.at.pod
    for called in (*order, *order[::-1]):
        assert client.send(called) == ends[called]
        assert client.answer(ends[called]) == target(client.at, client.backend, called)


def test_all_four_at_once(client: Client) -> None:
    ends = {called: client.connects(called) for called in CALLED}
    assert len(set(ends.values())) == 4
    client.node.maps.raise_epoch()  # judged again
    for called in CALLED:
        assert client.answer(ends[called]) == target(client.at, client.backend, called)
        assert client.send(called) == ends[called]
        assert client.answer(ends[called]) == target(client.at, client.backend, called)


def test_a_port_has_substitutes_that_no_other_port_has_under_the_same_number() -> None:
    for number in range(SUBSTITUTES + 1):
        assert {substitute_port(port, number) for port in range(65536)} == set(range(65536))
        assert all(own_port(substitute_port(port, number), number) == port for port in range(65536))
    for port in range(65536):
        found = [substitute_port(port, number) for number in range(SUBSTITUTES + 1)]
        assert len(set(found)) == len(found)
        assert {each < 1024 for each in found} == {port < 1024}
        assert not (32768 <= port <= 60999) or all(each < 32768 for each in found[1:])


@pytest.mark.parametrize("port", [1, 600, 1023, 1024, 32768, 60999, 65535])
def test_the_kernel_counts_as_python_does(near: Client, port: int) -> None:
    near.port = port
    ends = [near.connects(called)[1] for called in CALLED]
    assert ends == [substitute_port(port, number) for number in range(4)]


def test_when_none_is_left_the_call_is_dropped_and_says_why(near: Client) -> None:
    at = near.at
    for number in range(SUBSTITUTES + 1):
        other = Client(near.node, at, near.backend, near.make, substitute_port(near.port, number))
        other.connects("backend")
    packet = near.packet(at.pod, *near.with_port("service"), "S")
    assert near.node.dropped_for("from_pod", packet) == NO_MAPPING


def test_who_owns_a_substitute_takes_another_too(near: Client) -> None:
    near.connects("service")
    taken = near.connects("other service")
    owner = Client(near.node, near.at, near.backend, near.make, taken[1])
    for called in ("backend", "service"):
        assert owner.connects(called) != taken
    assert near.answer(taken) == target(near.at, near.backend, "other service")


def test_what_the_backend_began_is_not_taken_for_an_answer_of_the_service(near: Client) -> None:
    """SIP and others speak from the port at which they are called."""
    at = near.at
    begun = near.packet(near.backend, at.pod, BACKEND_PORT, near.port, "S")
    near.node.passes("from_pod", begun)
    near.node.passes("from_pod", near.packet(at.pod, near.backend, near.port, BACKEND_PORT, "SA"))
    assert near.connects("service") != (at.pod, near.port)
    assert near.answer((at.pod, near.port)) == target(at, near.backend, "backend")


# What is lost, and what ends


@pytest.mark.parametrize("order", list(itertools.permutations(CALLED, 2)), ids=" then ".join)
def test_a_lost_choice_finds_the_port_that_it_had(near: Client, order: tuple[str, str]) -> None:
    ends = {called: near.connects(called) for called in order}
    choices = near.node.maps["choices"]
    choices.remove_many([key for key, _ in choices.items()])
    for called in order:
        assert near.send(called) == ends[called]
        assert near.answer(ends[called]) == target(near.at, near.backend, called)


def test_a_lost_choice_is_not_misled_by_a_port_that_is_free_by_now(near: Client) -> None:
    ends = {called: near.connects(called) for called in CALLED}
    expire(near, ends["other service"])
    choices = near.node.maps["choices"]
    choices.remove_many([key for key, _ in choices.items()])
    for called in ("service", "other port", "backend"):
        assert near.send(called) == ends[called]


@pytest.mark.parametrize("order", list(itertools.permutations(CALLED, 2)), ids=" then ".join)
def test_a_lost_connection_is_the_same_again(near: Client, order: tuple[str, str]) -> None:
    ends = {called: near.connects(called) for called in order}
    remove(near, ends[order[1]])
    assert near.send(order[1]) == ends[order[1]]
    for called in order:
        assert near.answer(ends[called]) == target(near.at, near.backend, called)


@pytest.mark.parametrize("called", ["other service", "other port"])
def test_a_connection_goes_on_by_its_substitute_when_the_first_is_over(near: Client, called: str) -> None:
    near.connects("service")
    end = near.connects(called)
    expire(near, (near.at.pod, near.port))
    assert near.send(called) == end
    assert near.answer(end) == target(near.at, near.backend, called)
    remove(near, (near.at.pod, near.port))
    assert near.send(called) == end


@pytest.mark.parametrize("who", ["client", "backend"])
def test_while_a_connection_with_the_backend_itself_goes_by_a_substitute_the_first_ones_place_is_kept(
    near: Client, who: str
) -> None:
    first = near.connects("service")
    end = near.connects("backend")
    expire(near, first, in_ticks=3)
    if who == "client":
        assert near.send("backend") == end
    else:
        near.answer(end)
    kept, other = entry(near, first), entry(near, end)
    assert kept is not None and other is not None
    assert kept.expires >= other.expires > 3 + now_tick(near, end)
    assert near.send("backend") == end


def now_tick(near: Client, end: tuple[str, int]) -> int:
    found = entry(near, end)
    assert found is not None
    return found.expires - (7451 if near.make is tcp else 56)


def raw_key(near: Client, end: tuple[str, int]) -> bytes:
    return key_between(end, (near.backend, BACKEND_PORT), 6 if near.make is tcp else 17).pack()


def table(near: Client) -> Any:
    return near.node.maps["ct_tcp" if near.make is tcp else "ct_any"]


def entry(near: Client, end: tuple[str, int]) -> layouts.Connection | None:
    raw = table(near).get(raw_key(near, end))
    return layouts.Connection.unpack(raw) if raw else None


def remove(near: Client, end: tuple[str, int]) -> None:
    table(near).remove(raw_key(near, end))


def expire(near: Client, end: tuple[str, int], in_ticks: int = -1) -> None:
    raw = table(near).get(raw_key(near, end))
    expires = now_tick(near, end) + in_ticks
    table(near).set(raw_key(near, end), expires.to_bytes(4, "little") + raw[4:])


@pytest.mark.parametrize("order", list(itertools.permutations(CALLED, 2)), ids=" then ".join)
def test_ports_used_again_after_the_end_keep_both_apart(near: Client, order: tuple[str, str]) -> None:
    for _ in range(2):
        ends = {called: near.connects(called) for called in order}
        assert len(set(ends.values())) == 2
        for called in order:
            near.send(called, "FA")
            near.answer(ends[called], "FA")


def test_half_closed_is_not_over(near: Client) -> None:
    first = near.connects("service")
    near.send("service", "FA")
    assert near.connects("backend") != first
    assert near.connects("other service") != first
    assert near.answer(first) == target(near.at, near.backend, "service")


def test_entries_of_before_there_were_substitutes_are_of_ports_of_their_own(near: Client) -> None:
    end = near.connects("service")
    assert end == (near.at.pod, near.port)
    found = entry(near, end)
    assert found is not None and found.substitute == 0
    [(_, raw)] = near.node.maps["choices"].items()
    assert layouts.Choice.unpack(raw).substitute == 0 and raw[18:24] == bytes(6)


# What else is said of them


@pytest.mark.parametrize("where", ["neighbour", "remote", "outside"])
@pytest.mark.parametrize("called", ["other service", "backend"])
def test_the_client_is_told_of_what_it_called_from_its_own_port(
    routed: Routed, at: Family, make: Any, where: str, called: str
) -> None:
    people(routed)
    serve(routed, at, getattr(at, where))
    client = Client(routed, at, getattr(at, where), make, routed.free_port())
    client.connects("service")
    sent = routed.passes("from_pod", client.packet(at.pod, *client.with_port(called), "S"))
    message = error(client.backend, sent[at.ip].src, sent[at.ip])
    outer, quoted = translated(routed, "from_pod" if where == "neighbour" else "from_netdev", message)
    address, port = target(at, client.backend, called)
    assert (outer.src, outer.dst) == (address, at.pod)
    assert (quoted.src, quoted.dst) == (at.pod, address)
    assert ports(quoted) == (client.port, port)


@pytest.mark.parametrize("where", ["neighbour", "remote", "outside"])
@pytest.mark.parametrize("called", ["other service", "backend"])
def test_the_backend_is_told_of_the_port_that_it_knows(
    routed: Routed, at: Family, make: Any, where: str, called: str
) -> None:
    people(routed)
    serve(routed, at, getattr(at, where))
    client = Client(routed, at, getattr(at, where), make, routed.free_port())
    client.connects("service")
    end = client.connects(called)
    way_back = "from_pod" if where == "neighbour" else "from_netdev"
    reply = routed.passes(way_back, client.packet(client.backend, end[0], BACKEND_PORT, end[1], "A"))
    outer, quoted = translated(routed, "from_pod", error(at.pod, reply[at.ip].src, reply[at.ip]))
    assert (outer.src, outer.dst) == (end[0], client.backend)
    assert (quoted.src, quoted.dst) == (client.backend, end[0])
    assert ports(quoted) == (BACKEND_PORT, end[1])


def test_a_complaint_is_not_misled_by_a_choice_of_an_earlier_connection(near: Client) -> None:
    """With the backend itself, which goes from its own port by now."""
    at = near.at
    first = near.connects("service")
    remove(near, near.connects("backend"))
    remove(near, first)
    assert near.connects("backend") == (at.pod, near.port)
    reply = near.node.passes("from_pod", near.packet(near.backend, at.pod, BACKEND_PORT, near.port, "A"))
    _, quoted = translated(near.node, "from_pod", error(at.pod, near.backend, reply[at.ip]))
    assert ports(quoted)[1] == near.port


@pytest.mark.parametrize("called", ["other service", "backend"])
def test_fragments_go_the_way_of_their_first(routed: Routed, at: Family, called: str) -> None:
    people(routed)
    serve(routed, at, at.neighbour)
    client = Client(routed, at, at.neighbour, udp, routed.free_port())
    client.connects("service")
    _, substitute = client.connects(called)
    address, port = target(at, at.neighbour, called)

    def pieces(packet: bytes) -> list[Any]:
        return [routed.passes("from_pod", each)[at.ip] for each in cut(packet, at)]

    there = pieces(datagram(at.pod, address, client.port, port))
    assert {(each.src, each.dst) for each in there} == {(at.pod, at.neighbour)}
    assert whole(there, at) == datagram(at.pod, at.neighbour, substitute, BACKEND_PORT)
    back = pieces(datagram(at.neighbour, at.pod, BACKEND_PORT, substitute))
    assert {(each.src, each.dst) for each in back} == {(address, at.pod)}
    assert whole(back, at) == datagram(address, at.pod, port, client.port)


def whole(pieces: list[Any], at: Family) -> bytes:
    """The datagram that these are of."""
    parts = [bytes(each.payload)[0 if at is V4 else 8 :] for each in pieces]
    payload = b"".join(parts)
    header = datagram(pieces[0].src, pieces[0].dst, 0, 0)
    return header[: len(header) - len(payload)] + payload


def test_policy_judges_each_by_what_it_reaches(near: Client) -> None:
    near.node.endpoint(near.at.pod, 256, policy=9, flags=FLAG_ENFORCE_EGRESS)
    near.node.who(near.at.neighbour, 257, near.at.node)
    near.node.allow(9, 257, EGRESS)
    near.node.maps.raise_epoch()
    ends = {called: near.connects(called) for called in CALLED}
    near.node.maps["policy"].remove_many([key for key, _ in near.node.maps["policy"].items()])
    near.node.maps.raise_epoch()
    for called in CALLED:
        packet = near.packet(near.at.pod, *near.with_port(called), "A")
        assert near.node.dropped_for("from_pod", packet) == POLICY_DENIED
        answer = near.packet(near.backend, near.at.pod, BACKEND_PORT, ends[called][1], "A")
        assert near.node.dropped_for("from_pod", answer) == POLICY_DENIED


def test_a_pod_that_calls_itself_by_two_ports_of_its_service(routed: Routed, at: Family, make: Any) -> None:
    """To itself the service seems to call, and from one port of that."""
    people(routed)
    serve(routed, at, at.pod)
    client = Client(routed, at, at.pod, make, routed.free_port())
    ends = {}
    for called in ("service", "other port", "other service"):
        ends[called] = client.send(called, "S")
        assert ends[called][0] == target(at, at.pod, called)[0]
    assert len(set(ends.values())) == 3
    for called, end in ends.items():
        answer = client.packet(at.pod, end[0], BACKEND_PORT, end[1], "SA")
        back = routed.passes("from_pod", answer)
        assert (back[at.ip].src, back[client.layer].sport) == target(at, at.pod, called)
        assert (back[at.ip].dst, back[client.layer].dport) == (at.pod, client.port)
        assert client.send(called) == end


def test_sctp_is_refused_by_name_where_it_would_need_a_substitute_and_the_first_goes_on(
    routed: Routed, at: Family
) -> None:
    """Its checksum covers the ports, and nobody here can make it anew."""
    people(routed)
    serve(routed, at, at.neighbour)
    client = routed.free_port()
    first, second = at.service, at.service + "1"
    routed.passes("from_pod", sctp(at.pod, first, client, BACKEND_PORT))
    for called in (second, at.neighbour):
        assert routed.dropped_for("from_pod", sctp(at.pod, called, client, BACKEND_PORT)) == PROTOCOL
    assert routed.passes("from_pod", sctp(at.neighbour, at.pod, BACKEND_PORT, client))[at.ip].src == first
    assert routed.passes("from_pod", sctp(at.pod, first, client, BACKEND_PORT))[at.ip].dst == at.neighbour


def test_an_echo_has_no_part_in_it(near: Client) -> None:
    near.connects("service")
    sent = near.node.passes("from_pod", echo(near.at.pod, near.backend, near.port))
    assert sent[near.at.ip].dst == near.backend


# Where the node's own stack forwards


@pytest.fixture(scope="module")
def by_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    with (
        loaded("stack", tmp_path_factory.mktemp("state"), switches={"LEGACY_ROUTING": 1}) as pin_dir,
        closing(Routed(pin_dir)) as found,
    ):
        yield found


@pytest.mark.parametrize("order", list(itertools.permutations(CALLED, 2)), ids=" then ".join)
def test_by_the_nodes_own_stack_both_are_answered_at_the_clients_hook(
    by_stack: Routed, at: Family, make: Any, order: tuple[str, str]
) -> None:
    by_stack.clear()
    people(by_stack)
    serve(by_stack, at, at.neighbour)
    client = Client(by_stack, at, at.neighbour, make, by_stack.free_port())
    by_stack.came_from(LOOPBACK_INDEX)
    ends = {called: client.send(called, "S") for called in order}
    assert len(set(ends.values())) == 2
    for called, end in ends.items():
        answer = client.packet(at.neighbour, at.pod, BACKEND_PORT, end[1], "SA")
        by_stack.passes("from_pod", answer)
        back = by_stack.passes("to_pod", answer)
        assert (back[at.ip].src, back[client.layer].sport) == target(at, at.neighbour, called)
        assert (back[at.ip].dst, back[client.layer].dport) == (at.pod, client.port)
