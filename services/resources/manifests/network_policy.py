"""networking.k8s.io/v1 NetworkPolicy -> `Policy`.

What it means, from the Kubernetes documentation ("Network Policies" and the API reference of NetworkPolicySpec):
- `podSelector` is within the policy's namespace; `{}` selects every pod there.
- `policyTypes` absent or empty: Ingress always, Egress when `egress` has rules. A direction that is listed is denied by
  default for the selected pods. Rules of a direction that is not listed do nothing.
- A rule with `from` absent or empty is open to everyone, the outside too. `ports` absent or empty: every port.
- A peer is pods (of the policy's namespace, or of `namespaceSelector`'s), or all pods of the selected namespaces.
- `ipBlock` is what has an address there and is neither a pod nor a node; `except` is not.
- A port without `port` is every port of its protocol; the default protocol is TCP.
"""

from __future__ import annotations

from typing import Any

from bus.labels import NAMESPACE, NAMESPACE_LABELS
from bus.messages.resources import Peer, Policy, PortRange, Requirement, Rule
from bus.subjects import POLICY
from services.resources.manifests import words
from services.resources.manifests.meta import Key, Manifest, Resource
from services.resources.manifests.selectors import (
    Selector,
    exists,
    is_in,
    read_selector,
    selector_of,
)
from services.resources.manifests.strict import Problems, Schema, joined, nearest


class IPBlock(Schema, frozen=True, kw_only=True):
    cidr: str
    except_: list[str] = []


class NetworkPeer(Schema, frozen=True, kw_only=True):
    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: IPBlock | None = None


class NetworkPort(Schema, frozen=True, kw_only=True):
    protocol: str = "TCP"
    port: int | str | None = None
    end_port: int | None = None


class IngressRule(Schema, frozen=True, kw_only=True):
    ports: list[NetworkPort] = []
    from_: list[NetworkPeer] = []


class EgressRule(Schema, frozen=True, kw_only=True):
    ports: list[NetworkPort] = []
    to: list[NetworkPeer] = []


class NetworkPolicySpec(Schema, frozen=True, kw_only=True):
    pod_selector: Selector = Selector()
    policy_types: list[str] = []
    ingress: list[IngressRule] = []
    egress: list[EgressRule] = []


class NetworkPolicy(Manifest, frozen=True, kw_only=True):
    spec: NetworkPolicySpec


def read_network_policy(
    manifest: NetworkPolicy, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    spec = manifest.spec
    directions = _directions(spec, problems)
    own = is_in(NAMESPACE, key.namespace)
    subject = selector_of([own, *read_selector(spec.pod_selector, "spec.podSelector", problems, "k8s:")])
    rules = []
    for index, ingress in enumerate(spec.ingress):
        where = f"spec.ingress[{index}]"
        peers = [_peer(peer, own, f"{where}.from[{at}]", problems) for at, peer in enumerate(ingress.from_)]
        ports = [_port(port, f"{where}.ports[{at}]", problems) for at, port in enumerate(ingress.ports)]
        rules.append(Rule(direction="ingress", peers=peers, any_peer=not peers, ports=ports))
    for index, egress in enumerate(spec.egress):
        where = f"spec.egress[{index}]"
        peers = [_peer(peer, own, f"{where}.to[{at}]", problems) for at, peer in enumerate(egress.to)]
        ports = [_port(port, f"{where}.ports[{at}]", problems) for at, port in enumerate(egress.ports)]
        rules.append(Rule(direction="egress", peers=peers, any_peer=not peers, ports=ports))
    for direction in ("ingress", "egress"):
        is_there = raw["spec"].get(direction) is not None
        if is_there and direction not in directions:
            listed = direction.capitalize()
            text = f"means nothing while policyTypes does not list {listed}: {direction} stays as it is"
            problems.warn(f"spec.{direction}", text)
    policy = Policy(
        kind="NetworkPolicy",
        namespace=key.namespace,
        name=key.name,
        subject=subject,
        rules=[rule for rule in rules if rule.direction in directions],
        deny_ingress_by_default="ingress" in directions,
        deny_egress_by_default="egress" in directions,
        manifest=raw,
    )
    return Resource(key, source, ((POLICY.of(key.kind, key.namespace, key.name), policy),))


def _directions(spec: NetworkPolicySpec, problems: Problems) -> set[str]:
    for index, each in enumerate(spec.policy_types):
        if each not in ("Ingress", "Egress"):
            hint = nearest(each, ("Ingress", "Egress"))
            problems.add(f"spec.policyTypes[{index}]", f'"{each}" is not a policy type; use Ingress or Egress{hint}')
    if spec.policy_types:
        return {each.lower() for each in spec.policy_types}
    return {"ingress", "egress"} if spec.egress else {"ingress"}


def _peer(peer: NetworkPeer, own_namespace: Requirement, path: str, problems: Problems) -> Peer:
    if peer.ip_block is not None:
        return _ip_block(peer, path, problems)
    if peer.pod_selector is None and peer.namespace_selector is None:
        problems.add(path, "is empty; give podSelector, namespaceSelector or both ({} selects all)")
        return Peer()
    requirements: list[Requirement] = []
    if peer.namespace_selector is None:
        requirements.append(own_namespace)
    else:
        requirements.append(exists(NAMESPACE))  # pods only: the outside and nodes have no namespace
        where = joined(path, "namespaceSelector")
        requirements += read_selector(peer.namespace_selector, where, problems, NAMESPACE_LABELS)
    if peer.pod_selector is not None:
        requirements += read_selector(peer.pod_selector, joined(path, "podSelector"), problems, "k8s:")
    return Peer(selector=selector_of(requirements))


def _ip_block(peer: NetworkPeer, path: str, problems: Problems) -> Peer:
    where = joined(path, "ipBlock")
    assert peer.ip_block is not None
    block = peer.ip_block
    if peer.pod_selector is not None or peer.namespace_selector is not None:
        problems.add(where, "stands beside a selector; make it a peer of its own")
        return Peer()
    wrong = words.cidr(block.cidr)
    problems.add_if(joined(where, "cidr"), wrong)
    for index, text in enumerate(block.except_):
        problems.add_if(
            f"{where}.except[{index}]", words.cidr(text) if wrong else words.excluded_cidr(text, block.cidr)
        )
    return Peer(cidr=words.plain_cidr(block.cidr), except_cidrs=sorted(map(words.plain_cidr, block.except_)))


def _port(port: NetworkPort, path: str, problems: Problems) -> PortRange:
    unknown = words.protocol(port.protocol)
    if unknown:
        problems.add(joined(path, "protocol"), unknown)
        return PortRange()
    protocol: Any = port.protocol
    if port.end_port is not None and not isinstance(port.port, int):
        problems.add(joined(path, "endPort"), "needs a port number to start from; give port as a number")
    if port.port is None:
        return PortRange(protocol=protocol)
    if isinstance(port.port, str):
        problems.add_if(joined(path, "port"), words.port_name(port.port))
        return PortRange(protocol=protocol, name=port.port)
    problems.add_if(joined(path, "port"), words.port_number(port.port))
    if port.end_port is None:
        return PortRange(protocol=protocol, port=port.port)
    wrong = words.port_number(port.end_port)
    if wrong is None and port.end_port < port.port:
        wrong = f"{port.end_port} is below port {port.port}"
    problems.add_if(joined(path, "endPort"), wrong)
    return PortRange(protocol=protocol, port=port.port, end_port=port.end_port if port.end_port > port.port else 0)
