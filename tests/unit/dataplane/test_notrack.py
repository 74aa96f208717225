"""Rules against the host's connection tracking."""

from __future__ import annotations

import pytest

from bus.service import BadSettings
from services.dataplane.notrack import render
from services.dataplane.settings import NodeSettings


def test_both_ways_of_each_block_are_untracked_where_packets_come_in_and_where_the_host_sends() -> None:
    script = render(["fd00:10::/120", "10.0.1.0/24"])
    for hook in ("prerouting", "output"):
        chain = script.split(f"chain {hook} {{\n")[1].split("\n}", maxsplit=1)[0].splitlines()
        assert chain[1:] == [
            "ip saddr 10.0.1.0/24 notrack",
            "ip daddr 10.0.1.0/24 notrack",
            "ip6 saddr fd00:10::/120 notrack",
            "ip6 daddr fd00:10::/120 notrack",
        ]


def test_without_blocks_nothing_is_left() -> None:
    assert render([]) == "table inet plexus_notrack\ndelete table inet plexus_notrack\n"


def test_a_tunnel_and_untracked_pods_do_not_go_together() -> None:
    asked = {"PLEXUS_NODE": "node1", "PLEXUS_NO_CONNTRACK_RULES": "true"}
    assert NodeSettings.of(asked | {"PLEXUS_ROUTING_MODE": "native"}).no_conntrack_rules
    with pytest.raises(BadSettings, match="PLEXUS_ROUTING_MODE=native"):
        NodeSettings.of(asked)
