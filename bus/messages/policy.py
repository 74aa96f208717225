"""policy: rules that name selectors, and selectors that name their members."""

from __future__ import annotations

from typing import Literal

from bus.messages import Message, Part
from bus.messages.resources import LabelSelector, PortRange


class SelectorRule(Part, frozen=True, kw_only=True):
    """One allow rule. Peers are the union of `selectors`, `entities` and `identities`; `any_peer`: everyone."""

    direction: Literal["ingress", "egress"]
    selectors: list[str] = []  # ids of Selector
    entities: list[str] = []
    any_peer: bool = False
    ports: list[PortRange] = []  # none: every port; named ports are already numbers
    identities: list[int] = []  # peers by number, ascending: those that have an egress rule's named port
    only_subjects: list[int] = []  # ascending; those governed that have an ingress rule's named port. None: all


class PolicyRules(Message, frozen=True, kw_only=True):
    """One policy, compiled. Subject: state.policy.rules.<kind>.<namespace>.<name>"""

    kind: str
    namespace: str
    name: str
    subject: str  # id of the Selector of the pods that it governs
    rules: list[SelectorRule] = []
    deny_ingress_by_default: bool = False
    deny_egress_by_default: bool = False
    revision: int = 0  # of the resources log


class Selector(Message, frozen=True, kw_only=True):
    """The identities that a selector selects now. Subject: state.policy.selector.<id>"""

    id: str  # the first 16 hex digits of SHA-256 over the canonical form
    selector: LabelSelector
    members: list[int] = []  # identity numbers, ascending
