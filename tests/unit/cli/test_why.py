"""Why a connection is let through or not, as a person asks."""

from __future__ import annotations

import pytest

from bus.messages.dataplane import Judgement, Way, Why, WhyAnswer
from tests.unit.cli.cluster import STAR, XWING, Cluster, from_json, plexus

RULE1 = "CiliumNetworkPolicy/default/rule1"


def way(*judged: Judgement, port: int = 80) -> Way:
    return Way(
        destination="10.0.2.2",
        port=port,
        source_identity=XWING,
        destination_identity=STAR,
        judged=list(judged),
        route="to the node 192.0.2.2",
    )


@pytest.fixture
def denied(cluster: Cluster) -> Cluster:
    """The deathstar's node denies what the xwing's lets go."""
    went = Judgement(direction="egress", pod="default/xwing", enforced=False, allowed=True)
    came = Judgement(
        direction="ingress",
        pod="default/deathstar",
        enforced=True,
        allowed=False,
        reason="Policy denied",
        policies=[RULE1],
        nearest=f"{RULE1} lets through identity 9",
    )
    cluster.why = {
        "node1": WhyAnswer(node="node1", ways=[way(went)]),
        "node2": WhyAnswer(node="node2", ways=[way(came)]),
    }
    return cluster


def test_both_ends_are_asked_and_the_one_that_denies_is_named(denied: Cluster) -> None:
    from_xwing = f"from identity {XWING} (org=alliance)"
    assert plexus("why", "xwing", "deathstar", "80").stdout.splitlines() == [
        "default/xwing (10.0.1.3, node1) -> default/deathstar (10.0.2.2, node2), TCP 80",
        f"  egress of default/xwing on node1, to identity {STAR} (org=empire): allowed, no policy is enforced there",
        f"  ingress of default/deathstar on node2, {from_xwing}: denied: Policy denied by {RULE1}",
        f"    nearest: {RULE1} lets through identity 9",
        "  route: to the node 192.0.2.2",
        "denied",
    ]
    question = Why(source="10.0.1.3", destination="10.0.2.2", protocol=6, port=80)
    assert denied.asked_why == [("node1", question), ("node2", question)]
    found = from_json("why", "10.0.1.3", "default/deathstar", "53/udp")
    assert (found["allowed"], found["protocol"], found["port"]) == (False, "UDP", 53)
    assert [each["node"] for each in found["ways"][0]["judged"]] == ["node1", "node2"]


def test_a_service_is_its_first_port_and_each_of_its_backends(denied: Cluster) -> None:
    only = Judgement(direction="egress", pod="default/xwing", enforced=True, allowed=True, audited=True, reason="no")
    denied.why["node1"] = WhyAnswer(node="node1", service="default/deathstar", ways=[way(only, port=8080)])
    denied.why["node2"] = WhyAnswer(node="node2", ways=[way()])
    said = plexus("why", "xwing", "svc/deathstar").stdout
    assert "  Service default/deathstar: 1 backend\n  backend 10.0.2.2:8080 (default/deathstar)\n" in said
    assert "allowed, because the node only looks; else: no" in said and said.endswith("allowed\n")
    assert [each.port for _, each in denied.asked_why] == [80, 8080]
    denied.why["node1"] = WhyAnswer(node="node1", service="default/deathstar")
    assert plexus("why", "xwing", "svc/deathstar").stdout.endswith("denied: Service backend not found\n")


def test_without_a_port_it_is_a_ping(denied: Cluster) -> None:
    assert "ICMP echo" in plexus("why", "xwing", "192.0.2.77").stdout
    assert denied.asked_why[0][1] == Why(source="10.0.1.3", destination="192.0.2.77", protocol=1, port=9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "deathstar"), "there is no pod default/nobody"),
        (("xwing", "svc/nobody"), "there is no Service default/nobody"),
        (("xwing", "fd00::1"), "no address of the same family"),
    ],
)
def test_who_is_not_there_is_an_error(denied: Cluster, arguments: tuple[str, ...], words: str) -> None:
    assert words in plexus("why", *arguments, status=1).stderr


def test_a_port_that_is_none_is_a_wrong_use(denied: Cluster) -> None:
    for port in ("0", "http", "80/GRE", "65536"):
        plexus("why", "xwing", "deathstar", port, status=2)


def test_a_node_that_does_not_answer_is_told(denied: Cluster) -> None:
    denied.silent = {"node2"}
    assert "did not answer" in plexus("why", "xwing", "deathstar", "80", status=1).stderr
