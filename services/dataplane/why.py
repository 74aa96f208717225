"""Why a connection is let through or not: the same maps are asked, in the same order, as programs ask them.

`prefixes` are looked up from the longest on. A trie of the kernel answers the first time, with the longest that there
is; a map of this process, which has none, is asked for each.
"""

from __future__ import annotations

from collections.abc import Iterator

from bus.labels import RESERVED
from bus.messages.dataplane import Judgement, Way, Why, WhyAnswer
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel
from services.dataplane.parts.policy.entries import (
    DIRECTIONS,
    EGRESS,
    FULL_BITS,
    HOST,
    INGRESS,
    POLICY_DENIED,
    POLICY_DENIED_BY_RULE,
    PROTOCOL_BITS,
    Direction,
    EndpointPolicy,
    PolicyEntry,
    PolicyKey,
    aggregate,
)
from services.dataplane.shapes import layouts
from services.dataplane.shapes.layouts import POLICY_DENIES, POLICY_NAMED, EndpointEntry, PolicyMapEntry, PolicyMapKey
from services.dataplane.shapes.protocols import WITH_TYPES, name_of

ENFORCED = (layouts.FLAG_ENFORCE_INGRESS, layouts.FLAG_ENFORCE_EGRESS)
UNKNOWN = "the pod is not known yet, or its policies are not"


def why(node: str, question: Why, maps: Maps, model: NodeModel) -> WhyAnswer:
    """What the maps say now. Raises: OSError: an address is none."""
    return _Asking(maps, model).answer(node, question)


class _Asking:
    def __init__(self, maps: Maps, model: NodeModel) -> None:
        self._maps = maps
        self._model = model

    def answer(self, node: str, question: Why) -> WhyAnswer:
        key = layouts.ServiceKey(question.destination, question.port, question.protocol)
        raw = self._maps["services"].get(key.pack())
        if raw is None or question.protocol in WITH_TYPES:
            return WhyAnswer(node=node, ways=[self._way(question, question.destination, question.port)])
        entry = layouts.ServiceEntry.unpack(raw)
        found = (
            self._maps["backends"].get(layouts.BackendKey(entry.number, slot).pack()) for slot in range(entry.backends)
        )
        backends = [layouts.BackendEntry.unpack(each) for each in found if each is not None]
        return WhyAnswer(
            node=node,
            service=self._model.services.name_of(question.destination, question.port, question.protocol),
            ways=[self._way(question, each.address, each.port) for each in backends],
        )

    def _way(self, question: Why, destination: str, port: int) -> Way:
        origin, called = self._endpoint(question.source), self._endpoint(destination)
        source_identity = self._identity(question.source, origin)
        destination_identity = self._identity(destination, called)
        judged = []
        if origin is not None:
            judged.append(
                self._judge(EGRESS, question.source, origin, destination_identity, destination, question.protocol, port)
            )
        if called is not None:
            judged.append(
                self._judge(INGRESS, destination, called, source_identity, destination, question.protocol, port)
            )
        return Way(
            destination=destination,
            port=port,
            source_identity=source_identity,
            destination_identity=destination_identity,
            judged=judged,
            route=self._route(destination, called),
        )

    def _endpoint(self, address: str) -> EndpointEntry | None:
        raw = self._maps["endpoints"].get(layouts.EndpointKey(address).pack())
        return None if raw is None else EndpointEntry.unpack(raw)

    def _row(self, address: str) -> layouts.IpcacheEntry | None:
        for bits in range(32 if ":" not in address else 128, -1, -1):
            prefix = layouts.IpcacheKey(address, bits).pack()
            raw = self._maps["ipcache"].get(_masked(prefix))
            if raw is not None:
                return layouts.IpcacheEntry.unpack(raw)
        return None

    def _identity(self, address: str, endpoint: EndpointEntry | None) -> int:
        if endpoint is not None:
            return endpoint.identity
        row = self._row(address)
        return row.identity if row is not None else RESERVED["world-ipv6" if ":" in address else "world-ipv4"]

    def _route(self, destination: str, called: EndpointEntry | None) -> str:
        if called is not None:
            return f"to the pod's device {called.interface}"
        row = self._row(destination)
        if row is None or not row.node:
            return "to the node itself" if row is not None and row.identity == HOST else "out by the node's routes"
        return f"to the node {row.node}" + (", by the node's routes" if row.routed else "")

    def _judge(
        self,
        direction: int,
        address: str,
        pod: EndpointEntry,
        peer: int,
        called: str,
        protocol: int,
        port: int,
    ) -> Judgement:
        local = self._model.pods.get(address)
        name = f"{local.namespace}/{local.name}" if local else address
        word: Direction = DIRECTIONS[direction]
        if not pod.flags & ENFORCED[direction]:
            return Judgement(direction=word, pod=name, enforced=False, allowed=True)
        if direction == INGRESS and peer == HOST:
            return Judgement(direction=word, pod=name, enforced=True, allowed=True, reason="the node reaches its pods")
        policy = self._model.policy_of(pod.policy)
        found = [
            entry
            for each in (peer, aggregate(peer))
            if (entry := self._entry(pod, each, direction, called, protocol, port))
        ]
        best = max(found, key=lambda entry: (entry.precedence, entry.l4_bits), default=None)
        closed = next((each.why for each in self._model.closed_of(address) if each.direction == word), "")
        nearest = _nearest(policy, direction, peer, protocol, port) if policy else ""
        if policy is None:
            return Judgement(direction=word, pod=name, enforced=True, allowed=False, reason=UNKNOWN)
        if best is None:
            reason = f"{POLICY_DENIED}: {closed}" if closed else POLICY_DENIED
            return Judgement(
                direction=word,
                pod=name,
                enforced=True,
                allowed=False,
                reason=reason,
                policies=list(policy.deciders(direction)),
                nearest=nearest,
            )
        audited = policy.audited.get(best.cookie, "")
        denies = bool(best.flags & POLICY_DENIES)
        return Judgement(
            direction=word,
            pod=name,
            enforced=True,
            allowed=not denies,
            reason=POLICY_DENIED_BY_RULE if denies else audited,
            audited=bool(audited),
            policies=list(policy.cookies.get(best.cookie, ())),
            nearest=nearest if audited == POLICY_DENIED else "",
        )

    def _entry(
        self, pod: EndpointEntry, peer: int, direction: int, called: str, protocol: int, port: int
    ) -> PolicyMapEntry | None:
        """By longest prefix, if it holds for the pod that is called."""
        for bits in (*range(FULL_BITS, PROTOCOL_BITS - 1, -1), 0):
            if bits < PROTOCOL_BITS:
                key = PolicyMapKey(pod.policy, peer, direction, 0, 0, 0)
            else:
                key = PolicyMapKey(
                    pod.policy, peer, direction, protocol, port & (0xFFFF << FULL_BITS - bits) & 0xFFFF, bits
                )
            raw = self._maps["policy"].get(key.pack())
            if raw is not None:
                entry = PolicyMapEntry.unpack(raw)
                named = layouts.NamedPortKey(pod.policy, entry.cookie, called, port, protocol).pack()
                is_absent = entry.flags & POLICY_NAMED and self._maps["named_ports"].get(named) is None
                return None if is_absent else entry
        return None


def _masked(prefix: bytes) -> bytes:
    """The key of a network, with what is beyond its bits left out."""
    bits = int.from_bytes(prefix[:4], "little")
    whole = int.from_bytes(prefix[4:], "big")
    return prefix[:4] + (whole >> 128 - bits << 128 - bits).to_bytes(16, "big")


def _nearest(policy: EndpointPolicy, direction: int, peer: int, protocol: int, port: int) -> str:
    """The rule that lets through what differs least: the same peer, then the same port."""
    near = [
        (key.identity in (peer, aggregate(peer)), _covers(key, protocol, port), key.protocol == protocol, key, entry)
        for key, entry in policy.entries.items()
        if key.direction == direction and not entry.deny and entry.cookie and entry.cookie not in policy.audited
    ]
    best = max(near, key=lambda each: each[:3], default=None)
    if best is None:
        return ""
    is_peer, is_port, _, key, entry = best
    by = ", ".join(policy.cookies.get(entry.cookie, ()))
    differs = list(_differences(policy, key, entry, is_peer, is_port))
    return f"{by} lets through {' and '.join(differs)}" if differs else f"{by}, at pods that call the port so"


def _differences(
    policy: EndpointPolicy, key: PolicyKey, entry: PolicyEntry, is_peer: bool, is_port: bool
) -> Iterator[str]:
    if not is_peer:
        yield f"identity {key.identity}"
    if not is_port:
        last = key.port | (1 << FULL_BITS - key.l4_bits) - 1
        ports = "" if key.l4_bits <= PROTOCOL_BITS else f" {key.port}" + f"-{last}" * (last > key.port)
        yield f"{name_of(key.protocol)}{ports}"
    if entry.named:
        yield f"the port called {' or '.join(sorted(policy.port_names.get(entry.cookie, ())))}"


def _covers(key: PolicyKey, protocol: int, port: int) -> bool:
    if key.l4_bits < PROTOCOL_BITS:
        return True
    return key.protocol == protocol and port & (0xFFFF << FULL_BITS - key.l4_bits) & 0xFFFF == key.port
