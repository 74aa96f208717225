"""Which entries of `sock_reverse` are outdated, and what is done about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages.lb import Backend, Exposure, Frontend, LoadBalancedService
from services.dataplane.keep.sockets import find_outdated
from services.dataplane.kernel.sock_diag import TCP, UDP, Walk
from services.dataplane.parts.services import Services
from services.dataplane.shapes.layouts import SockReverse, SockReverseKey, pack_address
from services.dataplane.shapes.table import Table

DNS = "10.96.0.10"


def key(cookie: int, address: str, port: int = 53) -> bytes:
    return SockReverseKey.layout.pack(cookie, pack_address(address), port.to_bytes(2, "big"))


def value(address: str = DNS, port: int = 53, protocol: int = UDP, *, is_datagram: bool = False) -> bytes:
    return SockReverse.layout.pack(pack_address(address), port.to_bytes(2, "big"), protocol, is_datagram)


def tables(udp: Sequence[str] = (), tcp: Sequence[str] = ()) -> Services:
    """The DNS Service, with backends by protocol."""
    made = Services()
    made.put(service(udp, tcp))
    return made


def service(udp: Sequence[str] = (), tcp: Sequence[str] = (), draining: Sequence[str] = ()) -> LoadBalancedService:
    return LoadBalancedService(
        namespace="kube-system",
        name="dns",
        frontends=[
            Frontend(address=DNS, port=53, protocol="TCP", backends=at(tcp)),
            Frontend(address=DNS, port=53, protocol="UDP", backends=at(udp), draining=at(draining)),
        ],
    )


def at(addresses: Sequence[str]) -> list[Backend]:
    return [Backend(address=each, port=53) for each in addresses]


def outdated(made: Services, entries: dict[bytes, bytes], may_end: tuple[int, ...] = (UDP,)) -> dict[bytes, int]:
    return dict(find_outdated(entries.items(), made.services.wanted, made.serves, may_end).entries)


def test_only_sockets_of_a_service_that_has_their_backend_no_more_are_outdated() -> None:
    made = tables(udp=["10.0.0.1"], tcp=["10.0.0.1"])
    entries = {
        key(1, "10.0.0.1"): value(),
        key(2, "10.0.0.2"): value(),
        key(3, "10.0.0.1"): value("10.96.0.11"),  # by a Service that is gone, or was never known
        key(4, "10.0.0.1", 54): value(),
        key(5, "10.0.0.2"): value(protocol=TCP),
        key(6, "10.0.0.2"): value(is_datagram=True),
    }
    gone = {key(2, "10.0.0.2"): UDP, key(3, "10.0.0.1"): UDP, key(4, "10.0.0.1", 54): UDP}
    assert outdated(made, entries) == gone
    assert outdated(made, entries, (UDP, TCP)) == gone | {key(5, "10.0.0.2"): TCP}


def test_an_address_that_serves_for_another_service_now_does_not_keep_the_sockets_of_the_first() -> None:
    made = tables(udp=["10.0.0.1"])
    other = Frontend(address="10.96.0.20", port=53, protocol="UDP", backends=[Backend(address="10.0.0.9", port=53)])
    made.put(LoadBalancedService(namespace="default", name="other", frontends=[other]))
    assert list(outdated(made, {key(1, "10.0.0.9"): value()})) == [key(1, "10.0.0.9")]


def test_an_entry_of_before_protocols_were_kept_is_outdated_when_no_protocol_of_its_service_has_the_backend() -> None:
    entries = {key(1, "10.0.0.1"): value(protocol=0)}
    assert not outdated(tables(udp=["10.0.0.2"], tcp=["10.0.0.1"]), entries)
    assert outdated(tables(udp=["10.0.0.2"], tcp=["10.0.0.2"]), entries) == {key(1, "10.0.0.1"): 0}


def test_ipv6_backends_are_told_apart_too() -> None:
    made = Services()
    front = Frontend(address="fd00::a", port=53, protocol="UDP", backends=[Backend(address="fd00::1", port=53)])
    made.put(LoadBalancedService(namespace="n", name="s", frontends=[front]))
    entries = {key(1, "fd00::1"): value("fd00::a"), key(2, "fd00::2"): value("fd00::a")}
    assert list(outdated(made, entries)) == [key(2, "fd00::2")]


def test_who_is_connected_to_a_backend_that_drains_stays_so_until_it_is_gone() -> None:
    """What it was asked before it still answers."""
    made, entries = tables(udp=["10.0.0.1", "10.0.0.2"]), {key(1, "10.0.0.2"): value()}
    made.put(service(udp=["10.0.0.1"], draining=["10.0.0.2"]))
    assert made.losses == 0
    assert not outdated(made, entries)
    made.put(service(udp=["10.0.0.1"]))
    assert made.losses == 1
    assert outdated(made, entries) == {key(1, "10.0.0.2"): UDP}
    made.put(service(udp=["10.0.0.1"], draining=["10.0.0.2"]))
    made.delete("kube-system", "dns")
    assert made.losses == 3
    assert outdated(made, entries) == {key(1, "10.0.0.2"): UDP}


def test_another_thread_that_asks_at_any_moment_finds_no_backend_gone_that_only_changes_its_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Living, draining, and living again; each write is a moment at which it may ask."""
    made, entries = tables(udp=["10.0.0.1", "10.0.0.2"]), {key(1, "10.0.0.2"): value()}
    moments: list[dict[bytes, int]] = []

    def asked(write: Callable[..., None]) -> Callable[..., None]:
        def and_ask(table: Table, *arguments: bytes) -> None:
            moments.append(outdated(made, entries))
            write(table, *arguments)
            moments.append(outdated(made, entries))

        return and_ask

    for each in ("put", "delete"):
        monkeypatch.setattr(Table, each, asked(getattr(Table, each)))
    made.put(service(udp=["10.0.0.1"], draining=["10.0.0.2"]))
    made.put(service(udp=["10.0.0.1"], draining=["10.0.0.2", "10.0.0.3"]))
    made.put(service(udp=["10.0.0.1", "10.0.0.2"]))
    assert len(moments) > 10
    assert not any(moments)


def test_every_loss_of_a_backend_is_told_and_nothing_else() -> None:
    made = tables(udp=["10.0.0.1", "10.0.0.2"])
    assert made.losses == 0
    made.put(service(udp=["10.0.0.3", "10.0.0.2", "10.0.0.1"]))
    assert made.losses == 0
    made.put(service(udp=["10.0.0.3"]))
    assert made.losses == 2
    made.put(service())
    assert made.losses == 3
    made.put(service(udp=["10.0.0.4"]))
    made.delete("kube-system", "dns")
    assert made.losses == 4


COOKIES = st.integers(0, (1 << 64) - 1)
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"])


@given(st.dictionaries(st.tuples(COOKIES, ADDRESSES), st.sampled_from([0, UDP, TCP]), max_size=8), st.data())
def test_an_entry_leaves_the_map_only_if_its_socket_was_ended_or_surely_is_not_there(
    gone: dict[tuple[int, str], int], data: st.DataObject
) -> None:
    found = find_outdated(
        [(key(cookie, address), value(protocol=each)) for (cookie, address), each in gone.items()],
        {},
        lambda key: False,
        (UDP, TCP),
    )
    wanted = found.wanted(lambda key: True)
    assert wanted.keys() == {cookie for cookie, _ in gone}
    cookies = st.sampled_from(sorted(wanted) or [0])
    done = Walk(
        ended=[(UDP, each) for each in data.draw(st.sets(cookies))],
        unconnected=data.draw(st.sets(cookies)),
    )
    is_certain = data.draw(st.booleans())
    looked_at = data.draw(st.sampled_from([(UDP,), (UDP, TCP)]))
    settled = set(found.settled(done, looked_at, is_certain=is_certain))
    for (cookie, address), protocol in gone.items():
        was_ended = cookie in {each for _, each in done.ended}
        was_looked_for = protocol in looked_at or len(looked_at) == 2
        is_away = is_certain and was_looked_for and cookie not in done.unconnected
        assert (key(cookie, address) in settled) == (was_ended or is_away)


def test_what_is_not_to_be_ended_is_not_looked_for() -> None:
    made = tables()
    only_tcp = find_outdated([(key(1, "10.0.0.1"), value(protocol=TCP))], made.services.wanted, made.serves, (UDP,))
    assert only_tcp.protocols((UDP,)) == []
    unknown = find_outdated([(key(1, "10.0.0.1"), value(protocol=0))], made.services.wanted, made.serves, (UDP, TCP))
    assert unknown.protocols((UDP, TCP)) == [UDP, TCP]


@pytest.mark.parametrize(
    ("node", "here", "elsewhere"), [("192.0.2.9", "10.0.0.1", "10.0.0.2"), ("fd00::9", "fd01::1", "fd01::2")]
)
def test_who_called_a_node_port_stays_connected_while_its_backend_is_there(
    node: str, here: str, elsewhere: str
) -> None:
    made = Services()
    front = Frontend(address="fd00::a" if ":" in here else DNS, port=53, protocol="UDP", backends=at([here]))
    port = Exposure(kind="NodePort", family="IPv6" if ":" in here else "IPv4", port=30053, protocol="UDP")
    made.put(LoadBalancedService(namespace="n", name="s", frontends=[front], exposures=[port]))
    entries = {key(1, here): value(node, 30053), key(2, elsewhere): value(node, 30053)}
    assert list(outdated(made, entries)) == [key(2, elsewhere)]
