"""Which connections a write of the maps has to have judged again."""

from __future__ import annotations

from collections.abc import Iterable
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


def is_before(one: int, other: int) -> bool:
    """Of two epochs, as bpf/include/flow.h has it: they go round."""
    return (one - other) & 0xFFFFFFFF >= 1 << 31


def epoch_after(epochs: Iterable[int]) -> int:
    """The next after all of them, of which there is one at least. They go round, and end before the widest gap."""
    ordered = sorted(set(epochs))
    following = [*ordered[1:], ordered[0] + (1 << 32)]
    _, last = max((after - each, each) for each, after in zip(ordered, following, strict=True))
    return (last + 1) & 0xFFFFFFFF
