"""Writes what of the Helm chart follows from tables: `python -m tools.chart` (make docs runs it).

    settings/rows.py        values.yaml, values.schema.json, and which variables a service is told (_settings.tpl)
    bus/services.py         which services there are
    rights.rules()          the ClusterRole of `resources`
    services/resources/kinds    the CRDs of cilium.io

The rest of deploy/k8s is written by hand. Values that only a chart has are `OWN`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bus.services import SERVICES
from lab.settings import NEVER_OUTSIDE
from services.resources.kind import Kind
from services.resources.kubernetes.rights import rules
from services.resources.registry import KINDS
from settings.readers import DeviceNames, Number, Prefixes, Share, Truth, Words
from settings.row import Row
from settings.rows import KEYS, LATER

CHART = Path(__file__).resolve().parent.parent / "deploy/k8s"
MADE = "Written by `make docs` (tools/chart.py); do not edit it by hand."

SERVED = tuple(each for each in SERVICES if not each.switch)
"""What the chart starts: of the services that can be turned off, none yet."""
CONTROL = tuple(each.name for each in SERVED if not each.is_on_nodes)
ON_NODES = tuple(each.name for each in SERVED if each.is_on_nodes)
NOT_YET = (*LATER, *(each.switch for each in SERVICES if each.switch))

OTHERWISE: Mapping[str, Any] = {
    **{each.switch: False for each in SERVICES if each.switch},
    "bus.tls.enabled": True,
    "autoDirectNodeRoutes": False,
    "ipam.operator.clusterPoolIPv4PodCIDRList": ["10.244.0.0/16"],
    "ipam.operator.clusterPoolIPv6PodCIDRList": ["fd00::/104"],
}
"""Defaults that are the chart's: a lab is alone on its machine, and no router carries routes for it."""

TEXT, TRUTH, OBJECT, LIST = {"type": "string"}, {"type": "boolean"}, {"type": "object"}, {"type": "array"}
COUNT = {"type": "integer", "minimum": 1, "maximum": 9}
PORT = {"type": "integer", "minimum": 1, "maximum": 65_535}

OWN: Mapping[str, tuple[Any, Mapping[str, Any], str]] = {
    "image.repository": ("plexus", TEXT, "of the image of everything"),
    "image.tag": ("", TEXT, "without it the chart's appVersion"),
    "image.digest": ("", TEXT, "sha256:..., in the place of the tag"),
    "image.pullPolicy": ("IfNotPresent", {"enum": ["Always", "IfNotPresent", "Never"]}, "when it is fetched"),
    "imagePullSecrets": ([], LIST, "names of Secrets, as a pod has them"),
    "k8sServiceHost": ("", TEXT, "where the API server is; without it by its Service, which kube-proxy has to serve"),
    "k8sServicePort": (6443, PORT, "of it"),
    "serviceCIDR.ipv4": ("", TEXT, "where ClusterIPs are from: what no Service has there is dropped"),
    "serviceCIDR.ipv6": ("", TEXT, "the same of IPv6"),
    "operator.replicas": (2, COUNT, "of each control service: one works, the others stand by"),
    "operator.resources": ({}, OBJECT, "requests and limits of each"),
    "operator.tolerations": ([{"operator": "Exists"}], LIST, "where they may run: also on nodes that are not ready"),
    "operator.nodeSelector": ({"kubernetes.io/os": "linux"}, OBJECT, "where they run"),
    "operator.priorityClassName": ("system-cluster-critical", TEXT, "of the control services, and of the bus"),
    "resources": ({}, OBJECT, "requests and limits of the dataplane"),
    "tolerations": ([{"operator": "Exists"}], LIST, "of the dataplane: every node has one"),
    "nodeSelector": ({"kubernetes.io/os": "linux"}, OBJECT, "which nodes have one"),
    "priorityClassName": ("system-node-critical", TEXT, "of the dataplane"),
    "updateStrategy": ({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}, OBJECT, "of the dataplane"),
    "rollOutCiliumPods": (False, TRUTH, "pods are started anew when values change"),
    "prometheus.enabled": (True, TRUTH, "annotations by which Prometheus finds metrics"),
    "prometheus.port": (9962, PORT, "of health and metrics on a node: the first, each service has its own"),
    "cni.install": (True, TRUTH, "the executable and its configuration are put on each node"),
    "cni.uninstall": (False, TRUTH, "they go when the dataplane's pod ends: set it before Plexus goes for good"),
    "cni.binPath": ("/opt/cni/bin", TEXT, "the host's folder of executables"),
    "cni.confPath": ("/etc/cni/net.d", TEXT, "the host's folder of configurations"),
    "cni.chainingMode": ("none", {"enum": ["none", "portmap"]}, "the plugin that comes after: portmap, for host ports"),
    "cgroup.hostRoot": ("/sys/fs/cgroup", TEXT, "the root of the host's cgroup v2"),
    "bus.embedded": (True, TRUTH, "the chart starts a bus of its own"),
    "bus.node": ("", TEXT, "the node that it runs on, and keeps its log; without it the first control plane node"),
    "bus.address": ("", TEXT, "that node's address, by which everybody finds the bus; without it its InternalIP"),
    "bus.port": (4222, PORT, "of it"),
    "bus.path": ("/var/lib/plexus-bus", TEXT, "where its log is kept on that node"),
    "bus.url": ("", TEXT, "of a bus that is not the chart's (bus.embedded=false): nats://HOST:PORT"),
    "bus.secrets.control": ("", TEXT, "of which control services' passwords are made; without it made by chance"),
    "bus.secrets.nodes": ("", TEXT, "the same of nodes"),
    "bus.tls.authority": ("", TEXT, "PEM of the authority of a bus that is not the chart's"),
    "bus.resources": ({}, OBJECT, "requests and limits of the bus"),
}  # fmt: skip
"""By key: default, schema, what it says."""


def main() -> None:
    for name, text in files().items():
        (CHART / name).parent.mkdir(parents=True, exist_ok=True)
        (CHART / name).write_text(text)


def files() -> dict[str, str]:
    """By their place in the chart."""
    found = {
        "values.yaml": values(),
        "values.schema.json": json.dumps(schema(), indent=2) + "\n",
        "templates/_settings.tpl": settings(),
        "templates/clusterrole.yaml": cluster_role(),
    }
    return found | {
        f"crds/{kind.plural}.yaml": crd(kind) for kind in KINDS if kind.api_version.startswith("cilium.io/")
    }


# -- values and their schema


def described() -> dict[str, tuple[Any, Mapping[str, Any], str]]:
    found = {key: (default_of(row), schema_of(row), row.text) for key, row in KEYS.items()}
    later: dict[str, tuple[Any, Mapping[str, Any], str]] = {
        key: (None, {}, "not there yet: refused by name") for key in LATER if key not in found
    }
    return dict(sorted({**later, **found, **OWN}.items()))


def default_of(row: Row) -> Any:
    """None where nobody said it. What a node is told of sizes and times it counts as asked for."""
    if row.key in OTHERWISE:
        return OTHERWISE[row.key]
    return None if row.into else row.default


def schema_of(row: Row) -> dict[str, Any]:
    """What a value may be; what a pattern cannot say the services say when they start."""
    read = row.read
    listed = {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}
    found: dict[str, Any]
    if isinstance(read, Truth):
        found = dict(TRUTH)
    elif isinstance(read, Words):
        found = {"enum": [*read.words, *read.later]}
    elif isinstance(read, Number):
        found = dict(msgspec.json.schema(read.type))
    elif isinstance(read, Share):
        found = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string"}]}
    else:
        found = listed if isinstance(read, (Prefixes, DeviceNames)) else dict(TEXT)
    unset: list[Any] = [None, ""] + ([0] if row.zero_is_unset else [])
    return {"anyOf": [found, {"enum": unset}, {"type": "array", "maxItems": 0}]}


def values() -> str:
    """A tree, with what each says above it."""
    lines = [f"# {MADE}", "# null: nobody said it, and the text says what happens then."]

    def write(tree: Mapping[str, Any], depth: int) -> None:
        for name, inner in tree.items():
            indent = "  " * depth
            if isinstance(inner, dict):
                lines.append(f"{indent}{name}:")
                write(inner, depth + 1)
            else:
                default, _, text = inner
                lines.append(f"{indent}# {text}")
                lines.append(f"{indent}{name}: {json.dumps(default)}")

    write(tree_of(described()), 0)
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    def made(tree: Mapping[str, Any]) -> dict[str, Any]:
        properties = {
            name: made(inner) if isinstance(inner, dict) else {**inner[1], "description": inner[2]}
            for name, inner in tree.items()
        }
        return {"type": "object", "additionalProperties": False, "properties": properties}

    found = made(tree_of(described()))
    found["properties"]["global"] = {"type": "object"}  # Helm's own
    return {"$schema": "http://json-schema.org/draft-07/schema#", "$comment": MADE, **found}


def tree_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, leaf in flat.items():
        at = tree
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = leaf
    return tree


# -- templates


def dig(key: str) -> str:
    """A value, or ""."""
    path = " ".join(json.dumps(part) for part in key.split("."))
    return f'(dig {path} "" .Values.AsMap)'


def settings() -> str:
    lines = [f"{{{{/* {MADE} */}}}}"]
    lists = {
        "control": list(CONTROL),
        "node": list(ON_NODES),
        "never-outside": list(NEVER_OUTSIDE),
    }
    for name, listed in lists.items():
        lines.append(f'{{{{- define "plexus.{name}" -}}}}{json.dumps(listed)}{{{{- end -}}}}')
    users = {service.name: service.user_on("") for service in SERVED if service.is_on_nodes}
    lines.append(f'{{{{- define "plexus.users" -}}}}{json.dumps(users)}{{{{- end -}}}}')
    for service in (*CONTROL, *ON_NODES):
        lines.append(f'\n{{{{- define "plexus.settings.{service}" -}}}}')
        for row in KEYS.values():
            if service in row.services and row.variable and row.variable not in DECIDED:
                lines += told(row)
        lines.append("{{- end -}}")
    lines.append('\n{{- define "plexus.refused" -}}')
    lines += refused()
    lines.append("{{- end -}}")
    return "\n".join(lines) + "\n"


DECIDED = (
    "PLEXUS_MASQ_EXCLUDE",
    *(f"PLEXUS_{name}{suffix}" for name in ("CLUSTER_POOL_CIDRS", "NATIVE_ROUTING_CIDR") for suffix in ("", "6")),
)
"""What follows from several values: templates/_helpers.tpl says how."""


def told(row: Row) -> list[str]:
    """Not said where the value is what the chart has for "not set"."""
    value = "$v | int64 | toString" if isinstance(row.read, Number) else "$v | toString"
    if isinstance(row.read, (Prefixes, DeviceNames)):
        glue = '" "' if isinstance(row.read, DeviceNames) else '","'
        value = f'kindIs "slice" $v | ternary (join {glue} $v) ($v | toString)'
    zero = ' "0"' if row.zero_is_unset else ""
    return [
        f"{{{{- $v := {dig(row.key)} }}}}",
        f'{{{{- if not (has ($v | toString) (list "" "<nil>" "[]"{zero})) }}}}',
        f"- name: {row.variable}",
        f"  value: {{{{ {value} | quote }}}}",
        "{{- end }}",
    ]


def refused() -> Iterable[str]:
    """Features that are not there yet."""
    for key in sorted(NOT_YET):
        yield f'{{{{- if not (has ({dig(key)} | toString) (list "" "<nil>" "false" "[]")) }}}}'
        yield f'{{{{- fail "{key}: is not supported yet; remove it" }}}}'
        yield "{{- end }}"
    for key, row in KEYS.items():
        if isinstance(row.read, Truth) and row.read.only is not None:
            only = str(row.read.only).lower()
            yield f'{{{{- if not (has ({dig(key)} | toString) (list "" "<nil>" "{only}")) }}}}'
            yield f'{{{{- fail "{key}: is {only} only, so far: {row.read.feature} is not supported yet" }}}}'
            yield "{{- end }}"
        elif isinstance(row.read, Words) and row.read.later:
            words = " ".join(json.dumps(word) for word in row.read.later)
            allowed = " or ".join(row.read.words)
            yield f"{{{{- if has ({dig(key)} | toString) (list {words}) }}}}"
            yield f'{{{{- fail "{key}: use {allowed}; the others are not supported yet" }}}}'
            yield "{{- end }}"


def cluster_role() -> str:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "plexus-resources"},
        "rules": rules(),
    }
    return f"# {MADE}\n{yaml.safe_dump(role, sort_keys=False)}"


def crd(kind: Kind) -> str:
    """What is in a spec `resources` reads, and tells in the status: a schema here would refuse what another version of
    Plexus knows."""
    version, *older = (each.partition("/")[2] for each in kind.api_versions)
    open_object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    properties: dict[str, Any] = {"spec": open_object, "status": open_object}
    if kind.state.message.__name__ == "Policy":
        properties["specs"] = {"type": "array", "items": open_object}
    made = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.cilium.io"},
        "spec": {
            "group": "cilium.io",
            "scope": "Namespaced" if kind.is_namespaced else "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short),
                "categories": ["cilium"],
            },
            "versions": [
                {
                    "name": name,
                    "served": True,
                    "storage": name == version,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
                    **({"subresources": {"status": {}}} if kind.has_status else {}),
                }
                for name in (version, *older)
            ],
        },
    }
    return f"# {MADE}\n{yaml.dump(made, Dumper=_Plain, sort_keys=False)}"


class _Plain(yaml.SafeDumper):
    """Without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    main()
