"""Who is judged again after a write, with real programs and maps: everyone from whom it takes something, at once, and
nobody else. What a fresh judgement would say is asked of the same programs, with every connection judged again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.dataplane.parts.policy.again import Judged
from services.dataplane.parts.policy.entries import ALLOW, EGRESS, INGRESS, precedence
from services.dataplane.shapes.layouts import (
    POLICY_DENIES,
    POLICY_NAMED,
    EndpointEntry,
    EndpointKey,
    IpcacheEntry,
    IpcacheKey,
    NamedPortKey,
    NodeState,
    PolicyMapEntry,
    PolicyMapKey,
)
from services.dataplane.shapes.table import Table
from tests.bpf.datapath import (
    GATEWAY_MAC,
    LOOPBACK_INDEX,
    NEIGHBOUR,
    NODE,
    OTHER_NODE,
    OUTSIDE,
    POD,
    POD_MAC,
    REMOTE,
    Datapath,
    Routed,
    tcp,
)
from tests.bpf.own_maps import TABLES

POLICY_DENIED = 133
BOTH = 3  # directions enforced
LOCAL = 1 << 24  # CIDR identities begin here
TCP = 6


class Written:
    """A node's tables, and the maps that they are written to."""

    def __init__(self, kernel: Datapath) -> None:
        self.kernel = kernel
        kernel.clear()
        self.tables = {name: Table(name) for name in TABLES}
        self.tables["endpoints"] = Table("endpoints", stamp_at=EndpointEntry.epoch_at)
        self.judged = Judged(self.tables.values(), [NODE])
        self.who("10.0.0.0", 24, IpcacheEntry(3, NODE))
        self.who("10.0.1.0", 24, IpcacheEntry(3, OTHER_NODE))
        self.who(NODE, 32, IpcacheEntry(1))
        self.who(REMOTE, 32, IpcacheEntry(300, OTHER_NODE))
        for address, number in ((POD, 256), (NEIGHBOUR, 257)):
            self.pod(address, number, number)
            for direction in (INGRESS, EGRESS):
                for peer in (11, 13):
                    self.rule(number, peer, direction, 0, "allow")
        self.write()
        kernel.maps.raise_epoch()

    def who(self, address: str, bits: int, entry: IpcacheEntry | None) -> None:
        self._set("ipcache", IpcacheKey(address, bits).pack(), entry.pack() if entry else None)

    def pod(self, address: str, identity: int, policy: int, flags: int = BOTH) -> None:
        entry = EndpointEntry(LOOPBACK_INDEX, identity, policy, flags, POD_MAC, GATEWAY_MAC)
        self._set("endpoints", EndpointKey(address).pack(), entry.pack() if identity else None)

    def rule(self, policy: int, peer: int, direction: int, port: int, kind: str) -> None:
        """`kind` "": it goes."""
        bits = 24 if port else 0
        key = PolicyMapKey(policy, peer, direction, TCP if port else 0, port, bits)
        entries = {
            "allow": PolicyMapEntry(ALLOW, 1, 0, 0, bits),
            "deny": PolicyMapEntry(precedence("deny"), 2, 0, POLICY_DENIES, bits),
            "named": PolicyMapEntry(ALLOW, 3, 0, POLICY_NAMED, bits),
        }
        self._set("policy", key.pack(), entries[kind].pack() if kind else None)

    def called(self, policy: int, address: str, is_so: bool) -> None:
        self._set("named_ports", NamedPortKey(policy, 3, address, 80, TCP).pack(), b"\x01" if is_so else None)

    def _set(self, name: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.tables[name].delete(key)
        else:
            self.tables[name].put(key, value)

    def write(self) -> None:
        asyncio.run(self.kernel.maps.write(tuple(self.tables.values()), self.judged.again))

    @property
    def state(self) -> NodeState:
        return NodeState.unpack(self.kernel.maps["node_state"].get(bytes(4)) or b"")

    @property
    def epochs(self) -> list[int]:
        return sorted(connection.epoch for connection in self.kernel.connections().values())


@dataclass(frozen=True)
class Speaks:
    """One end of a connection, and where its packets are seen."""

    hook: str
    packet: bytes


def speakers() -> list[Speaks]:
    """Both ends of connections that pods began, or that were begun with them."""
    found = []
    pairs = [
        (POD, NEIGHBOUR),
        (NEIGHBOUR, POD),
        (POD, REMOTE),
        (POD, OUTSIDE),
        (REMOTE, POD),
        (OUTSIDE, POD),
        (NODE, POD),
    ]
    for number, (one, other) in enumerate(pairs):
        for source, destination, ports in ((one, other, (5000 + number, 80)), (other, one, (80, 5000 + number))):
            is_pods = source in (POD, NEIGHBOUR)
            if is_pods and destination in (OUTSIDE, NODE) and ports[0] == 80:
                continue  # what answers these is masqueraded, or the stack's
            hook = "from_pod" if is_pods else "to_pod" if source == NODE else "from_netdev"
            found.append(Speaks(hook, tcp(source, destination, *ports, flags="A")))
    return found


PEERS = st.sampled_from((1, 3, 9, 11, 13, 256, 257, 300, 301, LOCAL + 1))
RULES = st.tuples(
    st.just("rule"),
    st.sampled_from((256, 257)),
    PEERS,
    st.sampled_from((INGRESS, EGRESS)),
    st.sampled_from((0, 80)),
    st.sampled_from(("allow", "allow", "deny", "named", "")),
)
PLACES = st.sampled_from([(REMOTE, 32), (OUTSIDE, 32), ("198.51.100.0", 24), (POD, 32)])
ENTRIES = st.sampled_from(
    [
        IpcacheEntry(300, OTHER_NODE),
        IpcacheEntry(301, OTHER_NODE),
        IpcacheEntry(LOCAL + 1),
        IpcacheEntry(256, NODE),
        None,
    ]
)
WHO = st.tuples(st.just("who"), PLACES, ENTRIES)
PODS = st.tuples(
    st.just("pod"), st.sampled_from((POD, NEIGHBOUR)), st.sampled_from((256, 257, 300, 0)), st.sampled_from((256, 257)),
    st.sampled_from((BOTH, BOTH, 1, 2, 0)),
)  # fmt: skip
CALLED = st.tuples(
    st.just("called"), st.sampled_from((256, 257)), st.sampled_from((POD, NEIGHBOUR, REMOTE)), st.booleans()
)
WRITES = st.lists(st.lists(st.one_of(RULES, RULES, WHO, PODS, CALLED), min_size=1, max_size=3), min_size=2, max_size=8)


def change(node: Written, what: tuple[object, ...]) -> None:
    match what:
        case ("rule", int(policy), int(peer), int(direction), int(port), str(kind)):
            node.rule(policy, peer, direction, 80 if kind == "named" else port, kind)
        case ("who", (str(address), int(bits)), (IpcacheEntry() | None) as entry):
            node.who(address, bits, entry)
        case ("pod", str(address), int(identity), int(policy), int(flags)):
            node.pod(address, identity, policy, flags)
        case ("called", int(policy), str(address), bool(is_so)):
            node.called(policy, address, is_so)


@pytest.mark.timeout(600)
def test_no_connection_goes_on_as_a_fresh_judgement_would_not_have_it(routed: Routed) -> None:
    routed.inside(compare)


def compare(kernel: Datapath) -> None:
    everyone = speakers()

    def fates() -> list[int]:
        return [kernel.run(each.hook, each.packet).result for each in everyone]

    @settings(
        max_examples=250,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(WRITES, st.lists(st.booleans(), min_size=8, max_size=8))
    def check(writes: list[list[tuple[object, ...]]], are_judged: list[bool]) -> None:
        node = Written(kernel)
        fates()
        for what, is_judged in zip(writes, are_judged, strict=False):
            for each in what:
                change(node, each)
            node.write()
            found = fates()
            if is_judged:  # else some were judged as of an earlier write, and still are
                kernel.maps.raise_epoch()
                assert found == fates()

    check()


def test_a_thousand_writes_that_only_allow_raise_no_epoch_and_no_connection_is_judged(routed: Routed) -> None:
    node = Written(routed)
    everyone = speakers()
    for each in everyone:
        routed.run(each.hook, each.packet)
    state, epochs = node.state, node.epochs
    assert len(epochs) >= 5
    for number in range(1000):
        node.who(f"203.0.{114 + number // 250}.{number % 250}", 32, IpcacheEntry(LOCAL + 10 + number))
        node.rule(256, LOCAL + 10 + number, EGRESS, 443, "allow")
        node.write()
        if number % 100 == 0:
            for each in everyone:
                routed.run(each.hook, each.packet)
    assert (node.state, node.epochs) == (state, epochs)


def test_a_deny_reaches_each_of_the_pods_connections_at_once_and_no_other(routed: Routed) -> None:
    node = Written(routed)
    own = [tcp(POD, REMOTE, 6000 + number, 80, flags="A") for number in range(50)]
    others = [tcp(NEIGHBOUR, REMOTE, 7000 + number, 80, flags="A") for number in range(50)]
    for packet in own + others:
        assert routed.dropped_for("from_pod", packet) == 0
    before = node.epochs[0]
    node.rule(256, 11, EGRESS, 0, "")
    node.write()
    assert {routed.dropped_for("from_pod", packet) for packet in own} == {POLICY_DENIED}
    assert {routed.dropped_for("from_pod", packet) for packet in others} == {0}
    assert node.epochs == [before] * 100  # of its own, too: what is refused is not as of now
    node.rule(256, 11, EGRESS, 0, "allow")
    node.write()
    assert {routed.dropped_for("from_pod", packet) for packet in own} == {0}
    assert node.epochs == [before] * 50 + [node.state.epoch] * 50


def test_what_rules_of_others_lead_back_to_a_pod_ends_with_the_callers_policy_as_well(routed: Routed) -> None:
    """By the node's stack from one pod to another: its ends at the caller's own hook are others."""
    node = Written(routed)
    packet = tcp(POD, NEIGHBOUR, 8000, 80, flags="A")
    routed.came_from(LOOPBACK_INDEX)
    assert routed.dropped_for("to_pod", packet) == 0
    node.rule(256, 11, EGRESS, 0, "")
    node.write()
    assert routed.dropped_for("to_pod", packet) == POLICY_DENIED


def test_what_judging_less_is_worth(routed: Routed, capsys: pytest.CaptureFixture[str]) -> None:
    """Judgements of 200 established connections while an address is allowed after each round of their packets."""
    packets = [tcp(POD, OUTSIDE, 9000 + number, 80, flags="A") for number in range(200)]

    def churn(is_narrow: bool) -> tuple[int, float]:
        node = Written(routed)
        judged = 0
        began = perf_counter()

        def rounds(kernel: Datapath) -> None:
            nonlocal judged
            for number in range(20):
                for packet in packets:
                    kernel.run("from_pod", packet)
                before = dict.fromkeys(node.epochs)
                node.who("203.0.114.9", 32, IpcacheEntry(LOCAL + 10 + number))
                node.rule(256, LOCAL + 10 + number, EGRESS, 443, "allow")
                if is_narrow:
                    node.write()
                else:
                    asyncio.run(kernel.maps.write(tuple(node.tables.values())))
                for packet in packets:
                    kernel.run("from_pod", packet)
                judged += sum(epoch not in before for epoch in node.epochs)

        routed.inside(rounds)
        return judged, perf_counter() - began

    all_again, narrow = churn(is_narrow=False), churn(is_narrow=True)
    with capsys.disabled():
        for name, (judged, seconds) in (("every write", all_again), ("what takes away", narrow)):
            print(f"\nepochs raised by {name}: {judged} judgements, {judged / seconds:.0f} a second", end="")
    assert (all_again[0], narrow[0]) == (20 * len(packets), 0)
