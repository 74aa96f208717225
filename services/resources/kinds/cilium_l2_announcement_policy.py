"""cilium.io CiliumL2AnnouncementPolicy."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import L2AnnouncementPolicy
from bus.subjects import L2_POLICY, L2_POLICY_USE
from services.resources.kind import Form, Kind, Known


def manifest() -> Form:
    from services.resources.manifests import l2_announcement_policy, words

    return Form(l2_announcement_policy.PolicyManifest, l2_announcement_policy.read_policy, words.dns_subdomain)


def status(policy: L2AnnouncementPolicy, known: Known) -> dict[str, Any]:
    use = known.of(L2_POLICY_USE).get((policy.name,))
    if use is None:  # l2announce has not heard of it yet
        return {}
    if not use.nodes:
        reason, detail = "NoNodes", "no node is selected"
    elif not use.able_nodes:
        reason, detail = "NoNodes", "none of the selected nodes answers; is l2announcements.enabled set?"
    elif not use.addresses:
        reason, detail = "NoAddresses", "no address of a Service is selected"
    elif use.waiting_count:
        more = f" and {use.waiting_count - len(use.waiting)} more" if use.waiting_count > len(use.waiting) else ""
        reason, detail = "Waiting", f"nobody announces {', '.join(use.waiting)}{more}"
    else:
        reason, detail = "Announced", ""
    is_ready = reason == "Announced"
    return {
        "status": {
            "conditions": [
                {
                    "type": "plexus.io/Announced",
                    "status": "True" if is_ready else "False",
                    "reason": reason,
                    "message": detail,
                }
            ]
        },
        "plexus": {
            "nodes": use.nodes,
            "able_nodes": use.able_nodes,
            "addresses": use.addresses,
            "waiting": use.waiting_count,
            "state": reason,
        },
    }


KIND = Kind(
    name="CiliumL2AnnouncementPolicy",
    api_version="cilium.io/v2alpha1",
    plural="ciliuml2announcementpolicies",
    short=("l2announcement", "l2announcements"),
    state=L2_POLICY,
    manifest=manifest,
    is_namespaced=False,
    before=("Service",),
    columns={
        "STATE": "plexus.state",
        "NODES": "plexus.able_nodes",
        "ADDRESSES": "plexus.addresses",
        "WAITING": "plexus.waiting",
    },
    status=status,
    draws_on=(L2_POLICY_USE,),
)
