"""Kinds that are not read: which of them concern the network, and what to say of each. Pure.

Who asks to skip what is not supported must not believe afterwards in a protection that is not there. So what may be
passed over is what has nothing to do with traffic: by name for Kubernetes' own kinds, and for the kinds of others when
neither the name nor the API group tells of a network or of a policy. All else stays refused.
"""

from __future__ import annotations

import re

from services.resources.manifests.strict import names

LATER = names(
    # cilium.io, all versions
    "CiliumBGPAdvertisement CiliumBGPClusterConfig CiliumBGPNodeConfig CiliumBGPNodeConfigOverride CiliumBGPPeerConfig"
    " CiliumBGPPeeringPolicy CiliumClusterwideEnvoyConfig"
    " CiliumDatapathPlugin CiliumEgressGatewayPolicy CiliumEgressNATPolicy CiliumEndpoint CiliumEndpointSlice"
    " CiliumEnvoyConfig CiliumExternalWorkload CiliumGatewayClassConfig CiliumIdentity"
    " CiliumLocalRedirectPolicy CiliumNetworkDriverClusterConfig CiliumNetworkDriverNodeConfig"
    " CiliumNode CiliumNodeConfig CiliumPodIPPool CiliumResourceIPPool CiliumVTEPConfig"
    # Kubernetes, Gateway API, multi-cluster Services, network policies of administrators
    " AdminNetworkPolicy BackendTLSPolicy BaselineAdminNetworkPolicy ClusterNetworkPolicy Endpoints GRPCRoute Gateway"
    " GatewayClass HTTPRoute IPAddress Ingress IngressClass ListenerSet ReferenceGrant ServiceCIDR ServiceExport"
    " ServiceImport TCPRoute TLSRoute UDPRoute"
)
"""They concern the network: refused always, also where others are passed over."""

WORKLOADS = names("CronJob Job ReplicaSet ReplicationController")
"""They make pods, which nobody runs here."""

NO_CONCERN = names(
    "APIService CSIDriver CSINode CSIStorageCapacity CertificateSigningRequest ClusterRole ClusterRoleBinding"
    " ClusterTrustBundle Component ConfigMap ControllerRevision CustomResourceDefinition DeviceClass Event FlowSchema"
    " HorizontalPodAutoscaler Kustomization Lease LeaseCandidate LimitRange MutatingAdmissionPolicy"
    " MutatingAdmissionPolicyBinding MutatingWebhookConfiguration PersistentVolume PersistentVolumeClaim"
    " PodDisruptionBudget PodSecurityPolicy PodTemplate PriorityClass PriorityLevelConfiguration ResourceClaim"
    " ResourceClaimTemplate ResourceQuota ResourceSlice Role RoleBinding RuntimeClass Secret ServiceAccount"
    " StorageClass StorageVersionMigration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding"
    " ValidatingWebhookConfiguration VerticalPodAutoscaler VolumeAttachment VolumeAttributesClass"
)
"""Of Kubernetes and its companions, and without a meaning for traffic."""

_NETWORK_GROUPS = (
    "antrea.io",
    "cilium.io",
    "cni.cncf.io",
    "istio.io",
    "kubeovn.io",
    "kuma.io",
    "linkerd.io",
    "metallb.io",
    "networking.k8s.io",
    "ovn.org",
    "projectcalico.org",
    "tigera.io",
)
"""API groups about traffic, with all groups below them."""

_TELLS_OF_PROTECTION = re.compile(
    r"polic(y|ies)|firewall|authori[sz]ation|authentication|network|traffic", re.IGNORECASE
)


def may_be_skipped(kind: str, api_version: str) -> bool:
    """Nobody can believe traffic to be governed by it."""
    group = api_version.rpartition("/")[0]
    if any(group == each or group.endswith("." + each) for each in _NETWORK_GROUPS):
        return False
    if kind in NO_CONCERN | WORKLOADS:
        return True
    is_foreign = "." in group and not group.endswith(".k8s.io")
    return is_foreign and kind not in LATER and _TELLS_OF_PROTECTION.search(kind) is None


def why_refused(kind: str, supported: str) -> str:
    """Of a kind that is known and not read."""
    if kind in NO_CONCERN:
        return f"{kind} is no concern of a network; leave it out, or let --skip-unsupported pass over it"
    if kind in WORKLOADS:
        return f"{kind} is not supported yet: its pods are not run; leave it out, or use --skip-unsupported"
    return f"{kind} is not supported yet; supported are {supported}"


def what_is_missing(kind: str) -> str | None:
    """What somebody may miss after a document of this kind was passed over; None: nothing."""
    if kind in WORKLOADS:
        return "was passed over; its pods are not run"
    if kind == "Kustomization":
        return "was passed over; what it changes is not changed: kubectl kustomize DIR | plexus apply -f - does it"
    return None
