"""What the node says in words: maps, and the numbers of its own that events bear."""

from __future__ import annotations

import dataclasses

import pytest

from bus import subjects
from bus.labels import canonical_labels, network_number_of
from bus.messages import Message
from bus.messages.dataplane import Decision, Dump, WhoDecided
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.messages.policy import PeerNetwork, PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, Namespace, Pod, PortRange
from services.dataplane.deciders import deciders
from services.dataplane.dump import dump
from services.dataplane.model import NodeModel
from services.dataplane.part import LocalPod
from services.dataplane.parts.counters import dropped
from services.dataplane.shapes import layouts
from services.dataplane.shapes.mode import Mode
from tests.unit.dataplane.fake_kernel import MemoryMaps

WEB, DB = 1000, 2000
HERE, THERE = "10.0.0.2", "10.0.1.7"
LABELS = canonical_labels(Pod(namespace="default", name="web", uid="u", node="n"), Namespace(name="default"))


def hear(model: NodeModel, message: Message) -> None:
    family = next(each for each in NodeModel("n").hears if each.message is type(message))
    model.put(family.subject_of(message), message)


RULE1 = PolicyRules(
    kind="CiliumNetworkPolicy",
    namespace="default",
    name="rule1",
    subject="web",
    rules=[
        SelectorRule(direction="ingress", selectors=["db"], ports=[PortRange(protocol="TCP", port=8080, end_port=8083)])
    ],
    deny_ingress_by_default=True,
)


@pytest.fixture
def model() -> NodeModel:
    made = NodeModel("n")
    hear(made, Namespace(name="default"))
    hear(made, Pod(namespace="default", name="web", uid="u", node="n"))
    hear(made, Identity(number=WEB, labels=LABELS))
    hear(made, Identity(number=DB, labels={"k8s:app": "db"}))
    made.put(
        subjects.ADDRESS.of(THERE),
        AddressIdentity(address=THERE, identity=DB, node="m", node_address="192.0.2.2", pod="default/db"),
    )
    hear(made, Selector(id="web", selector=LabelSelector(), members=[WEB]))
    hear(made, Selector(id="db", selector=LabelSelector(), members=[DB]))
    hear(made, RULE1)
    front = Frontend(address="10.96.0.1", port=80, protocol="TCP", backends=[Backend(address=THERE, port=8080)])
    hear(made, LoadBalancedService(namespace="default", name="web", frontends=[front]))
    made.add_pod(LocalPod("default", "web", (HERE,), "lxc1", 7, "02:00:00:00:00:01", "02:00:00:00:00:02"))
    made.synced()
    made.settle()
    return made


def decided(model: NodeModel, policy: int, cookie: int = 0) -> list[str]:
    question = WhoDecided(decisions=[Decision(policy=policy, cookie=cookie, direction="ingress")])
    answer = deciders("n", 5.0, question, model)
    assert (answer.node, answer.started_at, answer.networks) == ("n", 5.0, [])
    (found,) = answer.policies
    return found


def test_where_no_entry_matched_those_decided_that_make_the_pod_deny(model: NodeModel) -> None:
    assert decided(model, WEB) == ["CiliumNetworkPolicy/default/rule1"]


def test_an_entry_is_of_the_policies_that_its_cookie_names(model: NodeModel) -> None:
    policy = model.policy_of(WEB)
    assert policy is not None and policy.cookies
    for cookie, names in policy.cookies.items():
        assert decided(model, WEB, cookie) == list(names)


def test_what_passes_only_because_the_node_looks_says_why_it_would_not(model: NodeModel) -> None:
    model.policy.store.mode = Mode(audit=True)
    of_web = subjects.RULES.of("CiliumNetworkPolicy", "default", "rule1")
    model.delete(of_web)
    model.put(of_web, RULE1)
    model.settle()
    policy = model.policy_of(WEB)
    assert policy is not None and set(policy.audited.values()) == {"Policy denied"}
    asked = [Decision(policy=WEB, cookie=cookie, direction="ingress") for cookie in policy.cookies]
    answer = deciders("n", 5.0, WhoDecided(decisions=asked), model)
    assert answer.audited == ["Policy denied" if each.cookie in policy.audited else "" for each in asked]
    assert answer.policies == [["CiliumNetworkPolicy/default/rule1"]] * len(asked)


def test_of_a_policy_that_is_gone_nobody_knows(model: NodeModel) -> None:
    assert decided(model, 77) == decided(model, WEB, 5) == []


# Dumps


@pytest.fixture
async def maps(model: NodeModel) -> MemoryMaps:
    made = MemoryMaps()
    await made.write(model.tables)
    return made


def test_what_parts_show_is_shown_and_of_anything_else_is_said_what_there_is(
    maps: MemoryMaps, model: NodeModel
) -> None:
    assert {"policy", "ipcache", "ct", "nat", "lb", "endpoints", "counters"} <= set(model.shown)
    for table in model.shown:
        assert dump("n", Dump(table=table), maps, model).problem == ""
    refused = dump("n", Dump(table="tomorrow"), maps, model)
    assert refused.problem == f"it has no table of that name; it has {', '.join(sorted(model.shown))}"


def test_what_was_counted_in_words_over_all_cpus(maps: MemoryMaps, model: NodeModel) -> None:
    one_cpu = layouts.Counter.layout.pack
    entries = maps.memory["counters"].entries  # past what one CPU has
    entries[(2 * 133 + 1).to_bytes(4, "little")] = one_cpu(2, 120) + one_cpu(1, 60)
    entries[(2 * 132).to_bytes(4, "little")] = one_cpu(0, 0) + one_cpu(0, 0)
    assert dump("n", Dump(table="counters"), maps, model).rows == [
        {"reason": "Policy denied", "reason_code": 133, "direction": "egress", "packets": 3, "bytes": 180}
    ]
    entries[(2 * 0).to_bytes(4, "little")] = one_cpu(7, 700) + one_cpu(0, 0)
    assert dropped(maps["counters"]) == {(("direction", "egress"), ("reason", "Policy denied")): 3}


def test_a_translation_in_words(maps: MemoryMaps, model: NodeModel) -> None:
    key = layouts.NatKey("198.51.100.1", "192.0.2.1", 443, 40000, 6)
    ends = {"protocol": "TCP", "node_address": "192.0.2.1:40000", "remote": "198.51.100.1:443"}
    maps["nat"].set(key.pack(), layouts.NatEntry(HERE, 1234).pack())
    assert dump("n", Dump(table="nat"), maps, model).rows == [{**ends, "pod": f"{HERE}:1234", "client": ""}]
    maps["nat"].set(key.pack(), layouts.NatEntry("203.0.113.9", 1234, layouts.NatEntry.RELAYED).pack())
    assert dump("n", Dump(table="nat"), maps, model).rows == [{**ends, "pod": "", "client": "203.0.113.9:1234"}]


def test_the_policy_map_in_words(maps: MemoryMaps, model: NodeModel) -> None:
    rows = dump("n", Dump(table="policy"), maps, model).rows
    [row] = [each for each in rows if each["identity"] == DB]
    assert (row["policy"], row["direction"], row["protocol"], row["port"]) == (WEB, "ingress", "TCP", "8080-8083")
    assert (row["verdict"], row["policies"]) == ("allow", ["CiliumNetworkPolicy/default/rule1"])
    [node] = [each for each in rows if each["identity"] == 1]
    assert (node["protocol"], node["port"], node["policies"]) == ("any", "any", [])


def test_addresses_services_and_endpoints_in_words(maps: MemoryMaps, model: NodeModel) -> None:
    ipcache = {row["prefix"]: row for row in dump("n", Dump(table="ipcache"), maps, model).rows}
    assert ipcache[f"{THERE}/32"] == {
        "prefix": f"{THERE}/32",
        "identity": DB,
        "node_address": "192.0.2.2",
        "pod": "default/db",
    }
    [service] = dump("n", Dump(table="lb"), maps, model).rows
    assert (service["frontend"], service["service"], service["backends"]) == (
        "10.96.0.1:80",
        "default/web",
        [f"{THERE}:8080"],
    )
    [endpoint] = dump("n", Dump(table="endpoints"), maps, model).rows
    assert (endpoint["pod"], endpoint["identity"], endpoint["ingress"], endpoint["egress"]) == (
        "default/web",
        WEB,
        "enforced",
        "open",
    )
    assert endpoint["mac"] == "02:00:00:00:00:01"


def test_a_connection_in_words_begins_where_it_began(maps: MemoryMaps, model: NodeModel) -> None:
    key = layouts.ConnectionKey(HERE, THERE, 1234, 80, 6)
    alive = layouts.Connection(2**32 - 1, 1, 0x02 | 0x20, 1, 3, "", "10.96.0.1", 80, 0)
    maps.memory["ct_tcp"].set(key.pack(), alive.pack())
    over = dataclasses.replace(key, low_port=1235)
    maps.memory["ct_tcp"].set(over.pack(), dataclasses.replace(alive, expires=0).pack())
    [row] = dump("n", Dump(table="ct"), maps, model).rows
    assert (row["source"], row["destination"], row["service"]) == (f"{THERE}:80", f"{HERE}:1234", "10.96.0.1:80")
    assert (row["flags"], row["way"], row["reply_way"]) == (["replied", "translated"], "pod", "local")
    assert row["expires_seconds"] > 0


def test_a_long_table_is_cut_and_says_so(maps: MemoryMaps, model: NodeModel) -> None:
    rows = dump("n", Dump(table="policy", limit=1), maps, model)
    assert (len(rows.rows), rows.truncated) == (1, True)
    assert dump("n", Dump(table="policy", limit=-5), maps, model).rows == []


def test_an_identity_of_a_network_of_a_policy_is_called_by_the_network(model: NodeModel) -> None:
    cidr = "198.51.100.0/24"
    hear(model, Selector(id="office", selector=LabelSelector(), networks=[PeerNetwork(cidr=cidr)]))
    rule = SelectorRule(direction="ingress", selectors=["office"])
    hear(model, PolicyRules(kind="NetworkPolicy", namespace="default", name="office", subject="web", rules=[rule]))
    model.settle()
    number = network_number_of(cidr)
    assert deciders("n", 5.0, WhoDecided(networks=[number, number + 1]), model).networks == [cidr, ""]
    maps = MemoryMaps()
    for table in model.tables:
        for key, value in table.wanted.items():
            maps[table.name].set(key, value)
    rows = [row for row in model.policy.shows[0].rows(maps, 0) if row["identity"] == number]
    assert [row["identity_name"] for row in rows] == [cidr]
