"""What numbers of the node's own in the kernel's events mean: which policies decided, which network it is. Pure."""

from __future__ import annotations

from bus.messages.dataplane import Deciders, Decision, WhoDecided
from services.dataplane.model import NodeModel
from services.dataplane.shapes.layouts import DIRECTIONS


def deciders(node: str, started_at: float, question: WhoDecided, model: NodeModel) -> Deciders:
    networks = model.policy.store.networks
    return Deciders(
        node=node,
        started_at=started_at,
        policies=[_policies(each, model) for each in question.decisions],
        audited=[_audited(each, model) for each in question.decisions],
        networks=[networks.cidr_of(number) for number in question.networks],
    )


def _policies(decision: Decision, model: NodeModel) -> list[str]:
    """The policies of the entry that matched, or, when none did, those that make the pod deny."""
    policy = model.policy_of(decision.policy)
    if policy is None:
        return []
    if decision.cookie:
        return list(policy.cookies.get(decision.cookie, ()))
    return list(policy.deciders(DIRECTIONS.index(decision.direction)))


def _audited(decision: Decision, model: NodeModel) -> str:
    policy = model.policy_of(decision.policy)
    return policy.audited.get(decision.cookie, "") if policy else ""
