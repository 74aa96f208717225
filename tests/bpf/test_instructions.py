"""Every program in every configuration loads on this kernel, and what it costs is on record."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from bench.instructions import MOST, RECORD, STALE, Change, Count, Counts, as_text, changes, measure, of_text
from bench.programs import all_programs, configurations
from bench.verifier import falls_back
from services.dataplane.load import loader
from services.dataplane.shapes.programs import UNITS


@pytest.fixture(scope="module")
def measured() -> Counts:
    return measure()


@pytest.mark.timeout(600)
def test_every_program_in_every_configuration_loads_and_its_size_is_on_record(
    measured: Counts, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name for unit in UNITS.values() for name in unit}
    assert set(measured.programs) == {(configuration, name) for configuration in configurations() for name in names}
    found = changes(of_text(RECORD.read_text()), measured)
    with capsys.disabled():
        for change in found:
            print(f"\n{change}", end="")
    stale = [str(change) for change in found if abs(change.share) > STALE]
    assert not stale, f"bench/instructions.json is out of date; run 'make instructions': {stale}"


@pytest.mark.timeout(600)
def test_every_program_leaves_room_for_what_comes(measured: Counts) -> None:
    over = {
        (*program, count)
        for program, count in measured.programs.items()
        if count.verified > MOST.verified or count.loaded > MOST.loaded
    }
    assert not over, f"more than {MOST}: move what few packets need into a step (docs/how-to-add-a-bpf-feature.md)"


@pytest.mark.timeout(600)
def test_no_loop_of_any_program_is_laid_out_as_older_kernels_refuse_it() -> None:
    refused = {(each.configuration, each.name): falls_back(each.code) for each in all_programs(configurations())}
    assert not {what: at for what, at in refused.items() if at is not None}


def test_a_loop_may_be_jumped_back_into_and_not_fallen_back_into() -> None:
    load, exit_ = b"\xb7\0\0\0\0\0\0\0", b"\x95\0\0\0\0\0\0\0"  # r0 = 0; exit

    def goto(offset: int, operation: int = 0x05) -> bytes:
        return struct.pack("=BBhi", operation, 0, offset, 0)

    def unless_zero(offset: int) -> bytes:
        return goto(offset, 0x55)

    assert falls_back(load + unless_zero(-2) + exit_) is None
    assert falls_back(load + goto(1) + load + unless_zero(-2) + exit_) == 2
    assert falls_back(load + unless_zero(1) + load + load + exit_) is None


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
