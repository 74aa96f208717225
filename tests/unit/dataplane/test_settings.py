"""What a node is told by its environment."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from bus.service import BadSettings
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes import sizes
from services.dataplane.shapes.layouts import Prefix


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
        "PLEXUS_DEVICES": "eth9 bond+",
        "PLEXUS_CNI_SOCKET": "/x.sock",
        "PLEXUS_ROUTING_MODE": "native",
        "PLEXUS_IPV4_ENABLED": "false",
        "PLEXUS_IPV6_ENABLED": "true",
        "PLEXUS_TUNNEL_PROTOCOL": "geneve",
        "PLEXUS_UNDERLAY_PROTOCOL": "ipv6",
        "PLEXUS_TUNNEL_PORT": "4789",
        "PLEXUS_AUTO_DIRECT_NODE_ROUTES": "false",
        "PLEXUS_DIRECT_ROUTING_SKIP_UNREACHABLE": "true",
        "PLEXUS_ENDPOINT_ROUTES": "true",
        "PLEXUS_HOST_LEGACY_ROUTING": "true",
        "PLEXUS_MASQUERADE": "False",
        "PLEXUS_ENABLE_TCX": "false",
        "PLEXUS_MASQUERADE6": "false",
        "PLEXUS_MASQUERADE_PORTS": "40000-49999",
        "PLEXUS_SOCKET_LB_HOST_NAMESPACE_ONLY": "true",
        "PLEXUS_TERMINATE_POD_CONNECTIONS": "false",
        "PLEXUS_TERMINATE_ALL_PROTOCOLS": "true",
        "PLEXUS_NATIVE_ROUTING_CIDR": "10.0.0.0/8",
        "PLEXUS_NATIVE_ROUTING_CIDR6": "fd00::/8",
        "PLEXUS_SERVICE_CIDR": "10.97.0.0/16",
        "PLEXUS_SERVICE_CIDR6": "fd00:97::/112",
        "PLEXUS_NODE_PORT_RANGE": "20000,20999",
        "PLEXUS_SERVICE_NO_BACKEND_RESPONSE": "drop",
        "PLEXUS_MASQ_EXCLUDE": "192.168.0.0/16,fc00::/8",
        "PLEXUS_MTU": "1400",
        "PLEXUS_MAP_DYNAMIC_SIZE_RATIO": "0.01",
        "PLEXUS_POLICY_MAP_MAX": "1000",
        "PLEXUS_LB_MAP_MAX": "2000",
        "PLEXUS_CONNTRACK_GC_INTERVAL": "20",
        "PLEXUS_CONNTRACK_GC_MAX_INTERVAL": "1h30m",
        "PLEXUS_FORCE_FALLBACK": "true",
        "PLEXUS_HUBBLE_ENABLED": "false",
        "PLEXUS_NO_CONNTRACK_RULES": "true",
        "PLEXUS_POLICY_ENFORCEMENT_MODE": "always",
        "PLEXUS_POLICY_AUDIT_MODE": "true",
        "PLEXUS_L2_ANNOUNCEMENTS": "true",
        "PLEXUS_L2_LEASE_DURATION": "3s",
        "PLEXUS_L2_LEASE_RENEW_DEADLINE": "1s",
        "PLEXUS_L2_LEASE_RETRY_PERIOD": "200ms",
    }
    settings = NodeSettings.of(given)
    many = {"PLEXUS_MAP_ENTRIES", "PLEXUS_CT_SECONDS"}  # a variable for each map, for each kind of connection
    assert {f"PLEXUS_{name.upper()}" for name in NodeSettings.__annotations__} - many == set(given)
    assert settings == NodeSettings(
        node="node-1",
        state_dir=Path("/s"),
        pin_dir=Path("/p"),
        cgroup=Path("/c"),
        devices="eth9 bond+",
        cni_socket=Path("/x.sock"),
        routing_mode="native",
        ipv4_enabled=False,
        ipv6_enabled=True,
        tunnel_protocol="geneve",
        underlay_protocol="ipv6",
        tunnel_port=4789,
        auto_direct_node_routes=False,
        direct_routing_skip_unreachable=True,
        endpoint_routes=True,
        host_legacy_routing=True,
        masquerade=False,
        enable_tcx=False,
        masquerade6=False,
        masquerade_ports="40000-49999",
        native_routing_cidr="10.0.0.0/8",
        native_routing_cidr6="fd00::/8",
        service_cidr="10.97.0.0/16",
        service_cidr6="fd00:97::/112",
        node_port_range="20000-20999",
        service_no_backend_response="drop",
        masq_exclude="192.168.0.0/16,fc00::/8",
        mtu=1400,
        map_dynamic_size_ratio=0.01,
        policy_map_max=1000,
        lb_map_max=2000,
        conntrack_gc_interval=20,
        conntrack_gc_max_interval=5400,
        force_fallback=True,
        hubble_enabled=False,
        socket_lb_host_namespace_only=True,
        terminate_pod_connections=False,
        terminate_all_protocols=True,
        no_conntrack_rules=True,
        policy_enforcement_mode="always",
        policy_audit_mode=True,
        l2_announcements=True,
        l2_lease_duration=3.0,
        l2_lease_renew_deadline=1.0,
        l2_lease_retry_period=0.2,
    )
    assert not settings.is_tunnel
    assert settings.not_masqueraded == ["10.0.0.0/8", "fd00::/8", "192.168.0.0/16", "fc00::/8"]
    assert replace(settings, routing_mode="tunnel").not_masqueraded == settings.not_masqueraded


def test_every_map_and_every_kind_of_connection_has_its_variable() -> None:
    given = {name: 10_000 + number for number, name in enumerate(sizes.NAMES)}
    seconds = {name: 20 + number for number, name in enumerate(sizes.SECONDS)}
    environment = {f"PLEXUS_{name}": str(number) for name, number in {**given, **seconds}.items()}
    settings = NodeSettings.of({"PLEXUS_NODE": "node-1"} | environment)
    assert settings.map_entries == given
    assert settings.ct_seconds == seconds
    assert settings.map_sizes(30 << 30) == given


def test_what_was_not_given_is_sized_by_memory() -> None:
    settings = NodeSettings.of({"PLEXUS_NODE": "node-1", "PLEXUS_NAT_MAX": "5000", "PLEXUS_POLICY_MAP_MAX": "256"})
    found = settings.map_sizes(30 << 30)
    assert (found["CT_TCP_MAX"], found["NAT_MAX"], found["POLICY_MAX"]) == (284_560, 5_000, 64 * 256)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    settings = NodeSettings.of({"PLEXUS_NODE": "n", "PLEXUS_NAT_MAX": "9000", "PLEXUS_CT_TCP_MAX": "1024"})
    assert settings.map_sizes(30 << 30)["NAT_MAX"] == 9000
    with pytest.raises(BadSettings, match=r"bpf\.natMax is at most 2048"):
        dataclasses.replace(settings, map_entries={"NAT_MAX": 9000, "CT_TCP_MAX": 1024, "CT_ANY_MAX": 2048}).map_sizes(
            0
        )


def test_a_time_may_be_written_with_units_and_part_of_a_second_counts_as_one() -> None:
    given = {"PLEXUS_CT_TCP_SECONDS": "2h13m20s", "PLEXUS_CT_ANY_SECONDS": "1500ms"}
    settings = NodeSettings.of({"PLEXUS_NODE": "node-1"} | given)
    assert settings.ct_seconds == {"CT_TCP_SECONDS": 8000, "CT_ANY_SECONDS": 2}


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PLEXUS_NODE", "", "PLEXUS_NODE is not set"),
        ("PLEXUS_ROUTING_MODE", "bridge", "tunnel or native"),
        ("PLEXUS_TUNNEL_PROTOCOL", "gre", "vxlan or geneve"),
        ("PLEXUS_IPV4_ENABLED", "false", "PLEXUS_IPV6_ENABLED"),
        ("PLEXUS_NATIVE_ROUTING_CIDR6", "10.0.0.0/8", "a network like"),
        ("PLEXUS_NATIVE_ROUTING_CIDR6", "fd00::1/8", "a network like"),
        ("PLEXUS_TUNNEL_PORT", "70000", "1 to 65535"),
        ("PLEXUS_TUNNEL_PORT", "0", "1 to 65535"),
        ("PLEXUS_TUNNEL_PORT", "-1", "a whole number"),
        ("PLEXUS_TUNNEL_PORT", "８４７２", "a whole number"),
        ("PLEXUS_MASQUERADE", "yes", "true or false"),
        ("PLEXUS_AUTO_DIRECT_NODE_ROUTES", "1", "true or false"),
        ("PLEXUS_NATIVE_ROUTING_CIDR", "10.0.0.1/8", "a network like"),
        ("PLEXUS_NATIVE_ROUTING_CIDR", "fd00::/8", "a network like"),
        ("PLEXUS_MASQ_EXCLUDE", "192.168.0.0/16, fd00::/8", "a network like"),
        ("PLEXUS_MASQ_EXCLUDE", "192.168.0.1/16", "a network like"),
        ("PLEXUS_SERVICE_CIDR", "fd00:96::/112", "a network like"),
        ("PLEXUS_SERVICE_CIDR6", "10.96.0.0/16", "a network like"),
        ("PLEXUS_SERVICE_NO_BACKEND_RESPONSE", "ignore", "reject or drop"),
        ("PLEXUS_MTU", "12", "576 to 65535"),
        ("PLEXUS_MTU", "1,500", "a whole number"),
        ("PLEXUS_CT_TCP_MAX", "0", "1024 to"),
        ("PLEXUS_NAT_MAX", "99999999999", "1024 to 16777216"),
        ("PLEXUS_MAP_DYNAMIC_SIZE_RATIO", "1.5", "0 to 1"),
        ("PLEXUS_MAP_DYNAMIC_SIZE_RATIO", "nan", "0 to 1"),
        ("PLEXUS_MAP_DYNAMIC_SIZE_RATIO", "little", "a number like 0.0025"),
        ("PLEXUS_POLICY_MAP_MAX", "255", "256 to 65536"),
        ("PLEXUS_POLICY_MAP_MAX", "65537", "256 to 65536"),
        ("PLEXUS_LB_MAP_MAX", "1", "1024 to"),
        ("PLEXUS_CT_TCP_SECONDS", "0s", "1 to"),
        ("PLEXUS_CT_TCP_SECONDS", "soon", "no length of time"),
        ("PLEXUS_CONNTRACK_GC_INTERVAL", "5 minutes", "no length of time"),
        ("PLEXUS_CONNTRACK_GC_INTERVAL", "1ns", "10 to 604800"),
        ("PLEXUS_CONNTRACK_GC_INTERVAL", "169h", "10 to 604800"),
        ("PLEXUS_CONNTRACK_GC_MAX_INTERVAL", "0", "10 to 604800"),
        ("PLEXUS_SOCK_REVERSE_MAX", "many", "a whole number"),
    ],
)
def test_a_bad_setting_is_named_with_what_would_be_right(variable: str, value: str, says: str) -> None:
    with pytest.raises(BadSettings, match=says) as problem:
        NodeSettings.of({"PLEXUS_NODE": "node-1"} | {variable: value})
    assert variable in str(problem.value)


@pytest.mark.parametrize(
    ("given", "has_ipv4", "device", "port", "underlay", "mtu"),
    [
        ({}, True, "plexus_vxlan", 8472, 4, 1450),
        ({"TUNNEL_PROTOCOL": "geneve"}, True, "plexus_geneve", 6081, 4, 1450),
        ({"TUNNEL_PROTOCOL": "geneve", "TUNNEL_PORT": "6082"}, True, "plexus_geneve", 6082, 4, 1450),
        ({"IPV6_ENABLED": "true"}, True, "plexus_vxlan", 8472, 4, 1450),
        ({"IPV6_ENABLED": "true"}, False, "plexus_vxlan", 8472, 6, 1430),
        ({"IPV6_ENABLED": "true", "IPV4_ENABLED": "false"}, True, "plexus_vxlan", 8472, 6, 1430),
        ({"ROUTING_MODE": "native"}, True, "", 8472, 0, 1500),
        ({"MTU": "1400"}, True, "plexus_vxlan", 8472, 4, 1400),
    ],
)
def test_device_port_underlay_and_mtu_follow_from_the_mode(
    given: dict[str, str], has_ipv4: bool, device: str, port: int, underlay: int, mtu: int
) -> None:
    settings = NodeSettings.of({"PLEXUS_NODE": "n"} | {f"PLEXUS_{name}": value for name, value in given.items()})
    found = settings.underlay(has_ipv4)
    assert (settings.tunnel_device, settings.udp_port, found) == (device, port, underlay)
    assert settings.pod_mtu_bytes(1500, found) == mtu


@pytest.mark.parametrize(("device_bytes", "underlay", "refused"), [(1329, 4, True), (1330, 4, False), (1349, 6, True)])
def test_an_mtu_without_room_for_ipv6_is_refused_and_says_what_to_raise(
    device_bytes: int, underlay: int, refused: bool
) -> None:
    settings = NodeSettings(node="n", ipv6_enabled=True)
    if refused:
        with pytest.raises(BadSettings, match=rf"1280.*eth9 \({device_bytes}\)"):
            settings.pod_mtu_bytes(device_bytes, underlay, "eth9")
    else:
        assert settings.pod_mtu_bytes(device_bytes, underlay) == 1280
    assert NodeSettings(node="n").pod_mtu_bytes(device_bytes, underlay) <= 1280


def test_a_network_is_one_however_it_is_written() -> None:
    asked = {
        "PLEXUS_ROUTING_MODE": "native",
        "PLEXUS_NATIVE_ROUTING_CIDR": "10.0.0.0/255.0.0.0",
        "PLEXUS_NATIVE_ROUTING_CIDR6": "FD00:0::1",
        "PLEXUS_MASQ_EXCLUDE": "192.0.2.1,172.16.0.0/255.240.0.0,fd01::/32",
    }
    found = NodeSettings.of({"PLEXUS_NODE": "n"} | asked).not_masqueraded
    assert found == ["10.0.0.0/8", "fd00::1/128", "192.0.2.1/32", "172.16.0.0/12", "fd01::/32"]
    assert [Prefix.of(each).is_host for each in found] == [False, True, True, False, False]
