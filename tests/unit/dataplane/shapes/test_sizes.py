"""The sizes of maps: the rule by memory, its bounds, and what a given size does to it."""

from __future__ import annotations

import pytest

from services.dataplane.shapes import limits
from services.dataplane.shapes.sizes import (
    FIXED,
    MOST,
    NAMES,
    SECONDS,
    SIZED,
    SizeError,
    entries_by_memory,
    map_sizes,
    nat_most,
)

GIB = 1 << 30

# vCPU, memory in GiB, TCP connections by the rule and as published (docs/map-sizes.md says why they differ)
TABLE_B = [
    (1, 3.75, 131_072, 131_072),
    (2, 7.5, 131_072, 131_072),
    (4, 15, 142_280, 131_072),
    (8, 30, 284_560, 284_560),
    (16, 60, 569_121, 569_120),
    (32, 120, 1_138_242, 1_138_240),
    (64, 240, 2_276_484, 2_276_480),
    (96, 360, 3_414_726, 4_552_960),
]


@pytest.mark.parametrize(("cpus", "gib", "entries", "published"), TABLE_B)
def test_every_row_of_the_published_table_by_the_rule(cpus: int, gib: float, entries: int, published: int) -> None:
    found = entries_by_memory(int(gib * GIB))
    assert found["CT_TCP_MAX"] == entries
    assert found["CT_ANY_MAX"] == max(65_536, entries // 2)
    assert found["NAT_MAX"] == (found["CT_TCP_MAX"] + found["CT_ANY_MAX"]) * 2 // 3


def test_the_last_published_row_is_what_the_rule_gives_for_480_gib() -> None:
    assert abs(entries_by_memory(480 * GIB)["CT_TCP_MAX"] - 4_552_960) <= 8


def test_the_published_third_row_holds_only_below_13_8_gib() -> None:
    assert entries_by_memory(int(13.8 * GIB))["CT_TCP_MAX"] == 131_072
    assert entries_by_memory(int(13.9 * GIB))["CT_TCP_MAX"] > 131_072


def test_all_sized_maps_together_stay_within_their_share_of_memory() -> None:
    for gib in (16, 64, 256, 1024):
        entries = entries_by_memory(gib * GIB)
        taken = sum(entries[name] * each.element_bytes for name, each in SIZED.items())
        assert 0.999 < taken / (gib * GIB * 0.0025) <= 1


def test_no_memory_and_all_memory_stay_within_the_bounds() -> None:
    assert entries_by_memory(0) == {name: each.least for name, each in SIZED.items()}
    assert set(entries_by_memory(1 << 60).values()) == {MOST}


def test_twice_the_ratio_is_twice_the_entries() -> None:
    assert entries_by_memory(30 * GIB, 0.005)["CT_TCP_MAX"] == 569_121


def test_without_a_ratio_the_fixed_defaults_hold_whatever_the_memory() -> None:
    expected = {name: each.entries for name, each in SIZED.items()}
    assert entries_by_memory(1, 0) == entries_by_memory(1 << 60, 0) == expected


def test_a_given_size_disables_sizing_for_that_map_only() -> None:
    sized, given = map_sizes(30 * GIB), map_sizes(30 * GIB, asked={"CT_ANY_MAX": 400_000})
    assert given == sized | {"CT_ANY_MAX": 400_000}


def test_fewer_connections_leave_fewer_mappings() -> None:
    found = map_sizes(30 * GIB, asked={"CT_TCP_MAX": 2_048, "CT_ANY_MAX": 1_024})
    assert found["NAT_MAX"] == 2_048


def test_more_mappings_than_two_thirds_of_the_connections_are_refused_with_the_most_that_may_be() -> None:
    asked = {"CT_TCP_MAX": 3_000, "CT_ANY_MAX": 3_000}
    assert map_sizes(GIB, asked=asked | {"NAT_MAX": 4_000})["NAT_MAX"] == 4_000
    with pytest.raises(SizeError, match=r"at most 4000, or raise bpf\.ctTcpMax"):
        map_sizes(GIB, asked=asked | {"NAT_MAX": 4_001})


def test_the_default_of_mappings_is_as_many_as_there_may_be() -> None:
    entries = {name: each.entries for name, each in SIZED.items()}
    assert nat_most(entries) == entries["NAT_MAX"]


def test_what_an_endpoint_may_have_sizes_the_nodes_policy_map() -> None:
    assert map_sizes(GIB)["POLICY_MAX"] == 1_048_576
    assert map_sizes(GIB, policy_entries=65_536)["POLICY_MAX"] == 64 * 65_536


def test_services_bring_four_backends_each() -> None:
    found = map_sizes(GIB, lb_entries=1_000)
    assert (found["SERVICES_MAX"], found["BACKENDS_MAX"]) == (1_000, 4_000)
    assert map_sizes(GIB, lb_entries=1_000, asked={"BACKENDS_MAX": 7_000})["BACKENDS_MAX"] == 7_000


def test_every_map_has_a_size_and_every_default_is_that_of_the_c() -> None:
    no_choice = {"1", "COUNTERS_MAX", "DEVICES_MAX", "L2_ANSWERS_MAX", "EVENT_TYPES", "EVENTS_BYTES"}
    assert {each.size for each in limits.declared_maps().values()} - no_choice <= set(NAMES)
    defaults = {**FIXED, **{name: each.entries for name, each in SIZED.items() if name in NAMES}}
    assert {name: limits.limit(name) for name in NAMES} == defaults
    assert {name: limits.limit(name) for name in SECONDS} == dict(SECONDS)
