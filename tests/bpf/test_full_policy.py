"""A map of policies in the kernel that is too small for what is denied: the direction is closed, as packets see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.bpf.conftest import loaded
from tests.bpf.datapath import Datapath, tcp
from tests.unit.dataplane.keep.test_full_policy import CIDRS, Node, outside, policy

ROOM = 6
POD, OTHER_POD = "10.0.0.2", "10.0.0.3"
DENIED, FREE = "203.0.113.9", "192.0.2.77"  # the one is in the last of CIDRS, the other in the first alone
POLICY_DENIED, DENIED_BY_RULE = 133, 181


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Datapath]:
    """Programs whose map of policies has room for very little."""
    with loaded("fullpolicy", tmp_path, sizes={"POLICY_MAX": ROOM}) as pin_dir, closing(Datapath(pin_dir)) as found:
        yield found


def test_what_is_denied_and_has_no_room_lets_nobody_in_and_what_is_not_concerned_goes_on(small: Datapath) -> None:
    node = Node(small.maps)

    def comes_in(pod: str, source: str) -> int:
        return small.dropped_for("from_netdev", tcp(source, pod, small.free_port(), 80))

    def goes_out(pod: str, destination: str) -> int:
        small.came_from(7)
        return small.dropped_for("from_pod", tcp(pod, destination, small.free_port(), 80))

    def talk(source_port: int) -> int:
        return small.dropped_for("from_netdev", tcp(FREE, POD, source_port, 80, "A"))

    assert comes_in(POD, DENIED) == comes_in(POD, FREE) == 0
    living = small.free_port()
    assert small.dropped_for("from_netdev", tcp(FREE, POD, living, 80)) == 0

    node.say(outside("one", CIDRS[-1]), policy("p", "is-a", denies="one"))
    node.write()
    assert node.closed["a"] == []
    assert (comes_in(POD, DENIED), comes_in(POD, FREE), talk(living)) == (DENIED_BY_RULE, 0, 0), "5 entries of 6"

    node.say(outside("one", *CIDRS))
    node.write()
    assert node.closed["a"] == ["ingress"], "it has 9"
    assert {comes_in(POD, each) for each in (DENIED, FREE)} == {POLICY_DENIED}
    assert talk(living) == POLICY_DENIED, "what was allowed before is not any more"
    assert goes_out(POD, FREE) != POLICY_DENIED and comes_in(OTHER_POD, DENIED) == 0

    node.say(outside("one", CIDRS[-1]))
    node.write()
    assert (comes_in(POD, DENIED), comes_in(POD, FREE)) == (DENIED_BY_RULE, 0)
    assert node.closed["a"] == [] and not small.maps.no_room
