"""Label sets get numbers, addresses get identities. Pure: no I/O, no clock.

A number is taken by compare-and-set, counting from a hash of the label set, so that the same labels have the same
number always, also after the whole log was lost (of label sets whose hashes meet, the first in the order of their
texts then counts first).

A number is never given to other labels while this model runs. Those that neither a pod nor any node's endpoint uses
are let go only where a run begins: `said` does not list them, and what it does not list is unsaid after the first
sync. A pod of those labels that comes back later gets its old number again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from bus import labels
from bus.addresses import family, of_family, parse, plain
from bus.control import Action, Claim, Say, Unsay
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.resources import Namespace, Node, Pod
from bus.subjects import ADDRESS, BLOCK, ENDPOINT, IDENTITY, NAMESPACE, NODE, POD, State, check_subject
from services.identity.store import EndpointKey, Numbers, Places, PodKey, Pods

INIT = labels.RESERVED["init"]
REMOTE_NODE = labels.RESERVED["remote-node"]

NOT_AN_ADDRESS = "not an address"
OUTSIDE_BLOCK = "outside the node's blocks"
BOUND_ELSEWHERE = "pod is bound to another node"
NODE_ADDRESS = "address of a node"
CLAIMED_TWICE = "claimed twice"

Report = Callable[[str, dict[str, str]], None]
"""Told once about each refusal as it arises: why, and the facts."""


def _quiet(reason: str, facts: dict[str, str]) -> None:
    pass


class IdentityModel:
    """What `run_control` runs.

    `refused` holds, by address, whose claim to it is withheld now and why; `refusals` how often each reason arose.
    """

    owner: ClassVar[str] = "identity"
    hears: ClassVar[tuple[State[Message], ...]] = (NAMESPACE, POD, NODE, ENDPOINT, BLOCK, IDENTITY)
    says: ClassVar[tuple[State[Message], ...]] = (IDENTITY, ADDRESS)

    def __init__(self, report: Report = _quiet) -> None:
        self._report = report
        self._pods = Pods()
        self._numbers = Numbers()
        self._places = Places()
        self._said: dict[str, AddressIdentity] = {}
        self._dirty_pods: set[PodKey] = set()
        self._dirty_addresses: set[str] = set()
        self._unnumbered: set[str] = set()
        self._claimed: dict[str, int] = {}  # what was asked for each label set, until something is heard of either
        self.refused: dict[str, dict[EndpointKey, str]] = {}
        self.refusals: Counter[str] = Counter()

    # hearing

    def put(self, subject: str, message: Message) -> None:
        """`subject` has this value now.

        Raises: ValueError: it makes no sense. A number then counts as taken, by nobody known; else nothing is changed.
        """
        try:
            check_subject(subject, message)
        except ValueError:
            if IDENTITY.has(subject):
                self.taken(subject)
            raise
        match message:
            case Pod():
                self._pods.put(message)
                self._dirty_pods.add((message.namespace, message.name))
            case Namespace():
                self._dirty_pods |= self._pods.put_namespace(message)
            case Endpoint():
                self._dirty_addresses |= self._places.put_endpoint(message)
            case Node():
                self._dirty_addresses |= self._places.put_node(message)
            case Block():
                self._dirty_addresses |= self._places.put_block(message)
            case Identity():
                self._renumber(self._numbers.put(message))
            case _:
                raise ValueError(f"{subject} is not heard by identity")

    def delete(self, subject: str) -> None:
        if POD.has(subject):
            namespace, name = POD.parse(subject)
            self._pods.delete((namespace, name))
            self._dirty_pods.add((namespace, name))
        elif NAMESPACE.has(subject):
            self._pods.delete_namespace(*NAMESPACE.parse(subject))
        elif ENDPOINT.has(subject):
            node, namespace, pod = ENDPOINT.parse(subject)
            self._dirty_addresses |= self._places.delete_endpoint((node, namespace, pod))
        elif NODE.has(subject):
            self._dirty_addresses |= self._places.delete_node(*NODE.parse(subject))
        elif BLOCK.has(subject):
            self._dirty_addresses |= self._places.delete_block(*BLOCK.parse(subject))
        elif IDENTITY.has(subject):
            number = IDENTITY.parse(subject)[0]
            if number.isdecimal():
                self._renumber(self._numbers.delete(int(number)))
        else:
            raise ValueError(f"{subject} is not heard by identity")

    def taken(self, subject: str) -> None:
        """The number has a value that cannot be read here: it is somebody's, until its subject is put or deleted."""
        number = IDENTITY.parse(subject)[0]
        if number.isdecimal():
            self._renumber(self._numbers.put_unreadable(int(number)))

    def _renumber(self, texts: set[str]) -> None:
        for text in texts:
            self._unnumbered.add(text)
            self._claimed.pop(text, None)
            for pod in self._pods.with_text(text):
                self._dirty_addresses |= self._places.addresses_of(pod)

    # acting

    def act(self) -> Iterable[Action]:
        return [*self._number(), *self._locate()]

    def said(self) -> Iterable[str]:
        used = self._places.identities_in_use()
        for number in self._numbers:
            text = self._numbers.text(number)
            if number in used or (text is not None and self._pods.with_text(text)):
                yield IDENTITY.of(str(number))
        yield from self._said

    def _number(self) -> Iterator[Claim]:
        """Claim a number for every label set that has none. A lost race comes back as the holder's value: that number
        is taken then, and the next one is tried. A claim is made once; carrying it out is its carrier's business."""
        for pod in self._dirty_pods:
            self._pods.relabel(pod)
            self._dirty_addresses |= self._places.addresses_of(pod)
            text = self._pods.text(pod)
            if text is not None:
                self._unnumbered.add(text)
        self._dirty_pods.clear()
        tried: set[int] = set()
        for text in sorted(self._unnumbered):
            wanted = self._pods.labels_of(text)
            if wanted is None or self._numbers.of(text) is not None:
                self._unnumbered.discard(text)
                self._claimed.pop(text, None)
                continue
            number = next(
                each
                for each in labels.numbers_from(labels.number_of(text))
                if each not in tried and not self._numbers.taken(each)
            )
            tried.add(number)
            if self._claimed.get(text) != number:
                self._claimed[text] = number
                yield Claim(IDENTITY.of(str(number)), Identity(number=number, labels=wanted))

    def _locate(self) -> Iterator[Say | Unsay]:
        dirty, self._dirty_addresses = self._dirty_addresses, set()
        for address in sorted(dirty):
            subject = ADDRESS.of(address)
            message = self._owner_of(address)
            if message is not None:
                if self._said.get(subject) != message:
                    self._said[subject] = message
                    yield Say(subject, message)
            elif self._said.pop(subject, None) is not None:
                yield Unsay(subject)

    def _owner_of(self, address: str) -> AddressIdentity | None:
        """Who an address is; None when nobody rightly has it, or more than one has."""
        claims = self._places.endpoints_with(address)
        nodes = self._places.nodes_with(address)
        refused = {key: reason for key in claims if (reason := self._objection(address, key)) is not None}
        rightful = claims - refused.keys()
        if len(rightful) + len(nodes) > 1:
            refused |= dict.fromkeys(rightful, CLAIMED_TWICE)
            refused |= {(name, "", ""): CLAIMED_TWICE for name in nodes}
        self._note(address, refused)
        if len(rightful) + len(nodes) != 1:
            return None
        return self._of_node(address, *nodes) if nodes else self._of_endpoint(address, *rightful)

    def _objection(self, address: str, key: EndpointKey) -> str | None:
        """Why a node may not say that this address is this pod's: a node speaks only for its own blocks and pods."""
        place = parse(address)
        if place is None:
            return NOT_AN_ADDRESS
        if self._places.nodes_with(address):
            return NODE_ADDRESS
        if not self._places.holds(key[0], place):
            return OUTSIDE_BLOCK
        pod = self._pods.get(key[1:])
        if pod is not None and pod.node not in ("", key[0]):
            return BOUND_ELSEWHERE
        return None

    def _of_node(self, address: str, name: str) -> AddressIdentity | None:
        node = self._places.node(name)
        if node is None or parse(address) is None:
            return None
        return AddressIdentity(address=address, identity=REMOTE_NODE, node=name, node_address=_way_to(node, address))

    def _of_endpoint(self, address: str, key: EndpointKey) -> AddressIdentity | None:
        """The address with its pod's identity, or with `init` as long as that is not certain: as no entry at all it
        would pass for the world."""
        node = self._places.node(key[0])
        if node is None or not node.addresses:
            return None
        identity, pod = self._identity_of(self._places.endpoint(key)), self._pods.get(key[1:])
        return AddressIdentity(
            address=address,
            identity=identity,
            node=node.name,
            node_address=_way_to(node, address),
            pod=f"{key[1]}/{key[2]}",
            ports=[port for port in pod.ports if port.name] if pod is not None and identity != INIT else [],
        )

    def _identity_of(self, endpoint: Endpoint) -> int:
        """The pod's number. `init` for a pod not heard, not yet bound, without a number, or another of that name."""
        pod = self._pods.get((endpoint.namespace, endpoint.pod))
        if pod is None or pod.node != endpoint.node or (endpoint.uid and endpoint.uid != pod.uid):
            return INIT
        text = self._pods.text((endpoint.namespace, endpoint.pod))
        number = None if text is None else self._numbers.of(text)
        return INIT if number is None else number

    def _note(self, address: str, refused: dict[EndpointKey, str]) -> None:
        before = self.refused.pop(address, {})
        if refused:
            self.refused[address] = refused
        for key, reason in sorted(refused.items()):
            if before.get(key) != reason:
                self.refusals[reason] += 1
                node, namespace, pod = key
                facts = {"address": address, "node": node, "pod": f"{namespace}/{pod}" if pod else ""}
                self._report(reason, facts)


def _way_to(node: Node, address: str) -> str:
    """The node's address by which `address`, which lives there, is reached: the first of its family, or the first."""
    own = [plain(each) for each in node.addresses]
    place = parse(address)
    first = next((each for each in own if parse(each) is not None), own[0])
    return first if place is None else of_family(own, family(place)) or first
