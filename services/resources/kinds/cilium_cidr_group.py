"""cilium.io/v2 CiliumCIDRGroup."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import CIDRGroup
from bus.subjects import CIDR_GROUP
from services.resources.kind import Form, Kind, Known


def manifest() -> Form:
    from services.resources.manifests import cilium_policy, cilium_schema, words

    return Form(cilium_schema.CiliumCIDRGroup, cilium_policy.read_cidr_group, words.dns_subdomain)


def status(group: CIDRGroup, known: Known) -> dict[str, Any]:
    return {"plexus": {"networks": len(group.cidrs)}}


KIND = Kind(
    name="CiliumCIDRGroup",
    api_version="cilium.io/v2",
    older_versions=("cilium.io/v2alpha1",),
    plural="ciliumcidrgroups",
    short=("ccg",),
    state=CIDR_GROUP,
    manifest=manifest,
    is_namespaced=False,
    before=("NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "Pod"),
    columns={"NETWORKS": "plexus.networks"},
    status=status,
)
