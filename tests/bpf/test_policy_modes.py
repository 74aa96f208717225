"""Policies that the node only looks at, in the kernel: everything passes, and ends when they are enforced."""

from __future__ import annotations

from services.dataplane.shapes.mode import Mode
from tests.bpf.datapath import Datapath, tcp
from tests.unit.dataplane.keep.test_full_policy import CIDRS, Node, outside, policy

POD = "10.0.0.2"
DENIED, FREE = "203.0.113.9", "192.0.2.77"  # the one is in the last of CIDRS, the other in none that is named
DENIED_BY_RULE, POLICY_DENIED = 181, 133


def test_what_is_only_looked_at_passes_and_a_living_connection_ends_when_it_is_enforced(datapath: Datapath) -> None:
    node = Node(datapath.maps)
    store = node.model.policy.store
    store.mode = Mode(audit=True)
    rules = policy("p", "is-a", denies="one", allows="two")
    node.say(outside("one", CIDRS[-1]), outside("two", "198.51.100.7/32"), rules)
    node.write()

    def comes_in(source: str, port: int, flags: str = "S") -> int:
        return datapath.dropped_for("from_netdev", tcp(source, POD, port, 80, flags))

    ports = {source: datapath.free_port() for source in (DENIED, FREE, "198.51.100.7")}
    assert {source: comes_in(source, port) for source, port in ports.items()} == dict.fromkeys(ports, 0)

    store.mode = Mode()
    node.say("p")
    node.say(rules)  # all that it says is worked out anew
    node.write()
    assert [comes_in(source, port, "A") for source, port in ports.items()] == [DENIED_BY_RULE, POLICY_DENIED, 0]
