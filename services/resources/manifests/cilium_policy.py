"""cilium.io/v2 CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy -> `Policy`, one for each rule (`spec`, and every
entry of `specs`); CiliumCIDRGroup -> `CIDRGroup`.

What it means, from Cilium's documentation ("Policy Enforcement Modes", "Layer 3/4 policies", "Kubernetes constructs in
policy") and the behaviour of its rule checks (pkg/policy/api, pkg/k8s/apis/cilium.io/utils):
- `endpointSelector` is within the policy's namespace; `{}` selects every pod there. Of a clusterwide policy it is in
  all namespaces.
- A direction is denied by default for the selected pods when its list, of what is allowed or of what is denied, has an
  entry: `ingress: []` changes nothing, `ingress: [{}]` denies all, for an entry without peers and ports allows nothing.
  `enableDefaultDeny` overrides.
  A rule that does none of denying by default, allowing and denying is refused: its author believes in one of them.
- An entry of `ingressDeny` and `egressDeny` denies its peers its ports, whatever this or another policy allows. The
  node itself reaches its pods all the same: it starts, probes and stops them.
- An entry allows its peers on its ports. No peers named: everyone, on the ports. No ports: every port, for the peers.
- A list of peers that is there but empty (`fromEndpoints: []`) selects nobody: the entry allows nothing.
- A selector in from/toEndpoints means the policy's namespace, unless it names one (k8s:io.kubernetes.pod.namespace) or
  namespaces by their labels. `{}` is every pod of the policy's namespace; of a clusterwide policy, every pod.
- A label of the source "reserved" is what entities are called by: alone in a selector it is that entity.
- A CIDR is what has an address there and is neither a pod nor a node. A CIDRGroup that is not there has no networks.
- A Service is whoever is behind it: the pods that its selector selects, else the addresses in its EndpointSlices. One
  that names no namespace is every Service of that name or those labels.
- Different kinds of peers are not combined in one entry; ports and ICMP types neither.
- A label of the source "cidr" or "cidrgroup", alone in a selector of peers, is that network or that CIDRGroup.
- Port "0" is every port of the protocol. Protocol ANY, the default, is TCP, UDP and SCTP.

Stricter than Cilium, which corrects in silence or takes without effect: an endpointSelector that names another
namespace, an entry of toPorts without ports, and one of icmps without fields are refused.

What is not supported yet is refused with words that lead nobody to allow more than he meant: a peer, a deny rule or a
condition that is only removed leaves an entry that is open to more; and the last entry, removed, takes the default deny
of its direction with it. `{}` in its place allows nothing and keeps that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bus.labels import NAMESPACE, selects
from bus.messages import Message
from bus.messages.resources import CIDRGroup, Peer, Policy, PortRange, Protocol, Requirement, Rule, ServicePeer
from bus.subjects import CIDR_GROUP, POLICY
from services.resources.manifests import words
from services.resources.manifests.above_transport import check_dns, refuse_above_transport
from services.resources.manifests.cilium_schema import (
    CIDRRule,
    CiliumCIDRGroup,
    CiliumNetworkPolicy,
    EgressSection,
    ICMPField,
    ICMPRule,
    IngressSection,
    PortProtocol,
    PortRule,
    RuleSpec,
    ServiceRule,
)
from services.resources.manifests.meta import Key, Resource
from services.resources.manifests.selectors import (
    GROUP_NAME,
    NETWORK_LABELS,
    RESERVED_LABEL,
    CiliumSelector,
    exists,
    is_in,
    names_a_namespace,
    read_cilium_selector,
    read_selector,
    selector_of,
)
from services.resources.manifests.strict import Problems, joined, nearest

ENTITIES = (
    "all",
    "cluster",
    "health",
    "host",
    "init",
    "kube-apiserver",
    "remote-node",
    "unmanaged",
    "world",
    "world-ipv4",
    "world-ipv6",
)
NOBODY = {"none": "", "cluster-mesh": "there is no other cluster", "ingress": "there is no ingress proxy"}
"""Entities that nothing is of, and why, where the user may think otherwise."""
PROTOCOLS = (*words.PROTOCOLS, "ANY")
LATER_PROTOCOLS = ("AH", "ESP", "GRE", "IGMP", "IPIP", "IPV6", "VRRP")
INSTEAD = "write {} in place of the whole entry: that allows nothing, and an entry without this field allows more"
OTHERWISE = "leave the policy out, or narrow what other rules allow: without this field the entry denies something else"
MOST_LOGGED = 32  # characters of log.value
MOST_PORTS = 40  # in one entry of toPorts or icmps

ICMP_TYPES = {
    "EchoReply": 0,
    "DestinationUnreachable": 3,
    "Redirect": 5,
    "Echo": 8,
    "EchoRequest": 8,
    "RouterAdvertisement": 9,
    "RouterSelection": 10,
    "TimeExceeded": 11,
    "ParameterProblem": 12,
    "Timestamp": 13,
    "TimestampReply": 14,
    "Photuris": 40,
    "ExtendedEchoRequest": 42,
    "ExtendedEchoReply": 43,
}  # IANA, "Internet Control Message Protocol (ICMP) Parameters"

ICMPV6_TYPES = {
    "DestinationUnreachable": 1,
    "PacketTooBig": 2,
    "TimeExceeded": 3,
    "ParameterProblem": 4,
    "EchoRequest": 128,
    "EchoReply": 129,
    "MulticastListenerQuery": 130,
    "MulticastListenerReport": 131,
    "MulticastListenerDone": 132,
    "RouterSolicitation": 133,
    "RouterAdvertisement": 134,
    "NeighborSolicitation": 135,
    "NeighborAdvertisement": 136,
    "RedirectMessage": 137,
    "RouterRenumbering": 138,
    "ICMPNodeInformationQuery": 139,
    "ICMPNodeInformationResponse": 140,
    "InverseNeighborDiscoverySolicitation": 141,
    "InverseNeighborDiscoveryAdvertisement": 142,
    "HomeAgentAddressDiscoveryRequest": 144,
    "HomeAgentAddressDiscoveryReply": 145,
    "MobilePrefixSolicitation": 146,
    "MobilePrefixAdvertisement": 147,
    "DuplicateAddressRequestCodeSuffix": 157,
    "DuplicateAddressConfirmationCodeSuffix": 158,
    "ExtendedEchoRequest": 160,
    "ExtendedEchoReply": 161,
}  # IANA, "Internet Control Message Protocol version 6 (ICMPv6) Parameters"

ICMP: Mapping[str, tuple[Protocol, Mapping[str, int]]] = {
    "IPv4": ("ICMP", ICMP_TYPES),
    "IPv6": ("ICMPv6", ICMPV6_TYPES),
}
"""Family -> its protocol, and the types that have names."""


def read_cilium_policy(
    manifest: CiliumNetworkPolicy, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    """The first rule is said under the policy's name and carries the manifest, the others under "name/specs[1]"."""
    rules = [("spec", manifest.spec, raw["spec"])] if manifest.spec is not None else []
    rules += [(f"specs[{at}]", each, raw["specs"][at]) for at, each in enumerate(manifest.specs)]
    if not rules:
        problems.add("spec", "is required, and missing; give spec or specs, for without a rule nothing is denied")
    messages: list[tuple[str, Message]] = []
    for path, spec, raw_spec in rules:
        name = f"{key.name}/{path}" if messages else key.name
        policy = _policy(spec, path, replace(key, name=name), {} if messages else raw, raw_spec, problems)
        messages.append((POLICY.of(key.kind, key.namespace, name), policy))
    return Resource(key, source, tuple(messages))


def read_cidr_group(
    manifest: CiliumCIDRGroup, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    cidrs = set()
    for at, text in enumerate(manifest.spec.external_cidrs):
        wrong = words.cidr(text, bare_address=True)
        problems.add_if(f"spec.externalCIDRs[{at}]", wrong)
        if wrong is None:
            cidrs.add(words.plain_cidr(text))
    group = CIDRGroup(name=key.name, labels=manifest.metadata.labels, cidrs=sorted(cidrs), manifest=raw)
    return Resource(key, source, ((CIDR_GROUP.of(key.name), group),))


def _policy(
    spec: RuleSpec, path: str, key: Key, raw: dict[str, Any], raw_spec: dict[str, Any], problems: Problems
) -> Policy:
    _refuse_unsupported(spec, path, problems)
    deny = spec.enable_default_deny
    denies = _denied(spec, key.namespace, path, problems)
    rules = [_ingress(each, key.namespace, f"{path}.ingress[{at}]", problems) for at, each in enumerate(spec.ingress)]
    rules += [_egress(each, key.namespace, f"{path}.egress[{at}]", problems) for at, each in enumerate(spec.egress)]
    policy = Policy(
        kind=key.kind,
        namespace=key.namespace,
        name=key.name,
        subject=selector_of(_subject(spec, path, key.namespace, problems)),
        rules=[rule for rule in rules if rule is not None],
        deny_ingress_by_default=bool(spec.ingress or spec.ingress_deny) if deny.ingress is None else deny.ingress,
        deny_egress_by_default=bool(spec.egress or spec.egress_deny) if deny.egress is None else deny.egress,
        manifest=raw,
        denies=denies,
    )
    _check_effect(policy, raw_spec, path, problems)
    return policy


def _denied(spec: RuleSpec, namespace: str, path: str, problems: Problems) -> list[Rule]:
    found = Problems()
    rules = [
        *(_ingress(each, namespace, f"{path}.ingressDeny[{at}]", found) for at, each in enumerate(spec.ingress_deny)),
        *(_egress(each, namespace, f"{path}.egressDeny[{at}]", found) for at, each in enumerate(spec.egress_deny)),
    ]
    for at, each in enumerate(spec.ingress_deny):
        if "host" in (each.from_entities or ()):
            where = f"{path}.ingressDeny[{at}].fromEntities"
            found.warn(where, "does nothing for the host: the node itself may always reach its pods")
    for problem in found:
        problems.add(problem.path, problem.text.replace(INSTEAD, OTHERWISE))
    problems.warnings += found.warnings
    return [rule for rule in rules if rule is not None]


def _check_effect(policy: Policy, raw_spec: Mapping[str, Any], path: str, problems: Problems) -> None:
    """An empty list reads like "nothing is allowed" and means "nothing is changed"."""
    denies = {"ingress": policy.deny_ingress_by_default, "egress": policy.deny_egress_by_default}
    empty = [each for each in denies if each in raw_spec and not raw_spec[each] and not denies[each]]
    if any(denies.values()) or policy.rules or policy.denies:
        for direction in empty:
            text = f"is empty and changes nothing, {direction} stays as it is; [{{}}] denies all {direction}"
            problems.warn(joined(path, direction), text)
    else:
        where = joined(path, empty[0]) if len(empty) == 1 else path
        problems.add(
            where,
            "does nothing: it denies no direction by default, allows nothing and denies nothing; "
            "ingress: [{}] denies all ingress, egress: [{}] all egress",
        )


def _subject(spec: RuleSpec, path: str, namespace: str, problems: Problems) -> list[Requirement]:
    if spec.endpoint_selector is None:
        if spec.node_selector is None:
            where = "of the namespace" if namespace else "of the cluster"
            problems.add(f"{path}.endpointSelector", f"is required, and missing; {{}} selects every pod {where}")
        return []
    requirements = read_cilium_selector(spec.endpoint_selector, f"{path}.endpointSelector", problems)
    reserved = [each for each in requirements if each.key.startswith(RESERVED_LABEL)]
    if any(each.key.startswith(NETWORK_LABELS) for each in requirements):
        problems.add(f"{path}.endpointSelector", "selects a network; a policy governs pods, and networks are its peers")
    if any(each.operator in ("In", "Exists") for each in reserved):
        problems.add(
            f"{path}.endpointSelector", "selects a reserved label, which no pod has; no pod is protected by it"
        )
    if not namespace:
        return [*requirements, exists(NAMESPACE)]
    by_name = [each for each in requirements if each.key == NAMESPACE]
    if not selects(selector_of(by_name), {NAMESPACE: namespace}):
        problems.add(
            f"{path}.endpointSelector",
            f'names another namespace; the policy governs pods of its own, "{namespace}", only',
        )
    return [*requirements, is_in(NAMESPACE, namespace)]


def _refuse_unsupported(spec: RuleSpec, path: str, problems: Problems) -> None:
    if spec.node_selector is not None:
        problems.add(f"{path}.nodeSelector", "policies on nodes are not supported yet, no rule protects a node")
        read_cilium_selector(spec.node_selector, f"{path}.nodeSelector", problems)
    value = spec.log.value
    if len(value) > MOST_LOGGED or not value.isprintable():
        problems.add(f"{path}.log.value", f"is not text of at most {MOST_LOGGED} printable characters")
    elif value:
        problems.warn(f"{path}.log.value", "is taken, and not yet told with flows")


def _ingress(section: IngressSection, namespace: str, path: str, problems: Problems) -> Rule | None:
    peers = _Peers(
        "from", section.from_endpoints, section.from_entities, section.from_cidr, section.from_cidr_set,
        {"fromGroups": section.from_groups, "fromNodes": section.from_nodes}, section.from_requires,
    )  # fmt: skip
    return _rule("ingress", section, peers, namespace, path, problems)


def _egress(section: EgressSection, namespace: str, path: str, problems: Problems) -> Rule | None:
    for at, name in enumerate(section.to_fqdns or ()):
        check_dns(name, f"{path}.toFQDNs[{at}]", problems)
    later = {
        "toFQDNs": section.to_fqdns,
        "toGroups": section.to_groups,
        "toNodes": section.to_nodes,
    }
    peers = _Peers(
        "to",
        section.to_endpoints,
        section.to_entities,
        section.to_cidr,
        section.to_cidr_set,
        later,
        section.to_requires,
        section.to_services,
    )
    return _rule("egress", section, peers, namespace, path, problems)


class _Peers(NamedTuple):
    """One entry's peers of either direction. None: not named; an empty list: named, and nobody."""

    prefix: str  # "from" or "to"
    endpoints: list[CiliumSelector] | None
    entities: list[str] | None
    cidr: list[str] | None
    cidr_set: list[CIDRRule] | None
    later: Mapping[str, Sequence[Any] | None]
    requires: list[CiliumSelector] | None
    services: list[ServiceRule] | None = None

    def named(self) -> dict[str, Sequence[Any]]:
        """Field -> entries, of the fields that are there."""
        fields: dict[str, Sequence[Any] | None] = {
            self.prefix + "Endpoints": self.endpoints,
            self.prefix + "Entities": self.entities,
            self.prefix + "CIDR": self.cidr,
            self.prefix + "CIDRSet": self.cidr_set,
            self.prefix + "Services": self.services,
        }
        return {field: entries for field, entries in fields.items() if entries is not None}


def _rule(
    direction: Any,
    section: IngressSection | EgressSection,
    peers: _Peers,
    namespace: str,
    path: str,
    problems: Problems,
) -> Rule | None:
    """The entry as a rule; None when it allows nothing."""
    named = peers.named()
    _check_peers(peers, named, path, problems)
    selected = [
        _endpoint_peer(each, namespace, f"{path}.{peers.prefix}Endpoints[{at}]", problems)
        for at, each in enumerate(peers.endpoints or ())
    ]
    selected += [
        _entity_peer(each, f"{path}.{peers.prefix}Entities[{at}]", problems)
        for at, each in enumerate(peers.entities or ())
    ]
    selected += _networks(peers, path, problems)
    selected += [
        _service_peer(each, f"{path}.{peers.prefix}Services[{at}]", problems)
        for at, each in enumerate(peers.services or ())
    ]
    ports = _ports(section.to_ports, f"{path}.toPorts", problems) + _icmp_types(
        section.icmps, f"{path}.icmps", problems
    )
    if section.to_ports and section.icmps:
        problems.add(f"{path}.icmps", "stands beside toPorts; make it an entry of its own")
    if section.authentication is not None:
        problems.add(f"{path}.authentication", f"authentication is not supported yet; {INSTEAD}")
    somebody_is_empty = any(not entries for entries in named.values())
    if somebody_is_empty or (not named and not ports):
        return None
    return Rule(direction=direction, peers=selected, any_peer=not named, ports=ports)


def _check_peers(peers: _Peers, named: dict[str, Sequence[Any]], path: str, problems: Problems) -> None:
    filled = [field for field, entries in named.items() if entries]
    if len(filled) > 1:
        problems.add(joined(path, filled[1]), f"stands beside {filled[0]}; make it an entry of its own")
    for field, entries in peers.later.items():
        if entries is not None:
            problems.add(joined(path, field), f"is not supported yet; {INSTEAD}")
    for at, each in enumerate(peers.requires or ()):
        where = f"{path}.{peers.prefix}Requires"
        read_cilium_selector(each, f"{where}[{at}]", problems)
        if at == 0:
            problems.add(where, "is not supported yet; put the requirement into each selector")


def _entity_peer(entity: str, path: str, problems: Problems) -> Peer:
    if entity in NOBODY:
        if NOBODY[entity]:
            problems.warn(path, f'"{entity}" is nobody: {NOBODY[entity]}')
        return Peer(entity="none")
    if entity not in ENTITIES:
        known = (*ENTITIES, *NOBODY)
        problems.add(path, f'"{entity}" is not an entity; use one of {", ".join(known)}{nearest(entity, known)}')
    return Peer(entity=entity)


def _service_peer(rule: ServiceRule, path: str, problems: Problems) -> Peer:
    name, selector = rule.k8s_service, rule.k8s_service_selector
    if (name is None) == (selector is None):
        problems.add(path, "must have one of k8sService and k8sServiceSelector")
        return Peer()
    if name is not None:
        where, namespace = joined(path, "k8sService"), name.namespace
        problems.add_if(joined(where, "serviceName"), words.service_name(name.service_name))
        found = ServicePeer(name=name.service_name, namespace=namespace)
    else:
        assert selector is not None
        where, namespace = joined(path, "k8sServiceSelector"), selector.namespace
        wanted = selector_of(read_selector(selector.selector, joined(where, "selector"), problems))
        found = ServicePeer(namespace=namespace, selector=wanted)
    if namespace:
        problems.add_if(joined(where, "namespace"), words.dns_label(namespace))
    else:
        problems.warn(where, "names no namespace, and means Services of every one")
    return Peer(services=found)


def _networks(peers: _Peers, path: str, problems: Problems) -> list[Peer]:
    found = []
    for at, text in enumerate(peers.cidr or ()):
        problems.add_if(f"{path}.{peers.prefix}CIDR[{at}]", words.cidr(text, bare_address=True))
        found.append(Peer(cidr=words.plain_cidr(text)))
    for at, rule in enumerate(peers.cidr_set or ()):
        found.append(_cidr_peer(rule, f"{path}.{peers.prefix}CIDRSet[{at}]", problems))
    return found


def _cidr_peer(rule: CIDRRule, path: str, problems: Problems) -> Peer:
    given = {
        "cidr": bool(rule.cidr),
        "cidrGroupRef": bool(rule.cidr_group_ref),
        "cidrGroupSelector": rule.cidr_group_selector is not None,
    }
    named = [field for field, is_there in given.items() if is_there]
    if len(named) != 1:
        got = f"has {' and '.join(named)}" if named else "says no networks"
        problems.add(path, f"{got}; give one of {', '.join(given)}")
        return Peer()
    wrong = words.cidr(rule.cidr) if rule.cidr else None
    problems.add_if(joined(path, "cidr"), wrong)
    for at, text in enumerate(rule.except_):
        check = words.cidr(text) if wrong or not rule.cidr else words.excluded_cidr(text, rule.cidr)
        problems.add_if(f"{path}.except[{at}]", check)
    groups = None
    if rule.cidr_group_selector is not None:
        where = joined(path, "cidrGroupSelector")
        groups = selector_of(read_selector(rule.cidr_group_selector, where, problems))
    if rule.cidr_group_ref:
        problems.add_if(joined(path, "cidrGroupRef"), words.dns_subdomain(rule.cidr_group_ref))
    return Peer(
        cidr=words.plain_cidr(rule.cidr) if rule.cidr else "",
        cidr_group=rule.cidr_group_ref,
        cidr_groups=groups,
        except_cidrs=sorted(map(words.plain_cidr, rule.except_)),
    )


def _endpoint_peer(selector: CiliumSelector, namespace: str, path: str, problems: Problems) -> Peer:
    requirements = read_cilium_selector(selector, path, problems)
    if any(each.key.startswith(NETWORK_LABELS) for each in requirements):
        return _network_by_label(requirements, path, problems)
    entity = _reserved(requirements, path, problems)
    if entity is not None:
        return _entity_peer(entity, path, problems)
    if not names_a_namespace(requirements):
        requirements.append(is_in(NAMESPACE, namespace) if namespace else exists(NAMESPACE))
    return Peer(selector=selector_of(requirements))


def _reserved(requirements: list[Requirement], path: str, problems: Problems) -> str | None:
    """The entity that a selector is by a label of the source "reserved"; None: it selects pods. Those have none of such
    labels, so that one which must not be there is no condition."""
    wanted = [
        each for each in requirements if each.key.startswith(RESERVED_LABEL) and each.operator in ("In", "Exists")
    ]
    if not wanted:
        return None
    if len(requirements) > 1 or any(value for each in wanted for value in each.values):
        problems.add(path, f"selects a reserved label with something else; {INSTEAD}")
    return wanted[0].key.removeprefix(RESERVED_LABEL)


def _network_by_label(requirements: list[Requirement], path: str, problems: Problems) -> Peer:
    """What a selector of one label of the source "cidr" or "cidrgroup" means: that network, or that group of them."""
    (first, *more) = requirements
    if more or first.operator not in ("In", "Exists") or any(first.values):
        problems.add(path, f"selects a network with something else; {INSTEAD}")
        return Peer()
    if first.key.startswith("cidr:"):
        text = first.key.removeprefix("cidr:").replace("-", ":")  # as keys have addresses of IPv6
        problems.add_if(path, words.cidr(text, bare_address=True))
        return Peer(cidr=words.plain_cidr(text))
    name = first.key.removeprefix(GROUP_NAME)
    if name == first.key:
        problems.add(path, f'"{first.key}" names no group; a CIDRGroup is {GROUP_NAME}NAME')
        return Peer()
    problems.add_if(path, words.dns_subdomain(name))
    return Peer(cidr_group=name)


def _ports(rules: list[PortRule], path: str, problems: Problems) -> list[PortRange]:
    ports = []
    for index, rule in enumerate(rules):
        where = f"{path}[{index}]"
        refuse_above_transport(rule, where, problems, INSTEAD)
        if not rule.ports:
            problems.add(joined(where, "ports"), "is empty; list ports, or leave toPorts out for every port")
        if len(rule.ports) > MOST_PORTS:
            problems.add(joined(where, "ports"), f"has {len(rule.ports)} entries; at most {MOST_PORTS} are allowed")
        ports += [_port(each, f"{where}.ports[{at}]", problems) for at, each in enumerate(rule.ports)]
    return ports


def _port(port: PortProtocol, path: str, problems: Problems) -> PortRange:
    protocol: Any = port.protocol.upper() or "ANY"
    if protocol in ("ICMP", "ICMPV6"):
        problems.add(joined(path, "protocol"), f"{port.protocol} has no ports; use icmps")
    elif protocol in LATER_PROTOCOLS:
        problems.add(joined(path, "protocol"), f"{port.protocol} is not supported yet")
    elif protocol not in PROTOCOLS:
        hint = nearest(protocol, PROTOCOLS)
        problems.add(joined(path, "protocol"), f'"{port.protocol}" is not a protocol; use {", ".join(PROTOCOLS)}{hint}')
    if protocol not in PROTOCOLS:
        return PortRange()
    text = str(port.port)
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", text) is None:
        problems.add_if(joined(path, "port"), words.port_name(text.lower()))
        if port.end_port:
            problems.add(joined(path, "endPort"), "needs a port number to start from; give port as a number")
        return PortRange(protocol=protocol, name=text.lower())
    number = int(text)
    wrong = None if number == 0 else words.port_number(number)
    if wrong is None and isinstance(port.port, int):
        wrong = f'must be text, got the number {number}; write "{number}"'
    problems.add_if(joined(path, "port"), wrong)
    if not port.end_port:
        return PortRange(protocol=protocol, port=number)
    wrong = words.port_number(port.end_port)
    if wrong is None and number == 0:
        wrong = 'stands beside port "0", which is every port; remove it'
    elif wrong is None and port.end_port < number:
        wrong = f"{port.end_port} is below port {number}"
    problems.add_if(joined(path, "endPort"), wrong)
    return PortRange(protocol=protocol, port=number, end_port=port.end_port if port.end_port > number else 0)


def _icmp_types(rules: list[ICMPRule], path: str, problems: Problems) -> list[PortRange]:
    types = []
    for index, rule in enumerate(rules):
        where = f"{path}[{index}].fields"
        if not rule.fields:
            problems.add(where, f"is empty; list ICMP types, or {INSTEAD}")
        if len(rule.fields) > MOST_PORTS:
            problems.add(where, f"has {len(rule.fields)} entries; at most {MOST_PORTS} are allowed")
        types += [_icmp_type(each, f"{where}[{at}]", problems) for at, each in enumerate(rule.fields)]
    return types


def _icmp_type(field: ICMPField, path: str, problems: Problems) -> PortRange:
    """The type as a port: type + 1, so that 0 stays "every"."""
    if field.family not in ICMP:
        hint = nearest(field.family, ICMP)
        problems.add(joined(path, "family"), f'"{field.family}" is not a family; use IPv4 or IPv6{hint}')
        return PortRange()
    protocol, names = ICMP[field.family]
    number = field.type
    if isinstance(number, str) and re.fullmatch(r"0|[1-9][0-9]{0,2}", number):
        number = int(number)
    if isinstance(number, str):
        if number not in names:
            hint = nearest(number, names)
            wrong = f'"{number}" is not an {protocol} type; use 0 to 255, or a name as EchoRequest{hint}'
            problems.add(joined(path, "type"), wrong)
            return PortRange()
        number = names[number]
    if not 0 <= number <= 255:
        problems.add(joined(path, "type"), f"{number} is not an {protocol} type; use 0 to 255")
    return PortRange(protocol=protocol, port=number + 1)
