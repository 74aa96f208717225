"""Sizes and times that were asked for, in the maps and programs as loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.dataplane.load import loader
from services.dataplane.shapes import limits, sizes
from services.dataplane.shapes.layouts import TICK_NS
from tests.bpf.datapath import NEIGHBOUR, NODE, POD, Datapath, echo, tcp, udp

BPFFS = Path("/sys/fs/bpf")
ASKED = {name: 1024 + number for number, name in enumerate(sizes.NAMES)}
SECONDS = {"CT_TCP_SECONDS": 1000, "CT_TCP_SYN_SECONDS": 200, "CT_TCP_FIN_SECONDS": 40, "CT_ANY_SECONDS": 80}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import asyncio

    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    pin_dir = BPFFS / f"plexus-test-small-{os.getpid()}"
    config = loader.DatapathConfig(node_address=NODE, device_index=1, sizes=ASKED, seconds=SECONDS)
    try:
        asyncio.run(loader.load(config, pin_dir, tmp_path_factory.mktemp("state")))
        yield pin_dir
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


@pytest.fixture
def node(small: Path) -> Iterator[Datapath]:
    with closing(Datapath(small)) as found:
        found.clear()
        found.endpoint(POD, 256)
        found.endpoint(NEIGHBOUR, 257)
        found.maps.raise_epoch()
        yield found


def test_every_map_is_of_the_size_that_was_asked_for(node: Datapath) -> None:
    sized = {name: each.size for name, each in limits.declared_maps().items() if each.size in ASKED}
    assert {name: node.maps[name].info.max_entries for name in sized} == {
        name: ASKED[size] for name, size in sized.items()
    }


def lives_for(node: Datapath) -> float:
    """Seconds that the one connection that there is is kept."""
    (entry,) = node.connections().values()
    return (entry.expires * TICK_NS - time.clock_gettime_ns(time.CLOCK_MONOTONIC)) / 1e9


def test_every_kind_of_connection_is_kept_for_the_time_that_was_asked_for(node: Datapath) -> None:
    def after(source: str, destination: str, sport: int, dport: int, flags: str) -> float:
        node.run("from_pod", tcp(source, destination, sport, dport, flags))
        return lives_for(node)

    ticks = pytest.approx
    assert after(POD, NEIGHBOUR, 30000, 80, "S") == ticks(200, abs=2.2)
    assert after(NEIGHBOUR, POD, 80, 30000, "SA") == ticks(1000, abs=2.2)
    assert after(POD, NEIGHBOUR, 30000, 80, "FA") == ticks(1000, abs=2.2)
    assert after(NEIGHBOUR, POD, 80, 30000, "FA") == ticks(40, abs=2.2)


def test_a_reset_connection_is_kept_as_one_that_has_finished(node: Datapath) -> None:
    for flags in ("S", "R"):
        node.run("from_pod", tcp(POD, NEIGHBOUR, 30001, 80, flags))
    assert lives_for(node) == pytest.approx(40, abs=2.2)


@pytest.mark.parametrize("packet", [udp(POD, NEIGHBOUR, 30000, 53), echo(POD, NEIGHBOUR, 7)])
def test_all_others_have_the_time_of_others(node: Datapath, packet: bytes) -> None:
    node.run("from_pod", packet)
    assert lives_for(node) == pytest.approx(80, abs=2.2)


async def test_a_time_that_does_not_fit_ends_the_load_with_words(tmp_path: Path) -> None:
    pin_dir = BPFFS / f"plexus-test-long-{os.getpid()}"
    config = loader.DatapathConfig(node_address=NODE, device_index=1, seconds={"CT_TCP_SECONDS": 1 << 40})
    try:
        with pytest.raises(loader.LoadError, match="too large"):
            await loader.load(config, pin_dir, tmp_path)
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)
