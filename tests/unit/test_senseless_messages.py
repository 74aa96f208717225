"""Well-typed messages that make no sense: nothing fails by them, and nobody else's outputs are touched.

Whatever decodes may reach a model: texts that are no addresses, numbers out of every range, bodies that are not of
their subject. A model may refuse one (ValueError from `put`, changing nothing of others), but goes on. It takes the end
of anything: what is gone is no trouble any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Network
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import labels, subjects
from bus.control import Amend, Claim, Model, Say, Unsay
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import AddressHolder, Block, ServiceAddress
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import (
    AddressRange,
    LabelSelector,
    LoadBalancerPool,
    LoadBalancerRequest,
    Namespace,
    Node,
    Peer,
    Pod,
    Policy,
    PortRange,
    Requirement,
    Rule,
    Service,
    ServicePort,
)
from bus.subjects import State
from services.dataplane.model import NodeModel
from services.dataplane.part import LocalPod
from services.identity.model import IdentityModel
from services.ipam.model import BlockAllocation, Pools
from services.ipam.service_addresses import ServiceAddresses
from services.ipam.together import Together
from services.lb.model import LoadBalancing
from services.policy.model import PolicyModel

NODE = "node-1"
DEFAULT = Namespace(name="default")
POD = Pod(
    namespace="default", name="web", uid="u", labels={"app": "web"}, node=NODE, phase="Running", ready=True
)  # fmt: skip
LABELS = labels.canonical_labels(POD, DEFAULT)
NUMBER = labels.number_of(labels.labels_text(LABELS))
WEB = LabelSelector(requirements=[Requirement(key="k8s:app", operator="In", values=["web"])])
WEB_ID = labels.selector_id(WEB)
BLOCK = Block(cidr="10.244.0.0/24", node=NODE)
BLOCK6 = Block(cidr="fd00::/120", node=NODE)

SENSIBLE: tuple[Message, ...] = (
    DEFAULT,
    Node(name=NODE, addresses=["192.0.2.1", "2001:db8::1"]),
    BLOCK,
    BLOCK6,
    POD,
    Identity(number=NUMBER, labels=LABELS),
    Endpoint(
        node=NODE,
        namespace="default",
        pod="web",
        uid="u",
        address="10.244.0.5",
        mac="02:00:00:00:00:01",
        interface="lxc1",
        interface_index=7,
        identity=NUMBER,
        state="ready",
    ),
    AddressIdentity(address="10.244.0.5", identity=NUMBER, node=NODE, node_address="192.0.2.1", pod="default/web"),
    Service(
        namespace="default",
        name="web",
        cluster_addresses=["10.96.0.1"],
        selector={"app": "web"},
        ports=[ServicePort(port=80, target_port=8080)],
    ),
    Service(
        namespace="default",
        name="out",
        type="LoadBalancer",
        cluster_addresses=["10.96.0.2"],
        ip_families=["IPv4"],
        ports=[ServicePort(port=80, target_port=8080)],
        load_balancer=LoadBalancerRequest(addresses=["192.0.2.33"]),
    ),
    LoadBalancerPool(name="blue", ranges=[AddressRange(first="192.0.2.33", last="192.0.2.33")]),
    ServiceAddress(address="192.0.2.33", services=[AddressHolder(namespace="default", name="out", ports=["80/TCP"])]),
    LoadBalancedService(
        namespace="default",
        name="web",
        frontends=[
            Frontend(address="10.96.0.1", port=80, protocol="TCP", backends=[Backend(address="10.244.0.5", port=8080)])
        ],
    ),
    Policy(
        kind="NetworkPolicy",
        namespace="default",
        name="web",
        subject=WEB,
        rules=[
            Rule(direction="ingress", peers=[Peer(selector=WEB)], ports=[PortRange(protocol="TCP", port=80)]),
            Rule(direction="egress", any_peer=True, ports=[PortRange(protocol="TCP", name="http")]),
        ],
        deny_ingress_by_default=True,
    ),
    PolicyRules(
        kind="NetworkPolicy",
        namespace="default",
        name="web",
        subject=WEB_ID,
        rules=[SelectorRule(direction="ingress", selectors=[WEB_ID], ports=[PortRange(protocol="TCP", port=80)])],
        deny_ingress_by_default=True,
    ),
    Selector(id=WEB_ID, selector=WEB, members=[NUMBER]),
)
"""A small world that hangs together."""


def family_of(message: Message) -> State[Message]:
    return next(state for state in subjects.STATES if state.message is type(message))


OURS = {family_of(message).subject_of(message) for message in SENSIBLE}

TEXTS = st.one_of(
    st.sampled_from(["", "zzz", "fd00::1", "8.8.8.8", "10.244.0.7", "10.244.0.0/24", "0.0.0.0/0", "10.244.0.9/24"]),
    st.sampled_from(["::ffff:10.244.0.5", "::ffff:10.244.0.0/120", "fe80::1%eth0", "FD00:0::5", "fd00::/64", "::/0"]),
    st.sampled_from(["fd00::5", "fd00::/120", "fd00:96::1", "2001:db8::1", ":::", "fd00::%x/64", "IPv6", "IPv4"]),
    st.sampled_from(["default", "web", NODE, "other", "TCP", "all", "a/b", "a.b", "%", "٣", "-1", "k8s:app"]),
    st.text(max_size=6),
)
NUMBERS = st.one_of(st.sampled_from([-1, 0, 1, 80, 255, NUMBER, 65536, 1 << 24, 1 << 40]), st.integers(-(2**63), 2**63))


def values_of(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    """Whatever the type of a field admits on the wire."""
    match info:
        case msgspec.inspect.StructType():
            fields = {field.name: values_of(field.type) for field in info.fields}
            return st.fixed_dictionaries(fields).map(lambda given: info.cls(**given))
        case msgspec.inspect.StrType():
            return TEXTS
        case msgspec.inspect.IntType():
            return NUMBERS
        case msgspec.inspect.FloatType():
            return st.floats()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.LiteralType():
            return st.sampled_from(info.values)
        case msgspec.inspect.ListType():
            return st.lists(values_of(info.item_type), max_size=2)
        case msgspec.inspect.DictType():
            return st.dictionaries(values_of(info.key_type), values_of(info.value_type), max_size=2)
        case msgspec.inspect.UnionType():
            return st.one_of([values_of(kind) for kind in info.types])
        case msgspec.inspect.AnyType():
            return st.sampled_from([None, 1, "text", [1], {"a": None}])
    raise NotImplementedError(f"no values for {info}")


MESSAGES = {state.head: values_of(msgspec.inspect.type_info(state.message)) for state in subjects.STATES}


@st.composite
def strays(draw: st.DrawFn, families: Sequence[State[Message]]) -> tuple[str, Message | None]:
    """A message on a subject of its kind, most often its own; or the end of one. Never on one of `OURS`."""
    family = draw(st.sampled_from(families))
    message: Message = draw(MESSAGES[family.head])
    subject = family.subject_of(message)
    if draw(st.integers(0, 3)) == 0:
        subject = family.of(*(draw(TEXTS) for _ in family.keys))
    if subject in OURS:
        subject = family.of(*("stray" for _ in family.keys))
    return subject, None if draw(st.integers(0, 4)) == 0 else message


class Taker(Protocol):
    """What all models have."""

    def put(self, subject: str, message: Message) -> None: ...

    def delete(self, subject: str) -> None: ...


def hear(model: Taker, families: Iterable[State[Message]], *changes: tuple[str, Message | None]) -> None:
    """As bus/control.py and the node do: what is not heard is not fed, and what is refused is passed over."""
    heard = tuple(families)
    for subject, message in changes:
        if any(family.has(subject) for family in heard):
            if message is None:
                model.delete(subject)
                continue
            with suppress(ValueError):
                model.put(subject, message)


def settle(model: Model, log: dict[str, Message]) -> None:
    """Carry out what the model asks for until it comes to rest."""
    for _ in range(50):
        actions = list(model.act())
        if not actions:
            return
        for action in actions:
            match action:
                case Say(subject, message):
                    log[subject] = message
                case Unsay(subject):
                    log.pop(subject, None)
                case Claim(subject, message):
                    model.put(subject, log.setdefault(subject, message))
                case Amend(subject, before, after):
                    if log.get(subject) == before:
                        log.pop(subject, None)
                        log.update({subject: after} if after is not None else {})
                    hear(model, model.hears, (subject, log.get(subject)))
    raise AssertionError("it never comes to rest")


MODELS: Mapping[str, tuple[Callable[[], Model], set[str]]] = {
    "identity": (IdentityModel, {subjects.ADDRESS.of("10.244.0.5"), subjects.ADDRESS.of("192.0.2.1")}),
    "ipam": (
        lambda: Together(BlockAllocation(Pools([IPv4Network("10.244.0.0/16")], 24)), ServiceAddresses()),
        {subjects.BLOCK.of(BLOCK.cidr), subjects.SERVICE_ADDRESS.of("192.0.2.33")},
    ),
    "lb": (LoadBalancing, {subjects.FRONTEND.of("default", "web")}),
    "policy": (PolicyModel, {subjects.RULES.of("NetworkPolicy", "default", "web"), subjects.SELECTOR.of(WEB_ID)}),
}
"""How to make each, and the outputs that belong to the sensible world alone."""

thorough = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def sensible() -> list[tuple[str, Message]]:
    return [(family_of(message).subject_of(message), message) for message in SENSIBLE]


@pytest.mark.parametrize("name", MODELS)
@thorough
@given(data=st.data())
def test_a_control_model_goes_on_whatever_it_hears(name: str, data: st.DataObject) -> None:
    make, outputs = MODELS[name]
    model, alone = make(), make()
    some = st.lists(strays(model.hears), max_size=5)
    before, after = data.draw(some, "before"), data.draw(some, "after")
    own = {subject: message for subject, message in sensible() if any(each.has(subject) for each in model.says)}
    log, expected = dict(own), dict(own)
    for changes in (before, sensible(), after):
        hear(model, model.hears, *changes)
        settle(model, log)
    assert outputs <= log.keys() & set(model.said())
    hear(model, model.hears, *((subject, None) for subject, _ in (*before, *after)))
    settle(model, log)
    hear(alone, alone.hears, *sensible())
    settle(alone, expected)
    assert {subject: log[subject] for subject in outputs} == {subject: expected[subject] for subject in outputs}


def test_a_block_is_its_nodes_though_another_node_was_heard_of_first() -> None:
    """The same with a draw that is rare: a name by which a node claims the very block that the log gives to another."""
    subject = subjects.BLOCK.of(BLOCK.cidr)
    name = next(name for name in map(str, range(10_000)) if _first_claim(name) == subject)
    model = MODELS["ipam"][0]()
    log: dict[str, Message] = {subject: BLOCK}
    hear(model, model.hears, (subjects.NODE.of(name), Node(name=name, addresses=[])))
    settle(model, log)
    assert log[subject] == BLOCK


def _first_claim(name: str) -> str:
    model = MODELS["ipam"][0]()
    model.put(subjects.NODE.of(name), Node(name=name, addresses=[]))
    (claim,) = model.act()
    assert isinstance(claim, Claim)
    return claim.subject


@thorough
@given(data=st.data())
def test_a_node_goes_on_whatever_it_hears(data: st.DataObject) -> None:
    some = st.lists(strays(NodeModel("n").hears), max_size=5)
    before, after = data.draw(some, "before"), data.draw(some, "after")
    model = NodeModel(NODE, frozenset({"192.0.2.1"}))
    model.add_pod(LocalPod("default", "web", ("10.244.0.5",), "lxc1", 7, "02:00:00:00:00:01", "02:00:00:00:00:02", "u"))
    for changes in (before, sensible(), after):
        hear(model, NodeModel("n").hears, *changes)
        model.settle()
    hear(model, NodeModel("n").hears, *((subject, None) for subject, _ in (*before, *after)))
    model.synced()
    model.settle()
    assert model.identity_of("10.244.0.5") == NUMBER
    policy = model.policy_of(NUMBER)
    assert policy is not None and policy.ingress_enforced
