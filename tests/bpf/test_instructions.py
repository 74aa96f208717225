"""Every program in every configuration loads on this kernel, and what it costs is on record."""

from __future__ import annotations

import dataclasses

import pytest

from bench.instructions import RECORD, STALE, Change, Count, Counts, as_text, changes, measure, of_text
from bench.programs import configurations
from services.dataplane import loader


@pytest.fixture(scope="module")
def measured() -> Counts:
    return measure()


@pytest.mark.timeout(600)
def test_every_program_in_every_configuration_loads_and_its_size_is_on_record(
    measured: Counts, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name for unit in loader.UNITS.values() for name in unit}
    assert set(measured.programs) == {(configuration, name) for configuration in configurations() for name in names}
    found = changes(of_text(RECORD.read_text()), measured)
    with capsys.disabled():
        for change in found:
            print(f"\n{change}", end="")
    stale = [str(change) for change in found if abs(change.share) > STALE]
    assert not stale, f"bench/instructions.json is out of date; run 'make instructions': {stale}"


def test_every_family_and_every_switch_of_the_datapath_is_turned_on_every_way_between_nodes() -> None:
    found = list(configurations().values())
    assert {(bool(each.tunnel_index), each.underlay_ipv6) for each in found} == {
        (False, False), (True, False), (True, True)
    }  # fmt: skip
    switches = {field.name for field in dataclasses.fields(loader.DatapathConfig) if field.type in (bool, "bool")}
    for way in ("native", "tunnel", "tunnel over IPv6"):
        before = configurations()[way]
        assert before.ipv4 and before.ipv6
        for switch in switches - {"underlay_ipv6"}:
            wanted = dataclasses.replace(before, **{switch: not getattr(before, switch)})  # type: ignore[arg-type]
            assert wanted in found


def test_the_record_says_what_was_measured() -> None:
    counts = Counts("6.1", {("native", "from_pod"): Count(10, 20), ("tunnel", "to_pod"): Count(3, 4)})
    assert of_text(as_text(counts)) == counts


def test_growth_comes_first_and_another_kernels_verifier_is_not_compared() -> None:
    before = Counts("6.1", {("n", "a"): Count(100, 1000), ("n", "b"): Count(100, 1000), ("n", "gone"): Count(5, 5)})
    now = Counts("6.1", {("n", "a"): Count(99, 1000), ("n", "b"): Count(103, 1200)})
    assert [str(each) for each in changes(before, now)] == [
        "b (n): verified 1000 -> 1200 (+20.0%)",
        "b (n): loaded 100 -> 103 (+3.0%)",
        "a (n): loaded 100 -> 99 (-1.0%)",
        "gone (n): loaded 5 -> 0 (-100.0%)",
        "gone (n): verified 5 -> 0 (-100.0%)",
    ]
    other = dataclasses.replace(now, kernel="6.18")
    assert Change("b (n): verified", 1000, 1200) not in changes(before, other)
