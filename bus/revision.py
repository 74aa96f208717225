"""How far knowledge has travelled: for each root log, the sequence up to which everything is included.

Two logs are roots, because nothing on the bus causes them: "resources" (what the user wants) and "dataplane" (what
nodes did); bus/services.py says which. Every other owner's output is a function of roots, so its outbox says with each
batch up to where it has heard them. Merging is the minimum: a node has realised revision n when all that it hears
includes n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Revision = Mapping[str, int]


def merge(inputs: Iterable[Revision]) -> dict[str, int]:
    """What the reader of all `inputs` has heard: for each root that any of them carries, the lowest sequence."""
    merged: dict[str, int] = {}
    for revision in inputs:
        for root, sequence in revision.items():
            merged[root] = min(sequence, merged.get(root, sequence))
    return merged


def includes(have: Revision, wanted: Revision) -> bool:
    """`have` is at least `wanted` for every root that `wanted` names."""
    return all(have.get(root, -1) >= sequence for root, sequence in wanted.items())
