"""Helm values are taken, refused by name, and become environments."""

from __future__ import annotations

import pytest

from lab.errors import LabError
from lab.plan import Plan
from lab.settings import check_node, check_plan, flatten, parse_set, settings
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.sizes import HELM, SECONDS
from settings.readers import Duration
from settings.rows import KEYS, LATER

PLAN = Plan(1)


def test_nothing_said_gives_a_masquerading_tunnel() -> None:
    found = settings({}).environment(PLAN, "dataplane")
    assert found["PLEXUS_ROUTING_MODE"] == "tunnel"
    assert found["PLEXUS_TUNNEL_PROTOCOL"] == "vxlan"
    assert found["PLEXUS_MASQUERADE"] == "true"
    assert found["PLEXUS_NATIVE_ROUTING_CIDR"] == "10.129.0.0/16"


def test_native_routing_reaches_the_dataplane_and_no_control_service() -> None:
    wanted = settings(parse_set("routingMode=native,ipv4NativeRoutingCIDR=10.0.0.0/8"))
    assert wanted.environment(PLAN, "dataplane")["PLEXUS_ROUTING_MODE"] == "native"
    assert wanted.environment(PLAN, "dataplane")["PLEXUS_NATIVE_ROUTING_CIDR"] == "10.0.0.0/8"
    assert "PLEXUS_ROUTING_MODE" not in wanted.environment(PLAN, "identity")


def test_masquerading_is_switched_off_by_its_switch_and_not_by_asking_for_another_way_to_do_it() -> None:
    off = settings(parse_set("enableIPv4Masquerade=false,bpf.masquerade=false"))
    assert off.environment(PLAN, "dataplane")["PLEXUS_MASQUERADE"] == "false"
    with pytest.raises(LabError, match=r"bpf\.masquerade: false is not supported with enableIPv4Masquerade"):
        settings(parse_set("bpf.masquerade=false"))


def test_a_values_file_and_set_are_the_same_words() -> None:
    assert settings(flatten({"bpf": {"enableTCX": False}})) == settings(parse_set("bpf.enableTCX=false"))


def test_what_the_chart_has_for_not_set_is_not_set() -> None:
    chart = {
        "MTU": 0,
        "tunnelPort": 0,
        "routingMode": "",
        "tunnelProtocol": "",
        "ipv4NativeRoutingCIDR": "",
        "bpf.masquerade": None,
        "ipMasqAgent.config.nonMasqueradeCIDRs": [],
    }
    assert settings(chart) == settings({})


def test_a_list_of_pools_is_passed_on() -> None:
    wanted = settings(parse_set("ipam.operator.clusterPoolIPv4PodCIDRList={10.200.0.0/16,10.201.0.0/16}"))
    assert wanted.environment(PLAN, "ipam")["PLEXUS_CLUSTER_POOL_CIDRS"] == "10.200.0.0/16,10.201.0.0/16"


@pytest.mark.parametrize(
    ("asked", "families"),
    [("", (4,)), ("ipv6.enabled=true", (4, 6)), ("ipv4.enabled=false,ipv6.enabled=true", (6,))],
)
def test_the_families_that_are_enabled_reach_every_service(asked: str, families: tuple[int, ...]) -> None:
    wanted = settings(parse_set(asked))
    node, ipam, resources = (wanted.environment(PLAN, service) for service in ("dataplane", "ipam", "resources"))
    assert wanted.families == families
    for told in (node, ipam):
        assert told["PLEXUS_IPV4_ENABLED"] == str(4 in families).lower()
        assert told["PLEXUS_IPV6_ENABLED"] == str(6 in families).lower()
    assert ipam["PLEXUS_CLUSTER_POOL_CIDRS"] == ("10.129.0.0/16" if 4 in families else "")
    assert ipam["PLEXUS_CLUSTER_POOL_CIDRS6"] == ("fd00:10:1::/104" if 6 in families else "")
    assert resources["PLEXUS_SERVICE_CIDR"] == ("10.65.0.0/16" if 4 in families else "")
    assert resources["PLEXUS_SERVICE_CIDR6"] == ("fd00:64:1::/112" if 6 in families else "")


def test_each_family_has_its_own_masquerade_and_native_network() -> None:
    found = settings(
        parse_set("ipv6.enabled=true,enableIPv6Masquerade=false,ipv6NativeRoutingCIDR=fd00:10::/32")
    ).environment(PLAN, "dataplane")
    assert (found["PLEXUS_MASQUERADE"], found["PLEXUS_MASQUERADE6"]) == ("true", "false")
    assert found["PLEXUS_NATIVE_ROUTING_CIDR"] == "10.129.0.0/16"
    assert found["PLEXUS_NATIVE_ROUTING_CIDR6"] == "fd00:10::/32"


def test_what_is_not_masqueraded_is_passed_on_when_its_agent_is_enabled() -> None:
    listed = "ipMasqAgent.config.nonMasqueradeCIDRs={172.16.0.0/12,fd00:21::/32}"
    assert settings({}).environment(PLAN, "dataplane")["PLEXUS_MASQ_EXCLUDE"] == ""
    with pytest.raises(LabError, match="set ipMasqAgent"):
        settings(parse_set(listed))
    asked = f"ipMasqAgent.enabled=true,ipv6.enabled=true,{listed}"
    enabled = settings(parse_set(asked)).environment(PLAN, "dataplane")
    assert enabled["PLEXUS_MASQ_EXCLUDE"] == "172.16.0.0/12,fd00:21::/32,169.254.0.0/16,fe80::/10"
    linked = settings(parse_set(f"{asked},ipMasqAgent.config.masqLinkLocal=true")).environment(PLAN, "dataplane")
    assert linked["PLEXUS_MASQ_EXCLUDE"] == "172.16.0.0/12,fd00:21::/32,fe80::/10"


def test_without_a_list_what_is_nobodys_on_the_internet_is_not_masqueraded() -> None:
    found = settings(parse_set("ipMasqAgent.enabled=true")).environment(PLAN, "dataplane")["PLEXUS_MASQ_EXCLUDE"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(found.split(","))
    assert ":" not in found  # the cluster has no IPv6


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("installNoConntrackIptablesRules=true", "installNoConntrackIptablesRules needs routingMode=native"),
        ("conntrackGCInterval=5s", "conntrackGCInterval is 10 to 604800"),
        ("extraConfig.bpf-ct-timeout-regular-tcp=0s", "extraConfig.bpf-ct-timeout-regular-tcp is 1 to"),
        ("ipv6.enabled=true,MTU=1200", "1200 bytes, and IPv6 needs 1280: raise MTU or"),
    ],
)
def test_what_a_node_would_refuse_is_refused_before_there_is_one(asked: str, said: str) -> None:
    with pytest.raises(LabError) as refused:
        check_node(settings(parse_set(asked)), PLAN)
    assert said in str(refused.value)
    assert "PLEXUS_" not in str(refused.value)


def test_only_limits_that_were_asked_for_are_passed_on() -> None:
    assert "PLEXUS_CT_TCP_MAX" not in settings({}).environment(PLAN, "dataplane")
    assert settings({"bpf.ctTcpMax": 2048}).environment(PLAN, "dataplane")["PLEXUS_CT_TCP_MAX"] == "2048"


def test_what_is_said_of_maps_and_times_is_what_a_node_reads() -> None:
    """Every such key, through the environment, into the settings of a node."""
    leases = "l2announcements."  # three times that have to go together
    times = [key for key, known in KEYS.items() if isinstance(known.read, Duration) and not key.startswith(leases)]
    counts = [key for key in KEYS if key in HELM.values() and key not in times]
    others = {"bpf.mapDynamicSizeRatio": "0.01", "bpf.policyMapMax": "300", "bpf.lbMapMax": "5000"}
    asked = dict.fromkeys(times, "2h13m20s") | dict.fromkeys(counts, "40000") | others
    found = NodeSettings.of({"PLEXUS_NODE": "n"} | settings(asked).environment(PLAN, "dataplane"))
    assert found.ct_seconds == dict.fromkeys(SECONDS, 8000)
    assert found.map_entries == {name: 40_000 for name, key in HELM.items() if key in counts}
    assert (found.map_dynamic_size_ratio, found.policy_map_max, found.lb_map_max) == (0.01, 300, 5000)
    assert (found.conntrack_gc_interval, found.conntrack_gc_max_interval) == (8000, 8000)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("routingmode=native", "routingmode: there is no such setting; did you mean routingMode?"),
        ("bpf.masqerade=true", "did you mean bpf.masquerade?"),
        ("whatever=1", "whatever: there is no such setting"),
        ("routingMode=bridge", "routingMode: 'bridge' is not one of tunnel, native"),
        ("tunnelProtocol=gre", "tunnelProtocol: 'gre' is not one of vxlan, geneve"),
        ("ipam.mode=multi-pool", "ipam.mode: 'multi-pool' is not supported yet; use cluster-pool or kubernetes"),
        ("kubeProxyReplacement=false", "kubeProxyReplacement: false is not supported yet"),
        ("ipv4.enabled=false", "ipv4.enabled, ipv6.enabled: a cluster has one of them at least"),
        ("underlayProtocol=ipv6", "underlayProtocol: the nodes have no such addresses"),
        ("ipv6NativeRoutingCIDR=10.0.0.0/8", "ipv6NativeRoutingCIDR: '10.0.0.0/8' is not an IPv6 network"),
        ("ipMasqAgent.config.nonMasqueradeCIDRs={10.0.0.0/8,fd00::1/8}", "'fd00::1/8' is not an IPv6 network"),
        ("egressGateway.enabled=true", "egressGateway.enabled: not supported yet"),
        ("bpf.masquerade=maybe", "bpf.masquerade: 'maybe' is neither true nor false"),
        ("bpf.ctTcpMax=many", "bpf.ctTcpMax: 'many' is not a whole number"),
        ("bpf.ctTcpMax=1", "bpf.ctTcpMax: 1 is not within 1024"),
        ("bpf.policyMapMax=70000", "bpf.policyMapMax: 70000 is not within 256 and 65536"),
        ("bpf.mapDynamicSizeRatio=2", "bpf.mapDynamicSizeRatio: 2 is not within 0 and 1"),
        ("bpf.mapDynamicSizeRatio=nan", "bpf.mapDynamicSizeRatio: nan is not within 0 and 1"),
        ("conntrackGCInterval=5", "conntrackGCInterval: '5' is no length of time like"),
        ("extraConfig.bpf-ct-timeout-regular-udp=5s", "did you mean extraConfig.bpf-ct-timeout-regular-"),
        ("ipv4NativeRoutingCIDR=10.0.0.1/8", "ipv4NativeRoutingCIDR: '10.0.0.1/8' is not an IPv4 network"),
        ("routingMode", "--set routingMode: 'routingMode' is not key=value"),
        ("=native", "is not key=value"),
    ],
)
def test_what_cannot_be_is_refused_by_name(argument: str, said: str) -> None:
    with pytest.raises(LabError) as refused:
        settings(parse_set(argument))
    assert said in str(refused.value)


def test_pods_may_not_take_the_labs_own_addresses() -> None:
    with pytest.raises(LabError, match=r"overlaps 172\.20\.1\.0/24"):
        check_plan(settings({"ipam.operator.clusterPoolIPv4PodCIDRList": "172.20.0.0/14"}), PLAN)


def test_a_block_may_not_be_larger_than_its_pool() -> None:
    values = {
        "ipam.operator.clusterPoolIPv4PodCIDRList": ["10.200.0.0/24"],
        "ipam.operator.clusterPoolIPv4MaskSize": 20,
    }
    with pytest.raises(LabError, match="does not fit"):
        check_plan(settings(values), PLAN)


def test_no_key_is_both_supported_and_for_later() -> None:
    assert not set(KEYS) & set(LATER)


def test_every_default_is_a_value_that_its_key_takes() -> None:
    for key in KEYS.values():
        assert key.default is None or key.read(key.default) == key.default
