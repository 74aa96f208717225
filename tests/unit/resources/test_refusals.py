"""Every bad manifest is refused at the place where it is bad, with what would be right."""

from __future__ import annotations

import pytest

from tests.unit.resources.manifests import (
    cidr_group,
    cilium,
    clusterwide,
    network,
    pod,
    problems,
    refusals,
    service,
)

ENTRY = "spec.ingress[0]"
PORT = f"{ENTRY}.toPorts[0].ports[0]"


def entry(body: str) -> str:
    return cilium(f"ingress: [{{{body}}}]")


def port(body: str) -> str:
    return entry(f"toPorts: [{{ports: [{{{body}}}]}}]")


def deployment(selector: str = "matchLabels: {a: b}", labels: str = "a: b", extra: str = "") -> str:
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: d}}
spec:
  selector: {{{selector}}}
  template: {{metadata: {{labels: {{{labels}}}}}, spec: {{containers: [{{name: c, image: i}}]{extra}}}}}
"""


def node(status: str, spec: str = "") -> str:
    return f"{{apiVersion: v1, kind: Node, metadata: {{name: n}}, spec: {{{spec}}}, status: {{{status}}}}}"


def slice_of(body: str, kind: str = "IPv4") -> str:
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s}}
addressType: {kind}
{body}
"""


REFUSED = {
    "an unknown kind": ("{apiVersion: v1, kind: Servce}", "kind", 'did you mean "Service"?'),
    "a kind of later": ("{apiVersion: networking.k8s.io/v1, kind: Ingress}", "kind", "not supported yet"),
    "a kind without traffic": ("{apiVersion: v1, kind: ConfigMap}", "kind", "let --skip-unsupported pass over it"),
    "a kind that makes pods": ("{apiVersion: batch/v1, kind: Job}", "kind", "its pods are not run"),
    "a kind of another project": (
        "{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor}",
        "kind",
        "let --skip-unsupported pass over it",
    ),
    "a policy of another project": (
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy}",
        "kind",
        "is not a known kind",
    ),
    "a peering by BGP": ("{apiVersion: cilium.io/v2, kind: CiliumBGPPeerConfig}", "kind", "not supported yet"),
    "a node's BGP": ("{apiVersion: cilium.io/v2, kind: CiliumBGPNodeConfigOverride}", "kind", "not supported yet"),
    "BGP as it was": ("{apiVersion: cilium.io/v2alpha1, kind: CiliumBGPPeeringPolicy}", "kind", "not supported yet"),
    "a clusterwide policy in a namespace": (
        clusterwide("ingress: [{}]").replace("{name:", "{namespace: blue, name:"),
        "metadata.namespace",
        "",
    ),
    "a clusterwide policy on nodes": (
        clusterwide("ingress: [{}]").replace("endpointSelector", "nodeSelector"),
        "spec.nodeSelector",
        "not supported yet",
    ),
    "a bad CIDR in a group": (cidr_group("10.0.0.0/8, 10.0.0.256/32"), "spec.externalCIDRs[1]", "is not a CIDR"),
    "a group of no list": (cidr_group("").replace("externalCIDRs: []", ""), "spec.externalCIDRs", "missing"),
    "another API version": ("{apiVersion: v1, kind: Deployment}", "apiVersion", "Deployment is of apps/v1, not v1"),
    "no kind": ("{apiVersion: v1}", "kind", "missing"),
    "a kind that is a list": ("{apiVersion: v1, kind: [Pod]}", "kind", "must be text"),
    "no metadata": ("{apiVersion: v1, kind: Pod, spec: {containers: []}}", "metadata", "missing"),
    "metadata that is text": ("{apiVersion: v1, kind: Namespace, metadata: x}", "metadata", "must be a map"),
    "no name": ("{apiVersion: v1, kind: Namespace, metadata: {}}", "metadata.name", "missing"),
    "a bad name": ("{apiVersion: v1, kind: Namespace, metadata: {name: A_b}}", "metadata.name", "a-z"),
    "a namespaced namespace": (
        "{apiVersion: v1, kind: Namespace, metadata: {name: a, namespace: b}}",
        "metadata.namespace",
        "must be left out",
    ),
    "a bad label value": (pod(metadata=", labels: {a: b c}"), "metadata.labels[a]", "is not a label value"),
    "a bad label key": (pod(metadata=", labels: {a/b/c: d}"), "metadata.labels[a/b/c]", "is not a label key"),
    "a label that YAML reads as a number": (pod(metadata=", labels: {v: 1}"), "metadata.labels[v]", "put it in quotes"),
    # pods
    "a misspelt field of a pod": (pod(", hostNetwrk: true"), "spec.hostNetwrk", 'did you mean "hostNetwork"?'),
    "a misspelt field of a container": (
        pod(containers="[{name: c, image: i, imagePulPolicy: Always}]"),
        "spec.containers[0].imagePulPolicy",
        'did you mean "imagePullPolicy"?',
    ),
    "a pod without containers": (pod(containers="[]"), "spec.containers", "at least one"),
    "a container without image": (pod(containers="[{name: c}]"), "spec.containers[0].image", "missing"),
    "containers of one name": (
        pod(containers="[{name: c, image: i}, {name: c, image: i}]"),
        "spec.containers[1].name",
        "two containers",
    ),
    "a container port of 70000": (
        pod(containers="[{name: c, image: i, ports: [{containerPort: 70000}]}]"),
        "spec.containers[0].ports[0].containerPort",
        "70000 is not a port; use 1 to 65535",
    ),
    "a host port of 70000": (
        pod(containers="[{name: c, image: i, ports: [{containerPort: 80, hostPort: 70000}]}]"),
        "spec.containers[0].ports[0].hostPort",
        "70000 is not a port",
    ),
    "a host port at no address": (
        pod(containers="[{name: c, image: i, ports: [{containerPort: 80, hostPort: 80, hostIP: eth0}]}]"),
        "spec.containers[0].ports[0].hostIP",
        "not an IP address",
    ),
    "an unknown transport": (
        pod(containers="[{name: c, image: i, ports: [{containerPort: 80, protocol: TPC}]}]"),
        "spec.containers[0].ports[0].protocol",
        'did you mean "TCP"?',
    ),
    "a bandwidth annotation": (
        pod(metadata=", annotations: {kubernetes.io/egress-bandwidth: 10M}"),
        "metadata.annotations[kubernetes.io/egress-bandwidth]",
        "not supported yet",
    ),
    "an owner of another kind": (
        pod(metadata=", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: r}]"),
        "metadata.ownerReferences[0]",
        "not supported yet",
    ),
    # Deployments
    "an empty selector": (deployment("matchLabels: {}"), "spec.selector", "is empty"),
    "a selector that misses its template": (deployment(labels="a: c"), "spec.selector", "make them agree"),
    "a Deployment of pods that end": (
        deployment(extra=", restartPolicy: Never"),
        "spec.template.spec.restartPolicy",
        "must be Always",
    ),
    "a misspelt field of a template": (
        deployment(extra=", nodName: n"),
        "spec.template.spec.nodName",
        'did you mean "nodeName"?',
    ),
    "more replicas than there can be": (
        deployment().replace("selector:", "replicas: 2000000000\n  selector:"),
        "spec.replicas",
        "use 0 to 100000",
    ),
    "an owner that is no name": (
        pod(metadata=", ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: a/b}]"),
        "metadata.ownerReferences[0].name",
        "is not a name",
    ),
    "a StatefulSet's order": (
        deployment().replace("Deployment", "StatefulSet") + "  podManagementPolicy: parallel",
        "spec.podManagementPolicy",
        'did you mean "Parallel"?',
    ),
    "a StatefulSet's updates": (
        deployment().replace("Deployment", "StatefulSet") + "  updateStrategy: {type: Never}",
        "spec.updateStrategy.type",
        "is not a choice",
    ),
    "a StatefulSet's long name": (
        deployment().replace("Deployment", "StatefulSet").replace("name: d}", f"name: {'d' * 62}}}"),
        "metadata.name",
        "longer than the 63",
    ),
    "a selector of a DaemonSet": (
        deployment(labels="a: c").replace("Deployment", "DaemonSet"),
        "spec.selector",
        "make them agree",
    ),
    "replicas of a DaemonSet": (
        deployment().replace("Deployment", "DaemonSet") + "  replicas: 2",
        "spec.replicas",
        "is not a known field",
    ),
    # nodes
    "a node without address": (node(""), "status.addresses", "needs an InternalIP"),
    "a node's bad address": (
        node("addresses: [{type: InternalIP, address: 1.2.3}]"),
        "status.addresses[0].address",
        "is not an IP address",
    ),
    "a node's bad CIDR": (
        node("addresses: [{type: InternalIP, address: 1.2.3.4}]", "podCIDR: 10.0.0.0/33"),
        "spec.podCIDRs[0]",
        "is not a CIDR",
    ),
    "a node's address with a zone": (
        node("addresses: [{type: InternalIP, address: 'fe80::1%eth0'}]"),
        "status.addresses[0].address",
        "zone",
    ),
    "a node's two blocks of one family": (
        node("addresses: [{type: InternalIP, address: 1.2.3.4}]", "podCIDRs: ['fd00:1::/64', 'fd00:2::/64']"),
        "spec.podCIDRs[1]",
        "one of each family",
    ),
    "a node's block of IPv4 addresses as IPv6 ones": (
        node("addresses: [{type: InternalIP, address: 1.2.3.4}]", "podCIDRs: ['::ffff:10.0.0.0/120']"),
        "spec.podCIDRs[0]",
        "write the IPv4 CIDR",
    ),
    # Services
    "a service port of 70000": (service("ports: [{port: 70000}]"), "spec.ports[0].port", "70000 is not a port"),
    "another port for SCTP": (
        service("ports: [{port: 80, targetPort: 8080, protocol: SCTP}]"),
        "spec.ports[0].targetPort",
        "is 8080, and SCTP keeps its port on the way to a backend; use 80, the Service's own",
    ),
    "a target port of 0": (service("ports: [{port: 1, targetPort: 0}]"), "spec.ports[0].targetPort", "0 is not a port"),
    "nameless ports": (service("ports: [{port: 1}, {port: 2, name: b}]"), "spec.ports[0].name", "is required"),
    "one port twice": (
        service("ports: [{port: 1, name: a}, {port: 1, name: b}]"),
        "spec.ports[1]",
        "same port as spec.ports[0]",
    ),
    "no ports": (service("ports: []"), "spec.ports", "is empty"),
    "a node port of a ClusterIP": (
        service("ports: [{port: 80, nodePort: 30080}]"),
        "spec.ports[0].nodePort",
        "is for the types NodePort and LoadBalancer",
    ),
    "a node port of 70000": (
        service("type: NodePort, ports: [{port: 80, nodePort: 70000}]"),
        "spec.ports[0].nodePort",
        "70000 is not a port",
    ),
    "one node port twice": (
        service("type: NodePort, ports: [{port: 1, name: a, nodePort: 30001}, {port: 2, name: b, nodePort: 30001}]"),
        "spec.ports[1]",
        "is the same nodePort as spec.ports[0]",
    ),
    "a headless NodePort": (
        service("type: NodePort, clusterIP: None, ports: [{port: 80}]"),
        "spec.clusterIP",
        "None is for the type ClusterIP only",
    ),
    "a policy for outside traffic where there is none": (
        service("externalTrafficPolicy: Local, ports: [{port: 80}]"),
        "spec.externalTrafficPolicy",
        "is of what comes from outside",
    ),
    "a misspelt policy for outside traffic": (
        service("type: NodePort, externalTrafficPolicy: local, ports: [{port: 80}]"),
        "spec.externalTrafficPolicy",
        'did you mean "Local"?',
    ),
    "an external address that is loopback": (
        service("externalIPs: [127.0.0.1], ports: [{port: 80}]"),
        "spec.externalIPs[0]",
        "cannot be an endpoint",
    ),
    "a health check of a NodePort": (
        service("type: NodePort, healthCheckNodePort: 30000, ports: [{port: 80}]"),
        "spec.healthCheckNodePort",
        "is for a LoadBalancer",
    ),
    "an affinity for ever": (
        service(
            "ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}"
        ),
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        "not within 1 and 86400",
    ),
    "a time of an affinity that is none": (
        service("ports: [{port: 80}], sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}"),
        "spec.sessionAffinityConfig",
        "for sessionAffinity ClientIP only",
    ),
    "a misspelt distribution": (
        service("ports: [{port: 80}], trafficDistribution: PreferClosest"),
        "spec.trafficDistribution",
        'did you mean "PreferClose"?',
    ),
    "a source range that is none": (
        service("ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0]"),
        "spec.loadBalancerSourceRanges[0]",
        "is not a CIDR",
    ),
    "a slice's weight that is none": (
        slice_of("endpoints: []").replace("metadata: {", "metadata: {annotations: {service.cilium.io/weight: '257'}, "),
        "metadata.annotations[service.cilium.io/weight]",
        "use 0 to 256",
    ),
    "a misspelt type": (service("type: ClusterIp, ports: [{port: 80}]"), "spec.type", 'did you mean "ClusterIP"?'),
    "an external name of another type": (
        service("ports: [{port: 80}], externalName: a.b"),
        "spec.externalName",
        "for the type ExternalName only",
    ),
    "an ExternalName without a name": (service("type: ExternalName"), "spec.externalName", "is required"),
    "an ExternalName that is no name": (
        service("type: ExternalName, externalName: a b"),
        "spec.externalName",
        "is not a name",
    ),
    "an ExternalName with an address": (
        service("type: ExternalName, externalName: a.b, clusterIP: 10.96.0.9"),
        "spec.clusterIP",
        "must be left out",
    ),
    "a limit on sources that neither lets in nor keeps out": (
        service(metadata=", annotations: {Service.Cilium.io/src-ranges-policy: Deny}"),
        "metadata.annotations[Service.Cilium.io/src-ranges-policy]",
        "use allow or deny",
    ),
    "an algorithm by annotation": (
        service(metadata=", annotations: {Service.Cilium.io/lb-algorithm: maglev}"),
        "metadata.annotations[Service.Cilium.io/lb-algorithm]",
        "not supported yet",
    ),
    "an annotation's bad key": (
        service(metadata=", annotations: {a/b/c: d}"),
        "metadata.annotations[a/b/c]",
        "is not an annotation key",
    ),
    "a label key with capitals before the slash": (
        pod(metadata=", labels: {Example.org/a: d}"),
        "metadata.labels[Example.org/a]",
        "is not a label key",
    ),
    "a misspelt session affinity": (
        service("ports: [{port: 80}], sessionAffinity: clientIP"),
        "spec.sessionAffinity",
        'did you mean "ClientIP"?',
    ),
    "a bad cluster address": (service("ports: [{port: 80}], clusterIP: 10.96.0"), "spec.clusterIP", "not an IP"),
    "a cluster address with a zone": (
        service("ports: [{port: 80}], clusterIP: 'fe80::1%eth0'"),
        "spec.clusterIP",
        "leave out %eth0",
    ),
    "an IPv4 cluster address as an IPv6 one": (
        service("ports: [{port: 80}], clusterIP: '::ffff:10.96.0.9'"),
        "spec.clusterIP",
        "write the IPv4 address",
    ),
    "two cluster addresses of one family": (
        service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack, clusterIPs: ['fd00::1', 'fd00::2']"),
        "spec.clusterIPs[1]",
        "IPv6 again",
    ),
    "three cluster addresses": (
        service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack, clusterIPs: ['fd00::1', 10.96.0.1, 10.96.0.2]"),
        "spec.clusterIPs[2]",
        "IPv4 again",
    ),
    "no address beside an address": (
        service("ports: [{port: 80}], clusterIPs: ['None', 10.96.0.1]"),
        "spec.clusterIP",
        "not an IP address",
    ),
    "two families on a single stack": (
        service("ports: [{port: 80}], ipFamilies: [IPv4, IPv6]"),
        "spec.ipFamilyPolicy",
        "use PreferDualStack",
    ),
    "a misspelt family": (service("ports: [{port: 80}], ipFamilies: [ipv6]"), "spec.ipFamilies[0]", '"IPv6"?'),
    "one family twice": (
        service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6, IPv6]"),
        "spec.ipFamilies[1]",
        "again",
    ),
    "a family that is not the address's": (
        service("ports: [{port: 80}], ipFamilies: [IPv4], clusterIP: 'fd00::1'"),
        "spec.ipFamilies[0]",
        "make them agree",
    ),
    "a misspelt family policy": (
        service("ports: [{port: 80}], ipFamilyPolicy: DualStack"),
        "spec.ipFamilyPolicy",
        "is not a choice",
    ),
    "a Service name with a digit first": (service(name="1svc"), "metadata.name", "is not a Service name"),
    # slices
    "a slice of what is no name": (
        slice_of("endpoints: [{addresses: [a b]}]", "FQDN"),
        "endpoints[0].addresses[0]",
        "is not a name",
    ),
    "a misspelt type of address": (slice_of("endpoints: []", "IPV6"), "addressType", 'did you mean "IPv6"?'),
    "an IPv4 backend in a slice of IPv6": (
        slice_of("endpoints: [{addresses: [10.0.0.1]}]", "IPv6"),
        "endpoints[0].addresses[0]",
        "not an IPv6 address",
    ),
    "an IPv6 backend in a slice of IPv4": (
        slice_of("endpoints: [{addresses: ['fd00::1']}]"),
        "endpoints[0].addresses[0]",
        "not an IPv4 address",
    ),
    "a link-local backend": (
        slice_of("endpoints: [{addresses: ['fe80::1']}]", "IPv6"),
        "endpoints[0].addresses[0]",
        "link-local",
    ),
    "a loopback backend": (slice_of("endpoints: [{addresses: [127.0.0.1]}]"), "endpoints[0].addresses[0]", "loopback"),
    "a slice's bad port": (slice_of("ports: [{port: 70000}]"), "ports[0].port", "70000 is not a port"),
    # NetworkPolicies
    "In without values": (
        network("podSelector: {matchExpressions: [{key: a, operator: In, values: []}]}"),
        "spec.podSelector.matchExpressions[0].values",
        "In needs at least one value",
    ),
    "Exists with values": (
        network("podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}"),
        "spec.podSelector.matchExpressions[0].values",
        "must be left out",
    ),
    "an unknown operator": (
        network("podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}"),
        "spec.podSelector.matchExpressions[0].operator",
        'did you mean "In"?',
    ),
    "an empty peer": (network("ingress: [{from: [{}]}]"), "spec.ingress[0].from[0]", "is empty"),
    "a bad CIDR": (
        network("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/40}}]}]"),
        "spec.ingress[0].from[0].ipBlock.cidr",
        '"10.0.0.0/40" is not a CIDR',
    ),
    "an exception outside its block": (
        network("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]"),
        "spec.ingress[0].from[0].ipBlock.except[0]",
        "is not inside 10.0.0.0/8",
    ),
    "a CIDR beside a selector": (
        network("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]"),
        "spec.ingress[0].from[0].ipBlock",
        "stands beside a selector",
    ),
    "a range that ends before it starts": (
        network("ingress: [{ports: [{port: 80, endPort: 79}]}]"),
        "spec.ingress[0].ports[0].endPort",
        "79 is below port 80",
    ),
    "a range from a name": (
        network("ingress: [{ports: [{port: http, endPort: 90}]}]"),
        "spec.ingress[0].ports[0].endPort",
        "needs a port number",
    ),
    "a policy type in lower case": (
        network("policyTypes: [ingress]"),
        "spec.policyTypes[0]",
        'did you mean "Ingress"?',
    ),
    # CiliumNetworkPolicies
    "a misspelt field of a rule": (
        entry("fromEndponts: [{}]"),
        f"{ENTRY}.fromEndponts",
        'did you mean "fromEndpoints"?',
    ),
    "a port of 70000": (port("port: '70000'"), f"{PORT}.port", "70000 is not a port; use 1 to 65535"),
    "a port of 70000 without quotes": (port("port: 70000"), f"{PORT}.port", "70000 is not a port; use 1 to 65535"),
    "a port without quotes": (port("port: 80"), f"{PORT}.port", 'write "80"'),
    "a negative port": (port("port: '-1'"), f"{PORT}.port", "-1 is not a port"),
    "a port that is neither number nor name": (port("port: 'a b'"), f"{PORT}.port", "is not a port name"),
    "an unknown protocol": (port("port: '80', protocol: TCPP"), f"{PORT}.protocol", 'did you mean "TCP"?'),
    "ICMP as a port's protocol": (port("port: '8', protocol: ICMP"), f"{PORT}.protocol", "use icmps"),
    "a range downwards": (port("port: '80', endPort: 70"), f"{PORT}.endPort", "70 is below port 80"),
    "an entry of toPorts without ports": (entry("toPorts: [{}]"), f"{ENTRY}.toPorts[0].ports", "is empty"),
    "L7 rules": (
        entry("toPorts: [{ports: [{port: '80'}], rules: {http: [{method: GET}]}}]"),
        f"{ENTRY}.toPorts[0].rules.http",
        "not supported yet",
    ),
    "a misspelt field of an L7 rule": (
        entry("toPorts: [{ports: [{port: '80'}], rules: {http: [{metod: GET}]}}]"),
        f"{ENTRY}.toPorts[0].rules.http[0].metod",
        'did you mean "method"?',
    ),
    "L7 rules of two protocols": (
        entry("toPorts: [{ports: [{port: '80'}], rules: {http: [{}], l7: [{}]}}]"),
        f"{ENTRY}.toPorts[0].rules.l7",
        "stands beside http",
    ),
    "a header without a name": (
        entry("toPorts: [{ports: [{port: '80'}], rules: {http: [{headers: [': x']}]}}]"),
        f"{ENTRY}.toPorts[0].rules.http[0].headers[0]",
        "is not the name of a header",
    ),
    "a misspelt mismatch of a header": (
        entry("toPorts: [{ports: [{port: '80'}], rules: {http: [{headerMatches: [{name: a, mismatch: LOGG}]}]}}]"),
        f"{ENTRY}.toPorts[0].rules.http[0].headerMatches[0].mismatch",
        'did you mean "LOG"?',
    ),
    "a misspelt field of a header": (
        entry("toPorts: [{ports: [{port: '80'}], rules: {http: [{headerMatches: [{nam: a}]}]}}]"),
        f"{ENTRY}.toPorts[0].rules.http[0].headerMatches[0].nam",
        'did you mean "name"?',
    ),
    "a pattern as a DNS name": (
        cilium("egress: [{toPorts: [{ports: [{port: '53'}], rules: {dns: [{matchName: '*.a'}]}}]}]"),
        "spec.egress[0].toPorts[0].rules.dns[0].matchName",
        "patterns go into matchPattern",
    ),
    "a DNS rule of nothing": (
        cilium("egress: [{toFQDNs: [{}]}]"),
        "spec.egress[0].toFQDNs[0]",
        "one of matchName and matchPattern",
    ),
    "a server name that is none": (
        entry("toPorts: [{ports: [{port: '443'}], serverNames: ['a b']}]"),
        f"{ENTRY}.toPorts[0].serverNames[0]",
        "is not a server name",
    ),
    "TLS": (
        entry("toPorts: [{ports: [{port: '443'}], terminatingTLS: {}}]"),
        f"{ENTRY}.toPorts[0].terminatingTLS",
        "not supported yet",
    ),
    "a null list of peers": (entry("fromEndpoints: null"), f"{ENTRY}.fromEndpoints", "is null"),
    "null ports": (entry("fromEndpoints: [{}], toPorts: null"), f"{ENTRY}.toPorts", "is null"),
    "null rules of layer 7": (
        entry("toPorts: [{ports: [{port: '80'}], rules: {http: null}}]"),
        f"{ENTRY}.toPorts[0].rules.http",
        "is null",
    ),
    "a null protocol": (port("port: '80', protocol: null"), f"{PORT}.protocol", "is null"),
    "null exceptions": (
        entry("fromCIDRSet: [{cidr: 10.0.0.0/8, except: null}]"),
        f"{ENTRY}.fromCIDRSet[0].except",
        "is null",
    ),
    "a null label of a peer": (
        entry("fromEndpoints: [{matchLabels: {app: null}}]"),
        f"{ENTRY}.fromEndpoints[0].matchLabels[app]",
        "must be text",
    ),
    "a null map of labels of a peer": (
        entry("fromEndpoints: [{matchLabels: null}]"),
        f"{ENTRY}.fromEndpoints[0].matchLabels",
        "is null",
    ),
    "null deny rules": (cilium("ingress: [{}], ingressDeny: null"), "spec.ingressDeny", "is null"),
    "an empty list of ingress": (cilium("ingress: []"), "spec.ingress", "ingress: [{}] denies all ingress"),
    "an empty list of egress": (cilium("egress: []"), "spec.egress", "egress: [{}] all egress"),
    "a null list of ingress": (cilium("ingress: null"), "spec.ingress", "ingress: [{}] denies all ingress"),
    "two empty lists": (cilium("ingress: [], egress: []"), "spec", "does nothing"),
    "a subject alone": (
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: a}, spec: {endpointSelector: {}}}",
        "spec",
        "does nothing",
    ),
    "an empty list of deny rules": (cilium("ingressDeny: []"), "spec", "does nothing"),
    "no default deny, and nothing else": (
        cilium("ingress: [{}], enableDefaultDeny: {ingress: false}"),
        "spec",
        "does nothing",
    ),
    "an empty list of rules": (
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: a}, specs: []}",
        "spec",
        "without a rule nothing is denied",
    ),
    "a second rule that does nothing": (
        cilium("ingress: [{}]") + "specs: [{endpointSelector: {}, ingress: []}]",
        "specs[0].ingress",
        "does nothing",
    ),
    "an In without values in a peer": (
        entry("fromEndpoints: [{matchExpressions: [{key: a, operator: In}]}]"),
        f"{ENTRY}.fromEndpoints[0].matchExpressions[0].values",
        "needs at least one",
    ),
    "an unknown reserved label": (
        entry("fromEndpoints: [{matchLabels: {'reserved:hst': ''}}]"),
        f"{ENTRY}.fromEndpoints[0]",
        'did you mean "host"?',
    ),
    "a reserved label with another": (
        entry("fromEndpoints: [{matchLabels: {'reserved:host': '', a: b}}]"),
        f"{ENTRY}.fromEndpoints[0]",
        "with something else",
    ),
    "a reserved label of a subject": (
        cilium("ingress: [{}]").replace(
            "endpointSelector: {}", "endpointSelector: {matchLabels: {'reserved:init': ''}}"
        ),
        "spec.endpointSelector",
        "which no pod has",
    ),
    "a label of another source": (
        entry("fromEndpoints: [{matchLabels: {'container:a': b}}]"),
        f"{ENTRY}.fromEndpoints[0].matchLabels[container:a]",
        "not supported yet",
    ),
    "an unknown entity": (entry("fromEntities: [wrld]"), f"{ENTRY}.fromEntities[0]", 'did you mean "world"?'),
    "two kinds of peers": (
        entry("fromEndpoints: [{}], fromEntities: [world]"),
        f"{ENTRY}.fromEntities",
        "stands beside fromEndpoints",
    ),
    "a bad CIDR in fromCIDR": (entry("fromCIDR: [10.0.0.256/8]"), f"{ENTRY}.fromCIDR[0]", "is not a CIDR"),
    "a set without networks": (entry("fromCIDRSet: [{}]"), f"{ENTRY}.fromCIDRSet[0]", "says no networks"),
    "a set of two things": (
        entry("fromCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: g}]"),
        f"{ENTRY}.fromCIDRSet[0]",
        "has cidr and cidrGroupRef",
    ),
    "a group's bad exception": (
        entry("fromCIDRSet: [{cidrGroupRef: g, except: [x]}]"),
        f"{ENTRY}.fromCIDRSet[0].except[0]",
        "is not a CIDR",
    ),
    "a misspelt selector of groups": (
        entry("fromCIDRSet: [{cidrGroupSelector: {matchLabel: {a: b}}}]"),
        f"{ENTRY}.fromCIDRSet[0].cidrGroupSelector.matchLabel",
        'did you mean "matchLabels"?',
    ),
    "a long value to log": (
        cilium(f"ingress: [{{}}], log: {{value: {'x' * 33}}}"),
        "spec.log.value",
        "at most 32 printable",
    ),
    "a bad CIDR in fromCIDRSet": (
        entry("fromCIDRSet: [{cidr: 10.0.0.0}]"),
        f"{ENTRY}.fromCIDRSet[0].cidr",
        "is not a CIDR",
    ),
    "a set's exception outside": (
        entry("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [12.0.0.0/8]}]"),
        f"{ENTRY}.fromCIDRSet[0].except[0]",
        "is not inside",
    ),
    "fromRequires": (entry("fromRequires: [{matchLabels: {a: b}}]"), f"{ENTRY}.fromRequires", "not supported yet"),
    "fromNodes": (entry("fromNodes: [{}]"), f"{ENTRY}.fromNodes", "not supported yet"),
    "authentication": (entry("authentication: {mode: required}"), f"{ENTRY}.authentication", "not supported yet"),
    "toFQDNs": (cilium("egress: [{toFQDNs: [{matchName: a.b}]}]"), "spec.egress[0].toFQDNs", "not supported yet"),
    "an empty toFQDNs": (cilium("egress: [{toFQDNs: []}]"), "spec.egress[0].toFQDNs", "not supported yet"),
    "a Service that is none": (
        cilium("egress: [{toServices: [{}]}]"),
        "spec.egress[0].toServices[0]",
        "one of k8sService",
    ),
    "a Service with a bad name": (
        cilium("egress: [{toServices: [{k8sService: {serviceName: A, namespace: b}}]}]"),
        "spec.egress[0].toServices[0].k8sService.serviceName",
        "is not a Service name",
    ),
    "Services by no selector": (
        cilium("egress: [{toServices: [{k8sServiceSelector: {namespace: b}}]}]"),
        "spec.egress[0].toServices[0].k8sServiceSelector.selector",
        "missing",
    ),
    "L7 in a deny rule": (
        cilium("ingressDeny: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}]"),
        "spec.ingressDeny[0].toPorts[0].rules.http",
        "not supported yet",
    ),
    "a DNS name in a deny rule": (
        cilium("egressDeny: [{toFQDNs: [{matchName: a.b}]}]"),
        "spec.egressDeny[0].toFQDNs",
        "not supported yet",
    ),
    "a policy on nodes": (
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: a}, spec: {nodeSelector: {}}}",
        "spec.nodeSelector",
        "not supported yet",
    ),
    "neither spec nor specs": (
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: a}}",
        "spec",
        "missing",
    ),
    "no endpointSelector": (
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: a}, specs: [{ingress: [{}]}]}",
        "specs[0].endpointSelector",
        "missing",
    ),
    "a subject in another namespace": (
        cilium("ingress: [{}]").replace(
            "endpointSelector: {}", "endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': b}}"
        ),
        "spec.endpointSelector",
        "names another namespace",
    ),
    "ICMP beside ports": (
        entry("toPorts: [{ports: [{port: '80'}]}], icmps: [{fields: [{type: 8}]}]"),
        f"{ENTRY}.icmps",
        "stands beside toPorts",
    ),
    "an ICMP type of 08": (
        entry("icmps: [{fields: [{type: '08'}]}]"),
        f"{ENTRY}.icmps[0].fields[0].type",
        "is not an ICMP type",
    ),
    "an ICMP type of 256 in text": (
        entry("icmps: [{fields: [{type: '256'}]}]"),
        f"{ENTRY}.icmps[0].fields[0].type",
        "256 is not an ICMP type",
    ),
    "an ICMP type of 256": (
        entry("icmps: [{fields: [{type: 256}]}]"),
        f"{ENTRY}.icmps[0].fields[0].type",
        "256 is not an ICMP type",
    ),
    "an unknown ICMP type": (
        entry("icmps: [{fields: [{type: EchoReqest}]}]"),
        f"{ENTRY}.icmps[0].fields[0].type",
        'did you mean "EchoRequest"?',
    ),
    "a type of the other family": (
        entry("icmps: [{fields: [{type: PacketTooBig}]}]"),
        f"{ENTRY}.icmps[0].fields[0].type",
        "is not an ICMP type",
    ),
    "an unknown ICMPv6 type": (
        entry("icmps: [{fields: [{type: NeighbourSolicitation, family: IPv6}]}]"),
        f"{ENTRY}.icmps[0].fields[0].type",
        'did you mean "NeighborSolicitation"?',
    ),
    "a misspelt family of ICMP": (
        entry("icmps: [{fields: [{type: 128, family: ipv6}]}]"),
        f"{ENTRY}.icmps[0].fields[0].family",
        'did you mean "IPv6"?',
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_manifest_is_refused_at_its_place_with_what_would_be_right(case: tuple[str, str, str]) -> None:
    text, path, words = case
    found = problems(text)
    assert path in found, found
    assert words in found[path]


def test_a_refusal_names_the_document_the_kind_and_the_name() -> None:
    (refusal,) = refusals(port("port: '70000'"))
    assert (refusal.source, refusal.kind, refusal.name) == ("test.yaml, document 1", "CiliumNetworkPolicy", "rule1")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (service("ports: [{port: 0}]"), "spec.ports[0].port"),
        (pod().replace("containers", "contaners"), "spec.contaners"),
        (pod(containers="[{nme: c, image: i}]"), "spec.containers[0].nme"),
        (deployment("matchExpressions: [{key: a, operator: Inn}]"), "spec.selector.matchExpressions[0].operator"),
    ],
    ids=["a port without targetPort", "containers misspelt", "a container's name misspelt", "a selector's operator"],
)
def test_one_mistake_is_one_complaint(text: str, path: str) -> None:
    assert [each.path for each in refusals(text)] == [path]


def test_every_fault_of_a_document_is_named_at_once() -> None:
    text = service("ports: [{port: 0}, {port: 70000}], type: NodePrt")
    assert set(problems(text)) >= {"spec.ports[0].port", "spec.ports[1].port", "spec.type", "spec.ports[0].name"}


def test_a_manifest_nested_without_end_is_refused_and_overflows_nothing() -> None:
    nested = "[" * 400 + "]" * 400
    assert "nested" in problems(pod(f", volumes: {nested}"))[""]


ASKS_FOR_MORE_WHEN_REMOVED = {
    "a condition of a deny rule": (
        cilium("ingress: [{fromEntities: [all]}], ingressDeny: [{fromEndpoints: [{}], fromNodes: [{}]}]"),
        "leave the policy out",
    ),
    "authentication": (entry("fromEndpoints: [{}], authentication: {mode: required}"), "write {} in place"),
    "a DNS name": (cilium("egress: [{toFQDNs: [{matchName: a.b}]}]"), "write {} in place"),
    "a reserved label and another": (
        entry("fromEndpoints: [{matchLabels: {'reserved:host': '', a: b}}]"),
        "write {} in place",
    ),
    "L7 rules": (entry("toPorts: [{ports: [{port: '80'}], rules: {http: [{method: GET}]}}]"), "write {} in place"),
    "server names": (entry("toPorts: [{ports: [{port: '443'}], serverNames: [a.b]}]"), "write {} in place"),
    "no ICMP types": (entry("fromEndpoints: [{}], icmps: [{fields: []}]"), "write {} in place"),
}


@pytest.mark.parametrize("case", ASKS_FOR_MORE_WHEN_REMOVED.values(), ids=ASKS_FOR_MORE_WHEN_REMOVED.keys())
def test_no_hint_leads_to_a_policy_that_is_wider(case: tuple[str, str]) -> None:
    text, words = case
    (problem,) = problems(text).values()
    assert words in problem
    assert "remove" not in problem and "denied by default" not in problem


LONG = "x" * 5000
KEY = "x" * 1000  # as long as YAML takes one


@pytest.mark.parametrize(
    "text",
    [
        f"{{apiVersion: v1, kind: {LONG}}}",
        pod(f", {KEY}: 1"),
        pod(f", nodeName: {LONG}"),
        pod(metadata=f", labels: {{a: {LONG}}}"),
        pod(metadata=f", annotations: {{a/{KEY}: b}}").replace("name: p", f"name: {LONG}"),
        service(f"type: {LONG}, ports: [{{port: 80}}]"),
        service("ports: [{port: 1" + "0" * 3000 + "}]"),
        port(f"port: '{LONG}'"),
        entry(f"fromEntities: [{LONG}]"),
        entry(f"fromCIDR: [{LONG}]"),
        entry(f"fromEndpoints: [{{matchLabels: {{a: {LONG}}}}}]"),
        network(f"policyTypes: [{LONG}]"),
    ],
)
def test_a_long_value_is_cut_and_what_would_be_right_stays(text: str) -> None:
    for refusal in refusals(text):
        assert len(refusal.problem) <= 400 and len(refusal.path) <= 250 and len(refusal.name) <= 253
        assert not refusal.problem.endswith("x")
