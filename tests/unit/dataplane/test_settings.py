"""What a node is told by its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.service import BadSettings
from services.dataplane.settings import NodeSettings


def test_the_name_is_enough() -> None:
    settings = NodeSettings.of({"PLEXUS_NODE": "node-1"})
    assert settings == NodeSettings(node="node-1")
    assert settings.is_tunnel


def test_every_setting_has_its_variable() -> None:
    given = {
        "PLEXUS_NODE": "node-1",
        "PLEXUS_STATE_DIR": "/s",
        "PLEXUS_PIN_DIR": "/p",
        "PLEXUS_CGROUP": "/c",
        "PLEXUS_DEVICE": "eth9",
        "PLEXUS_CNI_SOCKET": "/x.sock",
        "PLEXUS_ROUTING_MODE": "native",
        "PLEXUS_TUNNEL_PROTOCOL": "vxlan",
        "PLEXUS_TUNNEL_PORT": "4789",
        "PLEXUS_AUTO_DIRECT_NODE_ROUTES": "false",
        "PLEXUS_MASQUERADE": "False",
        "PLEXUS_NATIVE_ROUTING_CIDR": "10.0.0.0/8",
        "PLEXUS_MTU": "1400",
        "PLEXUS_CT_MAX": "1000",
        "PLEXUS_NAT_MAX": "2000",
        "PLEXUS_SOCK_REVERSE_MAX": "3000",
        "PLEXUS_FORCE_FALLBACK": "true",
        "PLEXUS_NO_CONNTRACK_RULES": "true",
    }
    settings = NodeSettings.of(given)
    assert {f"PLEXUS_{name.upper()}" for name in NodeSettings.__annotations__} == set(given)
    assert settings == NodeSettings(
        node="node-1",
        state_dir=Path("/s"),
        pin_dir=Path("/p"),
        cgroup=Path("/c"),
        device="eth9",
        cni_socket=Path("/x.sock"),
        routing_mode="native",
        tunnel_port=4789,
        auto_direct_node_routes=False,
        masquerade=False,
        native_routing_cidr="10.0.0.0/8",
        mtu=1400,
        ct_max=1000,
        nat_max=2000,
        sock_reverse_max=3000,
        force_fallback=True,
        no_conntrack_rules=True,
    )
    assert not settings.is_tunnel


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PLEXUS_NODE", "", "PLEXUS_NODE is not set"),
        ("PLEXUS_ROUTING_MODE", "bridge", "tunnel or native"),
        ("PLEXUS_TUNNEL_PROTOCOL", "gre", "vxlan"),
        ("PLEXUS_TUNNEL_PORT", "70000", "1 to 65535"),
        ("PLEXUS_TUNNEL_PORT", "0", "1 to 65535"),
        ("PLEXUS_TUNNEL_PORT", "-1", "a whole number"),
        ("PLEXUS_TUNNEL_PORT", "８４７２", "a whole number"),
        ("PLEXUS_MASQUERADE", "yes", "true or false"),
        ("PLEXUS_AUTO_DIRECT_NODE_ROUTES", "1", "true or false"),
        ("PLEXUS_NATIVE_ROUTING_CIDR", "10.0.0.1/8", "a network like"),
        ("PLEXUS_NATIVE_ROUTING_CIDR", "fd00::/8", "a network like"),
        ("PLEXUS_MTU", "12", "576 to 65535"),
        ("PLEXUS_MTU", "1,500", "a whole number"),
        ("PLEXUS_CT_MAX", "0", "1 to"),
        ("PLEXUS_NAT_MAX", "99999999999", "1 to"),
        ("PLEXUS_SOCK_REVERSE_MAX", "many", "a whole number"),
    ],
)
def test_a_bad_setting_is_named_with_what_would_be_right(variable: str, value: str, says: str) -> None:
    with pytest.raises(BadSettings, match=says) as problem:
        NodeSettings.of({"PLEXUS_NODE": "node-1"} | {variable: value})
    assert variable in str(problem.value)
