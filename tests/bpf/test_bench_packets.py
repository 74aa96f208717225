"""What the bench times is what it says: every packet takes its way, and what has a bar or is on record is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.bars import BARS
from bench.datapath import ADDRESSES, datapath
from bench.machine import this_machine
from bench.packets import GROUP, Case, PacketLost, cases, measure_packets, timing
from bench.recorded import RECORD, costs, of_text
from lab.plan import FAMILIES, Family


def test_every_figure_with_a_bar_or_on_record_is_measured_and_none_is_zero() -> None:
    figures = list(measure_packets(("native", "tunnel"), 1, lambda _: None))
    names = [figure.name for figure in figures]
    assert {name for name in BARS if name.startswith(f"{GROUP}, ")} <= set(names)
    assert len(set(names)) == len(names)
    assert all(20 < value < 100_000 for figure in figures for value in figure.values)
    found = costs(this_machine(), figures)
    assert {*found.ratios, *found.slow} == set(of_text(RECORD.read_text()).ratios)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packet_that_goes_another_way_is_no_figure(family: Family) -> None:
    with datapath("native", (family,)) as path:
        found: list[Case] = list(cases(path, "native", ADDRESSES[family]))
        stranger = bytearray(found[0].packet)
        stranger[-30] ^= 0xFF  # in the addresses or ports
        for wrong in (
            replace(found[0], packet=bytes(stranger)),
            replace(found[0], program="to_pod"),
            replace(found[0], action=0),
        ):
            with pytest.raises(PacketLost, match="verdict"):
                timing(path, wrong)()
