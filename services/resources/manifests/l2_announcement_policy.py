"""cilium.io CiliumL2AnnouncementPolicy -> a message with whom it selects.

Source: Cilium's documentation, "L2 Announcements", and its definition of the kind.
"""

from __future__ import annotations

from typing import Any

import re2

from bus.messages.resources import L2AnnouncementPolicy
from bus.subjects import L2_POLICY
from services.resources.manifests.meta import Key, Manifest, Resource
from services.resources.manifests.selectors import Selector, read_whole_selector
from services.resources.manifests.strict import Problems, Schema

MOST_PATTERNS = 100
LONGEST_PATTERN = 256


class PolicySpec(Schema, frozen=True, kw_only=True):
    service_selector: Selector | None = None
    node_selector: Selector | None = None
    interfaces: list[str] = []
    external_ips: bool = False
    load_balancer_ips: bool = False


class PolicyManifest(Manifest, frozen=True, kw_only=True):
    spec: PolicySpec = PolicySpec()


def read_policy(manifest: PolicyManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems) -> Resource:
    spec = manifest.spec
    found = raw.get("spec") or {}
    selectors = {
        field: read_whole_selector(found, field, given, "spec", problems)
        for field, given in (("serviceSelector", spec.service_selector), ("nodeSelector", spec.node_selector))
    }
    if len(spec.interfaces) > MOST_PATTERNS:
        problems.add("spec.interfaces", f"has {len(spec.interfaces)} entries; use at most {MOST_PATTERNS}")
    else:
        for at, pattern in enumerate(spec.interfaces):
            problems.add_if(f"spec.interfaces[{at}]", _pattern_problem(pattern))
    if not spec.external_ips and not spec.load_balancer_ips:
        problems.warn("spec", "announces nothing; set externalIPs or loadBalancerIPs to true")
    policy = L2AnnouncementPolicy(
        name=key.name,
        services=selectors["serviceSelector"],
        nodes=selectors["nodeSelector"],
        interfaces=spec.interfaces,
        external_addresses=spec.external_ips,
        load_balancer_addresses=spec.load_balancer_ips,
        manifest=raw,
    )
    return Resource(key, source, ((L2_POLICY.of(key.name), policy),), uid=manifest.metadata.uid)


def _pattern_problem(pattern: str) -> str | None:
    if len(pattern) > LONGEST_PATTERN:
        return f"has {len(pattern)} characters; use at most {LONGEST_PATTERN}"
    try:
        re2.compile(pattern)
    except re2.error as problem:
        why = problem.args[0].decode(errors="replace") if isinstance(problem.args[0], bytes) else str(problem)
        return f"is not a regular expression (RE2): {why}"
    return None
