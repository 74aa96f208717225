"""Each field that a CiliumNetworkPolicy can have, and each thing that policies are known for: what it does here, or
with which words it is refused. A field without a row fails, and so does a row without a field."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import pytest

from bus.messages.resources import Policy, PortRange, Rule
from services.resources.manifests.cilium_schema import CIDRGroupSpec, RuleSpec
from services.resources.manifests.strict import Schema
from tests.unit.resources.manifests import cidr_group, cilium, clusterwide, message, problems

HELD_BACK = "{} in place of the whole entry"


@dataclass(frozen=True)
class Does:
    """A rule with this body is taken, and the claim holds of it."""

    body: str
    claim: Callable[[Policy], bool]


@dataclass(frozen=True)
class Refused:
    """A rule with this body is refused: at this place, with these words."""

    body: str
    path: str
    words: str


def first(policy: Policy) -> Rule:
    return (policy.rules or policy.denies)[0]


def ingress(entry: str) -> str:
    return f"ingress: [{{{entry}}}]"


def egress(entry: str) -> str:
    return f"egress: [{{{entry}}}]"


def to_port(port: str, more: str = "") -> str:
    return ingress(f"toPorts: [{{ports: [{{{port}}}]{more}}}]")


def l7(rules: str) -> str:
    return to_port('port: "80", protocol: TCP', f", rules: {{{rules}}}")


def keys(policy: Policy) -> list[str]:
    selector = first(policy).peers[0].selector
    return [each.key for each in selector.requirements] if selector else []


def is_port(**wanted: typing.Any) -> Callable[[Policy], bool]:
    return lambda policy: first(policy).ports == [PortRange(**wanted)]


IN0, OUT0 = "spec.ingress[0]", "spec.egress[0]"
PORT0 = f"{IN0}.toPorts[0]"
APP = "{matchLabels: {app: a}}"
BY_CIDR = "fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]"
BY_SERVICE = "toServices: [{k8sService: {serviceName: web, namespace: default}}]"
BY_SERVICES = "toServices: [{k8sServiceSelector: {selector: {matchLabels: {a: b}}, namespace: default}}]"
ICMP = "icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]"
HTTP = Refused(l7("http: [{path: /a, method: GET, host: b, headers: [a]}]"), f"{PORT0}.rules.http", HELD_BACK)
MATCH = Refused(
    l7("http: [{headerMatches: [{name: a, value: b, mismatch: LOG, secret: {name: s, namespace: n}}]}]"),
    f"{PORT0}.rules.http",
    HELD_BACK,
)
NAMES = Refused(egress("toFQDNs: [{matchName: a.b}, {matchPattern: '*.b'}]"), f"{OUT0}.toFQDNs", HELD_BACK)

FIELDS: dict[str, Does | Refused] = {
    "RuleSpec.endpointSelector": Does(
        f"endpointSelector: {APP}, ingress: [{{}}]", lambda p: len(p.subject.requirements) == 2
    ),
    "RuleSpec.nodeSelector": Refused("nodeSelector: {}, ingress: [{}]", "spec.nodeSelector", "no rule protects a node"),
    "RuleSpec.ingress": Does("ingress: [{}]", lambda p: p.deny_ingress_by_default and not p.rules),
    "RuleSpec.egress": Does("egress: [{}]", lambda p: p.deny_egress_by_default and not p.rules),
    "RuleSpec.ingressDeny": Does("ingressDeny: [{fromEntities: [all]}]", lambda p: p.denies[0].direction == "ingress"),
    "RuleSpec.egressDeny": Does("egressDeny: [{toEntities: [all]}]", lambda p: p.denies[0].direction == "egress"),
    "RuleSpec.enableDefaultDeny": Does(
        "ingressDeny: [{fromEntities: [all]}], enableDefaultDeny: {}", lambda p: p.deny_ingress_by_default
    ),
    "RuleSpec.log": Does("ingress: [{}], log: {value: a}", lambda p: "spec.log.value: is taken" in p.warnings[0]),
    "EnableDefaultDeny.ingress": Does(
        "ingressDeny: [{fromEntities: [all]}], enableDefaultDeny: {ingress: false}",
        lambda p: not p.deny_ingress_by_default,
    ),
    "EnableDefaultDeny.egress": Does("enableDefaultDeny: {egress: true}", lambda p: p.deny_egress_by_default),
    "Log.value": Refused("ingress: [{}], log: {value: '" + "a" * 33 + "'}", "spec.log.value", "at most 32"),
    "CiliumSelector.matchLabels": Does(ingress(f"fromEndpoints: [{APP}]"), lambda p: "k8s:app" in keys(p)),
    "CiliumSelector.matchExpressions": Does(
        ingress("fromEndpoints: [{matchExpressions: [{key: a, operator: Exists}]}]"), lambda p: "k8s:a" in keys(p)
    ),
    **dict.fromkeys(
        ("CiliumExpression.key", "CiliumExpression.operator", "CiliumExpression.values"),
        Does(
            ingress("fromEndpoints: [{matchExpressions: [{key: 'any:a', operator: NotIn, values: [b]}]}]"),
            lambda p: "k8s:a" in keys(p),
        ),
    ),
    "IngressSection.fromEndpoints": Does(
        ingress("fromEndpoints: [{}]"), lambda p: keys(p) == ["k8s:io.kubernetes.pod.namespace"]
    ),
    "IngressSection.fromEntities": Does(
        ingress("fromEntities: [world]"), lambda p: first(p).peers[0].entity == "world"
    ),
    "IngressSection.fromCIDR": Does(ingress("fromCIDR: [10.0.0.1]"), lambda p: first(p).peers[0].cidr == "10.0.0.1/32"),
    "IngressSection.fromCIDRSet": Does(ingress(BY_CIDR), lambda p: first(p).peers[0].cidr == "10.0.0.0/8"),
    "IngressSection.fromRequires": Refused(
        ingress(f"fromEndpoints: [{{}}], fromRequires: [{APP}]"), f"{IN0}.fromRequires", "into each selector"
    ),
    "IngressSection.fromGroups": Refused(ingress("fromGroups: [{}]"), f"{IN0}.fromGroups", HELD_BACK),
    "IngressSection.fromNodes": Refused(ingress("fromNodes: [{}]"), f"{IN0}.fromNodes", HELD_BACK),
    "IngressSection.toPorts": Does(to_port('port: "80"'), is_port(protocol="ANY", port=80)),
    "IngressSection.icmps": Does(ingress(ICMP), is_port(protocol="ICMPv6", port=129)),
    "IngressSection.authentication": Refused(
        ingress("fromEndpoints: [{}], authentication: {mode: required}"), f"{IN0}.authentication", HELD_BACK
    ),
    "EgressSection.toEndpoints": Does(egress(f"toEndpoints: [{APP}]"), lambda p: "k8s:app" in keys(p)),
    "EgressSection.toEntities": Does(egress("toEntities: [host]"), lambda p: first(p).peers[0].entity == "host"),
    "EgressSection.toCIDR": Does(egress("toCIDR: ['fd00::/8']"), lambda p: first(p).peers[0].cidr == "fd00::/8"),
    "EgressSection.toCIDRSet": Does(
        egress("toCIDRSet: [{cidrGroupRef: office}]"), lambda p: first(p).peers[0].cidr_group == "office"
    ),
    "EgressSection.toRequires": Refused(
        egress(f"toEndpoints: [{{}}], toRequires: [{APP}]"), f"{OUT0}.toRequires", "into each selector"
    ),
    "EgressSection.toGroups": Refused(egress("toGroups: [{}]"), f"{OUT0}.toGroups", HELD_BACK),
    "EgressSection.toNodes": Refused(egress("toNodes: [{}]"), f"{OUT0}.toNodes", HELD_BACK),
    "EgressSection.toServices": Does(egress(BY_SERVICE), lambda p: first(p).peers[0].services is not None),
    "EgressSection.toFQDNs": NAMES,
    "EgressSection.toPorts": Does(egress("toPorts: [{ports: [{port: dns}]}]"), is_port(protocol="ANY", name="dns")),
    "EgressSection.icmps": Does(egress("icmps: [{fields: [{type: '8'}]}]"), is_port(protocol="ICMP", port=9)),
    "EgressSection.authentication": Refused(
        egress("toEndpoints: [{}], authentication: {mode: required}"), f"{OUT0}.authentication", HELD_BACK
    ),
    "CIDRRule.cidr": Does(ingress(BY_CIDR), lambda p: first(p).peers[0].cidr == "10.0.0.0/8"),
    "CIDRRule.cidrGroupRef": Does(
        ingress("fromCIDRSet: [{cidrGroupRef: office}]"), lambda p: first(p).peers[0].cidr_group == "office"
    ),
    "CIDRRule.cidrGroupSelector": Does(
        ingress("fromCIDRSet: [{cidrGroupSelector: {}}]"), lambda p: first(p).peers[0].cidr_groups is not None
    ),
    "CIDRRule.except": Does(ingress(BY_CIDR), lambda p: first(p).peers[0].except_cidrs == ["10.1.0.0/16"]),
    "Selector.matchLabels": Does(egress(BY_SERVICES), lambda p: "a" in str(first(p).peers[0].services)),
    **dict.fromkeys(
        ("Selector.matchExpressions", "Expression.key", "Expression.operator", "Expression.values"),
        Does(
            ingress("fromCIDRSet: [{cidrGroupSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}}]"),
            lambda p: "values=['b']" in str(first(p).peers[0].cidr_groups),
        ),
    ),
    "PortRule.ports": Does(
        ingress('toPorts: [{ports: [{port: "1"}, {port: "2"}]}, {ports: [{port: "3"}]}]'),
        lambda p: [each.port for each in first(p).ports] == [1, 2, 3],
    ),
    "PortRule.rules": Does(l7(""), is_port(protocol="TCP", port=80)),
    "PortRule.serverNames": Refused(
        to_port('port: "443", protocol: TCP', ", serverNames: [a.b]"), f"{PORT0}.serverNames", HELD_BACK
    ),
    "PortRule.terminatingTLS": Refused(
        to_port('port: "443", protocol: TCP', ", terminatingTLS: {}"), f"{PORT0}.terminatingTLS", HELD_BACK
    ),
    "PortRule.originatingTLS": Refused(
        to_port('port: "443", protocol: TCP', ", originatingTLS: {}"), f"{PORT0}.originatingTLS", HELD_BACK
    ),
    "PortRule.listener": Refused(
        to_port('port: "443", protocol: TCP', ", listener: {name: a}"), f"{PORT0}.listener", HELD_BACK
    ),
    "PortProtocol.port": Does(to_port('port: "0", protocol: UDP'), is_port(protocol="UDP")),
    "PortProtocol.endPort": Does(
        to_port('port: "80", endPort: 89, protocol: SCTP'), is_port(protocol="SCTP", port=80, end_port=89)
    ),
    "PortProtocol.protocol": Does(to_port('port: "80", protocol: tcp'), is_port(protocol="TCP", port=80)),
    "L7Rules.http": HTTP,
    "L7Rules.dns": Refused(l7("dns: [{matchName: a.b}]"), f"{PORT0}.rules.dns", HELD_BACK),
    "L7Rules.kafka": Refused(l7("kafka: [{}]"), f"{PORT0}.rules.kafka", HELD_BACK),
    "L7Rules.l7": Refused(l7("l7: [{}]"), f"{PORT0}.rules.l7", HELD_BACK),
    "L7Rules.l7proto": Refused(l7("l7proto: a"), f"{PORT0}.rules.l7proto", HELD_BACK),
    **dict.fromkeys([f"HTTPRule.{each}" for each in ("path", "method", "host", "headers")], HTTP),
    **dict.fromkeys(
        ["HTTPRule.headerMatches", *(f"HeaderMatch.{each}" for each in ("name", "value", "mismatch", "secret"))], MATCH
    ),
    **dict.fromkeys(("SecretName.name", "SecretName.namespace"), MATCH),
    **dict.fromkeys(("DNSRule.matchName", "DNSRule.matchPattern"), NAMES),
    "ICMPRule.fields": Does(
        ingress("icmps: [{fields: [{type: 3}, {type: 11}]}]"),
        lambda p: [each.port for each in first(p).ports] == [4, 12],
    ),
    "ICMPField.family": Does(ingress(ICMP), is_port(protocol="ICMPv6", port=129)),
    "ICMPField.type": Does(ingress("icmps: [{fields: [{type: EchoReply}]}]"), is_port(protocol="ICMP", port=1)),
    **dict.fromkeys(
        ("ServiceRule.k8sService", "ServiceName.serviceName", "ServiceName.namespace"),
        Does(egress(BY_SERVICE), lambda p: "name='web', namespace='default'" in str(first(p).peers[0].services)),
    ),
    **dict.fromkeys(
        ("ServiceRule.k8sServiceSelector", "ServiceSelector.selector", "ServiceSelector.namespace"),
        Does(egress(BY_SERVICES), lambda p: "namespace='default'" in str(first(p).peers[0].services)),
    ),
    "CIDRGroupSpec.externalCIDRs": Does(cidr_group("10.0.0.0/8"), lambda group: "10.0.0.0/8" in str(group)),
}

BESIDE: dict[str, Does | Refused] = {
    "a namespace by its labels": Does(
        ingress("fromEndpoints: [{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': a}}]"),
        lambda p: keys(p) == ["k8s:io.cilium.k8s.namespace.labels.team"],
    ),
    "a service account": Does(
        ingress("fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: a}}]"),
        lambda p: "k8s:io.cilium.k8s.policy.serviceaccount" in keys(p),
    ),
    "the API server": Does(
        egress("toEntities: [kube-apiserver]"), lambda p: first(p).peers[0].entity == "kube-apiserver"
    ),
    "health": Does(ingress("fromEntities: [health]"), lambda p: first(p).peers[0].entity == "health"),
    "an entity by its label": Does(
        ingress("fromEndpoints: [{matchLabels: {'reserved:world': ''}}]"), lambda p: first(p).peers[0].entity == "world"
    ),
    "a network by its label": Does(
        ingress("fromEndpoints: [{matchLabels: {'cidr:10.0.0.0/8': ''}}]"),
        lambda p: (first(p).peers[0].cidr, first(p).peers[0].selector) == ("10.0.0.0/8", None),
    ),
    "a network of IPv6 by its label": Does(
        egress("toEndpoints: [{matchExpressions: [{key: 'cidr:fd00--/8', operator: Exists}]}]"),
        lambda p: first(p).peers[0].cidr == "fd00::/8",
    ),
    "a group of networks by its label": Does(
        ingress("fromEndpoints: [{matchLabels: {'cidrgroup:io.cilium.policy.cidrgroupname/office': ''}}]"),
        lambda p: first(p).peers[0].cidr_group == "office",
    ),
    "a network by its label and something else": Refused(
        ingress("fromEndpoints: [{matchLabels: {'cidr:10.0.0.0/8': '', app: a}}]"),
        f"{IN0}.fromEndpoints[0]",
        HELD_BACK,
    ),
    "no network by its label": Refused(
        ingress("fromEndpoints: [{matchExpressions: [{key: 'cidr:10.0.0.0/8', operator: DoesNotExist}]}]"),
        f"{IN0}.fromEndpoints[0]",
        HELD_BACK,
    ),
    "what is no network as its label": Refused(
        ingress("fromEndpoints: [{matchLabels: {'cidr:10.0.0.0/33': ''}}]"), f"{IN0}.fromEndpoints[0]", "10.0.0.0/33"
    ),
    "a group without a name": Refused(
        ingress("fromEndpoints: [{matchLabels: {'cidrgroup:office': ''}}]"), f"{IN0}.fromEndpoints[0]", "names no group"
    ),
    "a policy for networks": Refused(
        "endpointSelector: {matchLabels: {'cidr:10.0.0.0/8': ''}}, ingress: [{}]",
        "spec.endpointSelector",
        "selects a network",
    ),
    "nodes by their labels": Refused(
        ingress("fromEndpoints: [{matchLabels: {'node:zone': a}}]"),
        f"{IN0}.fromEndpoints[0].matchLabels[node:zone]",
        "nodes are not told apart by labels yet",
    ),
    "a source that is none": Refused(
        ingress("fromEndpoints: [{matchLabels: {'fqdn:a': b}}]"),
        f"{IN0}.fromEndpoints[0].matchLabels[fqdn:a]",
        'the source "fqdn"',
    ),
    **{
        f"protocol {each}": Refused(
            to_port(f'port: "0", protocol: {each}'), f"{PORT0}.ports[0].protocol", f"{each} is not supported yet"
        )
        for each in ("VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH")
    },
}


def fields_of(schema: type[Schema], known: set[type[Schema]]) -> Iterator[str]:
    if schema in known:
        return
    known.add(schema)
    hints = typing.get_type_hints(schema)
    for field in msgspec.structs.fields(schema):
        yield f"{schema.__name__}.{field.encode_name}"
        for inner in schemas_in(hints[field.name]):
            yield from fields_of(inner, known)


def schemas_in(found: object) -> Iterator[type[Schema]]:
    for inner in typing.get_args(found):
        yield from schemas_in(inner)
    if isinstance(found, type) and issubclass(found, Schema):
        yield found


def test_each_field_has_a_row_and_each_row_a_field() -> None:
    known: set[type[Schema]] = set()
    assert {*fields_of(RuleSpec, known), *fields_of(CIDRGroupSpec, known)} == FIELDS.keys()


def manifest(row: Does | Refused) -> str:
    if row.body.startswith("\n"):
        return row.body
    return cilium(row.body).replace(
        "endpointSelector: {}, ", "" if "endpointSelector" in row.body else "endpointSelector: {}, "
    )


@pytest.mark.parametrize("name", [*FIELDS, *BESIDE])
def test_it_does_what_is_said_or_is_refused_by_name(name: str) -> None:
    row = (FIELDS | BESIDE)[name]
    if isinstance(row, Does):
        assert row.claim(message(manifest(row)))
    else:
        found = problems(manifest(row))
        assert row.words in found.get(row.path, ""), found


@pytest.mark.parametrize("name", [name for name, row in FIELDS.items() if not row.body.startswith("\n")])
def test_a_clusterwide_policy_has_the_same_fields(name: str) -> None:
    row = FIELDS[name]
    if "endpointSelector" in row.body:
        return
    if isinstance(row, Does):
        assert isinstance(message(clusterwide(row.body)), Policy)
    else:
        assert row.words in problems(clusterwide(row.body)).get(row.path, "")


def test_a_policy_that_is_to_be_tried_only_is_refused_and_not_enforced() -> None:
    staged = cilium(ingress("")).replace("metadata: {", "metadata: {annotations: {plexus.io/stage: 'true'}, ")
    assert "it would be enforced" in problems(staged)["metadata.annotations[plexus.io/stage]"]
    assert not problems(staged.replace("'true'", "'false'"))
