"""What a run is made of: names, manifests, and a part that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from bench import cluster, run
from bench.announcements import MESSAGES, PROCESSOR
from bench.bars import BARS, FAMILY_NAMES, Figure
from bench.load import Load, LoadFailed
from bench.masquerade import FAILED
from bench.memory import NAME as MEMORY
from bench.memory import resident_megabytes
from bench.packets import GROUP
from bench.pods import AT_ONCE
from bench.policy import NAME as POLICY
from bench.policy import policy_manifest
from bench.run import ALONE, PODS, Findings, Part, Size
from bench.survival import BARRED as SURVIVAL
from bench.traffic import NAMES, PER_PROCESSOR, WAYS
from lab import names


def test_every_bar_belongs_to_a_figure_that_is_measured() -> None:
    whats = (*(NAMES[load] for load in Load), PER_PROCESSOR)
    traffic = {f"{way}{suffix}: {what}" for way in WAYS for suffix in FAMILY_NAMES.values() for what in whats}
    pods = {"CNI ADD: one after the other", f"CNI ADD: {AT_ONCE} at once"}
    packets = {name for name in BARS if name.startswith(f"{GROUP}, ")}  # tests/bpf/test_bench_packets.py has these
    assert len(packets) == 10
    assert set(BARS) - packets == traffic | pods | SURVIVAL | {MEMORY, POLICY, FAILED, MESSAGES, PROCESSOR}


def test_a_lab_is_named_after_the_bench_that_made_it_and_only_such_labs_are_its_leftovers() -> None:
    longest = f"{cluster.PREFIX}{4194304}"  # the highest pid that Linux gives
    assert names.check(longest) == longest
    assert cluster.owner_of(longest) == 4194304
    assert [cluster.owner_of(name) for name in ("plexus", "bench", "bench-1", "mybench12")] == [None] * 4


def test_there_is_a_pod_on_every_node_and_two_on_the_first() -> None:
    assert sorted(PODS.values()) == ["node1", "node1", "node2", "node3"]


def test_each_turn_of_the_policy_changes_it() -> None:
    assert policy_manifest(8000) != policy_manifest(8001)
    assert json.loads(policy_manifest(8000))["kind"] == "CiliumNetworkPolicy"


def test_resident_memory_is_told_in_millions_of_bytes() -> None:
    text = "55d0-7ff rollup\nRss:              87890 kB\nPss:   100 kB\n"
    assert resident_megabytes(text) == pytest.approx(89.99936)
    with pytest.raises(ValueError, match="Rss"):
        resident_megabytes("")


def test_a_part_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab and what is measured in it are stand-ins; the order and the bookkeeping are real."""

    @contextmanager
    def lab(nodes: int, settings: dict[str, str]) -> Iterator[cluster.Cluster]:
        yield cluster.Cluster("bench1")

    def figures_of(part: Part, *_: object) -> Iterator[Figure]:
        yield Figure(f"{part}: first", "ms", (1.0,))
        if part is Part.PODS:
            raise LoadFailed("no route")
        yield Figure(f"{part}: second", "ms", (2.0,))

    monkeypatch.setattr(run, "cluster", lab)
    monkeypatch.setattr(run, "figures_of", figures_of)

    found: Findings = run.run({Part.TRAFFIC, Part.PODS, Part.MEMORY}, Size(), lambda _: None)

    assert [figure.name for figure in found.figures] == [
        "memory: first",
        "memory: second",
        "pods: first",
        "traffic: first",
        "traffic: second",
    ]
    assert found.problems == ["pods: no route"]


def test_without_a_lab_nothing_is_measured_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lab(nodes: int, settings: dict[str, str]) -> NoReturn:
        raise cluster.ClusterFailed("node2 is not ready")

    monkeypatch.setattr(run, "cluster", lab)
    found = run.run(set(Part) - set(ALONE), Size(), lambda _: None)
    assert found.figures == []
    assert found.problems == [f"no lab with routingMode={mode}: node2 is not ready" for mode in ("native", "tunnel")]


def test_parts_that_want_the_same_lab_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    @contextmanager
    def lab(nodes: int, settings: dict[str, str]) -> Iterator[cluster.Cluster]:
        asked.append(settings["routingMode"])
        yield cluster.Cluster("bench1")

    monkeypatch.setattr(run, "cluster", lab)
    monkeypatch.setattr(run, "figures_of", lambda *_: iter(()))
    run.run(set(Part) - set(ALONE), Size(), lambda _: None)
    assert asked == ["native", "tunnel"]
