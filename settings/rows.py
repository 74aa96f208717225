"""Every setting: one row each. What a lab takes, what services read, docs/settings.md and more come from here.

A row that is new needs its use beside it, and nothing else: see docs/how-to-add-a-setting.md. Sizes of maps and times
are in `limits.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from settings.limits import SIZES
from settings.readers import (
    DeviceNames,
    Duration,
    File,
    NodePortRange,
    Number,
    Places,
    PortRange,
    Prefix,
    Prefixes,
    Text,
    Truth,
    Words,
)
from settings.row import EVERY, LAB, Row, checked

NODE = ("dataplane",)
LEASE = Duration(0.05, 3600)
OBSERVER = ("hubble",)

ROUTING = (
    Row(
        key="ipv4.enabled",
        variable="PLEXUS_IPV4_ENABLED",
        read=Truth(),
        default=True,
        services=("dataplane", "ipam"),
        text="pods, nodes and Services have IPv4",
    ),
    Row(
        key="ipv6.enabled",
        variable="PLEXUS_IPV6_ENABLED",
        read=Truth(),
        default=False,
        services=("dataplane", "ipam"),
        text="the same for IPv6; one family at least",
    ),
    Row(
        key="routingMode",
        variable="PLEXUS_ROUTING_MODE",
        read=Words("tunnel", "native"),
        default="tunnel",
        services=(*NODE, *OBSERVER),
        text="`tunnel`: pods' packets to other nodes are wrapped; `native`: the network between the nodes carries them "
        "as they are",
    ),
    Row(
        key="tunnelProtocol",
        variable="PLEXUS_TUNNEL_PROTOCOL",
        read=Words("vxlan", "geneve"),
        default="vxlan",
        services=NODE,
        text="or `geneve`, if the kernel has such devices (CONFIG_GENEVE)",
    ),
    Row(
        key="tunnelPort",
        variable="PLEXUS_TUNNEL_PORT",
        read=Number(1, 65_535),
        services=NODE,
        zero_is_unset=True,
        unit="UDP port",
        text="without it 8472 for VXLAN, 6081 for Geneve",
    ),
    Row(
        key="underlayProtocol",
        variable="PLEXUS_UNDERLAY_PROTOCOL",
        read=Words("ipv4", "ipv6"),
        chart="ipv4",
        services=NODE,
        text="family of the tunnel's outer packets, `ipv4` or `ipv6`; without it IPv4 where the nodes have it",
    ),
    Row(
        key="MTU",
        variable="PLEXUS_MTU",
        read=Number(576, 65_535),  # RFC 791: every host takes 576
        services=NODE,
        zero_is_unset=True,
        unit="bytes",
        text="of pods; without it the least of the node's devices less what the tunnel takes (50 over IPv4, 70 over "
        "IPv6)",
    ),
    Row(
        key="devices",
        variable="PLEXUS_DEVICES",
        read=DeviceNames(),
        services=NODE,
        text="those of the node that lead to other nodes and to the outside: names, with blanks between or as a list; "
        "`eth+` is every name that begins so, `!eth9` leaves one out. Without it those with a default route or the "
        "node's address ([devices](devices.md))",
    ),
    Row(
        key="ipv4NativeRoutingCIDR",
        variable="PLEXUS_NATIVE_ROUTING_CIDR",
        read=Prefix(4),
        services=NODE,
        text="destinations that see pods' own addresses, never masqueraded; without it the pods' first pool",
    ),
    Row(
        key="ipv6NativeRoutingCIDR",
        variable="PLEXUS_NATIVE_ROUTING_CIDR6",
        read=Prefix(6, like="fd00::/8"),
        services=NODE,
        text="the same of IPv6",
    ),
    Row(
        key="autoDirectNodeRoutes",
        variable="PLEXUS_AUTO_DIRECT_NODE_ROUTES",
        read=Truth(),
        default=True,  # nothing else would carry routes in a lab
        chart="false",
        services=NODE,
        text="native: each node has a route to the pods of its neighbours; `false`: the network knows where pods are",
    ),
    Row(
        key="directRoutingSkipUnreachable",
        variable="PLEXUS_DIRECT_ROUTING_SKIP_UNREACHABLE",
        read=Truth(),
        default=False,
        services=NODE,
        text="native: a node that is no neighbour is no fault, and is reached by the network's own routes",
    ),
    Row(
        key="endpointRoutes.enabled",
        variable="PLEXUS_ENDPOINT_ROUTES",
        read=Truth(),
        default=False,
        services=NODE,
        text="taken, and changes nothing: every pod has a route of its own anyway",
    ),
    Row(
        key="bpf.hostLegacyRouting",
        variable="PLEXUS_HOST_LEGACY_ROUTING",
        define="LEGACY_ROUTING",
        read=Truth(),
        default=False,
        services=NODE,
        text="the node's own stack and netfilter forward what the programs have judged "
        "([ADR 17](adr/0017-the-nodes-own-stack-forwards.md))",
    ),
    Row(
        key="bpf.datapathMode",
        read=Words("veth", later=("netkit", "netkit-l2")),
        default="veth",
        services=(LAB,),
        text="nothing else yet",
    ),
    Row(
        key="bpf.enableTCX",
        variable="PLEXUS_ENABLE_TCX",
        read=Truth(),
        default=True,
        services=NODE,
        text="programs are attached by tcx where the kernel has it (6.6); `false`: by clsact everywhere",
    ),
    Row(
        key="ipam.mode",
        variable="PLEXUS_IPAM_MODE",
        read=Words("cluster-pool", "kubernetes", later=("multi-pool",)),
        default="cluster-pool",
        services=("ipam",),
        text="`cluster-pool`: nodes get blocks of the pools below; `kubernetes`: those that their Nodes have in "
        "spec.podCIDRs, which the controller manager gives out",
    ),
    Row(
        key="k8s.requireIPv4PodCIDR",
        read=Truth(),
        inert=True,
        text="taken, and changes nothing: with `ipam.mode=kubernetes` a node without podCIDRs starts no pod anyway",
    ),
    Row(
        key="k8s.requireIPv6PodCIDR",
        read=Truth(),
        inert=True,
        text="the same of IPv6",
    ),
    Row(
        key="ipam.operator.clusterPoolIPv4PodCIDRList",
        variable="PLEXUS_CLUSTER_POOL_CIDRS",
        read=Prefixes(Prefix(4, like="10.244.0.0/16"), blanks=True),
        own={"ipam": "10.244.0.0/16"},  # 256 nodes of 253 pods each
        chart="10.0.0.0/8",
        services=("ipam",),
        says_none=True,
        text="pools that nodes' blocks are cut from; without it one that suits the lab",
    ),
    Row(
        key="ipam.operator.clusterPoolIPv4MaskSize",
        variable="PLEXUS_CLUSTER_POOL_MASK",
        read=Number(16, 30),
        default=24,
        services=("ipam",),
        unit="bits",
        text="of a node's block",
    ),
    Row(
        key="ipam.operator.clusterPoolIPv6PodCIDRList",
        variable="PLEXUS_CLUSTER_POOL_CIDRS6",
        read=Prefixes(Prefix(6, like="fd00::/104"), blanks=True),
        own={"ipam": "fd00::/104"},  # 65 536 nodes of 253 pods each
        chart="fd00::/104",
        services=("ipam",),
        says_none=True,
        text="the same of IPv6",
    ),
    Row(
        key="ipam.operator.clusterPoolIPv6MaskSize",
        variable="PLEXUS_CLUSTER_POOL_MASK6",
        read=Number(64, 126),
        default=120,
        services=("ipam",),
        unit="bits",
        text="the same of IPv6",
    ),
    Row(
        key="serviceNoBackendResponse",
        variable="PLEXUS_SERVICE_NO_BACKEND_RESPONSE",
        define="REJECT",
        read=Words("reject", "drop"),
        default="reject",
        services=NODE,
        text="who sends to a Service without backends, or to an address or port of the Services' range that no Service "
        'has, hears it at once: "connection refused" of a call, a TCP reset, ICMP "port unreachable"; `drop`: hears '
        'nothing. Dropped and counted ("Service backend not found") in both',
    ),
    Row(
        key="nodePort.range",
        variable="PLEXUS_NODE_PORT_RANGE",
        read=NodePortRange(),
        default="30000-32767",
        chart="30000,32767",
        services=("dataplane", "resources"),
        text="node ports that Services of the types NodePort and LoadBalancer get, within 1024-32767",
    ),
    Row(
        key="l2announcements.enabled",
        variable="PLEXUS_L2_ANNOUNCEMENTS",
        define="ANNOUNCES",
        read=Truth(),
        default=False,
        services=NODE,
        text="nodes answer for addresses of Services (ARP, neighbour discovery) as CiliumL2AnnouncementPolicies say",
    ),
    Row(
        key="l2announcements.leaseDuration",
        variable="PLEXUS_L2_LEASE_DURATION",
        read=LEASE,
        default="15s",
        services=("dataplane", "l2announce"),
        unit="duration",
        text="so long a node answers after it has asked for its lease anew the last time; then another takes over",
    ),
    Row(
        key="l2announcements.leaseRenewDeadline",
        variable="PLEXUS_L2_LEASE_RENEW_DEADLINE",
        read=LEASE,
        default="5s",
        services=("dataplane", "l2announce"),
        unit="duration",
        text="so often a node asks for its lease anew",
    ),
    Row(
        key="l2announcements.leaseRetryPeriod",
        variable="PLEXUS_L2_LEASE_RETRY_PERIOD",
        read=LEASE,
        default="2s",
        services=("dataplane", "l2announce"),
        unit="duration",
        text="and so often while it gets no answer, or waits for an address that another node is to give up",
    ),
    Row(
        key="kubeProxyReplacement",
        read=Truth(only=True, feature="leaving Services to kube-proxy"),
        default=True,
        chart="false",
        services=(LAB,),
        text="Services are always translated here",
    ),
    Row(
        key="socketLB.hostNamespaceOnly",
        variable="PLEXUS_SOCKET_LB_HOST_NAMESPACE_ONLY",
        read=Truth(),
        default=False,
        services=NODE,
        text="`true`: only sockets of the node's own network namespace are led to backends when they call; what pods "
        "send is led there packet by packet, so that a proxy in a pod sees the Service's address",
    ),
    Row(
        key="socketLB.terminatePodConnections",
        variable="PLEXUS_TERMINATE_POD_CONNECTIONS",
        read=Truth(),
        default=True,
        services=NODE,
        text="a connected UDP socket whose backend its Service has no more is ended, in pods too; `false`: the node's "
        "own sockets alone",
    ),
    Row(
        key="extraConfig.lb-sock-terminate-all-protos",
        variable="PLEXUS_TERMINATE_ALL_PROTOCOLS",
        read=Truth(),
        default=False,
        services=NODE,
        text="`true`: so are TCP sockets, also those to a backend that is alive and not in the Service any more",
    ),
    Row(
        key="debug.enabled",
        read=Truth(),
        default=False,
        services=(LAB,),
        text="log lines of level debug",
    ),
)

POLICY = (
    Row(
        key="policyEnforcementMode",
        variable="PLEXUS_POLICY_ENFORCEMENT_MODE",
        read=Words("default", "always", "never"),
        default="default",
        services=NODE,
        text="`default`: a pod is closed in a direction of which a policy that selects it says something; `always`: "
        "every pod is closed but for what policies allow; `never`: no policy is enforced",
    ),
    Row(
        key="policyAuditMode",
        variable="PLEXUS_POLICY_AUDIT_MODE",
        read=Truth(),
        default=False,
        services=NODE,
        text="nothing is denied; what would be is told with the verdict `audited`, and why. A pod whose labels are not "
        "known yet is closed all the same",
    ),
)

BUS = (
    Row(
        key="bus.tls.enabled",
        read=Truth(),
        default=False,
        services=(LAB,),
        text="everybody speaks TLS 1.3 with the bus, from the first byte, and knows it by its certificate",
    ),
    Row(
        key="bus.tls.verifyClients",
        read=Truth(),
        default=False,
        services=(LAB,),
        text="the bus, too, asks for a certificate of its authority; user and password are needed all the same",
    ),
)

MASQUERADE = (
    Row(
        key="enableIPv4Masquerade",
        variable="PLEXUS_MASQUERADE",
        read=Truth(),
        default=True,
        services=NODE,
        text="what pods send out of the cluster bears the node's address",
    ),
    Row(
        key="enableIPv6Masquerade",
        variable="PLEXUS_MASQUERADE6",
        read=Truth(),
        default=True,
        services=NODE,
        text="the same of IPv6",
    ),
    Row(
        key="bpf.masquerade",
        read=Truth(),
        default=True,
        chart="false",
        services=(LAB,),
        text="it is BPF that masquerades; `false` is refused unless the two above are off: there is no masquerade by "
        "iptables",
    ),
    Row(
        key="ipMasqAgent.enabled",
        read=Truth(),
        default=False,
        services=(LAB,),
        text="destinations of the list below see pods' own addresses",
    ),
    Row(
        key="ipMasqAgent.config.nonMasqueradeCIDRs",
        variable="PLEXUS_MASQ_EXCLUDE",
        read=Prefixes(Prefix(like="192.168.0.0/16,fd00::/8")),
        services=NODE,
        text="networks of both families; without it those that are nobody's on the Internet (10.0.0.0/8, "
        "172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 and so on)",
    ),
    Row(
        key="ipMasqAgent.config.masqLinkLocal",
        read=Truth(),
        default=False,
        services=(LAB,),
        text="`true`: 169.254.0.0/16 is masqueraded too",
    ),
    Row(
        key="ipMasqAgent.config.masqLinkLocalIPv6",
        read=Truth(),
        default=False,
        services=(LAB,),
        text="`true`: fe80::/10 is masqueraded too",
    ),
    Row(
        key="extraConfig.plexus-masquerade-ports",
        variable="PLEXUS_MASQUERADE_PORTS",
        read=PortRange(),
        services=NODE,
        text="ports that masqueraded connections take, 1024 or more within 32768-65535; without it as many as the "
        "node's own connections can spare, 36864-65535 on a node with Linux's defaults "
        "([ADR 6](adr/0006-masquerade-ports.md))",
    ),
    Row(
        key="installNoConntrackIptablesRules",
        variable="PLEXUS_NO_CONNTRACK_RULES",
        read=Truth(),
        default=False,
        services=NODE,
        text="native: the host does not track pods' connections",
    ),
)

FLOWS = (
    Row(
        key="hubble.enabled",
        variable="PLEXUS_HUBBLE_ENABLED",
        read=Truth(),
        default=True,
        define="OBSERVED",
        services=(*NODE, LAB),
        text="each node has an observer of flows; `false`: drops are counted, and nobody sees flows",
    ),
    Row(
        key="hubble.relay.enabled",
        read=Truth(),
        default=False,
        services=(LAB,),
        text="a relay puts all nodes' flows together; in a lab on port 4245 of the management network",
    ),
    Row(
        key="hubble.listenAddress",
        variable="PLEXUS_HUBBLE_LISTEN_ADDRESS",
        read=Text(),
        chart=":4244",
        services=(*OBSERVER, "relay"),
        text="`host:port` or `:port` where each observer is asked over the network, and the relay asks; without it an "
        "observer is asked only at its socket, or, with a relay, at `:4244`",
    ),
    Row(
        key="hubble.tls.enabled",
        variable="PLEXUS_HUBBLE_TLS",
        read=Truth(),
        default=True,
        services=(*OBSERVER, "relay"),
        text="there, both sides show a certificate of one authority; `false`: in the clear, to whoever comes",
    ),
    *(
        Row(variable=f"PLEXUS_HUBBLE_TLS_{name}", read=Text(), services=(*OBSERVER, "relay"), text=f"PEM file: {what}")
        for name, what in (("CA", "that authority"), ("CERT", "the certificate"), ("KEY", "its key"))
    ),
    Row(
        variable="PLEXUS_RELAY_LISTEN_ADDRESS",
        read=Text(),
        default="127.0.0.1:4245",
        services=("relay",),
        text="`host:port` or `:port` where the relay serves the Hubble API, in the clear",
    ),
    Row(
        key="hubble.eventBufferCapacity",
        variable="PLEXUS_HUBBLE_EVENT_BUFFER_CAPACITY",
        read=Places(1, 65_535),
        default=4095,
        services=OBSERVER,
        unit="flows",
        text="the last flows that each node keeps: 2^n - 1",
    ),
    Row(
        variable="PLEXUS_HUBBLE_SOCKET",
        read=File(),
        default="/run/plexus/hubble.sock",
        services=OBSERVER,
        text="where the observer of the node serves the Hubble API; whoever may open it sees the node's flows",
    ),
)

PLACES = (
    Row(
        variable="PLEXUS_NODE",
        read=Text(),
        services=(*NODE, *OBSERVER),
        text="the name of the node; there is none without",
    ),
    Row(
        variable="PLEXUS_SERVICE_CIDR",
        read=Prefix(4, like="10.96.0.0/16"),
        own={"resources": "10.96.0.0/16"},  # room for 65 534 Services
        services=("dataplane", "resources"),
        says_none=True,
        text="where ClusterIPs come from; what no Service has there is dropped. Without it `resources` gives them out "
        'of 10.96.0.0/16, and a node does not know the range; `""`: Services have no IPv4',
    ),
    Row(
        variable="PLEXUS_SERVICE_CIDR6",
        read=Prefix(6, like="fd00:96::/112"),
        services=("dataplane", "resources"),
        says_none=True,
        text="the same of IPv6; without it there is none",
    ),
    Row(
        variable="PLEXUS_SOURCE",
        read=Words("manifests", "kubernetes"),
        default="manifests",
        services=("resources",),
        text="where resources come from: `manifests`, what `plexus apply` brings, or `kubernetes`, what an API server "
        "has",
    ),
    Row(
        variable="PLEXUS_KUBECONFIG",
        read=File(),
        services=("resources",),
        text="by which file the API server is reached; without it, as the service account of the pod that `resources` "
        "runs in",
    ),
    Row(
        variable="PLEXUS_STATE_DIR",
        read=File(),
        default="/var/lib/plexus",
        services=NODE,
        text="what a node keeps on its disk",
    ),
    Row(
        variable="PLEXUS_PIN_DIR",
        read=File(),
        default="/sys/fs/bpf/plexus",
        services=(*NODE, *OBSERVER),
        text="where programs and maps are pinned",
    ),
    Row(
        variable="PLEXUS_CGROUP",
        read=File(),
        default="/sys/fs/cgroup",
        services=NODE,
        text="socket load balancing holds for what runs in it",
    ),
    Row(
        variable="PLEXUS_CNI_SOCKET",
        read=File(),
        default="/run/plexus/cni.sock",
        services=NODE,
        text="where `plexus-cni` finds the node's dataplane; that program reads it too",
    ),
    Row(
        variable="PLEXUS_FORCE_FALLBACK",
        read=Truth(),
        default=False,
        services=NODE,
        text="nftables rules instead of BPF programs, as on a kernel that takes none",
    ),
)

EVERYWHERE = (
    Row(
        variable="PLEXUS_BUS_URL",
        read=Text(),
        default="nats://127.0.0.1:4222",
        services=(EVERY,),
        text="where the bus is",
    ),
    Row(
        variable="PLEXUS_BUS_USER",
        read=Text(),
        services=(EVERY,),
        text="the account that the bus knows this process by",
    ),
    Row(
        variable="PLEXUS_BUS_PASSWORD",
        read=Text(),
        services=(EVERY,),
        text="of that account",
    ),
    Row(
        variable="PLEXUS_BUS_PASSWORD_FILE",
        read=Text(),
        services=(EVERY,),
        text="where that password stands, if not in PLEXUS_BUS_PASSWORD",
    ),
    Row(
        variable="PLEXUS_BUS_TLS_CA",
        read=Text(),
        services=(EVERY,),
        text="PEM file of the authority that the bus's certificate is of; without it no TLS",
    ),
    Row(
        variable="PLEXUS_BUS_TLS_CERT",
        read=Text(),
        services=(EVERY,),
        text="PEM file of this process's certificate, where the bus asks for one",
    ),
    Row(
        variable="PLEXUS_BUS_TLS_KEY",
        read=Text(),
        services=(EVERY,),
        text="PEM file of its key",
    ),
    Row(
        variable="PLEXUS_INSTANCE",
        read=Text(),
        default="control",
        services=(EVERY,),
        text="the last word of the subject that asks for its health; on a node its name",
    ),
    Row(
        variable="PLEXUS_HTTP",
        read=Text(),
        services=(EVERY,),
        text="`host:port` or `unix:/path` for health and metrics; without it none",
    ),
    Row(
        variable="PLEXUS_LOG_LEVEL",
        read=Words("debug", "info", "warning", "error"),
        default="info",
        services=(EVERY,),
        text="the least that is logged: `debug`, `info`, `warning` or `error`",
    ),
    Row(
        variable="PLEXUS_LOG_FORMAT",
        read=Words("json", "text"),
        default="json",
        services=(EVERY,),
        text="how a line of the log is written: `json` or `text`",
    ),
)

SECTIONS: Mapping[str, tuple[Row, ...]] = {
    "Addresses and routing": ROUTING,
    "Policy": POLICY,
    "The bus": BUS,
    "Masquerade": MASQUERADE,
    "Sizes and times": SIZES,
    "Flows": FLOWS,
    "Where a service runs": PLACES,
    "Of every service": EVERYWHERE,
}
"""As docs/settings.md has them."""

ROWS = checked(row for rows in SECTIONS.values() for row in rows)
KEYS: Mapping[str, Row] = {row.key: row for row in ROWS if row.key}
VARIABLES: Mapping[str, Row] = {row.variable: row for row in ROWS if row.variable}
SWITCHES: Mapping[str, Row] = {row.define: row for row in ROWS if row.is_switch}

LATER = (
    "bandwidthManager.enabled",
    "egressGateway.enabled",
    "encryption.enabled",
    "envoy.enabled",
    "externalIPs.enabled",
    "hostFirewall.enabled",
    "hubble.ui.enabled",
    "ingressController.enabled",
    "l7Proxy",
    "loadBalancer.acceleration",
    "loadBalancer.algorithm",
    "loadBalancer.mode",
    "nodePort.enabled",
)
"""Keys of the chart whose features come later; a value there is refused with a word of its own."""
