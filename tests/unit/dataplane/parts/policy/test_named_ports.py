"""A named port is the port of each pod, whatever others of its identity call so."""

from __future__ import annotations

from typing import Literal

import msgspec

from bus.messages.identity import AddressIdentity
from bus.messages.policy import PolicyRules, SelectorRule
from bus.messages.resources import ContainerPort, PortRange
from services.dataplane.model import NodeModel
from services.dataplane.shapes.layouts import POLICY_NAMED, NamedPortKey
from tests.unit.dataplane.test_model import (
    DB,
    THERE,
    THERE_ADDRESS,
    WEB,
    gone,
    hear,
    identity,
    local,
    model,
    pod,
    policy_rows,
    selector,
    web,
)

__all__ = ["model", "web"]  # fixtures


def governed(*allowed: SelectorRule) -> PolicyRules:
    """Pods of the selector "web" have these rules."""
    return PolicyRules(
        kind="NetworkPolicy",
        namespace="default",
        name="one",
        subject="web",
        rules=list(allowed),
        deny_ingress_by_default=True,
        deny_egress_by_default=True,
    )


def named_rows(model: NodeModel) -> set[tuple[int, str, int]]:
    """Of `named_ports`: whose policy, and at which address and port it holds."""
    rows = map(NamedPortKey.unpack, model.named.table.wanted)
    return {(row.policy, row.address, row.port) for row in rows}


def named_rule(direction: Literal["ingress", "egress"], *, subject: str = "", peers: str = "") -> list[SelectorRule]:
    """`web`, which some of the pods have as 8001 and some as 8002."""
    return [
        SelectorRule(
            direction=direction,
            selectors=[peers] if peers else [],
            any_peer=not peers,
            subject=subject,
            ports=[PortRange(protocol="TCP", port=number, name="web")],
        )
        for number in (8001, 8002)
    ]


def web_port(number: int) -> list[ContainerPort]:
    return [ContainerPort(name="web", port=number), ContainerPort(port=9)]


def test_a_named_port_holds_at_the_pods_of_this_node_that_call_it_so(model: NodeModel) -> None:
    one, two = local(), local("10.0.0.3", name="web-2")
    hear(model, identity(WEB, "web"), selector("web", WEB))
    hear(model, governed(*named_rule("ingress", subject="web")))
    for each, number in ((one, 8001), (two, 8002)):
        hear(model, msgspec.structs.replace(pod(each.name), ports=web_port(number)))
        model.add_pod(each)
    model.settle()
    assert {row.flags for key, row in policy_rows(model).items() if key.port} == {POLICY_NAMED}
    assert named_rows(model) == {(WEB, "10.0.0.2", 8001), (WEB, "10.0.0.3", 8002)}
    model.remove_pod("10.0.0.3")
    model.settle()
    assert named_rows(model) == {(WEB, "10.0.0.2", 8001)}
    hear(model, governed())
    model.settle()
    assert named_rows(model) == set()


def test_a_named_port_of_peers_holds_at_the_addresses_that_are_said_to_call_it_so(web: NodeModel) -> None:
    hear(web, selector("web", WEB), selector("db", DB))
    hear(web, governed(*named_rule("egress", peers="db")))
    there = AddressIdentity(address="10.0.1.7", identity=DB, node=THERE, node_address=THERE_ADDRESS, pod="default/db")
    hear(web, there)
    web.settle()
    assert named_rows(web) == set(), "nobody has said what it calls its ports: closed"
    hear(web, msgspec.structs.replace(there, ports=web_port(8001)))
    hear(web, msgspec.structs.replace(there, address="10.0.1.8", ports=web_port(8002)))
    hear(web, msgspec.structs.replace(there, address="10.0.1.9", identity=WEB, ports=web_port(8001)))
    web.settle()
    assert named_rows(web) == {(WEB, "10.0.1.7", 8001), (WEB, "10.0.1.8", 8002)}
    gone(web, there)
    hear(web, msgspec.structs.replace(there, address="10.0.1.8", ports=web_port(8003)))
    web.settle()
    assert named_rows(web) == set()


def test_where_a_number_is_open_anyhow_a_name_for_it_makes_no_entry(web: NodeModel) -> None:
    every = SelectorRule(
        direction="ingress", any_peer=True, ports=[PortRange(protocol="TCP", port=8000, end_port=8003)]
    )
    hear(web, selector("web", WEB))
    hear(web, governed(every, *named_rule("ingress", subject="web")))
    web.settle()
    assert {row.flags for row in policy_rows(web).values()} == {0}
