"""Services and pools for tests, and a log of addresses that models write to as `bus.control` does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from bus.control import Amend, Say, Unsay
from bus.messages import Message
from bus.messages.ipam import AddressHolder, AddressRequest, PoolUse, ServiceAddress
from bus.messages.resources import (
    AddressRange,
    LabelSelector,
    LoadBalancerPool,
    LoadBalancerRequest,
    Requirement,
    Service,
    ServicePort,
)
from bus.subjects import ADDRESS_REQUEST, LOAD_BALANCER_POOL, POOL_USE, SERVICE, SERVICE_ADDRESS
from services.ipam.service_addresses import ServiceAddresses

Name = tuple[str, str]


def pool(name: str, *ranges: str, place: int = 1, color: str = "", disabled: bool = False) -> tuple[str, Message]:
    """`ranges`: "10.0.0.1-10.0.0.9". `color`: of the Services that it selects."""
    found = []
    for each in ranges:
        first, _, last = each.partition("-")
        found.append(AddressRange(first=first, last=last or first, written=each))
    colored = LabelSelector(requirements=[Requirement(key="color", operator="In", values=[color])])
    message = LoadBalancerPool(
        name=name, place=place, ranges=found, selector=colored if color else None, disabled=disabled
    )
    return LOAD_BALANCER_POOL.of(name), message


def service(name: str, namespace: str = "default", **said: Any) -> tuple[str, Service]:
    """`said`: fields of its request, and of the Service: ports, color, families, policy, selector."""
    ports = [ServicePort(port=each, target_port=each) for each in said.pop("ports", (80,))]
    labels = {"color": said.pop("color")} if "color" in said else {}
    families = said.pop("families", ["IPv4"])
    policy, selector = said.pop("policy", "Cluster"), said.pop("selector", {"app": name})
    message = Service(
        namespace=namespace,
        name=name,
        type="LoadBalancer",
        cluster_addresses=["10.96.0.1"],
        ip_families=families,
        ports=ports,
        labels=labels,
        selector=selector,
        external_traffic_policy=policy,
        load_balancer=LoadBalancerRequest(**said),
    )
    return SERVICE.of(namespace, name), message


class Log:
    """What is said; an amendment is taken where it starts from what is so."""

    def __init__(self) -> None:
        self.values: dict[str, Message] = {}

    def write(self, model: ServiceAddresses, action: Say | Unsay | Amend) -> bool:
        """Whether it changed something. The model hears what became of an amendment."""
        before = self.values.get(action.subject)
        if isinstance(action, Amend):
            if before == action.before:
                self._set(action.subject, action.after)
                lost = names_of(before) - names_of(action.after)
                assert lost <= names_of(action.before), "an address was given on by one who did not know whose it is"
            value = self.values.get(action.subject)
            if value is None:
                model.delete(action.subject)
            else:
                model.put(action.subject, value)
        else:
            self._set(action.subject, action.message if isinstance(action, Say) else None)
        return self.values.get(action.subject) != before

    def settle(self, model: ServiceAddresses) -> int:
        """Let the model act until it has nothing to do; how many actions that were."""
        done = 0
        for _ in range(50):
            actions = list(model.act())
            if not actions:
                return done
            done += len(actions)
            for action in actions:
                assert isinstance(action, (Say, Unsay, Amend))
                self.write(model, action)
        raise AssertionError("it never comes to rest")

    def holders(self) -> Mapping[str, list[AddressHolder]]:
        """By address."""
        return {each.address: each.services for each in self.values.values() if isinstance(each, ServiceAddress)}

    def given(self) -> dict[str, list[str]]:
        """By address, the names of those who have it."""
        return {address: [each.name for each in holders] for address, holders in self.holders().items()}

    def of(self, name: str, namespace: str = "default") -> list[str]:
        """The Service's addresses."""
        own = (namespace, name)
        return [
            address
            for address, holders in self.holders().items()
            if own in ((each.namespace, each.name) for each in holders)
        ]

    def request(self, name: str, namespace: str = "default") -> AddressRequest:
        found = self.values[ADDRESS_REQUEST.of(namespace, name)]
        assert isinstance(found, AddressRequest)
        return found

    def use(self, name: str) -> PoolUse:
        found = self.values[POOL_USE.of(name)]
        assert isinstance(found, PoolUse)
        return found

    def _set(self, subject: str, message: Message | None) -> None:
        if message is None:
            self.values.pop(subject, None)
        else:
            self.values[subject] = message
        if SERVICE_ADDRESS.has(subject) and isinstance(message, ServiceAddress):
            check_apart(message)


def names_of(held: Message | None) -> set[Name]:
    """Who has an address."""
    return {(each.namespace, each.name) for each in held.services} if isinstance(held, ServiceAddress) else set()


def check_apart(held: ServiceAddress) -> None:
    """Nobody is there twice, and each two have agreed to share and can: written apart from what the model does."""
    assert held.services, "an address that nobody has is not said"
    names = [(each.namespace, each.name) for each in held.services]
    assert len(names) == len(set(names)), f"{held.address} is given twice to one"
    for one, other in combinations(held.services, 2):
        assert one.sharing_key == other.sharing_key != "", f"{held.address} is given twice"
        assert not set(one.ports) & set(other.ports), f"a port of {held.address} is given twice"
        if one.namespace != other.namespace:
            assert {other.namespace, "*"} & set(one.sharing_namespaces)
            assert {one.namespace, "*"} & set(other.sharing_namespaces)
        assert one.is_local == other.is_local
        assert not one.is_local or one.selector == other.selector != {}
