"""resources: what the user asked for, already checked and defaulted. The manifest as written stays with each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from bus.messages import Message, Part

Protocol = Literal["TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "ANY"]
Family = Literal["IPv4", "IPv6"]
PodAddresses = Annotated[list[str], Meta(max_length=2)]  # one of each family at most


class Namespace(Message, frozen=True, kw_only=True):
    """Subject: state.resources.namespace.<name>"""

    name: str
    labels: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class Node(Message, frozen=True, kw_only=True):
    """Subject: state.resources.node.<name>"""

    name: str
    addresses: list[str]  # "192.0.2.1", "2001:db8::1"; of each family the one that others reach it by comes first
    labels: dict[str, str] = {}
    pod_cidrs: list[str] = []  # spec.podCIDRs, one of each family, for ipam.mode=kubernetes
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class ContainerPort(Part, frozen=True, kw_only=True):
    name: str = ""
    port: int
    protocol: Protocol = "TCP"
    host_port: int = 0  # of the node that the pod is on; 0: none
    host_address: str = ""  # the node's address that it is at; "": each


class Pod(Message, frozen=True, kw_only=True):
    """Subject: state.resources.pod.<namespace>.<name>"""

    namespace: str
    name: str
    uid: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    service_account: str = "default"
    node: str = ""  # "" until it is bound
    host_network: bool = False
    ports: list[ContainerPort] = []
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "other"] = "Pending"
    ready: bool = False
    address: str = ""  # "10.0.1.2" or "fd00::2", as whoever runs the pod reported it: the first of `addresses`
    reason: str = ""  # why it is not ready, for people
    owner: str = ""  # "deployment/default/web", "statefulset/...", "daemonset/..."; "" when applied by itself
    manifest: dict[str, Any] = {}
    addresses: PodAddresses = []  # empty: `address` is all
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class Deployment(Message, frozen=True, kw_only=True):
    """Subject: state.resources.deployment.<namespace>.<name>. Whoever plays its controller makes the pods."""

    namespace: str
    name: str
    replicas: int = 1
    selector: LabelSelector
    template: dict[str, Any]  # a Pod's metadata and spec, checked
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class StatefulSet(Message, frozen=True, kw_only=True):
    """Subject: state.resources.statefulset.<namespace>.<name>. Its pods are called web-0, web-1 and so on."""

    namespace: str
    name: str
    replicas: int = 1
    first: int = 0  # the number of its first pod
    selector: LabelSelector
    template: dict[str, Any]  # a Pod's metadata and spec, checked
    is_ordered: bool = True  # a pod is made when those before it are ready; else all at once
    renews: bool = True  # pods of an older template are replaced; else they stay until somebody deletes them
    renewed_from: int = 0  # only pods of this number and above are replaced
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class DaemonSet(Message, frozen=True, kw_only=True):
    """Subject: state.resources.daemonset.<namespace>.<name>. One pod on every node that its template fits."""

    namespace: str
    name: str
    selector: LabelSelector
    template: dict[str, Any]  # a Pod's metadata and spec, checked
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class Requirement(Part, frozen=True, kw_only=True):
    """One matchExpressions entry; matchLabels become `In` with one value."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class LabelSelector(Part, frozen=True, kw_only=True):
    """All requirements hold; none at all selects everything. Requirements are sorted by key, operator, values."""

    requirements: list[Requirement] = []


class ServicePort(Part, frozen=True, kw_only=True):
    name: str = ""
    port: int
    protocol: Protocol = "TCP"
    target_port: int | str  # a number, or the name of a container port
    node_port: int = 0  # at every node; 0: none


class LoadBalancerRequest(Part, frozen=True, kw_only=True):
    """What a Service of type LoadBalancer asks for."""

    load_balancer_class: str = ""  # "": the default one, ours; services/ipam says which others it serves
    addresses: list[str] = []  # these and no others; none: any one of each of the Service's families
    sharing_key: str = ""  # Services of the same key may have the same address; "": it is shared with nobody
    sharing_namespaces: list[str] = []  # with whose Services besides its own namespace's; "*": with all


class Service(Message, frozen=True, kw_only=True):
    """Subject: state.resources.service.<namespace>.<name>"""

    namespace: str
    name: str
    type: Literal["ClusterIP", "ExternalName", "LoadBalancer", "NodePort", "other"] = "ClusterIP"
    cluster_addresses: list[str] = []  # one of each of `ip_families`, in their order; empty: headless, or a name only
    selector: dict[str, str] = {}  # empty: backends come from EndpointSlices
    ports: list[ServicePort]
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    ip_families: list[Family] = []  # the families that it has
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] = "SingleStack"
    external_name: str = ""  # of an ExternalName: what DNS answers with
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told
    external_traffic_policy: Literal["Cluster", "Local", "other"] = "Cluster"
    internal_traffic_policy: Literal["Cluster", "Local", "other"] = "Cluster"
    external_addresses: list[str] = []  # that the network leads to the nodes by itself, whoever sees to that
    allocates_node_ports: bool = True  # of a LoadBalancer: it needs them
    health_check_port: int = 0  # where each node says over HTTP whether it has backends; 0: nowhere
    affinity_seconds: int = 0  # for which a client stays with its backend; 0: it need not
    source_ranges: list[str] = []  # networks that may come from outside; empty: all
    denies_sources: bool = False  # those may not, and all others may
    publishes_not_ready: bool = False  # pods serve that are not ready
    distribution: Literal["", "PreferSameZone", "PreferSameNode", "other"] = ""
    load_balancer: LoadBalancerRequest | None = None  # of a LoadBalancer


class NodePort(Message, frozen=True, kw_only=True):
    """A port that one Service holds on all nodes; made by compare-and-set. Subject: state.resources.nodeport.<port>"""

    port: int
    namespace: str
    service: str


class ClusterAddress(Message, frozen=True, kw_only=True):
    """A ClusterIP is held by one Service; made by compare-and-set. Subject: state.resources.clusteraddress.<address>"""

    address: str
    namespace: str
    service: str


class AddressRange(Part, frozen=True, kw_only=True):
    """Addresses of one family that a pool may give, both ends included."""

    first: str
    last: str
    written: str = ""  # as its author wrote it, for people: "10.0.0.0/24", "10.0.0.5-10.0.0.9"


class LoadBalancerPool(Message, frozen=True, kw_only=True):
    """Addresses for Services of type LoadBalancer. Subject: state.resources.loadbalancerpool.<name>"""

    name: str
    place: int = 0  # among pools, the older the lower: of two that overlap the later one gives nothing
    ranges: list[AddressRange] = []  # they do not overlap
    selector: LabelSelector | None = None  # over a Service's labels, its name and namespace among them; None: all
    disabled: bool = False  # gives no new addresses; those that it gave stay
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class L2AnnouncementPolicy(Message, frozen=True, kw_only=True):
    """Which addresses of Services are announced on the networks that nodes are on, and by which nodes.

    Subject: state.resources.l2announcementpolicy.<name>
    """

    name: str
    services: LabelSelector | None = None  # over a Service's labels, its name and namespace among them; None: all
    nodes: LabelSelector | None = None  # None: all
    interfaces: list[str] = []  # RE2, found anywhere in a device's name; empty: every device that leads out
    external_addresses: bool = False
    load_balancer_addresses: bool = False
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class EndpointPort(Part, frozen=True, kw_only=True):
    name: str = ""
    port: int
    protocol: Protocol = "TCP"


class SliceEndpoint(Part, frozen=True, kw_only=True):
    addresses: list[str]
    ready: bool = True
    node: str = ""
    draining: bool = False  # it is about to end and serves still: for a Service of which nothing is ready
    zone: str = ""
    for_zones: list[str] = []  # hints: clients of these zones should go to it, and clients of others elsewhere
    for_nodes: list[str] = []  # the same of nodes


class EndpointSlice(Message, frozen=True, kw_only=True):
    """Subject: state.resources.endpointslice.<namespace>.<name>"""

    namespace: str
    name: str
    service: str  # label kubernetes.io/service-name
    ports: list[EndpointPort] = []
    endpoints: list[SliceEndpoint] = []
    manifest: dict[str, Any] = {}
    address_type: Family = "IPv4"  # of all its endpoints'
    weight: int = 1  # of each of them, 0 to 256; 0: it gets nothing new
    managed_by: str = ""  # label endpointslice.kubernetes.io/managed-by
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class ServicePeer(Part, frozen=True, kw_only=True):
    """Services, and by them whatever stands behind them."""

    name: str = ""  # "" when `selector` is given
    namespace: str = ""  # "": of any
    selector: LabelSelector | None = None  # over the Services' plain label keys


class Peer(Part, frozen=True, kw_only=True):
    """Who may be spoken to or heard. A selector is over canonical label keys (docs/glossary.md), namespace included."""

    selector: LabelSelector | None = None
    entity: str = ""  # "world", "world-ipv6", "cluster", "host", "all"...; "" when something else is given
    cidr: str = ""  # "10.0.0.0/8", "fd00::/8": what is neither a pod nor a node there
    cidr_group: str = ""  # the name of a CIDRGroup: the networks in it
    cidr_groups: LabelSelector | None = None  # over plain label keys: the networks of all CIDRGroups that it selects
    services: ServicePeer | None = None
    except_cidrs: list[str] = []  # but for these, of the networks that one of the three says
    dns_name: str = ""  # "a.example.com": the addresses that this name has
    dns_pattern: str = ""  # "*.example.com": those of all names that it is a pattern of


class PortRange(Part, frozen=True, kw_only=True):
    """A transport port, a range, or an ICMP or ICMPv6 type."""

    protocol: Protocol = "ANY"
    port: int = 0  # 0: every port. For ICMP and ICMPv6 the type + 1, so that 0 stays "every"
    end_port: int = 0  # 0: just `port`
    name: str = ""  # a named container port, resolved for the subject (ingress) or the peers (egress)


class Rule(Part, frozen=True, kw_only=True):
    """One ingress or egress section. No peers: everyone. No ports: every port."""

    direction: Literal["ingress", "egress"]
    peers: list[Peer] = []
    any_peer: bool = False  # the section names no peers, so it is open to all
    ports: list[PortRange] = []


class Policy(Message, frozen=True, kw_only=True):
    """A policy of any kind, in one form. Subject: state.resources.policy.<kind>.<namespace>.<name>"""

    kind: str  # "NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"
    namespace: str  # "": of the whole cluster
    name: str
    subject: LabelSelector  # over canonical label keys, namespace included
    rules: list[Rule] = []
    deny_ingress_by_default: bool = False
    deny_egress_by_default: bool = False
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told
    denies: list[Rule] = []  # what they say is denied, whatever rules of this and other policies allow


class CIDRGroup(Message, frozen=True, kw_only=True):
    """Networks under one name, for the rules of policies. Subject: state.resources.cidrgroup.<name>"""

    name: str
    labels: dict[str, str] = {}
    cidrs: list[str] = []  # in their one form, ascending
    manifest: dict[str, Any] = {}
    warnings: list[str] = []  # "path: what was taken and is not done", as the answer to apply told


class Document(Part, frozen=True, kw_only=True):
    """A manifest as the user wrote it."""

    source: str  # "star-wars.yaml, document 2"
    manifest: dict[str, Any]


class Apply(Message, frozen=True, kw_only=True):
    """All documents are taken, or none. Subject: req.resources.apply"""

    documents: list[Document]
    delete: bool = False
    skip_unsupported: bool = False  # pass over what is no concern of a network, and say so


class Outcome(Part, frozen=True, kw_only=True):
    """What became of one resource."""

    kind: str
    namespace: str = ""
    name: str
    change: Literal["created", "changed", "unchanged", "deleted", "absent", "other"]


class Refusal(Part, frozen=True, kw_only=True):
    """Why a document was not taken."""

    source: str  # "star-wars.yaml, document 2"
    kind: str = ""
    name: str = ""
    path: str = ""  # "spec.ingress[0].toPorts[0].ports[0].port"
    problem: str  # says what is wrong and what would be right


class Notice(Part, frozen=True, kw_only=True):
    """Of a document that was taken: what its author may believe in, and is not so."""

    source: str  # "star-wars.yaml, document 2"
    kind: str = ""
    name: str = ""
    path: str = ""  # "metadata.annotations[cni.cilium.io/mac-address]"
    text: str


class Applied(Message, frozen=True, kw_only=True):
    """The answer to apply, bind and podstatus. With refusals nothing was changed."""

    outcomes: list[Outcome] = []
    refusals: list[Refusal] = []
    revision: int = 0  # sequence of the resources log that holds all of it
    warnings: list[Notice] = []
    skipped: dict[str, int] = {}  # kind -> how many documents were passed over, as was asked for


class Bind(Message, frozen=True, kw_only=True):
    """The scheduler's choice. Subject: req.resources.bind"""

    namespace: str
    name: str
    uid: str
    node: str


class PodStatus(Message, frozen=True, kw_only=True):
    """What the kubelet reports of a pod of its node. Subject: req.resources.podstatus.<node>"""

    namespace: str
    name: str
    uid: str
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "other"]
    ready: bool
    address: str = ""  # the first of `addresses`
    reason: str = ""
    addresses: PodAddresses = []
    node: str = ""  # whose kubelet reports; "": the scheduler, of a pod that no node has
