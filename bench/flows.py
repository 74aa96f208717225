"""How many flow records one core decodes and joins with names in a second: `python -m bench.flows`.

The records are of 500 pods that call each other and 100 Services, in batches as the observer takes them. Seconds are of
CPU, so what else the machine does counts little. The issue asks for 50 000 decoded and joined, 150 000 only counted.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator

from bus import subjects
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.lb import Backend, Frontend, LoadBalancedService
from bus.messages.resources import Pod
from services.hubble import records
from services.hubble.flow import Flow, Place
from services.hubble.joiner import Joiner
from services.hubble.kept import Kept
from services.hubble.names import Names, PolicyName, pack
from services.hubble.records import Record

RECORDS = 100_000
BATCH = 1024
ROUNDS = 3
PODS = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(500)]


def names() -> Names:
    """500 pods of 100 Deployments, each behind a Service."""
    found = Names("node1")
    for number, address in enumerate(PODS):
        group = number // 5
        labels = {"k8s:app": f"app{group}", "k8s:io.kubernetes.pod.namespace": "default"}
        found.put("", Identity(number=1000 + group, labels=labels))
        found.put("", Pod(namespace="default", name=f"p{number}", uid="u", owner=f"deployment/default/d{group}"))
        found.put(
            "",
            AddressIdentity(
                address=address,
                identity=1000 + group,
                node="node2",
                node_address="192.0.2.2",
                pod=f"default/p{number}",
            ),
        )
    for group in range(100):
        backends = [Backend(address=address, port=80) for address in PODS[group * 5 : group * 5 + 5]]
        front = Frontend(address=f"10.96.0.{group + 1}", port=80, protocol="TCP", backends=backends)
        service = LoadBalancedService(namespace="default", name=f"s{group}", frontends=[front])
        found.put(subjects.FRONTEND.subject_of(service), service)
    for cookie in range(20):
        found.decide((1000, cookie, 0), (PolicyName.of("CiliumNetworkPolicy/default/rule1"),))
    return found


def written() -> bytes:
    """What the kernel would have written."""
    chosen = random.Random(1)
    found = bytearray()
    for number in range(RECORDS):
        ends = map(pack, chosen.sample(PODS, 2))
        ports = chosen.getrandbits(16), socket.htons(80)
        raw = records.LAYOUT.pack(
            number * 1000, 0, 0, *ends, *ports, 6, records.POLICY_VERDICT, 0, 0, 1000, chosen.randrange(20), 74, 0, 0
        )
        found += struct.pack("=II", len(raw), 0) + raw
    return bytes(found)


def batches(data: bytes) -> Iterator[list[Record]]:
    position = 0
    while position < len(data):
        taken = records.take(data, position, len(data), 1 << 30, BATCH)
        position = taken.position
        yield taken.records


def per_second(work: Callable[[], int]) -> float:
    """The best of some rounds: what the code costs when nothing is in its way."""
    best = 0.0
    for _ in range(ROUNDS):
        began = time.process_time()
        best = max(best, work() / (time.process_time() - began))
    return best


def main() -> None:
    data, joiner = written(), Joiner(names(), Place("node1"))
    kept: Kept[Flow] = Kept(4095)

    def decode() -> int:
        return sum(len(batch) for batch in batches(data))

    def join() -> int:
        for batch in batches(data):
            kept.add(joiner.join(batch, 0))
        return RECORDS

    def count() -> int:
        counted: Counter[tuple[int, int, int]] = Counter()
        for batch in batches(data):
            counted.update((each[records.TYPE], each[records.REASON], each[records.DIRECTION]) for each in batch)
        return sum(counted.values())

    def tell() -> int:
        return sum(bool(flow.message().SerializeToString()) for flow in kept.read(0, 4095).items)

    rows = {"decoded": decode, "decoded and joined": join, "decoded and counted": count, "told to a client": tell}
    for name, work in rows.items():
        print(f"{name:20} {per_second(work):>12,.0f} a second")


if __name__ == "__main__":
    main()
