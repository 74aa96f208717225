"""A node whose kernel takes no BPF programs: its pods go on by nftables rules, and come back to BPF."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import execute, processes, programs
from lab.plan import Family
from services.dataplane.fallback.handover import CHECK, SWITCH
from tests.lab.conftest import fresh_space
from tests.lab.space import Space, curl
from tests.lab.test_exposures import names, node_port, service
from tests.lab.test_outside import answers
from tests.lab.test_policy import DENY, opened, web_only
from tests.lab.test_reach import SPOOF
from tests.lab.test_services import callers, ends, nobodys
from tests.lab.test_survival import stream
from tests.labs import Lab, eventually

pytestmark = pytest.mark.timeout(300)  # each goes to rules and back

# The second: late packets of connections that are over.
EXPECTED_DROPS = (
    "Policy denied",
    "Service backend not found",
    "Unknown connection tracking state",
    "Forbidden ICMPv6 message",
    "Invalid source ip",
)

CLUSTERS: dict[str, tuple[str, Family, dict[str, object]]] = {
    "rules-tunnel-v4": ("tunnel", 4, {}),
    "rules-native-dual-v6": ("native", 6, {"ipv6.enabled": True}),
}


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, Family]]:
    """A lab of its own: a node in fallback counts by other means than the shared ones expect."""
    mode, family, more = CLUSTERS[request.param]
    with Lab("test-rules", nodes=2, values={"routingMode": mode, **more}, expected_drops=EXPECTED_DROPS) as made:
        yield made, family


@pytest.fixture
def space(cluster: tuple[Lab, Family], request: pytest.FixtureRequest) -> Iterator[Space]:
    with fresh_space(*cluster, request.node.nodeid) as made:
        yield made


def by(lab: Lab, node: str) -> str:
    """What the node's packets are judged by, as it says itself: "programs" or "rules"; "" while it does not."""
    check = lab.checks(node).get(CHECK)
    if check is None:
        return ""
    return "programs" if check.ok else "rules" if check.detail.startswith("degraded: ") else ""


def row(lab: Lab, node: str) -> str:
    """What `plexus status` shows of it."""
    lines = lab.plexus("status", check=False).stdout.splitlines()
    return next(line for line in lines if line.split()[:2] == ["dataplane", node])


@contextmanager
def fallback(lab: Lab, node: str) -> Iterator[None]:
    """The node restarts and finds that it must not use BPF; afterwards it may again, without a restart."""
    switch = lab.record.directory.node(node) / SWITCH
    switch.touch()
    try:
        lab.kill(node=node)
        lab.revive(node=node)
        assert eventually(lambda: by(lab, node) == "rules", 10)
        yield
    finally:
        switch.unlink()
        back = eventually(lambda: by(lab, node) == "programs", 30)
    assert back
    assert "plexus_fallback" not in lab.exec_node(node, "nft", "list", "tables").stdout


def hosts(space: Space, pod: str, address: str, times: int) -> set[str]:
    """Who answers a pod, asked several times."""
    loop = f"for i in $(seq {times}); do {' '.join(curl(address)).replace('*', chr(39) + '*' + chr(39))}; done"
    lines = space.exec(pod, "sh", "-c", loop).stdout.splitlines()
    return {line.removeprefix("Hostname: ") for line in lines if line.startswith("Hostname: ")}


def test_pods_services_and_the_world_are_reached_by_rules_and_streams_outlive_both_handovers(space: Space) -> None:
    lab = space.lab
    space.apply(space.pod("client"), space.pod("server", "node2", label="web"), space.service("web", "web"))
    with stream(space) as counting:
        assert counting.progress()
        with fallback(lab, "node1"):
            assert counting.progress(100)
            space.apply(space.pod("late", label="web"))  # a pod that never had a program
            assert hosts(space, "client", space.address("server"), 1) == {"server"}
            assert hosts(space, "server", space.address("late"), 1) == {"late"}
            assert hosts(space, "client", space.cluster_address("web"), 20) == {"server", "late"}
            assert hosts(space, "late", space.cluster_address("web"), 20) == {"server", "late"}
            own = lab.exec_node("node1", *curl(space.cluster_address("web"))).stdout
            assert "Hostname: " in own
            with lab.capture("outside", "icmp or icmp6") as seen:
                assert space.exec("client", "ping", "-c1", "-W2", space.outside).returncode == 0
            assert any(f"{space.node_address('node1')} > {space.outside}: " in line for line in seen.lines())
        assert counting.progress(100)
    assert hosts(space, "client", space.address("late"), 1) == {"late"}


def test_by_rules_too_pods_and_the_node_reach_a_service_at_every_nodes_port(space: Space) -> None:
    space.apply(space.pod("client"), space.pod("server", "node2", label="web"), service(space, "web", "type: NodePort"))
    port = node_port(space, "web")
    with fallback(space.lab, "node1"):
        for node in ("node1", "node2"):
            assert names(space, "client", space.node_address(node), port, times=2) == {"Hostname: server"}
            own = space.lab.exec_node("node1", *curl(space.node_address(node), port=port)).stdout
            assert own.startswith("Hostname: server\n")


def test_by_rules_too_who_calls_from_outside_reaches_a_service(space: Space) -> None:
    pods = [space.pod(f"on-{node}", node, label="web") for node in ("node1", "node2")]
    local = service(space, "local", "type: NodePort\n  externalTrafficPolicy: Local")
    space.apply(*pods, service(space, "web", "type: NodePort"), local)
    asked = space.lab.exec_outside, space.node_address("node1")
    with fallback(space.lab, "node1"):

        def all_answer() -> bool:  # what programs had translated for a backend elsewhere goes with them
            found = answers(*asked, node_port(space, "web"), 24)
            return len(found) == 24 and {name for name, _ in found} == {"on-node1", "on-node2"}

        assert eventually(all_answer, 15)
        assert set(answers(*asked, node_port(space, "local"), 6)) == {("on-node1", space.outside)}


def test_policy_holds_by_rules_and_a_new_one_ends_a_stream(space: Space) -> None:
    space.apply(space.pod("client", "node2"), space.pod("server", "node1"), space.pod("other", "node1"))
    deny = DENY.format(namespace=space.name, app="server", direction="Ingress")
    with fallback(space.lab, "node1"), stream(space) as counting:
        assert counting.progress()
        space.apply(deny)
        assert not counting.progress(3000)  # what was on its way is told first; then it waits for an answer in vain
        for peer in ("client", "other"):
            assert not space.get(peer, space.address("server"), seconds=1)
        space.delete(deny)
        assert space.get("other", space.address("server"))
        space.apply(DENY.format(namespace=space.name, app="other", direction="Egress"))
        assert not space.get("other", space.address("client"), seconds=1)
        space.lab.exec_node("node1", "nft", "flush", "ruleset")
        assert eventually(lambda: "plexus_fallback" in space.lab.exec_node("node1", "nft", "list", "tables").stdout, 10)
        assert not space.get("other", space.address("client"), seconds=1)


def test_by_rules_too_who_calls_what_no_service_takes_is_refused_at_once_and_nothing_leaves_the_node(
    space: Space,
) -> None:
    targets = nobodys(space)
    asked = callers(space)

    def counted() -> int:
        return space.lab.drops()["Service backend not found"]

    with fallback(space.lab, "node1"), space.lab.capture("node1") as wire:
        first = counted()  # a program that has not left its link yet counts for itself, and goes with what it counted
        assert eventually(lambda: bool(ends(space, asked["a pod"], "tcp", *targets[0])) and counted() > first)
        before = counted()
        for target in targets:
            for who in ("a pod", "the node"):
                assert ends(space, asked[who], "tcp", *target) == "ECONNREFUSED", (who, target)
            assert ends(space, asked["a pod"], "udp", *target) == "ECONNREFUSED", target
            # What netfilter takes out of the node's own way fails the call that sends it.
            assert ends(space, asked["the node"], "udp", *target) == "EPERM", target
        assert eventually(lambda: counted() >= before + 2 * 2 * len(targets), 15)
        assert "Hostname: web" in space.get("client", targets[0][0])
    assert not [line for line in wire.lines() if any(f"> {address}" in line for address, _ in targets)]


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_by_rules_too_a_named_port_is_the_port_of_each_pod(space: Space, direction: str) -> None:
    r1, r2 = (
        space.two_numbers("r1", "node1", "server", 8001, 8002),
        space.two_numbers("r2", "node1", "server", 8002, 8001),
    )
    space.apply(space.pod("client"), r1, r2, web_only(space, direction))
    with fallback(space.lab, "node1"):
        assert opened(space, "client", "r1", "r2") == {("r1", 8001), ("r2", 8002)}


def test_nobody_else_in_the_lan_is_the_node_itself(space: Space) -> None:
    """To rules the node is the host, whom no policy refuses; in IPv6 the kernel lets others have its address."""
    lab = space.lab
    space.apply(space.pod("server"))
    server, node = space.address("server"), space.node_address("node1")
    spoof = ("/usr/bin/python3", "-c", SPOOF, node, server)
    with fallback(lab, "node1"):
        assert lab.exec_lan("ip", f"-{space.family}", "route", "replace", server, "via", node).returncode == 0
        before = lab.drops()["Invalid source ip"]
        assert lab.exec_lan(*spoof).returncode == 0
        assert eventually(lambda: lab.drops()["Invalid source ip"] >= before + 5, 15)  # rules are asked each 5 s
        assert lab.exec_lan("ip", f"-{space.family}", "route", "delete", server).returncode == 0


def test_without_the_capabilities_pods_go_on_and_a_new_one_is_refused_with_the_reason(space: Space) -> None:
    lab, record = space.lab, space.lab.record
    space.apply(space.pod("client"), space.pod("server", "node2"))
    program = programs.programs(record)["node1.dataplane"]
    bounded = ("setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin", "--", *program.arguments)
    lab.kill(node="node1")
    for pinned in ("programs", "maps"):  # as after a reboot; what is attached stays attached
        shutil.rmtree(record.pins("node1") / pinned)
    log = record.directory.logs.parent / "bounded.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            execute.command(execute.node(record, "node1"), list(bounded)),
            cwd=programs.ROOT,
            env=processes.environment(lab.name, program.environment),
            stdout=output,
            stderr=output,
        )
    try:
        assert eventually(lambda: by(lab, "node1") == "rules", 60), log.read_text()
        shown = row(lab, "node1")
        assert " degraded " in shown
        assert "Operation not permitted" in shown
        assert space.get("client", space.address("server"))
        assert space.get("server", space.address("client"))
        lab.apply(space.pod("late"))
        assert eventually(lambda: "CAP_SYS_ADMIN" in log.read_text(), 10)
        lab.delete(space.pod("late"))
    finally:
        child.terminate()
        child.wait()
        lab.revive(node="node1")  # rules are in force: it is ready by them at once, and loads meanwhile
    assert eventually(lambda: by(lab, "node1") == "programs", 120)
    assert " ready " in row(lab, "node1")
    assert space.get("client", space.address("server"))
