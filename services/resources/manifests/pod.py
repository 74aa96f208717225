"""v1 Pod, and what makes pods (apps/v1 Deployment, StatefulSet, DaemonSet) -> messages of the same names.

Source: the Kubernetes API reference of these kinds, of PodSpec and Container. What a pod runs is the kubelet's
business; Plexus reads where it runs, its labels, its service account, and its ports.
"""

from __future__ import annotations

from typing import Any

from bus.addresses import parse
from bus.labels import selects
from bus.messages.resources import ContainerPort, DaemonSet, Deployment, LabelSelector, Pod, StatefulSet
from bus.subjects import DAEMON_SET, DEPLOYMENT, POD, STATEFUL_SET
from services.resources.manifests import words
from services.resources.manifests.annotations import check_annotations
from services.resources.manifests.meta import (
    Key,
    Manifest,
    ObjectMeta,
    Resource,
    check_metadata,
)
from services.resources.manifests.selectors import Selector, read_selector, selector_of
from services.resources.manifests.strict import Problems, Schema, joined, names, nearest

MOST_REPLICAS = 100_000  # more pods than a cluster has; whoever makes them lists their names first
RESTART_POLICIES = ("Always", "OnFailure", "Never")


class PortSpec(Schema, frozen=True, kw_only=True):
    name: str = ""
    container_port: int
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = ""


class Container(Schema, frozen=True, kw_only=True):
    name: str
    image: str = ""
    ports: list[PortSpec] = []
    PASSED_OVER = names(
        "args command env envFrom imagePullPolicy lifecycle livenessProbe readinessProbe resizePolicy resources"
        " restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce terminationMessagePath"
        " terminationMessagePolicy tty volumeDevices volumeMounts workingDir"
    )


class PodSpec(Schema, frozen=True, kw_only=True):
    containers: list[Container]
    init_containers: list[Container] = []
    node_name: str = ""
    host_network: bool = False
    service_account_name: str = ""
    service_account: str = ""
    restart_policy: str = "Always"
    PASSED_OVER = names(
        "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks"
        " ephemeralContainers hostAliases hostIPC hostPID hostUsers hostname hostnameOverride imagePullSecrets"
        " nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates resourceClaims resources"
        " runtimeClassName schedulerName schedulingGates securityContext setHostnameAsFQDN shareProcessNamespace"
        " subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes workloadRef"
    )


class PodManifest(Manifest, frozen=True, kw_only=True):
    spec: PodSpec


class PodTemplate(Schema, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec


class DeploymentSpec(Schema, frozen=True, kw_only=True):
    replicas: int = 1
    selector: Selector
    template: PodTemplate
    PASSED_OVER = names("minReadySeconds paused progressDeadlineSeconds revisionHistoryLimit strategy")


class DeploymentManifest(Manifest, frozen=True, kw_only=True):
    spec: DeploymentSpec


class Ordinals(Schema, frozen=True, kw_only=True):
    start: int = 0


class RollingUpdate(Schema, frozen=True, kw_only=True):
    partition: int = 0
    PASSED_OVER = names("maxSurge maxUnavailable")


class UpdateStrategy(Schema, frozen=True, kw_only=True):
    type: str = "RollingUpdate"
    rolling_update: RollingUpdate = RollingUpdate()


class StatefulSetSpec(Schema, frozen=True, kw_only=True):
    replicas: int = 1
    selector: Selector
    template: PodTemplate
    ordinals: Ordinals = Ordinals()
    pod_management_policy: str = "OrderedReady"
    update_strategy: UpdateStrategy = UpdateStrategy()
    PASSED_OVER = names(
        "minReadySeconds persistentVolumeClaimRetentionPolicy revisionHistoryLimit serviceName volumeClaimTemplates"
    )


class StatefulSetManifest(Manifest, frozen=True, kw_only=True):
    spec: StatefulSetSpec


class DaemonSetSpec(Schema, frozen=True, kw_only=True):
    selector: Selector
    template: PodTemplate
    PASSED_OVER = names("minReadySeconds revisionHistoryLimit updateStrategy")


class DaemonSetManifest(Manifest, frozen=True, kw_only=True):
    spec: DaemonSetSpec


def read_pod(manifest: PodManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems) -> Resource:
    """The pod as it is before anything ran it: `uid`, and what the kubelet reports, are the model's to fill."""
    spec = manifest.spec
    _check_pod_spec(spec, "spec", problems)
    pod = Pod(
        namespace=key.namespace,
        name=key.name,
        uid="",
        labels=manifest.metadata.labels,
        annotations=manifest.metadata.annotations,
        service_account=spec.service_account_name or spec.service_account or "default",
        node=spec.node_name,
        host_network=spec.host_network,
        ports=container_ports(spec),
        owner=_owner(manifest.metadata, key, problems),
        manifest=raw,
    )
    return Resource(key, source, ((POD.of(key.namespace, key.name), pod),), uid=manifest.metadata.uid)


def read_deployment(
    manifest: DeploymentManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    spec = manifest.spec
    _check_count("spec.replicas", spec.replicas, problems)
    deployment = Deployment(
        namespace=key.namespace,
        name=key.name,
        replicas=spec.replicas,
        selector=_template_selector(spec.selector, spec.template, key.kind, problems),
        template=raw["spec"]["template"],
        manifest=raw,
    )
    return Resource(key, source, ((DEPLOYMENT.of(key.namespace, key.name), deployment),), uid=manifest.metadata.uid)


def read_stateful_set(
    manifest: StatefulSetManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    spec, update = manifest.spec, manifest.spec.update_strategy
    partition = update.rolling_update.partition
    _check_count("spec.replicas", spec.replicas, problems)
    _check_count("spec.ordinals.start", spec.ordinals.start, problems)
    _check_count("spec.updateStrategy.rollingUpdate.partition", partition, problems)
    last = f"{key.name}-{spec.ordinals.start + max(spec.replicas, 1) - 1}"
    if len(last) > 63:
        problems.add("metadata.name", f'its pods would be called up to "{last}", longer than the 63 that a label takes')
    _check_choice("spec.podManagementPolicy", spec.pod_management_policy, ("OrderedReady", "Parallel"), problems)
    _check_choice("spec.updateStrategy.type", update.type, ("RollingUpdate", "OnDelete"), problems)
    stateful_set = StatefulSet(
        namespace=key.namespace,
        name=key.name,
        replicas=spec.replicas,
        first=spec.ordinals.start,
        selector=_template_selector(spec.selector, spec.template, key.kind, problems),
        template=raw["spec"]["template"],
        is_ordered=spec.pod_management_policy != "Parallel",
        renews=update.type != "OnDelete",
        renewed_from=partition,
        manifest=raw,
    )
    return Resource(key, source, ((STATEFUL_SET.of(key.namespace, key.name), stateful_set),), uid=manifest.metadata.uid)


def read_daemon_set(
    manifest: DaemonSetManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems
) -> Resource:
    spec = manifest.spec
    daemon_set = DaemonSet(
        namespace=key.namespace,
        name=key.name,
        selector=_template_selector(spec.selector, spec.template, key.kind, problems),
        template=raw["spec"]["template"],
        manifest=raw,
    )
    return Resource(key, source, ((DAEMON_SET.of(key.namespace, key.name), daemon_set),), uid=manifest.metadata.uid)


def _template_selector(selector: Selector, template: PodTemplate, kind: str, problems: Problems) -> LabelSelector:
    """The selector, after both are checked: it must select what the template makes."""
    check_metadata(template.metadata, problems, "spec.template.metadata")
    check_annotations("Pod", template.metadata, "spec.template.metadata", problems)
    _check_pod_spec(template.spec, "spec.template.spec", problems)
    if template.spec.restart_policy != "Always":
        problems.add("spec.template.spec.restartPolicy", f"must be Always in a {kind}")
    known = len(problems)
    requirements = read_selector(selector, "spec.selector", problems)
    if len(problems) > known:
        pass  # what is left of a bad selector says nothing
    elif not requirements:
        problems.add("spec.selector", "is empty; name labels that spec.template.metadata.labels has")
    elif not selects(selector_of(requirements), template.metadata.labels):
        problems.add("spec.selector", "does not select spec.template.metadata.labels; make them agree")
    return selector_of(requirements)


def _check_count(path: str, count: int, problems: Problems) -> None:
    if not 0 <= count <= MOST_REPLICAS:
        problems.add(path, f"{count} is not a count; use 0 to {MOST_REPLICAS}")


def _check_choice(path: str, value: str, choices: tuple[str, ...], problems: Problems) -> None:
    if value not in choices:
        problems.add(path, f'"{value}" is not a choice; use {" or ".join(choices)}{nearest(value, choices)}')


def container_ports(spec: PodSpec) -> list[ContainerPort]:
    """Every port that the containers declare; init containers too, as those may stay as side-cars."""
    declared = (port for container in (*spec.containers, *spec.init_containers) for port in container.ports)
    protocols: dict[str, Any] = {protocol: protocol for protocol in words.PROTOCOLS}
    return [
        ContainerPort(
            name=port.name,
            port=port.container_port,
            protocol=protocols.get(port.protocol, "TCP"),
            host_port=0 if spec.host_network else port.host_port,  # there the pod has the node's ports anyway
            host_address="" if spec.host_network or not port.host_port else _host_address(port.host_ip),
        )
        for port in declared
    ]


def _host_address(text: str) -> str:
    """The one form of a hostIP; "": each of the node's, which 0.0.0.0 and :: stand for, too."""
    found = parse(text)
    return "" if found is None or found.is_unspecified else found.compressed


def _check_pod_spec(spec: PodSpec, path: str, problems: Problems) -> None:
    if not spec.containers:
        problems.add(joined(path, "containers"), "is empty; a pod has at least one container")
    seen: set[str] = set()
    for field, containers in (("containers", spec.containers), ("initContainers", spec.init_containers)):
        for index, container in enumerate(containers):
            where = f"{path}.{field}[{index}]"
            problems.add_if(joined(where, "name"), words.dns_label(container.name))
            if container.name in seen:
                problems.add(joined(where, "name"), f'"{container.name}" is given to two containers')
            seen.add(container.name)
            if not container.image:
                problems.add(joined(where, "image"), "is required, and missing")
            _check_ports(container, where, spec.host_network, problems)
    if spec.node_name:
        problems.add_if(joined(path, "nodeName"), words.dns_subdomain(spec.node_name))
    for field, account in (("serviceAccountName", spec.service_account_name), ("serviceAccount", spec.service_account)):
        if account:
            problems.add_if(joined(path, field), words.dns_subdomain(account))
    if spec.restart_policy not in RESTART_POLICIES:
        hint = nearest(spec.restart_policy, RESTART_POLICIES)
        problems.add(
            joined(path, "restartPolicy"),
            f'"{spec.restart_policy}" is not a policy; use Always, OnFailure or Never{hint}',
        )


def _check_ports(container: Container, path: str, host_network: bool, problems: Problems) -> None:
    seen: set[str] = set()
    for index, port in enumerate(container.ports):
        where = f"{path}.ports[{index}]"
        problems.add_if(joined(where, "containerPort"), words.port_number(port.container_port))
        problems.add_if(joined(where, "protocol"), words.protocol(port.protocol))
        if port.name:
            problems.add_if(joined(where, "name"), words.port_name(port.name))
            if port.name in seen:
                problems.add(joined(where, "name"), f'"{port.name}" is given to two ports')
            seen.add(port.name)
        if not port.host_port:
            continue
        if port.host_ip:
            problems.add_if(joined(where, "hostIP"), words.address(port.host_ip))
        if host_network and port.host_port != port.container_port:
            problems.add(joined(where, "hostPort"), "must be containerPort in a pod of the host's network")
        elif not host_network:
            problems.add_if(joined(where, "hostPort"), words.port_number(port.host_port))


def _owner(metadata: ObjectMeta, key: Key, problems: Problems) -> str:
    """ "deployment/default/web", or "" when nobody owns the pod. It goes when its owner goes."""
    from services.resources.registry import MAKERS  # a kind's file may import this one

    owner = ""
    for index, reference in enumerate(metadata.owner_references):
        where = f"metadata.ownerReferences[{index}]"
        kind = MAKERS.get(reference.kind.lower())
        if kind is None or (kind.name, kind.api_version) != (reference.kind, reference.api_version):
            known = ", ".join(each.name for each in MAKERS.values())
            problems.add(
                where, f"owners of kind {reference.kind} are not supported yet; remove it, or own by a {known}"
            )
        elif owner:
            problems.add(where, "is a second owner; a pod has one")
        else:
            problems.add_if(joined(where, "name"), words.dns_subdomain(reference.name))
        owner = f"{reference.kind.lower()}/{key.namespace}/{reference.name}"
    return owner
