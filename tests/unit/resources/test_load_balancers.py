"""What a Service of type LoadBalancer asks for: what is read, refused, and kept."""

from __future__ import annotations

import pytest

from bus.messages.resources import LoadBalancerRequest, Service
from bus.subjects import SERVICE
from tests.unit.resources.cluster import Cluster
from tests.unit.resources.manifests import message, problems, service

IPS, OLD_IPS = "lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips"


def balancer(spec: str = "", annotations: str = "", name: str = "svc") -> str:
    metadata = f", annotations: {{{annotations}}}" if annotations else ""
    return service(f"type: LoadBalancer, ports: [{{port: 80}}]{spec and ', '}{spec}", name, metadata)


def test_a_service_asks_for_addresses_in_every_spelling() -> None:
    found = message(balancer("loadBalancerIP: 10.0.0.9", f'{IPS}: "10.0.0.1, FD00:0::1,10.0.0.9"'))
    assert found.type == "LoadBalancer"
    assert found.load_balancer == LoadBalancerRequest(addresses=["10.0.0.9", "10.0.0.1", "fd00::1"])
    assert message(balancer("", f"{OLD_IPS}: 10.0.0.1")).load_balancer.addresses == ["10.0.0.1"]
    assert message(balancer()).load_balancer == LoadBalancerRequest()
    assert message(service()).load_balancer is None


@pytest.mark.parametrize("head", ["lbipam.cilium.io/", "io.cilium/lb-ipam-"])
def test_a_service_says_with_whom_it_shares(head: str) -> None:
    found = message(
        balancer("loadBalancerClass: io.cilium/l2-announcer",
                 f'{head}sharing-key: k, {head}sharing-cross-namespace: "b, a"')
    )  # fmt: skip
    assert found.load_balancer == LoadBalancerRequest(
        load_balancer_class="io.cilium/l2-announcer", sharing_key="k", sharing_namespaces=["a", "b"]
    )
    assert message(balancer("", f'{head}sharing-cross-namespace: "*"')).load_balancer.sharing_namespaces == ["*"]


@pytest.mark.parametrize(
    ("text", "path", "problem"),
    [
        (balancer("loadBalancerIP: ten"), "spec.loadBalancerIP", "is not an IP address"),
        (balancer("loadBalancerIP: 127.0.0.1"), "spec.loadBalancerIP", "loopback"),
        (balancer("", f"{IPS}: ten"), f"metadata.annotations[{IPS}]", "is not an IP address"),
        (balancer("", f"{IPS}: 10.0.0.1, {OLD_IPS}: 10.0.0.2"), f"metadata.annotations[{OLD_IPS}]", "mean the same"),
        (balancer("", "lbipam.cilium.io/sharing-cross-namespace: A_b"),
         "metadata.annotations[lbipam.cilium.io/sharing-cross-namespace]", "is not"),
        (balancer("", "lbipam.cilium.io/other: x"), "metadata.annotations[lbipam.cilium.io/other]", "not supported"),
        (balancer("loadBalancerClass: a b"), "spec.loadBalancerClass", "is not"),
        (service("ports: [{port: 80}], loadBalancerIP: 10.0.0.1"), "spec.loadBalancerIP", "for the type LoadBalancer"),
        (service("ports: [{port: 80}], loadBalancerClass: a"), "spec.loadBalancerClass", "for the type LoadBalancer"),
    ],
)  # fmt: skip
def test_what_a_service_may_not_ask_for_is_refused(text: str, path: str, problem: str) -> None:
    assert problem in problems(text)[path]


def test_a_load_balancer_has_a_cluster_address_too(cluster: Cluster) -> None:
    plan = cluster.do(cluster.plan(balancer("externalTrafficPolicy: Cluster")))
    assert cluster.address() and not plan.warnings


def test_a_service_becomes_a_load_balancer_and_keeps_its_class(cluster: Cluster) -> None:
    cluster.apply(service())
    address = cluster.address()
    cluster.apply(balancer("loadBalancerClass: example.org/a"))
    assert cluster.address() == address
    refused = cluster.refused(balancer("loadBalancerClass: example.org/b"))
    assert "cannot be changed" in refused["spec.loadBalancerClass"]
    assert "spec.loadBalancerClass" in cluster.refused(balancer())
    cluster.apply(service())
    cluster.apply(balancer())
    found = cluster.store.get(SERVICE.of("default", "svc"))
    assert isinstance(found, Service) and found.load_balancer == LoadBalancerRequest()
