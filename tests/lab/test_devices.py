"""A node with two uplinks in different networks: eth0 to the cluster and the lab's outside, eth1 to a host far from it.

The far host knows nothing of pods nor of the cluster, so who reaches it bears eth1's address; it is in no network of
the lab's, so who bears eth0's has no answer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from lab import names
from lab.plan import FAMILIES
from tests.lab.conftest import EXPECTED_DROPS, fresh_space
from tests.lab.space import Space, curl, host
from tests.lab.test_exposures import node_port, service
from tests.lab.test_outside import answers
from tests.labs import Lab, eventually

OWN = {4: "198.18.9.1", 6: "fd00:99::1"}  # node1's on eth1
OTHER = {4: "198.18.9.2", 6: "fd00:99::2"}
FAR = {4: "198.18.9.7", 6: "fd00:99::7"}
BITS = {4: 24, 6: 64}
VALUES = {"ipv6.enabled": True, "devices": "eth+", "directRoutingSkipUnreachable": True}
TELLS_WHO_ASKS = """
import http.server, socket
class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = self.client_address[0].removeprefix("::ffff:").encode()
        self.send_response(200); self.send_header("Content-Length", str(len(said))); self.end_headers()
        self.wfile.write(said)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", 80), Tell).serve_forever()
"""
SPOOF = """
import sys
from scapy.all import IP, IPv6, TCP, Ether, sendp
source, target, router = sys.argv[1:]
header = IPv6 if ":" in source else IP
frame = Ether(dst=router) / header(src=source, dst=target) / TCP(sport=4711, dport=80)
sendp(frame, iface="eth0", count=5, verbose=False)
"""


@pytest.fixture(scope="module", params=["native", "tunnel"], ids=["routed-natively", "by-tunnel"])
def uplinks(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(
        "test-devices", nodes=2, values={**VALUES, "routingMode": request.param}, expected_drops=EXPECTED_DROPS
    ) as made:
        far = names.namespace(made.name, "far")
        ip("netns", "add", far)
        ip("-n", far, "link", "set", "lo", "up")
        connect(made)
        server = subprocess.Popen(inside(far, "/usr/bin/python3", "-c", TELLS_WHO_ASKS), stderr=subprocess.DEVNULL)
        try:
            yield made
        finally:
            server.kill()
            server.wait()


@pytest.fixture(params=FAMILIES, ids=["v4", "v6"])
def space(uplinks: Lab, request: pytest.FixtureRequest) -> Iterator[Space]:
    with fresh_space(uplinks, request.param, request.node.nodeid) as made:
        yield made


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def inside(namespace: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command]


def connect(lab: Lab) -> None:
    """node1's eth1 comes: a link, up, with its addresses."""
    node, far = names.namespace(lab.name, "node1"), names.namespace(lab.name, "far")
    ip("-n", node, "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", far)
    for family in FAMILIES:
        quick = ["nodad"] if family == 6 else []
        ip("-n", node, "address", "add", f"{OWN[family]}/{BITS[family]}", "dev", "eth1", *quick)
        ip("-n", far, "address", "add", f"{FAR[family]}/{BITS[family]}", "dev", "eth0", *quick)
    ip("-n", far, "link", "set", "eth0", "up")
    ip("-n", node, "link", "set", "eth1", "up")
    assert eventually(lambda: set(devices(lab)) == {"eth0", "eth1"}), devices(lab)


def devices(lab: Lab) -> dict[str, list[str]]:
    """What leaves by each of node1's bears."""
    rows = lab.dump("node1", "devices")
    return {row["device"]: sorted(row["masqueraded_as"]) for row in rows if row["device"] != "tunnel"}


def seen_by_far(space: Space, pod: str) -> str:
    return space.get(pod, FAR[space.family], seconds=1)


def test_what_leaves_by_each_uplink_bears_its_address_and_is_answered(space: Space) -> None:
    space.apply(space.pod("a"))
    assert seen_by_far(space, "a") == OWN[space.family]
    with space.lab.capture("outside", "icmp or icmp6") as wire:
        assert space.exec("a", "ping", "-c", "1", "-W", "2", space.outside).returncode == 0
    assert [line for line in wire.lines() if f"{space.node_address('node1')} > {space.outside}: " in line]
    checks = space.lab.checks("node1")
    assert checks["devices"].ok and "eth1 (198.18.9.1, fd00:99::1)" in checks["devices"].detail


def test_who_calls_a_service_by_another_uplink_is_led_to_every_backend_and_answered_by_it(space: Space) -> None:
    pods = [space.pod(f"on-{node}", node, label="web") for node in ("node1", "node2")]
    space.apply(*pods, service(space, "web", "type: NodePort"))
    far = names.namespace(space.lab.name, "far")

    def asks(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(inside(far, *command), capture_output=True, text=True, check=False)

    found = answers(asks, OWN[space.family], node_port(space, "web"), 24)
    assert len(found) == 24 and {name for name, _ in found} == {"on-node1", "on-node2"}
    assert {seen for name, seen in found if name == "on-node1"} == {FAR[space.family]}
    assert not {OWN[space.family], FAR[space.family]} & {seen for name, seen in found if name == "on-node2"}


def test_an_uplink_that_goes_and_comes_back_disturbs_no_other(space: Space) -> None:
    node = names.namespace(space.lab.name, "node1")
    space.apply(space.pod("a"))
    pinging = space.lab.start_in(f"{space.name}/a", "ping", "-q", "-i", "0.02", space.outside)
    assert seen_by_far(space, "a") == OWN[space.family]
    ip("-n", node, "link", "delete", "eth1")
    assert eventually(lambda: set(devices(space.lab)) == {"eth0"})
    assert seen_by_far(space, "a") == ""
    connect(space.lab)
    assert eventually(lambda: seen_by_far(space, "a") == OWN[space.family])
    pinging.send_signal(signal.SIGINT)
    told, _ = pinging.communicate(timeout=5)
    assert ", 0% packet loss" in told, told


def test_an_uplink_of_another_name_and_address_is_followed(space: Space) -> None:
    node, family = names.namespace(space.lab.name, "node1"), space.family
    space.apply(space.pod("a"))
    quick = ["nodad"] if family == 6 else []
    ip("-n", node, "link", "set", "eth1", "name", "eth7")
    ip("-n", node, "address", "delete", f"{OWN[family]}/{BITS[family]}", "dev", "eth7")
    ip("-n", node, "address", "add", f"{OTHER[family]}/{BITS[family]}", "dev", "eth7", *quick)
    try:
        assert eventually(lambda: OTHER[family] in devices(space.lab).get("eth7", []))
        assert eventually(lambda: seen_by_far(space, "a") == OTHER[family])
    finally:
        ip("-n", node, "link", "delete", "eth7")
        connect(space.lab)


def test_nobody_on_the_other_uplink_is_a_pod_or_the_node(space: Space) -> None:
    space.apply(space.pod("a"), space.pod("b"), space.pod("c", "node2"))
    far, node = names.namespace(space.lab.name, "far"), names.namespace(space.lab.name, "node1")
    said = subprocess.run(["ip", "-n", node, "-o", "link", "show", "eth1"], check=True, capture_output=True, text=True)
    router = said.stdout.split("link/ether ")[1].split()[0]

    def is_refused(before: int) -> bool:
        return space.lab.drops()["Invalid source ip"] >= before + 5

    for source in (space.address("b"), space.address("c"), space.node_address("node1"), OWN[space.family]):
        before = space.lab.drops()["Invalid source ip"]
        subprocess.run(inside(far, sys.executable, "-c", SPOOF, source, space.address("a"), router), check=True)
        assert eventually(partial(is_refused, before)), source
    assert "Hostname: c" in space.get("a", space.address("c")), "and pods go on"


def test_the_nodes_own_call_for_no_service_is_refused_whatever_device_its_route_names(space: Space) -> None:
    space.apply(space.pod("a"), space.service("svc", "a"))
    unused = space.cluster_address("svc").rpartition(":" if space.family == 6 else ".")
    address = f"{unused[0]}{unused[1]}77"
    node = names.namespace(space.lab.name, "node1")
    ip("-n", node, "route", "add", f"{address}/{32 if space.family == 4 else 128}", "via", FAR[space.family])
    try:
        refused = space.lab.exec_node("node1", *curl(address, seconds=2))
        assert refused.returncode == 7, f"{host(address)}: refused at once"
    finally:
        ip("-n", node, "route", "delete", f"{address}/{32 if space.family == 4 else 128}")
