"""A lab that cannot come up says why, in the words of the process that knows, and as early as may be."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lab import names, state, up
from lab.errors import LabError
from lab.programs import programs
from lab.settings import Settings, check_sizes, parse_set, settings
from lab.supervisor import SETTLED_SECONDS, Keeper, last_line

GIB = 1 << 30


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> state.Record:
    monkeypatch.setattr(state, "RUN", tmp_path)
    monkeypatch.delenv(state.ENVIRONMENT_OWNER, raising=False)
    return state.claim("a", names.nodes(1), Settings(), Path("/sys/fs/cgroup"))


@pytest.mark.parametrize("asked", ["bpf.natMax=16777216", "bpf.natMax=131073,bpf.ctTcpMax=131072,bpf.ctAnyMax=65536"])
def test_more_mappings_than_connections_are_refused_by_the_key(asked: str) -> None:
    with pytest.raises(LabError, match=r"^bpf\.natMax: .* is at most \d+, or raise bpf\.ctTcpMax"):
        check_sizes(settings(parse_set(asked)), 4 * GIB)


@pytest.mark.parametrize("asked", ["", "bpf.natMax=131072", "bpf.natMax=1048576,bpf.ctTcpMax=2097152"])
def test_sizes_that_go_together_pass(asked: str) -> None:
    check_sizes(settings(parse_set(asked)), 4 * GIB)


def test_the_share_of_memory_counts() -> None:
    asked = "bpf.natMax=500000"
    with pytest.raises(LabError):
        check_sizes(settings(parse_set(asked)), 4 * GIB)
    check_sizes(settings(parse_set(f"{asked},bpf.mapDynamicSizeRatio=0")), 4 * GIB)


@pytest.mark.parametrize("traceback", [0, 3_000, 100_000])
def test_the_last_line_is_read_whole_however_long_its_traceback(tmp_path: Path, traceback: int) -> None:
    log = tmp_path / "log"
    told = {"level": "error", "exception": "x" * traceback, "message": "cannot start", "why": "no geneve devices"}
    log.write_text("before\n" + json.dumps(told) + "\n")
    assert last_line(log) == "cannot start: no geneve devices"


def test_one_line_alone_and_silence_are_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == "it said nothing"
    log.write_text("")
    assert last_line(log) == "it said nothing"
    log.write_text("dataplane: the settings are wrong\n")
    assert last_line(log) == "dataplane: the settings are wrong"


def test_who_ended_a_moment_ago_is_told_by_how_and_not_by_its_silence(lab: state.Record) -> None:
    keeper = Keeper(lab, programs(lab)["node1.dataplane"])
    assert keeper.unanswered("nobody answers") == "nobody answers"
    keeper.last, keeper.since = "ended with status 2: bpf.natMax", time.time()
    assert keeper.unanswered("nobody answers") == "ended with status 2: bpf.natMax"
    keeper.since -= SETTLED_SECONDS
    assert keeper.unanswered("nobody answers") == "nobody answers"


def test_each_process_that_is_not_ready_is_told_with_its_last_words(lab: state.Record) -> None:
    lab.directory.log("node1.dataplane").write_text("no geneve\n")
    assert up.told(lab, ["node1.dataplane: nobody answers", "ipam: starts"]) == [
        "node1.dataplane: nobody answers (its last words: no geneve)",
        "ipam: starts",
    ]
    assert up.told(lab, ["node1.dataplane: ended with status 1: no geneve"]) == [
        "node1.dataplane: ended with status 1: no geneve"
    ]
