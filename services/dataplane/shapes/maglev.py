"""Which backend each slot of a Service's table has, by Maglev: from names, weights and a seed alone. Pure.

A packet's hash chooses a slot, so where its client goes hangs on the table alone: any node may get its next packet. Of
what a table is asked (Eisenbud et al., "Maglev", NSDI 2016, section 3.4), evenness and that little moves when a backend
comes or goes, the published way gives up the second where a backend has few slots: with 1000 backends in 16381 slots it
moves 6/N of the others' slots when one leaves. So backends take turns, each the next free slot of its own sequence,
only until `SPARE` slots a backend are left, and those go to whom a ring of hashes names: then it is at most 2/N, in a
third of the time. It costs evenness where a backend has few slots: docs/adr/0030-tables-that-hardly-move.md.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Mapping
from hashlib import blake2b
from math import gcd
from struct import Struct

TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071)
"""Primes: then every step leads to every slot. The chart's choice."""

WEIGHT_MAX = 256
SPARE = 16  # slots a backend that the ring gives away, but at most three tenths of the table
POINTS = 10  # of a backend on the ring; fewer the lighter it is

_HASH = Struct(f"<QQQ{POINTS}I")  # first slot, step, place in a round, points on the ring: 64 bytes
_LINE = 1 << 32  # length of a round


def table(weights: Mapping[str, int], size: int, seed: bytes) -> array[int]:
    """The place of each slot's backend among the sorted names; empty when there is no backend.

    Args:
        weights: 1 to `WEIGHT_MAX`, by a name that is the same on every node: "10.0.0.1:8080".
        size: one of `TABLE_SIZES`.
        seed: at most 64 bytes, the same on every node.
    """
    names = sorted(weights)
    if not names:
        return array("I")
    hashes = [_HASH.unpack(blake2b(name.encode(), key=seed, digest_size=_HASH.size).digest()) for name in names]
    at = [each[0] % size for each in hashes]
    steps = [each[1] % (size - 1) + 1 for each in hashes]
    slots = array("I", bytes(4 * size))
    taken = bytearray(size)
    turns = size - min(SPARE * len(names), size * 3 // 10)
    for turn in _turns([weights[name] for name in names], [each[2] % _LINE for each in hashes], turns):
        slot, step = at[turn], steps[turn]
        while taken[slot]:
            slot += step
            if slot >= size:
                slot -= size
        taken[slot] = 1
        slots[slot] = turn
        at[turn] = slot
    _fill(slots, taken, _ring(weights, names, hashes))
    return slots


def _turns(weights: list[int], places: list[int], count: int) -> list[int]:
    """Whose turn it is, `count` times. A backend of weight w has w turns in every round, evenly apart: one that leaves
    takes its own turns with it, and all others keep their order."""
    common = gcd(*weights)
    if all(weight == common for weight in weights):
        order = sorted(range(len(weights)), key=lambda which: (places[which], which))
        return (order * (count // len(order) + 1))[:count]
    total, bits = sum(weights), len(weights).bit_length()
    found = []
    for which, (weight, place) in enumerate(zip(weights, places, strict=True)):
        weight //= common
        most = count * weight * common // total + 2
        found += [(number * _LINE + place) // weight << bits | which for number in range(most)]
    found.sort()
    return [each & ((1 << bits) - 1) for each in found[:count]]


def _ring(weights: Mapping[str, int], names: list[str], hashes: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Points, each with the place of its backend, in order."""
    most = max(weights.values())
    return sorted(
        (point, which)
        for which, name in enumerate(names)
        for point in hashes[which][3 : 3 + max(1, POINTS * weights[name] // most)]
    )


def _fill(slots: array[int], taken: bytearray, ring: list[tuple[int, int]]) -> None:
    """Give the free slots away: to the next point after each."""
    points = [point for point, _ in ring]
    slot = taken.find(0)
    while slot >= 0:
        mixed = (slot + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
        mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 % (1 << 64)
        slots[slot] = ring[bisect(points, mixed >> 32) % len(ring)][1]
        slot = taken.find(0, slot + 1)
