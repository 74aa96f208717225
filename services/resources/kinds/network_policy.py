"""networking.k8s.io/v1 NetworkPolicy; what is shown of it is shown of the other policies too."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import Policy
from bus.subjects import ENDPOINT, NODE, POLICY, RULES, SELECTOR
from services.resources.kind import Form, Kind, Known, Object, Shown, at


def manifest() -> Form:
    from services.resources.manifests import network_policy, words

    return Form(network_policy.NetworkPolicy, network_policy.read_network_policy, words.dns_subdomain)


def status(policy: Policy, known: Known) -> dict[str, Any]:
    key = (policy.kind, policy.namespace, policy.name)
    compiled = known.of(RULES).get(key)
    subject = known.of(SELECTOR).get((compiled.subject,)) if compiled else None
    identities = subject.members if subject else []
    pods = [f"{e.namespace}/{e.pod}" for e in known.of(ENDPOINT).values() if e.identity and e.identity in identities]
    sequence = known.sequence_of(POLICY.of(*key))
    closed = [
        f"{each.direction} of {e.namespace}/{e.pod} is denied: {each.why}"
        for e in known.of(ENDPOINT).values()
        for each in e.closed
        if name_of(policy) in each.policies
    ]
    plexus = {
        "rules": len(compiled.rules if compiled else policy.rules),
        "denies": [
            *(["ingress"] if policy.deny_ingress_by_default else []),
            *(["egress"] if policy.deny_egress_by_default else []),
        ],
        "identities": identities,
        "pods": pods,
        "revision": sequence,
        "realised": known.realised(sequence) if compiled else [],
        "nodes": len(known.of(NODE)),
    }
    if not closed:
        return {"plexus": plexus}
    condition = {"type": "Realised", "status": "False", "reason": "NoRoom", "message": "; ".join(closed)}
    return {"plexus": {**plexus, "closed": closed}, "status": {"conditions": [condition]}}


def name_of(policy: Policy) -> str:
    """As nodes call it: "CiliumNetworkPolicy/default/rule1"."""
    return f"{policy.kind}/{policy.namespace}/{policy.name}"


def realised_on(found: Object) -> str:
    denied = f", {len(closed)} denied" if (closed := at("plexus.closed")(found)) else ""
    return f"{len(at('plexus.realised')(found))} of {at('plexus.nodes')(found)} nodes{denied}"


COLUMNS: dict[str, Shown] = {
    "RULES": "plexus.rules",
    "DENIES BY DEFAULT": "plexus.denies",
    "PODS": "plexus.pods",
    "REALISED ON": realised_on,
}
DRAWS_ON = (RULES, SELECTOR, ENDPOINT, NODE)

KIND = Kind(
    name="NetworkPolicy",
    api_version="networking.k8s.io/v1",
    plural="networkpolicies",
    short=("netpol",),
    state=POLICY,
    manifest=manifest,
    before=("Pod",),
    columns=COLUMNS,
    status=status,
    draws_on=DRAWS_ON,
    asks_nodes=True,
)
