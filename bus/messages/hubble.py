"""hubble: what the observer of one node saw."""

from __future__ import annotations

from typing import Literal

from bus.messages import Message, Part


class Flow(Part, frozen=True, kw_only=True):
    """One packet's fate, as the kernel told it."""

    at: float  # seconds since the epoch
    type: Literal["drop", "policy-verdict", "other"]
    verdict: Literal["forwarded", "dropped", "audited", "other"]  # audited: it passed, and would not else
    reason: str = ""  # public name: "Policy denied"
    reason_code: int = 0
    direction: Literal["ingress", "egress", "", "other"] = ""
    source: str  # "10.0.1.2", "fd00::2"
    destination: str
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    source_identity: int = 0
    destination_identity: int = 0
    source_pod: str = ""  # "namespace/name", "" when unknown
    destination_pod: str = ""
    source_labels: dict[str, str] = {}
    destination_labels: dict[str, str] = {}
    # "CiliumNetworkPolicy/default/rule1": the ones that decided; for a default deny, the ones that select the pod
    policies: list[str] = []
    file: str = ""
    line: int = 0


class FlowBatch(Message, frozen=True, kw_only=True):
    """Subject: evt.hubble.flows.<node>"""

    node: str
    flows: list[Flow]
    lost: int = 0  # events that the kernel, the observer or the node could not pass on since the last batch
