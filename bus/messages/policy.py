"""policy: rules that name selectors, and selectors that name their members."""

from __future__ import annotations

from typing import Literal

from bus.messages import Message, Part
from bus.messages.resources import LabelSelector, PortRange, Protocol


class SelectorRule(Part, frozen=True, kw_only=True):
    """One rule that allows, or denies. Peers are the union of `selectors` and `entities`; `any_peer`: everyone."""

    direction: Literal["ingress", "egress"]
    selectors: list[str] = []  # ids of Selector
    entities: list[str] = []
    any_peer: bool = False
    ports: list[PortRange] = []  # none: every port. With a name and a number: that number, of pods that call it so
    subject: str = ""  # id of a Selector: the rule is for those governed that are members of it. "": for all governed


class PolicyRules(Message, frozen=True, kw_only=True):
    """One policy, compiled. Subject: state.policy.rules.<kind>.<namespace>.<name>

    What it was compiled from, the delta that carries it says (bus/wire.py: Delta.revision).
    """

    kind: str
    namespace: str
    name: str
    subject: str  # id of the Selector of the pods that it governs
    rules: list[SelectorRule] = []
    deny_ingress_by_default: bool = False
    deny_egress_by_default: bool = False
    denies: list[SelectorRule] = []  # apart from `rules`: to a reader that does not know of them they allow nothing


class NamedPort(Part, frozen=True, kw_only=True):
    """A container port as pods call it."""

    name: str
    protocol: Protocol
    port: int


class PeerNetwork(Part, frozen=True, kw_only=True):
    """Addresses that no pod and no node has."""

    cidr: str  # in its one form: "10.0.0.0/8", "fd00::/8"
    except_cidrs: list[str] = []  # in their one form; what they have in common with `cidr` is not meant


class PeerName(Part, frozen=True, kw_only=True):
    """Addresses that a DNS name has, by the answers that a node's pods got. One of the two is given."""

    name: str = ""  # "a.example.com": lower case, without the last dot
    pattern: str = ""  # "*.example.com" (bus/patterns.py)


class Selector(Message, frozen=True, kw_only=True):
    """The identities that a selector selects now. Subject: state.policy.selector.<id>

    With `having`: of those, the ones with a pod that has this container port. So a rule for a named port says the
    number, and refers to whoever gives it the name: its subjects (ingress) or its peers (egress). Another pod of the
    same identity may give it none: the rule says the name too, and the node opens it by the address that is called.

    With `networks` it means those and no label set. Their identities are each node's own affair (docs/adr/0033). With
    `names` it means the addresses that these have, as networks of one address each (docs/adr/0036).
    """

    id: str  # the first 16 hex digits of SHA-256 over the canonical form
    selector: LabelSelector
    members: list[int] = []  # identity numbers, ascending
    having: NamedPort | None = None
    networks: list[PeerNetwork] = []
    partial: bool = False  # there are more of them than can be said: who denies by it denies everyone
    names: list[PeerName] = []
