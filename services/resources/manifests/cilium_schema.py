"""cilium.io/v2 CiliumNetworkPolicy and what goes with it: the fields, all of them, also those that are refused as not
supported yet.

Source: Cilium's documentation, "Network Policy", and its CRD of the kind.
"""

from __future__ import annotations

from typing import Any

from services.resources.manifests.meta import Manifest
from services.resources.manifests.selectors import CiliumSelector, Selector
from services.resources.manifests.strict import Schema, names


class CiliumSchema(Schema, frozen=True, kw_only=True):
    """A custom resource: an API server prunes null, and so do we where the rule without the field is no wider. Where it
    is, null is refused: an absent list of peers means everyone, and an empty one nobody."""


class CIDRRule(CiliumSchema, frozen=True, kw_only=True):
    cidr: str = ""
    cidr_group_ref: str = ""
    cidr_group_selector: Selector | None = None
    except_: list[str] = []
    NULL_IS_REFUSED = names("cidr cidrGroupRef cidrGroupSelector except")


class PortProtocol(CiliumSchema, frozen=True, kw_only=True):
    port: str | int
    end_port: int = 0
    protocol: str = "ANY"
    NULL_IS_REFUSED = names("protocol")


class PortRule(CiliumSchema, frozen=True, kw_only=True):
    ports: list[PortProtocol] = []
    rules: L7Rules | None = None
    server_names: list[str] = []
    terminating_tls: Any = None
    originating_tls: Any = None
    listener: Any = None
    NULL_IS_REFUSED = names("ports rules serverNames terminatingTLS originatingTLS listener")


class SecretName(CiliumSchema, frozen=True, kw_only=True):
    name: str
    namespace: str = ""


class HeaderMatch(CiliumSchema, frozen=True, kw_only=True):
    name: str
    value: str = ""
    mismatch: str = ""
    secret: SecretName | None = None
    NULL_IS_REFUSED = names("value mismatch secret")


class HTTPRule(CiliumSchema, frozen=True, kw_only=True):
    path: str = ""
    method: str = ""
    host: str = ""
    headers: list[str] = []
    header_matches: list[HeaderMatch] = []
    NULL_IS_REFUSED = names("path method host headers headerMatches")


class DNSRule(CiliumSchema, frozen=True, kw_only=True):
    match_name: str = ""
    match_pattern: str = ""
    NULL_IS_REFUSED = names("matchName matchPattern")


class L7Rules(CiliumSchema, frozen=True, kw_only=True):
    http: list[HTTPRule] | None = None
    dns: list[DNSRule] | None = None
    kafka: list[Any] | None = None
    l7: list[Any] | None = None
    l7proto: str = ""
    NULL_IS_REFUSED = names("http dns kafka l7 l7proto")


class ServiceName(CiliumSchema, frozen=True, kw_only=True):
    service_name: str = ""
    namespace: str = ""
    NULL_IS_REFUSED = names("serviceName namespace")


class ServiceSelector(CiliumSchema, frozen=True, kw_only=True):
    selector: Selector
    namespace: str = ""
    NULL_IS_REFUSED = names("selector namespace")


class ServiceRule(CiliumSchema, frozen=True, kw_only=True):
    k8s_service: ServiceName | None = None
    k8s_service_selector: ServiceSelector | None = None
    NULL_IS_REFUSED = names("k8sService k8sServiceSelector")


class ICMPField(CiliumSchema, frozen=True, kw_only=True):
    family: str = "IPv4"
    type: int | str


class ICMPRule(CiliumSchema, frozen=True, kw_only=True):
    fields: list[ICMPField] = []
    NULL_IS_REFUSED = names("fields")


class IngressSection(CiliumSchema, frozen=True, kw_only=True):
    from_endpoints: list[CiliumSelector] | None = None
    from_entities: list[str] | None = None
    from_cidr: list[str] | None = None
    from_cidr_set: list[CIDRRule] | None = None
    from_requires: list[CiliumSelector] | None = None
    from_groups: list[Any] | None = None
    from_nodes: list[CiliumSelector] | None = None
    to_ports: list[PortRule] = []
    icmps: list[ICMPRule] = []
    authentication: Any = None
    NULL_IS_REFUSED = names(
        "fromEndpoints fromEntities fromCIDR fromCIDRSet fromRequires fromGroups fromNodes toPorts icmps authentication"
    )


class EgressSection(CiliumSchema, frozen=True, kw_only=True):
    to_endpoints: list[CiliumSelector] | None = None
    to_entities: list[str] | None = None
    to_cidr: list[str] | None = None
    to_cidr_set: list[CIDRRule] | None = None
    to_requires: list[CiliumSelector] | None = None
    to_groups: list[Any] | None = None
    to_nodes: list[CiliumSelector] | None = None
    to_services: list[ServiceRule] | None = None
    to_fqdns: list[DNSRule] | None = None
    to_ports: list[PortRule] = []
    icmps: list[ICMPRule] = []
    authentication: Any = None
    NULL_IS_REFUSED = names(
        "toEndpoints toEntities toCIDR toCIDRSet toRequires toGroups toNodes toServices toFQDNs toPorts icmps"
        " authentication"
    )


class EnableDefaultDeny(CiliumSchema, frozen=True, kw_only=True):
    ingress: bool | None = None
    egress: bool | None = None


class Log(CiliumSchema, frozen=True, kw_only=True):
    value: str = ""


class RuleSpec(CiliumSchema, frozen=True, kw_only=True):
    endpoint_selector: CiliumSelector | None = None
    node_selector: CiliumSelector | None = None
    ingress: list[IngressSection] = []
    egress: list[EgressSection] = []
    ingress_deny: list[IngressSection] = []
    egress_deny: list[EgressSection] = []
    enable_default_deny: EnableDefaultDeny = EnableDefaultDeny()
    log: Log = Log()
    PASSED_OVER = names("labels description")
    NULL_IS_REFUSED = names("endpointSelector nodeSelector ingressDeny egressDeny")


class CiliumNetworkPolicy(Manifest, frozen=True, kw_only=True):
    spec: RuleSpec | None = None
    specs: list[RuleSpec] = []


class CiliumClusterwideNetworkPolicy(CiliumNetworkPolicy, frozen=True, kw_only=True):
    """The same rules; no namespace is meant where none is said."""


class CIDRGroupSpec(CiliumSchema, frozen=True, kw_only=True):
    external_cidrs: list[str]
    NULL_IS_REFUSED = names("externalCIDRs")


class CiliumCIDRGroup(Manifest, frozen=True, kw_only=True):
    spec: CIDRGroupSpec
