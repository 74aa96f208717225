"""The Helm chart, rendered by Helm itself: each value reaches who reads it, and Kubernetes takes every manifest."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate  # type: ignore[import-untyped]  # it has none
import pytest
import yaml

from bus.client import connect
from bus.serve import Serving, password_of
from bus.server import free_port
from bus.service import Settings as Every
from bus.tls import ClientTls
from services.dataplane.settings import NodeSettings
from services.ipam.settings import from_environment as ipam_settings
from services.resources.kubernetes.rights import rules
from services.resources.registry import KINDS
from services.resources.settings import from_environment as resources_settings
from settings.readers import DeviceNames, Duration, Number, PortRange, Prefix, Prefixes, Share, Truth, Words
from settings.row import Row
from settings.rows import KEYS, VARIABLES
from tools import chart

PLACE = {"bus": {"node": "cp-1", "address": "192.0.2.1"}}
NEWEST = "1.36"
Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def plexus() -> Iterator[helm.Chart]:
    with helm.Chart.load(str(chart.CHART)) as found:
        yield found


def rendered(plexus: helm.Chart, values: dict[str, Any] | None = None) -> Objects:
    """By kind and name."""
    wanted = merged(PLACE, values or {})
    plexus.validate_schema(wanted)
    texts = plexus.render(wanted, name="plexus", namespace="kube-system")
    found = [each for name, text in texts.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text)]
    return {(each["kind"], each["metadata"]["name"]): each for each in found if each}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **both}


def at(key: str, value: Any) -> dict[str, Any]:
    return chart.tree_of({key: value})


def pod_of(found: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def environment(objects: Objects, service: str) -> dict[str, str]:
    """As the kubelet of node1 makes it."""
    place = ("DaemonSet", "plexus") if service in chart.ON_NODES else ("Deployment", f"plexus-{service}")
    (container,) = [each for each in pod_of(objects[place])["containers"] if each["name"] == service]
    found = {each["name"]: each.get("value", "node1") for each in container["env"]}
    assert len(found) == len(container["env"]), "one variable is told twice"
    return {name: value.replace("$(PLEXUS_NODE)", "node1") for name, value in found.items()}


def test_what_follows_from_tables_is_as_they_say() -> None:
    stale = [name for name, text in chart.files().items() if (chart.CHART / name).read_text() != text]
    assert not stale, "make docs writes them"


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "dual stack": {"ipv6": {"enabled": True}, "ipMasqAgent": {"enabled": True}},
    "a bus elsewhere": {"bus": {"embedded": False, "url": "nats://bus:4222", "tls": {"authority": "PEM"}}},
    "all in the clear": {"bus": {"tls": {"enabled": False}}, "prometheus": {"enabled": False}},
    "all that is optional": {
        "cni": {"uninstall": True, "chainingMode": "portmap"},
        "k8sServiceHost": "192.0.2.9",
        "imagePullSecrets": [{"name": "s"}],
        "image": {"digest": "sha256:00"},
        "rollOutCiliumPods": True,
        "serviceCIDR": {"ipv4": "10.96.0.0/16"},
        "resources": {"limits": {"memory": "500Mi"}},
        "debug": {"enabled": True},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_takes_every_manifest_and_services_what_they_are_told(
    plexus: helm.Chart, variant: str, tmp_path: Path
) -> None:
    objects = rendered(plexus, VARIANTS[variant])
    for found in objects.values():
        kubernetes_validate.validate(found, NEWEST, strict=True)
    password = tmp_path / "password"
    password.write_text("p")
    for service in (*chart.CONTROL, *chart.ON_NODES):
        told = environment(objects, service)
        assert {name for name in told if name.startswith("PLEXUS_")} <= VARIABLES.keys()
        files = {"PLEXUS_BUS_PASSWORD_FILE": str(password)}
        Every.of({**told, **files} | ({"PLEXUS_BUS_TLS_CA": ""} if "PLEXUS_BUS_TLS_CA" in told else {}))
        match service:
            case "dataplane":
                assert NodeSettings.of(told).node == "node1"
            case "ipam":
                assert ipam_settings(told)
            case "resources":
                assert resources_settings(told).is_kubernetes


def other(row: Row) -> tuple[Any, str]:
    """A value that is not the default, and what the variable is then."""
    read = row.read
    if isinstance(read, Truth):
        return not row.default, str(not row.default).lower()
    if isinstance(read, Words):
        word = next((each for each in read.words if each != row.default), read.words[0])
        return word, word
    if isinstance(read, Number):
        return read.most, str(read.most)
    if isinstance(read, Duration):
        return f"{int(read.least) + 60}s", f"{int(read.least) + 60}s"
    if isinstance(read, Share):
        return 0.125, "0.125"
    if isinstance(read, Prefixes):
        one, two = ("fd01::/64", "fd02::/64") if read.item.family == 6 else ("10.1.0.0/16", "10.2.0.0/16")
        return [one, two], f"{one},{two}"
    if isinstance(read, Prefix):
        return (found := "fd01::/64" if read.family == 6 else "10.1.0.0/16"), found
    if isinstance(read, PortRange):
        return "31000-32000", "31000-32000"
    if isinstance(read, DeviceNames):
        return ["eth+", "!eth9"], "eth+ !eth9"
    return "text", "text"


FAMILIES = ("ipv4.enabled", "ipv6.enabled")
SERVED = {*chart.CONTROL, *chart.ON_NODES}


def test_each_value_reaches_who_reads_it(plexus: helm.Chart) -> None:
    rows = [row for row in KEYS.values() if row.variable and row.key not in (*FAMILIES, *chart.NOT_YET)]
    values: dict[str, Any] = {"ipv6": {"enabled": True}, "ipMasqAgent": {"enabled": True}}
    for row in rows:
        values = merged(values, at(row.key, other(row)[0]))
    objects = rendered(plexus, values)
    for row in rows:
        _, told = other(row)
        if row.variable == "PLEXUS_MASQ_EXCLUDE":
            told += ",169.254.0.0/16,fe80::/10"
        for service in {*row.services} & SERVED:
            assert environment(objects, service).get(row.variable) == told, row.key
    six = rendered(plexus, {"ipv4": {"enabled": False}, "ipv6": {"enabled": True}})
    assert (environment(six, "ipam")["PLEXUS_IPV4_ENABLED"], environment(six, "ipam")["PLEXUS_IPV6_ENABLED"]) == (
        "false",
        "true",
    )


def test_what_nobody_said_is_not_told_and_defaults_are_the_tables(plexus: helm.Chart) -> None:
    objects = rendered(plexus)
    for row in KEYS.values():
        for service in {*row.services} & SERVED if row.variable and row.variable not in chart.DECIDED else ():
            default = chart.default_of(row)
            found = environment(objects, service).get(row.variable)
            assert (found is None) == (default is None), row.key
            if found is not None and row.key not in chart.OTHERWISE:
                assert row.read.of_variable(found) == row.default_of(service), row.key
    node = environment(objects, "dataplane")
    assert node["PLEXUS_NATIVE_ROUTING_CIDR"] == "10.244.0.0/16"
    assert "PLEXUS_MASQ_EXCLUDE" not in node
    given = rendered(plexus, {"ipam": {"mode": "kubernetes"}})
    assert "PLEXUS_NATIVE_ROUTING_CIDR" not in environment(given, "dataplane"), "no pool has the pods' addresses"
    assert environment(objects, "ipam")["PLEXUS_CLUSTER_POOL_CIDRS6"] == "", "there are none of a family that is off"


@pytest.mark.parametrize("key", chart.NOT_YET)
def test_a_feature_that_is_not_there_is_refused_by_name(plexus: helm.Chart, key: str) -> None:
    with pytest.raises(helm.HelmError, match=f"{key}: is not supported yet"):
        rendered(plexus, at(key, True))


def test_what_is_not_there_may_be_switched_off(plexus: helm.Chart) -> None:
    values: dict[str, Any] = {}
    for key in chart.NOT_YET:
        values = merged(values, at(key, False))
    assert rendered(plexus, values)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"bpf": {"masquerde": True}}, "masquerde"),
        ({"MTU": "large"}, "MTU"),
        ({"MTU": 70_000}, "MTU"),
        ({"tunnelProtocol": "gre"}, "tunnelProtocol"),
        ({"operator": {"replicas": 0}}, "replicas"),
        ({"ipam": {"mode": "multi-pool"}}, "ipam.mode: use cluster-pool or kubernetes"),
        ({"ipam": {"mode": "kubernetes"}, "routingMode": "native"}, "ipv4NativeRoutingCIDR: say where pods are"),
        ({"kubeProxyReplacement": False}, "kubeProxyReplacement: is true only"),
        ({"ipv4": {"enabled": False}}, "a cluster has one of them at least"),
        ({"bus": {"node": ""}}, "bus.node: name the node"),
        ({"bus": {"address": ""}}, "bus.address: say by which address"),
        ({"bus": {"embedded": False}}, "bus.url: say where the bus is"),
        ({"bus": {"embedded": False, "url": "nats://b:4222"}}, "bus.tls.authority: give the PEM"),
        ({"bus": {"tls": {"verifyClients": True}}}, "bus.tls.verifyClients: the chart makes no"),
        ({"bus": {"secrets": {"control": "short"}}}, "32 characters"),
    ],
)
def test_what_cannot_be_is_refused_and_named(plexus: helm.Chart, values: dict[str, Any], why: str) -> None:
    with pytest.raises(helm.HelmError, match=why):
        rendered(plexus, values)


def test_helm_finds_nothing_to_complain_of() -> None:
    found = helm.lint(str(chart.CHART), values=PLACE)
    assert [each for each in found["messages"] if "icon" not in str(each)] == []


def test_each_service_has_its_own_password_and_no_other(plexus: helm.Chart, tmp_path: Path) -> None:
    secrets = {"control": "c" * 40, "nodes": "n" * 40}
    objects = rendered(plexus, {"bus": {"secrets": secrets}})
    for service in chart.CONTROL:
        held = base64.b64decode(objects["Secret", f"plexus-{service}"]["data"]["password"]).decode()
        assert held == password_of(service, secrets["control"])
        volumes = pod_of(objects["Deployment", f"plexus-{service}"])["volumes"]
        mounted = {each["secret"]["secretName"] for each in volumes if "secret" in each}
        assert mounted == {f"plexus-{service}"}
    node = pod_of(objects["DaemonSet", "plexus"])
    for container in node["containers"]:
        assert "secret" not in {each["name"] for each in container["volumeMounts"]}, "of all nodes' passwords"
    (script,) = [each["args"][0] for each in node["initContainers"] if each["name"] == "account"]
    assert password_by(script, "node1", secrets["nodes"], tmp_path) == password_of(
        chart.SERVED[-1].user_on("node1"), secrets["nodes"]
    )


def password_by(script: str, node: str, secret: str, folder: Path) -> str:
    """What the init container's own script makes."""
    (folder / "secret").write_text(secret)
    script = script.replace("/secret/secret", str(folder / "secret")).replace("/account", str(folder / "account"))
    subprocess.run(["/bin/sh", "-ec", script], env={"NODE": node, "PATH": "/usr/bin:/bin"}, check=True)
    return (folder / "account" / chart.ON_NODES[-1] / "password").read_text().strip()


def test_the_bus_is_where_everybody_looks_for_it(plexus: helm.Chart, tmp_path: Path) -> None:
    objects = rendered(plexus)
    (container,) = pod_of(objects["StatefulSet", "plexus-bus"])["containers"]
    told = {each["name"]: each["value"] for each in container["env"]}
    for name in ("control", "nodes"):
        (tmp_path / name).write_text("s" * 40)
    for name in ("CERT", "KEY", "CA"):
        (tmp_path / name).write_text("PEM")
        told[f"PLEXUS_BUS_TLS_{name}"] = str(tmp_path / name)
    serving = Serving.of(told | {"PLEXUS_BUS_SECRETS": str(tmp_path)})
    assert (serving.host, serving.port, str(serving.store)) == ("0.0.0.0", 4222, "/var/lib/plexus-bus")
    for service in (*chart.CONTROL, *chart.ON_NODES):
        assert environment(objects, service)["PLEXUS_BUS_URL"] == "nats://192.0.2.1:4222"
    six = rendered(plexus, {"bus": {"address": "2001:db8::1"}})
    assert environment(six, "lb")["PLEXUS_BUS_URL"] == "nats://[2001:db8::1]:4222"


async def test_the_certificates_of_the_chart_are_a_bus_and_what_its_clients_ask_of_it(
    plexus: helm.Chart, tmp_path: Path
) -> None:
    secrets = {"control": "c" * 40, "nodes": "n" * 40}
    port = free_port()
    objects = rendered(plexus, {"bus": {"address": "127.0.0.1", "port": port, "secrets": secrets}})
    for name, text in objects["Secret", "plexus-bus-tls"]["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(text))
    for name, text in objects["Secret", "plexus-bus"]["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(text))
    (container,) = pod_of(objects["StatefulSet", "plexus-bus"])["containers"]
    told = {each["name"]: each["value"] for each in container["env"]}
    told |= {name: value.replace("/etc/plexus/tls", str(tmp_path)) for name, value in told.items() if "TLS" in name}
    told |= {"PLEXUS_BUS_SECRETS": str(tmp_path), "PLEXUS_BUS_STORE": str(tmp_path / "bus")}
    process = await asyncio.create_subprocess_exec(sys.executable, *container["args"], env=told)
    try:
        (tmp_path / "authority").write_text(objects["ConfigMap", "plexus-authority"]["data"]["ca.crt"])
        password = base64.b64decode(objects["Secret", "plexus-lb"]["data"]["password"]).decode()
        tls = ClientTls(str(tmp_path / "authority"))
        url = environment(objects, "lb")["PLEXUS_BUS_URL"]
        async with asyncio.timeout(30), connect(url, name="lb", user="lb", password=password, tls=tls) as bus:
            assert bus.stuck() == ""
    finally:
        process.terminate()
        await process.wait()


def test_nobody_has_more_rights_than_it_needs(plexus: helm.Chart) -> None:
    objects = rendered(plexus)
    assert [kind for kind, _ in objects if kind in ("ClusterRole", "Role")] == ["ClusterRole"]
    assert objects["ClusterRole", "plexus-resources"]["rules"] == rules()
    (subject,) = objects["ClusterRoleBinding", "plexus-resources"]["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "plexus-resources", "namespace": "kube-system"}
    with_token = set()
    for (kind, name), found in objects.items():
        if kind not in ("Deployment", "DaemonSet", "StatefulSet"):
            continue
        pod = pod_of(found)
        if pod["automountServiceAccountToken"]:
            with_token.add(name)
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            context = container["securityContext"]
            if container["name"] == "bpf-file-system":
                assert context == {"privileged": True}
                continue
            assert context["capabilities"]["drop"] == ["ALL"] and not context["allowPrivilegeEscalation"]
            assert context["readOnlyRootFilesystem"]
            added = context["capabilities"].get("add", [])
            assert not added or container["name"] in chart.ON_NODES
            if kind == "Deployment":
                assert pod["securityContext"]["runAsNonRoot"]
    assert with_token == {"plexus-resources"}


def test_no_two_listen_on_one_port_of_a_node(plexus: helm.Chart) -> None:
    objects = rendered(plexus)
    ports = [
        port["hostPort"]
        for (kind, _), found in objects.items()
        if kind in ("Deployment", "DaemonSet", "StatefulSet")
        for container in pod_of(found)["containers"]
        for port in container["ports"]
    ]
    assert len(ports) == len(set(ports)) == len(chart.SERVED) + 1
    for service in (*chart.CONTROL, *chart.ON_NODES):
        assert int(environment(objects, service)["PLEXUS_HTTP"].rpartition(":")[2]) in ports


def test_who_has_a_standby_has_two_replicas_and_one_stays(plexus: helm.Chart) -> None:
    objects = rendered(plexus)
    for service in chart.CONTROL:
        found = objects["Deployment", f"plexus-{service}"]
        budget = objects["PodDisruptionBudget", f"plexus-{service}"]
        assert (found["spec"]["replicas"], budget["spec"]["maxUnavailable"]) == (2, 1)
        assert budget["spec"]["selector"] == found["spec"]["selector"]
    assert not [kind for kind, _ in rendered(plexus, at("operator.replicas", 1)) if kind == "PodDisruptionBudget"]


def test_no_probe_ends_a_service_that_waits_for_another(plexus: helm.Chart) -> None:
    """/healthz is not well while the API server is away."""
    for (kind, _), found in rendered(plexus).items():
        for container in pod_of(found)["containers"] if kind in ("Deployment", "DaemonSet") else ():
            assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_every_kind_of_cilium_has_its_crd() -> None:
    kinds = {each.plural: each for each in KINDS if each.api_version.startswith("cilium.io/")}
    files = {each.stem: yaml.safe_load(each.read_text()) for each in (chart.CHART / "crds").glob("*.yaml")}
    assert files.keys() == kinds.keys()
    for plural, found in files.items():
        kubernetes_validate.validate(found, NEWEST, strict=True)
        served = {each["name"]: each for each in found["spec"]["versions"]}
        assert {f"cilium.io/{name}" for name in served} == set(kinds[plural].api_versions)
        for version in served.values():
            assert ("subresources" in version) == kinds[plural].has_status
