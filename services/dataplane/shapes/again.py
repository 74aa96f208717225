"""Which connections a write of the maps has to have judged again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Again:
    """bpf/include/types.h, struct node_state, says what the programs make of each."""

    everything: bool = False
    services: bool = False  # what was sent to a Service, or might have been, and is not settled
    ahead: bool = False  # connections that were judged by an identity which the maps did not have
    endpoints: frozenset[bytes] = frozenset()  # connections of these, by keys of the map `endpoints`

    @property
    def is_nobody(self) -> bool:
        return self == NOBODY


NOBODY = Again()
EVERYTHING = Again(everything=True)
