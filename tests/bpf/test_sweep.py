"""Sweeping real maps: what is over goes, what is alive stays, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bus.telemetry import counted
from services.dataplane.keep import sweep as module
from services.dataplane.keep.sweep import LONGEST_SECONDS, Sweep, Sweeper, connection_key
from services.dataplane.kernel.bpf import Map
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import TICK_NS
from tests.bpf.own_maps import LRU_HASH, make

KEY, CONNECTION = layouts.ConnectionKey.layout.size, layouts.Connection.layout.size
MAPPING, CHOICE = layouts.NatEntry.layout.size, layouts.Choice.layout.size
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
POD, BACKEND, SERVICE, OUTSIDE, NODE = (
    bytes(10) + b"\xff\xff" + bytes(address)
    for address in ((10, 0, 0, 1), (10, 0, 1, 5), (10, 96, 0, 9), (198, 51, 100, 7), (192, 0, 2, 1))
)


LONGEST = 8000.0  # seconds that a connection may be silent by the settings


def port(number: int) -> bytes:
    return number.to_bytes(2, "big")


class Traffic:
    """The four maps, and entries as the programs make them."""

    def __init__(self, entries: int = 8192) -> None:
        self.tcp, self.any = (make(LRU_HASH, KEY, CONNECTION, entries) for _ in range(2))
        self.nat = make(LRU_HASH, KEY, MAPPING, entries)
        self.choices = make(LRU_HASH, KEY, CHOICE, entries)
        self.maps = {"ct_tcp": self.tcp, "ct_any": self.any, "nat": self.nat, "choices": self.choices}
        self.sweep = Sweep(**self.maps, longest_seconds=LONGEST)

    def close(self) -> None:
        for each in (self.tcp, self.any, self.nat, self.choices):
            each.close()

    def connection(
        self, pod_port: int, seconds: float, other: bytes = OUTSIDE, protocol: int = TCP, nat_port: int = 0
    ) -> bytes:
        """A pod's connection to port 443 of another; it expires in so many seconds."""
        key = connection_key(POD, port(pod_port), other, port(443), protocol)
        (self.tcp if protocol == TCP else self.any).set(key, connection(seconds, nat_port))
        return key

    def mapping(self, pod_port: int, node_port: int, protocol: int = TCP) -> bytes:
        key = OUTSIDE + NODE + port(443) + port(node_port) + bytes((protocol, 0, 0, 0))
        self.nat.set(key, POD + port(pod_port) + bytes(2))
        return key

    def choice(self, pod_port: int, protocol: int = TCP) -> bytes:
        key = POD + SERVICE + port(pod_port) + port(80) + bytes((protocol, 0, 0, 0))
        self.choices.set(key, BACKEND + port(443) + bytes(10))
        return key

    def now(self) -> module.Swept:
        return self.sweep.sweep(threading.Event())


def connection(seconds: float, nat_port: int = 0) -> bytes:
    expires = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // TICK_NS + round(seconds * 1e9 / TICK_NS)
    return layouts.Connection(expires & 0xFFFFFFFF, 0, 0, 0, 0, "", "", 0, nat_port).pack()


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    made = Traffic()
    yield made
    made.close()


def keys(of: Map) -> set[bytes]:
    return {key for key, _ in of.items()}


def test_connections_that_are_over_go_and_those_that_are_not_stay(traffic: Traffic) -> None:
    over = {traffic.connection(number, -10, protocol=(TCP, UDP)[number % 2]) for number in range(1, 3001)}
    alive = {traffic.connection(number, +30, protocol=(TCP, UDP)[number % 2]) for number in range(3001, 4001)}
    found = traffic.now()
    assert keys(traffic.tcp) | keys(traffic.any) == alive
    assert not over & alive
    assert (found.removed["ct_tcp"], found.removed["ct_any"]) == (1500, 1500)
    assert (found.seen["ct_tcp"], found.seen["ct_any"]) == (2000, 2000)
    assert found.share == 1500 / 8192


@pytest.mark.parametrize("settings", [3600.0, 30 * 86_400.0])
def test_what_expires_later_than_any_connection_can_goes_with_what_went_with_it(
    traffic: Traffic, settings: float
) -> None:
    traffic.sweep = Sweep(**traffic.maps, longest_seconds=settings)
    longest = max(settings, LONGEST_SECONDS)
    alive = {traffic.connection(number, longest, protocol=(TCP, UDP)[number % 2]) for number in (1, 2)}
    for number, seconds in ((3, longest + 10), (4, longest + 10), (5, 1e9), (6, 3e9), (7, 4e9)):
        traffic.connection(number, seconds, protocol=(TCP, UDP)[number % 2], nat_port=61000 + number)
        traffic.mapping(number, 61000 + number, (TCP, UDP)[number % 2])
    found = traffic.now()
    assert keys(traffic.tcp) | keys(traffic.any) == alive
    assert (found.removed["ct_tcp"], found.removed["ct_any"], found.removed["nat"]) == (2, 3, 5)


def test_what_programs_of_longer_settings_have_made_stays_with_all_that_goes_with_it(traffic: Traffic) -> None:
    """A restart with a shorter CT_TCP_SECONDS: what has been silent for a while still has its time."""
    traffic.sweep = Sweep(**traffic.maps, longest_seconds=3600.0)
    key = traffic.connection(1, 8000 - 600, nat_port=61001)
    chosen = traffic.connection(2, 8000 - 600, other=BACKEND)
    mapping, choice = traffic.mapping(1, 61001), traffic.choice(2)
    assert not any(traffic.now().removed.values())
    assert (keys(traffic.tcp), keys(traffic.nat), keys(traffic.choices)) == ({key, chosen}, {mapping}, {choice})


def test_a_connection_whose_time_is_up_this_very_moment_is_left_to_the_next_sweep(traffic: Traffic) -> None:
    key = traffic.connection(1, 0)
    assert traffic.now().removed["ct_tcp"] == 0
    assert keys(traffic.tcp) == {key}


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_mapping_goes_with_its_connection_in_the_same_sweep(traffic: Traffic, protocol: int) -> None:
    traffic.connection(1, -10, nat_port=61001, protocol=protocol)
    traffic.connection(2, +30, nat_port=61002, protocol=protocol)
    traffic.connection(3, +30, nat_port=0, protocol=protocol)  # about to take a port
    traffic.connection(4, +30, nat_port=61999, protocol=protocol)  # has another one by now
    mappings = {number: traffic.mapping(number, 61000 + number, protocol) for number in (1, 2, 3, 4, 5)}  # 5: of nobody
    assert traffic.now().removed["nat"] == 3
    assert keys(traffic.nat) == {mappings[2], mappings[3]}


@pytest.mark.parametrize("protocol", [ICMP, ICMP6])
def test_the_mapping_of_an_echo_lives_as_long_as_its_connection(traffic: Traffic, protocol: int) -> None:
    """A mapping names no port of who answers; a connection has one, by the identifier."""
    mappings = {}
    for number, seconds, node_port in ((1, +30, 61001), (2, -10, 61002), (65535, +30, 61003)):
        key = connection_key(POD, port(number), OUTSIDE, port((number + 1) & 0xFFFF), protocol)
        traffic.any.set(key, connection(seconds, node_port))
        mappings[number] = OUTSIDE + NODE + port(0) + port(node_port) + bytes((protocol, 0, 0, 0))
        traffic.nat.set(mappings[number], POD + port(number) + bytes(2))
    assert traffic.now().removed["nat"] == 1
    assert keys(traffic.nat) == {mappings[1], mappings[65535]}


def test_mappings_of_one_transport_do_not_live_by_the_connections_of_another(traffic: Traffic) -> None:
    traffic.connection(1, +30, protocol=UDP)
    traffic.mapping(1, 61001, TCP)
    traffic.now()
    assert not keys(traffic.nat)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_choice_goes_with_the_connection_to_its_backend(traffic: Traffic, protocol: int) -> None:
    traffic.connection(1, -10, other=BACKEND, protocol=protocol)
    traffic.connection(2, +30, other=BACKEND, protocol=protocol)
    traffic.connection(3, +30, other=OUTSIDE, protocol=protocol)  # not to the backend
    choices = {number: traffic.choice(number, protocol) for number in (1, 2, 3)}
    assert traffic.now().removed["choices"] == 2
    assert keys(traffic.choices) == {choices[2]}


class Interposed(Map):
    """A map in which something happens between the sweep's look and its removal of an entry, or after that."""

    __slots__ = ("after", "before")

    def __init__(self, of: Map) -> None:
        super().__init__(of.fd)
        self.before: Callable[[bytes], object] = len
        self.after: Callable[[bytes], object] = len

    def take(self, key: bytes) -> bytes | None:
        self.before(key)
        taken = super().take(key)
        self.after(key)
        return taken


@pytest.fixture
def raced(traffic: Traffic) -> Interposed:
    raced = Interposed(traffic.tcp)
    traffic.sweep = Sweep(
        ct_tcp=raced, ct_any=traffic.any, nat=traffic.nat, choices=traffic.choices, longest_seconds=LONGEST
    )
    return raced


def test_a_connection_that_begins_anew_between_look_and_removal_is_put_back_as_it_is(
    traffic: Traffic, raced: Interposed
) -> None:
    key, anew = traffic.connection(1, -10), connection(30, nat_port=61007)
    raced.before = lambda key: traffic.tcp.set(key, anew)
    found = traffic.now()
    assert (found.removed["ct_tcp"], found.put_back["ct_tcp"]) == (0, 1)
    assert traffic.tcp.get(key) == anew


def test_what_a_program_wrote_before_it_was_put_back_wins(traffic: Traffic, raced: Interposed) -> None:
    key, first, second = traffic.connection(1, -10), connection(30), connection(60)
    raced.before = lambda key: traffic.tcp.set(key, first)
    raced.after = lambda key: traffic.tcp.set(key, second)
    assert traffic.now().put_back["ct_tcp"] == 0
    assert traffic.tcp.get(key) == second


def test_one_that_is_gone_by_then_is_not_counted(traffic: Traffic, raced: Interposed) -> None:
    traffic.connection(1, -10)
    raced.before = traffic.tcp.remove
    assert traffic.now().removed["ct_tcp"] == 0


def test_under_sweeps_without_a_pause_no_connection_that_begins_anew_is_lost(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ports over and over: each connection is over, begins anew, and must still be there afterwards."""
    monkeypatch.setattr(module, "IDLE_PER_BUSY", 0.0)
    stop = threading.Event()
    found: list[module.Swept] = []

    def sweep_on() -> None:
        while not stop.is_set():
            found.append(traffic.now())

    thread = threading.Thread(target=sweep_on)
    thread.start()
    lost = []
    for turn in range(100):
        for number in range(1, 101):
            traffic.connection(number, -10)
        anew = connection(60, nat_port=turn + 1)
        begun = [connection_key(POD, port(number), OUTSIDE, port(443), TCP) for number in range(1, 101)]
        for key in begun:
            traffic.tcp.set(key, anew)
        sweeps = len(found)
        while len(found) < sweeps + 2:  # one that was under way has ended, and one more
            time.sleep(0.0005)
        lost += [key for key in begun if traffic.tcp.get(key) != anew]
    stop.set()
    thread.join()
    assert not lost
    assert sum(each.removed["ct_tcp"] for each in found) > 100


async def test_a_sweep_that_is_cancelled_ends_at_the_next_bite_and_leaves_the_rest(traffic: Traffic) -> None:
    for number in range(1, 6001):
        traffic.connection(number, -10)
    work = asyncio.create_task(traffic.sweep.run())
    await asyncio.sleep(0.002)
    began = time.monotonic()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - began < 1
    assert keys(traffic.tcp)


async def test_a_turn_counts_what_it_removed_and_sets_the_next_interval(traffic: Traffic) -> None:
    for number in range(1, 5001):
        traffic.connection(number, -10)
    before = counted("conntrack_gc_removed", map="ct_tcp")
    sweeper = Sweeper(traffic.sweep)
    await sweeper.turn()
    assert counted("conntrack_gc_removed", map="ct_tcp") - before == 5000
    assert sweeper.interval_seconds == pytest.approx(300 * (1 - 5000 / 8192))
    await sweeper.turn()
    assert sweeper.interval_seconds == pytest.approx(300 * (1 - 5000 / 8192) * 1.5)
    assert (await Sweeper(traffic.sweep, 20).turn()).seen["ct_tcp"] == 0


async def test_a_fixed_interval_stays(traffic: Traffic) -> None:
    sweeper = Sweeper(traffic.sweep, 20)
    await sweeper.turn()
    assert sweeper.interval_seconds == 20
