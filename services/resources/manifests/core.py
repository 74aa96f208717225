"""v1 Namespace, Node and Service, discovery.k8s.io/v1 EndpointSlice -> messages.

Source: the Kubernetes API reference of these kinds, and "Service" and "EndpointSlices" in its documentation.
"""

from __future__ import annotations

from typing import Any

from bus.messages.resources import EndpointPort, EndpointSlice, Namespace, Node, Service, ServicePort, SliceEndpoint
from bus.subjects import ENDPOINT_SLICE, NAMESPACE, NODE, SERVICE
from services.resources.manifests import words
from services.resources.manifests.meta import Key, Manifest, Resource, check_labels, refuse_when_set
from services.resources.manifests.strict import Problems, Schema, joined, names, nearest

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"  # every namespace bears its own name as a label

SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
PROTOCOLS = ("TCP", "UDP", "SCTP")
LATER_SERVICE_FIELDS = {
    "externalIPs": "an external address",
    "externalName": "an external name",
    "externalTrafficPolicy": "a policy for external traffic",
    "healthCheckNodePort": "a health check port",
    "loadBalancerClass": "a load balancer",
    "loadBalancerIP": "a load balancer",
    "loadBalancerSourceRanges": "a load balancer",
    "publishNotReadyAddresses": "traffic to pods that are not ready",
    "sessionAffinityConfig": "session affinity",
    "trafficDistribution": "a traffic distribution",
}
LATER_ANNOTATION_PREFIXES = ("service.cilium.io/", "lbipam.cilium.io/", "io.cilium/")


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
    internal_traffic_policy: str = "Cluster"
    PASSED_OVER = names("allocateLoadBalancerNodePorts") | LATER_SERVICE_FIELDS.keys()


class ServiceManifest(Manifest, frozen=True, kw_only=True):
    spec: ServiceSpec


class SliceConditions(Schema, frozen=True, kw_only=True):
    ready: bool | None = None
    PASSED_OVER = names("serving terminating")


class SliceEndpointSpec(Schema, frozen=True, kw_only=True):
    addresses: list[str]
    conditions: SliceConditions = SliceConditions()
    node_name: str = ""
    PASSED_OVER = names("deprecatedTopology hints hostname targetRef zone")


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
            by_type[each.type].append(each.address)
    if not by_type["InternalIP"]:
        problems.add("status.addresses", "needs an InternalIP, the address that other nodes reach this one by")
    cidrs = manifest.spec.pod_cidrs or [cidr for cidr in (manifest.spec.pod_cidr,) if cidr]
    for index, cidr in enumerate(cidrs):
        problems.add_if(f"spec.podCIDRs[{index}]", words.cidr(cidr))
    if manifest.spec.pod_cidr and cidrs[0] != manifest.spec.pod_cidr:
        problems.add("spec.podCIDR", "must be the first of spec.podCIDRs")
    node = Node(
        name=key.name,
        addresses=by_type["InternalIP"] + by_type["ExternalIP"],
        labels=manifest.metadata.labels,
        pod_cidrs=cidrs,
        manifest=raw,
    )
    return Resource(key, source, ((NODE.of(key.name), node),), uid=manifest.metadata.uid)


def read_service(manifest: ServiceManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems) -> Resource:
    """Its addresses are left empty: the model fills them from `asked_address`."""
    spec = manifest.spec
    if spec.type not in SERVICE_TYPES:
        problems.add(
            "spec.type", f'"{spec.type}" is not a type of Service; use ClusterIP{nearest(spec.type, SERVICE_TYPES)}'
        )
    elif spec.type != "ClusterIP":
        problems.add("spec.type", f"{spec.type} is not supported yet; use ClusterIP")
    refuse_when_set(raw["spec"], LATER_SERVICE_FIELDS, "spec", problems)
    _check_service_choices(spec, problems)
    for name in manifest.metadata.annotations:
        if name.startswith(LATER_ANNOTATION_PREFIXES):
            problems.add(f"metadata.annotations[{name}]", "is not supported yet; remove the annotation")
    check_labels(spec.selector, "spec.selector", problems)
    address = _asked_address(spec, problems)
    if not spec.ports and address != "None":
        problems.add("spec.ports", "is empty; only a headless Service (clusterIP: None) has no ports")
    service = Service(
        namespace=key.namespace,
        name=key.name,
        selector=spec.selector,
        ports=_service_ports(spec, problems),
        labels=manifest.metadata.labels,
        annotations=manifest.metadata.annotations,
        manifest=raw,
    )
    message = (SERVICE.of(key.namespace, key.name), service)
    return Resource(key, source, (message,), uid=manifest.metadata.uid, asked_address=address)


def read_endpoint_slice(
    manifest: SliceManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    if manifest.address_type in ("IPv6", "FQDN"):
        problems.add("addressType", f"{manifest.address_type} is not supported yet; use IPv4")
    elif manifest.address_type != "IPv4":
        problems.add("addressType", f'"{manifest.address_type}" is not a type of address; use IPv4')
    endpoints = []
    for index, each in enumerate(manifest.endpoints):
        if not 1 <= len(each.addresses) <= 100:
            problems.add(f"endpoints[{index}].addresses", f"has {len(each.addresses)} entries; use 1 to 100")
        for at, address in enumerate(each.addresses):
            problems.add_if(f"endpoints[{index}].addresses[{at}]", words.endpoint_address(address))
        ready = each.conditions.ready is not False  # "unknown" counts as ready, by the API's own words
        endpoints.append(SliceEndpoint(addresses=each.addresses, ready=ready, node=each.node_name))
    message = EndpointSlice(
        namespace=key.namespace,
        name=key.name,
        service=manifest.metadata.labels.get(SERVICE_NAME_LABEL, ""),
        ports=_slice_ports(manifest.ports, problems),
        endpoints=endpoints,
        manifest=raw,
    )
    return Resource(key, source, ((ENDPOINT_SLICE.of(key.namespace, key.name), message),), uid=manifest.metadata.uid)


def _check_service_choices(spec: ServiceSpec, problems: Problems) -> None:
    """Fields of which this version does one value only."""
    for index, family in enumerate(spec.ip_families):
        if family == "IPv6":
            problems.add(f"spec.ipFamilies[{index}]", "IPv6 is not supported yet; use IPv4")
        elif family != "IPv4":
            problems.add(f"spec.ipFamilies[{index}]", f'"{family}" is not a family; use IPv4')
    choices = (
        ("ipFamilyPolicy", spec.ip_family_policy, ("", "SingleStack", "PreferDualStack"), ("RequireDualStack",)),
        ("sessionAffinity", spec.session_affinity, ("None",), ("ClientIP",)),
        ("internalTrafficPolicy", spec.internal_traffic_policy, ("Cluster",), ("Local",)),
    )
    for field, value, done, later in choices:
        if value in later:
            problems.add(f"spec.{field}", f"{value} is not supported yet; use {done[-1]}")
        elif value not in done:
            problems.add(f"spec.{field}", f'"{value}" is not a choice; use {done[-1]}{nearest(value, done + later)}')


def _asked_address(spec: ServiceSpec, problems: Problems) -> str:
    if len(spec.cluster_ips) > 1:
        problems.add("spec.clusterIPs", "has two addresses; dual stack is not supported yet")
    first = spec.cluster_ips[0] if spec.cluster_ips else ""
    if first and spec.cluster_ip and first != spec.cluster_ip:
        problems.add("spec.clusterIPs[0]", f"is {first}, and spec.clusterIP {spec.cluster_ip}; make them agree")
    asked = spec.cluster_ip or first
    if asked not in ("", "None"):
        problems.add_if("spec.clusterIP", words.ipv4_address(asked))
    return asked


def _service_ports(spec: ServiceSpec, problems: Problems) -> list[ServicePort]:
    ports = []
    seen: dict[tuple[object, ...], str] = {}
    for index, port in enumerate(spec.ports):
        where = f"spec.ports[{index}]"
        problems.add_if(joined(where, "port"), words.port_number(port.port))
        target = port.port if port.target_port is None else port.target_port
        if port.target_port is not None:
            wrong = words.port_number(target) if isinstance(target, int) else words.port_name(target)
            problems.add_if(joined(where, "targetPort"), wrong)
        if port.name:
            problems.add_if(joined(where, "name"), words.dns_label(port.name))
        elif len(spec.ports) > 1:
            problems.add(joined(where, "name"), "is required where a Service has several ports")
        if port.node_port:
            problems.add(joined(where, "nodePort"), "node ports are not supported yet; remove the field")
        for what in (("port", port.port, port.protocol), ("name", port.name) if port.name else ("index", index)):
            if what in seen:
                problems.add(where, f"is the same {what[0]} as {seen[what]}")
            seen[what] = where
        ports.append(_service_port(port, target, where, problems))
    return ports


def _service_port(port: PortSpec, target: int | str, path: str, problems: Problems) -> ServicePort:
    protocol: Any = port.protocol
    if protocol == "SCTP":
        problems.add(joined(path, "protocol"), "SCTP is not supported yet in Services; use TCP or UDP")
    elif protocol not in PROTOCOLS:
        problems.add(
            joined(path, "protocol"), f'"{protocol}" is not a protocol; use TCP or UDP{nearest(protocol, PROTOCOLS)}'
        )
    return ServicePort(name=port.name, port=port.port, protocol=protocol, target_port=target)


def _slice_ports(specs: list[SlicePort], problems: Problems) -> list[EndpointPort]:
    ports = []
    seen: set[str] = set()
    for index, port in enumerate(specs):
        where = f"ports[{index}]"
        protocol: Any = port.protocol
        if port.port is None:
            problems.add(joined(where, "port"), "is missing; a slice for every port is not supported yet")
            continue
        problems.add_if(joined(where, "port"), words.port_number(port.port))
        if protocol not in PROTOCOLS:
            hint = nearest(protocol, PROTOCOLS)
            problems.add(joined(where, "protocol"), f'"{protocol}" is not a protocol; use TCP, UDP or SCTP{hint}')
        if port.name:
            problems.add_if(joined(where, "name"), words.dns_label(port.name))
        if port.name in seen:
            problems.add(joined(where, "name"), f'"{port.name}" is given to two ports')
        seen.add(port.name)
        ports.append(EndpointPort(name=port.name, port=port.port, protocol=protocol))
    return ports
