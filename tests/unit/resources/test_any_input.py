"""Whatever a manifest holds, it is taken or refused with reasons; nothing else happens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import decode, encode
from bus.messages.resources import Document
from services.resources.manifests.document import read_document
from services.resources.manifests.meta import Resource
from tests.unit.resources.manifests import cilium, documents, network, pod, service

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
MANIFESTS = [each.manifest for path in sorted(EXAMPLES.rglob("*.yaml")) for each in documents(path.read_text())]
MANIFESTS += [
    each.manifest
    for text in (
        cilium(
            "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}, {icmps: [{fields: [{type: 8}]}]}]"
        ),
        cilium("egress: [{toEntities: [world], toPorts: [{ports: [{port: '80', endPort: 90}]}]}]"),
        network("ingress: [{from: [{namespaceSelector: {matchLabels: {a: b}}}], ports: [{port: 80, endPort: 90}]}]"),
        pod(metadata=", labels: {a: b}, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: d}]"),
        service("ports: [{port: 80, targetPort: http}], clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9]"),
        service(
            "ports: [{port: 80}], ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6, IPv4],"
            " clusterIPs: ['fd00::9', 10.96.0.9]"
        ),
        cilium("egress: [{toEntities: [world-ipv6]}, {icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]}]"),
        """
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {a: b}, matchExpressions: [{key: a, operator: In, values: [b]}]}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}}
""",
        """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: s}
spec:
  ordinals: {start: 1}
  updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 1}}
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: d}
spec:
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}
""",
        """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: svc}}
addressType: IPv4
ports: [{port: 80, name: http}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s6, labels: {kubernetes.io/service-name: svc}}
addressType: IPv6
ports: [{port: 80, name: http, protocol: SCTP}]
endpoints: [{addresses: ['fd00::1']}]
""",
        """
apiVersion: v1
kind: Node
metadata: {name: n}
spec: {podCIDRs: [10.1.0.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}
""",
    )
    for each in documents(text)
]

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["", "10.0.0.0/33", "::/0", "1.2.3.4", "TCP", "In", "a:b", "k8s:", "/", "0", "99999", "½", "٣"]),
    st.sampled_from(["IPv6", "fd00::1", "FD00:0::1", "::ffff:10.0.0.1", "fe80::1%eth0", "::", ":::", "fd00::/129"]),
    st.sampled_from(["::ffff:0:0/96", "fd00::%eth0/10", "fd00:1::1/64", "PreferDualStack", "RequireDualStack"]),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside."""
    found: list[tuple[Any, ...]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(*path, key), *places(item, (*path, key))]
    return found


@settings(deadline=None)  # what is claimed is the outcome, not the time on a busy machine
@given(st.data())
def test_a_manifest_with_anything_anywhere_is_taken_or_refused_with_reasons(data: st.DataObject) -> None:
    manifest = copy.deepcopy(data.draw(st.sampled_from(MANIFESTS)))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(manifest)))
        inner = manifest
        for key in path:
            inner = inner[key]
        inner[last] = data.draw(VALUES)
        if isinstance(inner, dict) and data.draw(st.booleans()):
            inner[data.draw(st.text(max_size=3))] = data.draw(VALUES)
    document = Document(source="fuzz", manifest=manifest)
    found = read_document(document)
    if isinstance(found, Resource):
        for subject, message in found.messages:
            assert decode(subject, encode(message, subject=subject), type(message)) == message
    else:
        assert found and all(each.problem for each in found)
    deleted = read_document(document, to_delete=True)
    assert isinstance(deleted, Resource) or deleted
