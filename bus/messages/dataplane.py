"""dataplane: what one node did, has applied, and sees."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from bus.messages import Message, Part
from bus.messages.resources import PodAddresses

CONTAINERS = "containers"
"""The namespace of an endpoint whose runtime named no Kubernetes pod; its name is the container's id."""


class ClosedDirection(Part, frozen=True, kw_only=True):
    """All of it is denied, whatever the policies say: they ask for more than there is room for."""

    direction: Literal["ingress", "egress", "other"]
    why: str
    policies: list[str]  # "CiliumNetworkPolicy/default/rule1": those that say something of it


class Endpoint(Message, frozen=True, kw_only=True):
    """A pod's place in the network. Subject: state.dataplane.endpoint.<node>.<namespace>.<pod>"""

    node: str
    namespace: str
    pod: str
    uid: str = ""
    address: str  # "10.0.1.2" or "fd00::2": the first of `addresses`
    mac: Annotated[str, Meta(max_length=17)]
    interface: Annotated[str, Meta(max_length=15)]
    interface_index: int
    identity: int  # 0 while it is not known: the pod is denied
    state: Literal["waiting-for-identity", "waiting-for-policy", "ready", "other"]
    addresses: PodAddresses = []  # empty: `address` is all
    closed: list[ClosedDirection] = []


class AppliedRevision(Message, frozen=True, kw_only=True):
    """What the node's maps hold now. Subject: evt.dataplane.applied.<node>"""

    node: str
    revision: dict[str, int]  # root log ("resources", "dataplane") -> sequence, see bus/revision.py
    at: float  # seconds since the epoch when the last map write returned
    digests: dict[str, str] = {}  # family ("policy.rules") -> "<keys>:<sum>" of what the node holds, see bus/digest.py


class Decision(Part, frozen=True, kw_only=True):
    """By which entry of the policy map a packet was judged, in a node's own numbers."""

    policy: int
    cookie: int  # 0: no entry matched
    direction: Literal["ingress", "egress"]


class WhoDecided(Message, frozen=True, kw_only=True):
    """What numbers of the node's own mean, as its events have them. Subject: req.dataplane.deciders.<node>"""

    decisions: Annotated[list[Decision], Meta(max_length=1024)] = []
    networks: Annotated[list[int], Meta(max_length=1024)] = []  # identities of networks that policies name


class Deciders(Message, frozen=True, kw_only=True):
    """In the order of the question. What is said of a cookie other than 0, and of a network, holds until the dataplane
    starts anew; what is said of cookie 0 holds now."""

    node: str
    started_at: float  # the dataplane: seconds since the epoch
    policies: list[list[str]] = []  # "CiliumNetworkPolicy/default/rule1": those that decided; [] when nobody knows
    networks: list[str] = []  # "198.51.100.0/24"; "" when nobody knows
    audited: list[str] = []  # by decision: why it would have been dropped, did the node not only look; "": it passes


class Dump(Message, frozen=True, kw_only=True):
    """Show a map. Subject: req.dataplane.dump.<node>"""

    table: str  # as the node's parts call what they show: "policy", "ct"; of another the answer says which there are
    limit: int = 100_000  # rows at most


class DumpRows(Message, frozen=True, kw_only=True):
    node: str
    rows: list[dict[str, Any]] = []
    truncated: bool = False
    problem: str = ""


class Why(Message, frozen=True, kw_only=True):
    """What becomes of the first packet of such a connection here? Subject: req.dataplane.why.<node>"""

    source: str  # "10.0.1.2", "fd00::2"
    destination: str
    protocol: int
    port: int  # of the destination; of ICMP the type + 1


class Judgement(Part, frozen=True, kw_only=True):
    """What the maps of a node say of one direction of a pod's policy."""

    direction: Literal["ingress", "egress", "other"]
    pod: str  # "namespace/name"
    enforced: bool
    allowed: bool
    reason: str = ""  # why not, or, where the node only looks, why it would not be
    audited: bool = False
    policies: list[str] = []  # that decided
    nearest: str = ""  # the rule that comes nearest to letting it through


class Way(Part, frozen=True, kw_only=True):
    """One backend of a Service, or the destination itself."""

    destination: str
    port: int
    source_identity: int
    destination_identity: int
    judged: list[Judgement] = []  # by pods of this node
    route: str = ""  # in words


class WhyAnswer(Message, frozen=True, kw_only=True):
    node: str
    service: str = ""  # "default/web": the destination is its frontend
    ways: list[Way] = []  # none: it has no backends
    problem: str = ""


class HealthQuestion(Message, frozen=True, kw_only=True):
    """How are you? Subject: req.<owner>.health.<instance>"""

    compare: bool = False  # a node is to look at its maps before it answers


class Check(Part, frozen=True, kw_only=True):
    name: str
    ok: bool
    detail: str = ""


class Health(Message, frozen=True, kw_only=True):
    """How a service is. `reached`: the latest revisions and when each was first realised, oldest first."""

    service: str
    instance: str
    ready: bool
    active: bool = True  # false: a standby without the lease
    started_at: float
    version: str
    checks: list[Check] = []
    revision: dict[str, int] = {}
    revision_at: float = 0.0
    reached: list[ReachedRevision] = []
    resident_bytes: int = 0
    digests: dict[str, str] = {}  # of a node: as in AppliedRevision


class ReachedRevision(Part, frozen=True, kw_only=True):
    revision: dict[str, int]
    at: float
