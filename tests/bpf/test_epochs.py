"""An epoch that is not as this node left it: made anew while connections are there, or written by somebody else. What
policy takes away reaches every connection all the same, whatever epoch it bears."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.dataplane.kernel.maps import Maps
from services.dataplane.parts.policy.entries import EGRESS
from services.dataplane.shapes.layouts import NodeState
from tests.bpf.datapath import POD, REMOTE, Routed, tcp
from tests.bpf.test_judged_again import POLICY_DENIED, Written

OWN = 500
THIRD = (1 << 32) // 3


@pytest.fixture
def node(routed: Routed) -> Iterator[Written]:
    """A pod may send to others by one entry of policy."""
    made = Written(routed)
    go_on_from(routed.maps, OWN - 1)
    routed.maps.raise_epoch()
    yield made
    routed.clear()


def go_on_from(maps: Maps, epoch: int) -> None:
    maps._set_state(maps._state._replace(epoch=epoch))


def overwrite(node: Written, epoch: int) -> None:
    """By another hand than the node's."""
    node.kernel.maps["node_state"].set(bytes(4), node.state._replace(epoch=epoch, all=epoch).pack())


def speak(node: Written, port: int) -> bytes:
    packet = tcp(POD, REMOTE, port, 80, flags="A")
    assert node.kernel.dropped_for("from_pod", packet) == 0
    return packet


def take_away(node: Written) -> None:
    node.rule(256, 11, EGRESS, 0, "")
    node.write()


def test_a_state_that_began_anew_goes_on_after_what_connections_bear(node: Written) -> None:
    packet = speak(node, 6000)
    node.kernel.maps["node_state"].set(bytes(4), NodeState().pack())
    node.kernel.maps.close()
    node.kernel.maps = Maps(node.kernel.pin_dir)
    assert node.kernel.maps.were_new and node.state.epoch > OWN
    assert speak(node, 6000) and node.epochs == [node.state.epoch], "judged again"
    take_away(node)
    assert node.kernel.dropped_for("from_pod", packet) == POLICY_DENIED


@pytest.mark.parametrize(
    "found", [0, 1, OWN - 1, OWN + 1, OWN + (1 << 30), OWN + (1 << 31) - 1, OWN + (1 << 31), 0x90000000, 0xFFFFFFFF]
)
def test_a_state_that_was_overwritten_is_mended_for_connections_of_both_epochs(node: Written, found: int) -> None:
    before = speak(node, 6000)
    overwrite(node, found)
    meanwhile = speak(node, 6001)
    assert node.kernel.maps.mend_epoch()
    assert not node.kernel.maps.mend_epoch()
    take_away(node)
    assert [node.kernel.dropped_for("from_pod", each) for each in (before, meanwhile)] == [POLICY_DENIED] * 2


def test_connections_of_epochs_that_none_comes_after_begin_anew(node: Written) -> None:
    packets = [speak(node, 6000)]
    for number in (1, 2):
        overwrite(node, OWN + number * THIRD)
        packets.append(speak(node, 6000 + number))
        go_on_from(node.kernel.maps, OWN + number * THIRD)
    overwrite(node, OWN)
    assert len(set(node.epochs)) == 3
    assert node.kernel.maps.mend_epoch()
    assert 0 < len(node.epochs) < 3
    take_away(node)
    assert [node.kernel.dropped_for("from_pod", each) for each in packets] == [POLICY_DENIED] * 3
