"""Slots of a Service's table: even, the same on every node, and hardly moved when a backend comes or goes."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataplane.shapes.maglev import SPARE, TABLE_SIZES, WEIGHT_MAX, table

SEEDS = st.binary(min_size=1, max_size=64)
SIZES = st.sampled_from([each for each in TABLE_SIZES if each < 5000])


def backends(count: int, weight: int = 1) -> dict[str, int]:
    return {f"10.{number >> 8}.{number & 255}.7:8080": weight for number in range(count)}


def named(weights: dict[str, int], size: int, seed: bytes) -> list[str]:
    """The backend of each slot."""
    names = sorted(weights)
    return [names[place] for place in table(weights, size, seed)]


def moved(before: list[str], after: list[str], gone: str) -> float:
    """The share of the others' slots that another backend has now."""
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one != gone]
    return sum(one != other for one, other in pairs) / len(pairs)


@settings(deadline=None, max_examples=60)
@given(st.data(), SIZES, SEEDS)
def test_when_one_of_n_backends_leaves_at_most_2_of_n_of_the_others_slots_move(
    data: st.DataObject, size: int, seed: bytes
) -> None:
    count = data.draw(st.integers(2, size // 16), "backends")
    weights = backends(count)
    gone = data.draw(st.sampled_from(sorted(weights)), "who leaves")
    before = named(weights, size, seed)
    del weights[gone]
    assert moved(before, named(weights, size, seed), gone) <= 2 / count


@pytest.mark.parametrize("count", [100, 300, 1000])
def test_the_same_in_the_table_of_the_default_size(count: int) -> None:
    weights = backends(count)
    before = named(weights, 16_381, b"seed")
    for gone in sorted(weights)[:: count // 4]:
        rest = {name: 1 for name in weights if name != gone}
        assert moved(before, named(rest, 16_381, b"seed"), gone) <= 2 / count


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.integers(1, WEIGHT_MAX), min_size=1, max_size=40), SEEDS)
def test_every_slot_has_a_backend_and_the_table_does_not_hang_on_the_order_of_what_is_told(
    weights: dict[str, int], seed: bytes
) -> None:
    made = table(weights, 251, seed)
    assert len(made) == 251 and max(made) < len(weights)
    assert made == table(dict(reversed(weights.items())), 251, seed)


def test_where_backends_have_many_slots_they_have_as_many_as_the_others() -> None:
    held = Counter(named(backends(5), 16_381, b"seed")).values()
    assert max(held) - min(held) <= 2 * SPARE


@pytest.mark.parametrize("weight", [1, 2, 7, WEIGHT_MAX])
def test_equal_weights_are_as_good_as_none(weight: int) -> None:
    assert table(backends(20, weight), 1021, b"seed") == table(backends(20), 1021, b"seed")


def test_a_backend_has_slots_by_its_weight() -> None:
    weights = {"a": 1, "b": 2, "c": 5}
    held = Counter(named(weights, 16_381, b"seed"))
    for name, weight in weights.items():
        assert abs(held[name] - 16_381 * weight / 8) <= 3 * SPARE


def test_a_backend_that_is_weighed_down_gives_its_slots_to_others_and_moves_few_of_theirs() -> None:
    before = named(backends(20, 4), 4093, b"seed")
    lighter = backends(20, 4) | {"10.0.3.7:8080": 1}
    assert moved(before, named(lighter, 4093, b"seed"), "10.0.3.7:8080") <= 2 / 20


def test_another_seed_is_another_table() -> None:
    assert table(backends(20), 251, b"one") != table(backends(20), 251, b"two")


def test_nobody_has_no_table() -> None:
    assert list(table({}, 251, b"seed")) == []


def test_the_table_is_what_every_version_makes() -> None:
    """Nodes of two versions serve one address: a change here sends clients elsewhere while a cluster is upgraded."""
    made = table({"10.0.0.1:80": 1, "10.0.0.2:80": 1, "10.0.0.3:80": 2}, 251, b"seed")
    assert sha256(bytes(made)).hexdigest() == "6240485617d574ddb0612602d5f1f8edf0a997be008bde1fa7a55fed37a1868c"
