"""Records to flows: who, which Service, which policies. Pure; the one loop that sees every flow.

What a record says of a policy or of a network outside is a number that only the node's dataplane can name. Those that
it has not named yet are the `question`, and the flows that have them are given their names by `name`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.hubble.flow import Flow, Place
from services.hubble.names import DecisionKey, Names, PolicyName
from services.hubble.records import Record

UNNAMED_MAX = 1024  # questions at a time; the others are met again


class Joiner:
    def __init__(self, names: Names, place: Place) -> None:
        self._names = names
        self.place = place
        self.count = 0  # flows made
        self.unnamed: set[DecisionKey] = set()

    @property
    def has_unnamed(self) -> bool:
        return bool(self.unnamed or self._names.unknown_networks)

    @property
    def question(self) -> tuple[list[DecisionKey], list[int]]:
        """What the dataplane is to name: decisions, and identities of networks. It is forgotten here: who has no answer
        meets them again."""
        found = sorted(self.unnamed), sorted(self._names.unknown_networks)
        self.unnamed.clear()
        self._names.unknown_networks.clear()
        return found

    def name(
        self,
        flows: Sequence[Flow],
        decided: Mapping[DecisionKey, tuple[PolicyName, ...]],
        audited: Mapping[DecisionKey, str],
    ) -> None:
        """The same flows, with what was answered since they were joined."""
        party = self._names.party
        for flow in flows:
            record = flow.record
            if record[11]:
                key = record[11], record[12], record[10]
                flow.policies = decided.get(key, flow.policies)
                flow.audited = audited.get(key, flow.audited)
            flow.source, flow.destination = party(record[3], record[1]), party(record[4], record[2])

    def join(self, batch: Sequence[Record], offset_ns: int) -> list[Flow]:
        """Flows of `batch`, in its order. `offset_ns`: from CLOCK_MONOTONIC to the time since the epoch."""
        names, place, number = self._names, self.place, self.count
        party, looks = names.party, names.audited
        service = names.service if names.has_services else None
        flows: list[Flow] = []
        add = flows.append
        source_service = destination_service = None
        nobody: tuple[PolicyName, ...] = ()
        for record in batch:
            policies, audited = nobody, ""
            if record[11]:  # POLICY: of the pod whose policy decided
                key = record[11], record[12], record[10]
                found = names.policies(key)
                if found is not None:
                    policies, audited = found, looks.get(key, "")
                elif len(self.unnamed) < UNNAMED_MAX:
                    self.unnamed.add(key)
            if service is not None:
                source_service = service(record[3], record[5], record[7])
                destination_service = service(record[4], record[6], record[7])
            add(
                Flow(
                    number,
                    record[0] + offset_ns,
                    record,
                    party(record[3], record[1]),
                    party(record[4], record[2]),
                    source_service,
                    destination_service,
                    policies,
                    place,
                    audited,
                )
            )
            number += 1
        self.count = number
        return flows
