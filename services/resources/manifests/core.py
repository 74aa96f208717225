"""v1 Namespace, Node and Service, discovery.k8s.io/v1 EndpointSlice -> messages.

Source: the Kubernetes API reference of these kinds, and "Service" and "EndpointSlices" in its documentation.
"""

from __future__ import annotations

from typing import Any

from bus.addresses import FAMILIES, plain
from bus.messages.resources import EndpointPort, EndpointSlice, Namespace, Node, Service, ServicePort, SliceEndpoint
from bus.subjects import ENDPOINT_SLICE, NAMESPACE, NODE, SERVICE
from services.resources.manifests import words
from services.resources.manifests.exposure import EXPOSED_TYPES, AffinityConfig, read_exposure
from services.resources.manifests.load_balancer import read_request
from services.resources.manifests.meta import Key, Manifest, Resource, check_labels
from services.resources.manifests.strict import Problems, Schema, joined, names, nearest

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
WEIGHT_ANNOTATION = "service.cilium.io/weight"
WEIGHT_MAX = 256
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"  # every namespace bears its own name as a label

SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
HEADLESS = ("None",)


class NamespaceSpec(Schema, frozen=True, kw_only=True):
    PASSED_OVER = names("finalizers")


class NamespaceManifest(Manifest, frozen=True, kw_only=True):
    spec: NamespaceSpec = NamespaceSpec()


class NodeAddress(Schema, frozen=True, kw_only=True):
    type: str
    address: str


class NodeSpec(Schema, frozen=True, kw_only=True):
    pod_cidr: str = ""
    pod_cidrs: list[str] = []
    PASSED_OVER = names("configSource externalID providerID taints unschedulable")


class NodeStatus(Schema, frozen=True, kw_only=True):
    addresses: list[NodeAddress] = []
    PASSED_OVER = names(
        "allocatable capacity conditions config daemonEndpoints declaredFeatures features images nodeInfo phase"
        " runtimeHandlers volumesAttached volumesInUse"
    )


class NodeManifest(Manifest, frozen=True, kw_only=True):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()
    PASSED_OVER = frozenset()


class PortSpec(Schema, frozen=True, kw_only=True):
    name: str = ""
    port: int
    protocol: str = "TCP"
    target_port: int | str | None = None
    node_port: int = 0
    PASSED_OVER = names("appProtocol")


class ServiceSpec(Schema, frozen=True, kw_only=True):
    type: str = "ClusterIP"
    ports: list[PortSpec] = []
    selector: dict[str, str] = {}
    cluster_ip: str = ""
    cluster_ips: list[str] = []
    ip_families: list[str] = []
    ip_family_policy: str = ""
    session_affinity: str = "None"
    session_affinity_config: AffinityConfig = AffinityConfig()
    internal_traffic_policy: str = ""
    external_traffic_policy: str = ""
    external_name: str = ""
    external_ips: list[str] = []
    load_balancer_class: str = ""
    load_balancer_ip: str = ""
    load_balancer_source_ranges: list[str] = []
    health_check_node_port: int = 0
    allocate_load_balancer_node_ports: bool = True
    publish_not_ready_addresses: bool = False
    traffic_distribution: str = ""


class ServiceManifest(Manifest, frozen=True, kw_only=True):
    spec: ServiceSpec


class SliceConditions(Schema, frozen=True, kw_only=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Schema, frozen=True, kw_only=True):
    name: str


class SliceHints(Schema, frozen=True, kw_only=True):
    for_zones: list[Hint] = []
    for_nodes: list[Hint] = []


class SliceEndpointSpec(Schema, frozen=True, kw_only=True):
    addresses: list[str]
    conditions: SliceConditions = SliceConditions()
    node_name: str = ""
    zone: str = ""
    hints: SliceHints = SliceHints()
    PASSED_OVER = names("deprecatedTopology hostname targetRef")


class SlicePort(Schema, frozen=True, kw_only=True):
    name: str = ""
    port: int | None = None
    protocol: str = "TCP"
    PASSED_OVER = names("appProtocol")


class SliceManifest(Manifest, frozen=True, kw_only=True):
    address_type: str
    endpoints: list[SliceEndpointSpec] = []
    ports: list[SlicePort] = []
    PASSED_OVER = frozenset()


def read_namespace(
    manifest: NamespaceManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    labels = {**manifest.metadata.labels, NAMESPACE_NAME_LABEL: key.name}
    if manifest.metadata.labels.get(NAMESPACE_NAME_LABEL, key.name) != key.name:
        problems.add(
            f"metadata.labels[{NAMESPACE_NAME_LABEL}]", f'is the namespace\'s own name, "{key.name}"; remove it'
        )
    message = Namespace(name=key.name, labels=labels, manifest=raw)
    return Resource(key, source, ((NAMESPACE.of(key.name), message),), uid=manifest.metadata.uid)


def read_node(manifest: NodeManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems) -> Resource:
    """Internal addresses come first, external ones after; a node has at least one internal one."""
    by_type: dict[str, list[str]] = {"InternalIP": [], "ExternalIP": []}
    for index, each in enumerate(manifest.status.addresses):
        where = f"status.addresses[{index}]"
        known = ("InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS")
        if each.type not in known:
            hint = nearest(each.type, known)
            problems.add(joined(where, "type"), f'"{each.type}" is not a type of address; use {", ".join(known)}{hint}')
        elif each.type in by_type:
            problems.add_if(joined(where, "address"), words.endpoint_address(each.address))
            by_type[each.type].append(plain(each.address))
    if not by_type["InternalIP"]:
        problems.add("status.addresses", "needs an InternalIP, the address that other nodes reach this one by")
    cidrs = manifest.spec.pod_cidrs or [cidr for cidr in (manifest.spec.pod_cidr,) if cidr]
    seen: dict[str, str] = {}
    for index, cidr in enumerate(cidrs):
        wrong = words.cidr(cidr)
        family = "IPv6" if ":" in cidr else "IPv4"
        if wrong is None and family in seen:
            wrong = f"is {family} as {seen[family]} is; a node has one of each family"
        problems.add_if(f"spec.podCIDRs[{index}]", wrong)
        seen.setdefault(family, f"spec.podCIDRs[{index}]")
    if manifest.spec.pod_cidr and cidrs[0] != manifest.spec.pod_cidr:
        problems.add("spec.podCIDR", "must be the first of spec.podCIDRs")
    node = Node(
        name=key.name,
        addresses=by_type["InternalIP"] + by_type["ExternalIP"],
        labels=manifest.metadata.labels,
        pod_cidrs=[words.plain_cidr(cidr) for cidr in cidrs],
        manifest=raw,
    )
    return Resource(key, source, ((NODE.of(key.name), node),), uid=manifest.metadata.uid)


def read_service(manifest: ServiceManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems) -> Resource:
    """Its addresses are left empty: the model fills them from `asked_addresses`, and the families that it gets.

    An ExternalName is a name for a name: DNS servers read it. It has no address, and so no frontend.
    """
    spec = manifest.spec
    is_a_name = spec.type == "ExternalName"
    if spec.type not in SERVICE_TYPES:
        hint = nearest(spec.type, SERVICE_TYPES)
        problems.add("spec.type", f'"{spec.type}" is not a type of Service; use {" or ".join(SERVICE_TYPES)}{hint}')
    check_labels(spec.selector, "spec.selector", problems)
    asked = _asked_addresses(spec, problems)
    _check_external_name(spec, asked, problems)
    has_frontends = not is_a_name and asked != HEADLESS
    if has_frontends:
        if not spec.ports:
            problems.add("spec.ports", "is empty; only a headless Service (clusterIP: None) has no ports")
    elif asked == HEADLESS and spec.type in EXPOSED_TYPES:
        problems.add("spec.clusterIP", f"None is for the type ClusterIP only; a {spec.type} needs an address")
    known: dict[str, Any] = {each: each for each in SERVICE_TYPES}
    service = Service(
        namespace=key.namespace,
        name=key.name,
        type=known.get(spec.type, "ClusterIP"),
        external_name=spec.external_name if is_a_name else "",
        selector=spec.selector,
        ports=_service_ports(spec, problems),
        labels=manifest.metadata.labels,
        annotations=manifest.metadata.annotations,
        manifest=raw,
        ip_families=_asked_families(spec, asked, problems),
        ip_family_policy=_family_policy(spec, problems),
        load_balancer=read_request(spec, manifest.metadata.annotations, problems),
        **read_exposure(spec, manifest.metadata.annotations, has_frontends, problems),
    )
    message = (SERVICE.of(key.namespace, key.name), service)
    return Resource(key, source, (message,), uid=manifest.metadata.uid, asked_addresses=asked)


def read_endpoint_slice(
    manifest: SliceManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    family: Any = manifest.address_type
    are_names = family == "FQDN"
    if are_names:
        problems.warn("addressType", "names are not looked up; no Service is served by this slice")
    elif family not in FAMILIES:
        problems.add("addressType", f'"{family}" is not a type of address; use IPv4 or IPv6{nearest(family, FAMILIES)}')
    endpoints = []
    for index, each in enumerate(manifest.endpoints):
        if not 1 <= len(each.addresses) <= 100:
            problems.add(f"endpoints[{index}].addresses", f"has {len(each.addresses)} entries; use 1 to 100")
        for at, address in enumerate(each.addresses):
            wrong = (
                words.dns_subdomain(address.removesuffix("."))
                if are_names
                else words.endpoint_address(address, family if family in FAMILIES else None)
            )
            problems.add_if(f"endpoints[{index}].addresses[{at}]", wrong)
        said = each.conditions
        ready = said.ready is not False  # "unknown" counts as ready, by the API's own words
        serving = ready if said.serving is None else said.serving  # and as ready says, where it is not said
        endpoints.append(
            SliceEndpoint(
                addresses=list(map(plain, each.addresses)),
                ready=ready,
                node=each.node_name,
                draining=serving and bool(said.terminating),
                zone=each.zone,
                for_zones=sorted({hint.name for hint in each.hints.for_zones}),
                for_nodes=sorted({hint.name for hint in each.hints.for_nodes}),
            )
        )
    message = EndpointSlice(
        namespace=key.namespace,
        name=key.name,
        service=manifest.metadata.labels.get(SERVICE_NAME_LABEL, ""),
        ports=_slice_ports(manifest.ports, problems),
        endpoints=[] if are_names else endpoints,
        manifest=raw,
        address_type="IPv4" if are_names else family,
        weight=_weight(manifest.metadata.annotations, problems),
        managed_by=manifest.metadata.labels.get(MANAGED_BY_LABEL, ""),
    )
    return Resource(key, source, ((ENDPOINT_SLICE.of(key.namespace, key.name), message),), uid=manifest.metadata.uid)


def _weight(annotations: dict[str, str], problems: Problems) -> int:
    """Of all endpoints of a slice."""
    said = [(key, text) for key, text in annotations.items() if key.lower() == WEIGHT_ANNOTATION]
    for key, text in said:
        if not (text.isascii() and text.isdigit() and int(text) <= WEIGHT_MAX):
            problems.add(f"metadata.annotations[{key}]", f'"{text}" is not a weight; use 0 to {WEIGHT_MAX}')
            return 1
    return int(said[0][1]) if said else 1


def _check_external_name(spec: ServiceSpec, asked: tuple[str, ...], problems: Problems) -> None:
    if spec.type != "ExternalName":
        if spec.external_name:
            problems.add("spec.externalName", "is for the type ExternalName only; remove it, or set spec.type")
        return
    if not spec.external_name:
        problems.add("spec.externalName", "is required of an ExternalName, and missing")
    else:
        problems.add_if("spec.externalName", words.dns_subdomain(spec.external_name.removesuffix(".")))
    for field, value in (("clusterIP", asked), ("ipFamilies", spec.ip_families)):
        if value:
            problems.add(f"spec.{field}", "must be left out; an ExternalName has no address")


def _asked_addresses(spec: ServiceSpec, problems: Problems) -> tuple[str, ...]:
    """The addresses that the Service wants, in their one form, the first of them its clusterIP."""
    first = spec.cluster_ips[0] if spec.cluster_ips else ""
    if first and spec.cluster_ip and plain(first) != plain(spec.cluster_ip):
        problems.add("spec.clusterIPs[0]", f"is {first}, and spec.clusterIP {spec.cluster_ip}; make them agree")
    asked = [each for each in (spec.cluster_ip or first, *spec.cluster_ips[1:]) if each]
    if asked == ["None"]:
        return HEADLESS
    for index, text in enumerate(asked):
        where = f"spec.clusterIPs[{index}]" if index else "spec.clusterIP"
        problems.add_if(where, words.address(text))
    _one_of_each(asked, [_family(text) for text in asked], "spec.clusterIPs", problems)
    return tuple(map(plain, asked))


def _asked_families(spec: ServiceSpec, asked: tuple[str, ...], problems: Problems) -> list[Any]:
    """The families that the Service names, or else those of the addresses that it asks for; none: the cluster's."""
    for index, family in enumerate(spec.ip_families):
        if family not in FAMILIES:
            hint = nearest(family, FAMILIES)
            problems.add(f"spec.ipFamilies[{index}]", f'"{family}" is not a family; use IPv4 or IPv6{hint}')
    _one_of_each(spec.ip_families, spec.ip_families, "spec.ipFamilies", problems)
    own = [] if asked == HEADLESS else [_family(text) for text in asked]
    for index, (family, wanted) in enumerate(zip(own, spec.ip_families, strict=False)):
        if family != wanted:
            problems.add(f"spec.ipFamilies[{index}]", f"is {wanted}, and {asked[index]} is {family}; make them agree")
    named = [*spec.ip_families, *own[len(spec.ip_families) :]]
    if len(named) > 1 and spec.ip_family_policy in ("", "SingleStack"):
        problems.add("spec.ipFamilyPolicy", "is SingleStack where two families are named; use PreferDualStack")
    return named


def _one_of_each(words_: list[str], families: list[str], path: str, problems: Problems) -> None:
    for index, family in enumerate(families):
        if family in families[:index]:
            problems.add(f"{path}[{index}]", f"{words_[index]} is {family} again; name one of each family")


def _family(text: str) -> str:
    """Of a text that is an address; of any other, one that does not matter."""
    return "IPv6" if ":" in text else "IPv4"


def _family_policy(spec: ServiceSpec, problems: Problems) -> Any:
    policy = spec.ip_family_policy or "SingleStack"
    if policy not in FAMILY_POLICIES:
        hint = nearest(policy, FAMILY_POLICIES)
        problems.add(
            "spec.ipFamilyPolicy", f'"{policy}" is not a choice; use one of {", ".join(FAMILY_POLICIES)}{hint}'
        )
    return policy


def _service_ports(spec: ServiceSpec, problems: Problems) -> list[ServicePort]:
    ports = []
    seen: dict[tuple[object, ...], str] = {}
    keys: list[tuple[object, ...]]
    for index, port in enumerate(spec.ports):
        where = f"spec.ports[{index}]"
        problems.add_if(joined(where, "port"), words.port_number(port.port))
        target = port.port if port.target_port is None else port.target_port
        if port.target_port is not None:
            wrong = words.port_number(target) if isinstance(target, int) else words.port_name(target)
            problems.add_if(joined(where, "targetPort"), wrong)
        if port.protocol == "SCTP" and isinstance(target, int) and target != port.port:
            why = f"is {target}, and SCTP keeps its port on the way to a backend; use {port.port}, the Service's own"
            problems.add(joined(where, "targetPort"), why)
        if port.name:
            problems.add_if(joined(where, "name"), words.dns_label(port.name))
        elif len(spec.ports) > 1:
            problems.add(joined(where, "name"), "is required where a Service has several ports")
        if port.node_port:
            problems.add_if(joined(where, "nodePort"), words.port_number(port.node_port))
            if spec.type not in EXPOSED_TYPES:
                text = f"is for the types NodePort and LoadBalancer; remove it, or {spec.type} from spec.type"
                problems.add(joined(where, "nodePort"), text)
        keys = [("port", port.port, port.protocol), ("name", port.name) if port.name else ("index", index)]
        if port.node_port:
            keys.append(("nodePort", port.node_port, port.protocol))
        for what in keys:
            if what in seen:
                problems.add(where, f"is the same {what[0]} as {seen[what]}")
            seen[what] = where
        ports.append(_service_port(port, target, where, problems))
    return ports


def _service_port(port: PortSpec, target: int | str, path: str, problems: Problems) -> ServicePort:
    protocol: Any = port.protocol
    problems.add_if(joined(path, "protocol"), words.protocol(protocol))
    return ServicePort(name=port.name, port=port.port, protocol=protocol, target_port=target, node_port=port.node_port)


def _slice_ports(specs: list[SlicePort], problems: Problems) -> list[EndpointPort]:
    ports = []
    seen: set[str] = set()
    for index, port in enumerate(specs):
        where = f"ports[{index}]"
        protocol: Any = port.protocol
        if port.port is None:  # every port, which no Service can mean: it has a number for each of its own
            problems.warn(joined(where, "port"), "is missing; no Service has this port of the slice")
            continue
        problems.add_if(joined(where, "port"), words.port_number(port.port))
        problems.add_if(joined(where, "protocol"), words.protocol(protocol))
        if port.name:
            problems.add_if(joined(where, "name"), words.dns_label(port.name))
        if port.name in seen:
            problems.add(joined(where, "name"), f'"{port.name}" is given to two ports')
        seen.add(port.name)
        ports.append(EndpointPort(name=port.name, port=port.port, protocol=protocol))
    return ports
