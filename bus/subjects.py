"""Every subject of Plexus, spelt in this one place.

Three families (docs/glossary.md has the words):

    state.<owner>.<noun>.<key...>   the last value of a thing; the owner's JetStream log is the truth
    evt.<owner>.<noun>.<key...>     a fact; may be lost, losses are counted
    req.<owner>.<verb>.<key...>     a question, answered by a queue group within a deadline

A key token is escaped (`escape`), so that a node called "a.b" or an address keeps to one token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from bus.codec import Undecodable
from bus.messages import Message, dataplane, hubble, identity, ipam, l2announce, lb, policy, resources
from bus.messages import log as log_messages

M_co = TypeVar("M_co", bound=Message, covariant=True)
A_co = TypeVar("A_co", bound=Message, covariant=True)

_UNSAFE = re.compile(r"[^A-Za-z0-9_/:=-]")
_WRITTEN = re.compile(r"[A-Za-z0-9_/:=%.-]+")


def escape(token: str) -> str:
    """One subject token out of any text: whatever NATS reads as structure becomes %XX (UTF-8 bytes)."""
    if not token:
        return "%"
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), token)


def is_written(subject: str) -> bool:
    """Whether `subject` is of the letters that `escape` leaves: else none of us wrote it, and a name in it could be
    read in two ways."""
    return _WRITTEN.fullmatch(subject) is not None


def unescape(token: str) -> str:
    """The text that `escape` was given."""
    return "" if token == "%" else unquote(token, errors="strict")


@dataclass(frozen=True)
class Subject(Generic[M_co]):
    """A family of subjects: a fixed head, then one token for each name in `keys`."""

    head: str
    keys: tuple[str, ...]
    message: type[M_co]

    @property
    def owner(self) -> str:
        return self.head.split(".")[1]

    @property
    def noun(self) -> str:
        return self.head.split(".")[2]

    def of(self, *tokens: str) -> str:
        """The subject of one thing; one token for each of `keys`, unescaped."""
        if len(tokens) != len(self.keys):
            raise ValueError(f"{self.head} takes {self.keys}, got {tokens}")
        return ".".join((self.head, *map(escape, tokens)))

    def all(self, *tokens: str) -> str:
        """The pattern of every subject that starts with these tokens; with none, of the whole family."""
        if len(tokens) == len(self.keys):
            return self.of(*tokens)
        return ".".join((self.head, *map(escape, tokens), ">"))

    def parse(self, subject: str) -> tuple[str, ...]:
        """The tokens of `subject`, unescaped. Raises ValueError when it is not of this family."""
        if not self.has(subject):
            raise ValueError(f"{subject} is not of {self.head}")
        return tuple(map(unescape, subject[len(self.head) + 1 :].split("."))) if self.keys else ()

    def has(self, subject: str) -> bool:
        if not self.keys:
            return subject == self.head
        return subject.startswith(self.head + ".") and subject.count(".") == self.head.count(".") + len(self.keys)


class State(Subject[M_co]):
    """The last value of a thing. `head` is "state.<owner>.<noun>"."""

    def subject_of(self, message: Message) -> str:
        """Where `message` belongs by what it says of itself; each of `keys` is a field of it."""
        return self.of(*(str(getattr(message, key)) for key in self.keys))


class Event(Subject[M_co]):
    """A fact. `head` is "evt.<owner>.<noun>"."""


@dataclass(frozen=True)
class Request(Subject[M_co], Generic[M_co, A_co]):
    """A question and its answer. `head` is "req.<owner>.<verb>"."""

    answer: type[A_co]


# services/resources: what the user or Kubernetes wants
NAMESPACE = State("state.resources.namespace", ("name",), resources.Namespace)
NODE = State("state.resources.node", ("name",), resources.Node)
POD = State("state.resources.pod", ("namespace", "name"), resources.Pod)
SERVICE = State("state.resources.service", ("namespace", "name"), resources.Service)
ENDPOINT_SLICE = State("state.resources.endpointslice", ("namespace", "name"), resources.EndpointSlice)
DEPLOYMENT = State("state.resources.deployment", ("namespace", "name"), resources.Deployment)
STATEFUL_SET = State("state.resources.statefulset", ("namespace", "name"), resources.StatefulSet)
DAEMON_SET = State("state.resources.daemonset", ("namespace", "name"), resources.DaemonSet)
POLICY = State("state.resources.policy", ("kind", "namespace", "name"), resources.Policy)
LOAD_BALANCER_POOL = State("state.resources.loadbalancerpool", ("name",), resources.LoadBalancerPool)
L2_POLICY = State("state.resources.l2announcementpolicy", ("name",), resources.L2AnnouncementPolicy)
CIDR_GROUP = State("state.resources.cidrgroup", ("name",), resources.CIDRGroup)
CLUSTER_ADDRESS = State("state.resources.clusteraddress", ("address",), resources.ClusterAddress)
NODE_PORT = State("state.resources.nodeport", ("port",), resources.NodePort)
APPLY = Request("req.resources.apply", (), resources.Apply, resources.Applied)
BIND = Request("req.resources.bind", (), resources.Bind, resources.Applied)
POD_STATUS = Request("req.resources.podstatus", ("node",), resources.PodStatus, resources.Applied)

# services/identity: who is who
IDENTITY = State("state.identity.identity", ("number",), identity.Identity)
ADDRESS = State("state.identity.address", ("address",), identity.AddressIdentity)

# services/ipam: which node holds which block, which Services have which address of a pool
BLOCK = State("state.ipam.block", ("cidr",), ipam.Block)
SERVICE_ADDRESS = State("state.ipam.serviceaddress", ("address",), ipam.ServiceAddress)
ADDRESS_REQUEST = State("state.ipam.addressrequest", ("namespace", "name"), ipam.AddressRequest)
POOL_USE = State("state.ipam.pooluse", ("name",), ipam.PoolUse)

# services/lb: service addresses and what stands behind them
FRONTEND = State("state.lb.service", ("namespace", "name"), lb.LoadBalancedService)
HOST_PORTS = State("state.lb.hostports", ("node", "namespace", "pod"), lb.HostPorts)

# services/policy: rules by reference, and the members of each selector
RULES = State("state.policy.rules", ("kind", "namespace", "name"), policy.PolicyRules)
SELECTOR = State("state.policy.selector", ("id",), policy.Selector)

# services/l2announce: which node answers for which address of a Service on the network that it is on
ANNOUNCEMENT = State("state.l2announce.announcement", ("address",), l2announce.Announcement)
L2_LEASE = State("state.l2announce.lease", ("name",), l2announce.Lease)
L2_POLICY_USE = State("state.l2announce.policyuse", ("name",), l2announce.PolicyUse)
L2_RENEW = Request("req.l2announce.renew", ("node",), l2announce.Renewal, l2announce.Granted)

# services/dataplane, one per node: its endpoints, what it has applied
ENDPOINT = State("state.dataplane.endpoint", ("node", "namespace", "pod"), dataplane.Endpoint)
APPLIED = Event("evt.dataplane.applied", ("node",), dataplane.AppliedRevision)
DUMP = Request("req.dataplane.dump", ("node",), dataplane.Dump, dataplane.DumpRows)
WHY = Request("req.dataplane.why", ("node",), dataplane.Why, dataplane.WhyAnswer)
DECIDERS = Request("req.dataplane.deciders", ("node",), dataplane.WhoDecided, dataplane.Deciders)

# services/hubble, one per node: the flows that it has observed
FLOWS = Event("evt.hubble.flows", ("node",), hubble.FlowBatch)

STATES: tuple[State[Message], ...] = tuple(value for value in list(globals().values()) if isinstance(value, State))
EVENTS: tuple[Event[Message], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Event))
OWNERS = tuple(dict.fromkeys(state.owner for state in STATES))

# Not a thing but a word on the log itself; whoever reads a log hears of it without asking (bus/view.py)
VOUCHED = {owner: State(f"state.{owner}.vouched", ("writer",), log_messages.Vouched) for owner in OWNERS}


_BY_HEAD: dict[str, State[Message]] = {family.head: family for family in (*STATES, *VOUCHED.values())}


def state_of(subject: str) -> State[Message] | None:
    """The family that `subject` belongs to; None when nobody declared it."""
    family = _BY_HEAD.get(".".join(subject.split(".", 3)[:3]))
    return family if family is not None and family.has(subject) else None


def is_vouch(subject: str) -> bool:
    """It is a word on the log itself."""
    return subject.split(".", 3)[2:3] == ["vouched"]


def matches(pattern: str, subject: str) -> bool:
    """Whether a subscription to `pattern` is to get what was published on `subject`."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        if len(tokens) <= len(wanted):
            return False
    elif len(wanted) != len(tokens):
        return False
    return all(one in ("*", other) for one, other in zip(wanted, tokens, strict=False))


def speaks_of(family: Subject[Any], subject: str, message: Message) -> bool:
    """Whether what the message says of itself is what its subject says, as far as it says anything.

    Who may publish on a subject is settled by its tokens: a body does not speak for another.
    """
    if not family.has(subject):
        return False
    told = zip(family.keys, family.parse(subject), strict=True)
    return all(str(getattr(message, key, token)) == token for key, token in told)


def check_event(subject: str, message: Message) -> None:
    """As `check_subject`, of a fact. Raises: Undecodable: it speaks of another than its subject says."""
    if not any(speaks_of(event, subject, message) for event in EVENTS if isinstance(message, event.message)):
        raise Undecodable(subject, "it is of another than its subject says")


def check_subject(subject: str, message: Message) -> State[Message]:
    """The family of `subject`, of which thing the message speaks. Raises: ValueError: it speaks of another.

    Who may write a subject is settled by its name; without this, a body could speak for what its writer may not.
    """
    family = state_of(subject)
    if family is None or not isinstance(message, family.message) or family.subject_of(message) != subject:
        raise ValueError(f"the message on {subject} is of another thing")
    return family


# The bus's own subjects and streams: how an owner hands its log to those who watch it
LEASES = "LEASES"  # the stream of leases
JOURNAL = "JOURNAL"  # the stream that keeps a copy of every state log for longer


def log_of(owner: str) -> str:
    """The pattern of everything that `owner` says: the subjects of its log."""
    return f"state.{owner}.>"


def stream_of(owner: str) -> str:
    """The name of the JetStream stream that is the owner's log."""
    return f"STATE_{owner.upper()}"


def stored_of(pattern: str) -> str:
    """Where the server tells, without their bodies, what it has stored in a log under this pattern."""
    return f"stored.{pattern.removeprefix('state.')}"


def read_of(stream: str) -> str:
    """Where the server is asked for messages of a stream, many at a time (JetStream's DIRECT.GET)."""
    return f"log.read.{stream}"


def last_of(stream: str) -> str:
    """Where the server is asked for the last message of a key, as the stream's leader has it (STREAM.MSG.GET)."""
    return f"log.last.{stream}"


def info_of(stream: str) -> str:
    """Where the server is asked how a stream is (STREAM.INFO)."""
    return f"log.info.{stream}"


def word_of(owner: str) -> str:
    """Where the server is asked for an owner's last word on its log, as JOURNAL has it (DIRECT.GET of a key)."""
    return f"log.word.{owner}.{owner}"


READING = {
    read_of("*"): "$JS.API.DIRECT.GET.$1",
    last_of("*"): "$JS.API.STREAM.MSG.GET.$1",
    info_of("*"): "$JS.API.STREAM.INFO.$1",
    "log.word.*.*": f"$JS.API.DIRECT.GET.{JOURNAL}.state.$1.vouched.$2",
}
"""All that reading takes, under names of our own, and JetStream's names for it: the server maps one to the other, so
that whoever only reads needs no right to JetStream's API at all."""


def health_of(service: str) -> Request[dataplane.HealthQuestion, dataplane.Health]:
    """Where a service is asked how it is; the last token is the node's name, or "control" (bus/services.py)."""
    return Request(f"req.{service}.health", ("instance",), dataplane.HealthQuestion, dataplane.Health)


def delta_of(owner: str) -> str:
    """Where the active owner sends what was added to its log, and its heartbeat (bus/wire.py: Delta)."""
    return f"delta.{owner}"


def snapshot_of(owner: str) -> str:
    """Where the active owner answers what its log holds (bus/wire.py: SnapshotQuestion, SnapshotChunk)."""
    return f"req.{owner}.snapshot"


def lease_of(name: str) -> str:
    """The subject that holds the lease called `name`."""
    return f"lease.{escape(name)}"
