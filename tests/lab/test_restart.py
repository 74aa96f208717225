"""Streams and numbered packets while dataplanes are killed, started again and upgraded: none is lost, none broken.

How long the longest pause was is printed beside that of a quiet phase of the same run. It is not judged: on a busy
machine both are long.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from bench.survival import SERVICE_PORT, Rate, Survived, Way, traffic, ways_of
from lab import dialogue, processes, state, supervisor
from lab.errors import LabError
from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import Map
from services.dataplane.load.loader import STAMP
from services.dataplane.shapes.limits import declared_maps
from services.dataplane.shapes.programs import TC_PROGRAMS
from tests.lab import version1, version2
from tests.lab.conftest import EXPECTED_DROPS
from tests.lab.space import Space
from tests.lab.version1 import turn_back
from tests.labs import Lab, eventually

pytestmark = pytest.mark.timeout(600)  # each start may be waited for PATIENCE times

NODES = ("node1", "node2")
RATE = Rate(streams=50, every_ms=100.0, packets_per_second=1000)  # on each of four ways
PATIENCE = 4  # times that the lab waits for a start
PHASE_SECONDS = 1.5

POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: servers, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{role: server}}}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: clients, namespace: {namespace}}}
spec:
  endpointSelector: {{matchLabels: {{app: client}}}}
  egress:
  - toEndpoints: [{{matchLabels: {{role: server}}}}]
  - toEntities: [world]
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: far, namespace: {namespace}}}
spec:
  {families}
  selector: {{app: far}}
  ports:
  - {{name: streams, port: {port}, protocol: TCP, targetPort: {port}}}
  - {{name: packets, port: {port}, protocol: UDP, targetPort: {port}}}
"""


def ways(space: Space) -> dict[str, Way]:
    """Pods whose packets are judged by policies in both directions, and the ways between them."""
    lab = space.lab
    server = "\n    role: server\nspec:"
    space.apply(
        space.pod("client"),
        space.pod("near").replace("\nspec:", server, 1),
        space.pod("far", "node2").replace("\nspec:", server, 1),
        POLICIES.format(namespace=space.name),
        SERVICE.format(namespace=space.name, families=space.policy, port=SERVICE_PORT),
    )

    client, near, far = (f"{space.name}/{name}" for name in ("client", "near", "far"))
    return ways_of(lab.record, client, near, far, space.cluster_address("far"))


def survive(space: Space, event: Callable[[], None]) -> None:
    """Nothing is lost or broken while both dataplanes are killed, `event` happens, and they are started again."""
    with traffic(ways(space), RATE) as under_way:
        under_way.phase("quiet")
        time.sleep(2 * PHASE_SECONDS)
        under_way.phase("dead")
        for node in NODES:
            space.lab.kill(node=node)
        time.sleep(PHASE_SECONDS / 2)
        event()
        under_way.phase("back")
        for node in NODES:
            start(space.lab, node)
        time.sleep(PHASE_SECONDS)
        found = under_way.end()
    show(space.lab.name, found)
    for way, figures in found.items():
        assert figures.streams == RATE.streams
        assert (figures.broken, figures.lost, figures.twice) == (0, 0, 0), way
        for phase in ("quiet", "dead", "back"):
            assert figures.phases[phase].exchanges > 0, way
            assert figures.phases[phase].sent > 0, way


def start(lab: Lab, node: str) -> None:
    """A busy machine takes longer than the lab waits: ask again."""
    for patience in range(PATIENCE - 1, -1, -1):
        try:
            lab.revive(node=node)
            break
        except LabError:
            if not patience:
                raise


def show(lab: str, found: Mapping[str, Survived]) -> None:
    for way, figures in found.items():
        packets = sum(each.sent for each in figures.phases.values())
        stalls = {name: f"{each.stall_seconds * 1000:.1f} ms" for name, each in figures.phases.items()}
        print(f"{lab}, {way}: {figures.broken} of {figures.streams} streams broken, {figures.lost} of {packets} lost;")
        print(f"    longest pause quiet {stalls['quiet']}, dead {stalls['dead']}, starting {stalls['back']}")


def dataplane(lab: Lab, node: str) -> state.ProcessId:
    found = state.read(lab.record.directory.process(f"{node}.dataplane"), state.ProcessId)
    assert found is not None
    return found


def program_ids(lab: Lab, node: str) -> dict[str, int]:
    found = {}
    for name in TC_PROGRAMS:
        program = bpf.open_pinned(lab.record.pins(node) / "programs" / name)
        found[name] = bpf.program_id(program)
        os.close(program)
    return found


def sizes(lab: Lab, node: str) -> dict[str, int]:
    found = {}
    for path in (lab.record.pins(node) / "maps").iterdir():
        each = Map.open(path)
        found[path.name] = each.info.max_entries
        each.close()
    return found


def test_no_process_of_a_node_has_a_compiler(space: Space) -> None:
    for node in NODES:
        found = Path(f"/proc/{dataplane(space.lab, node).pid}/maps").read_text()
        assert "libc.so" in found
        assert not [each for each in ("libbcc", "libclang", "libLLVM") if each in found]


def test_nothing_is_lost_or_broken_when_dataplanes_are_killed_and_started_again(space: Space) -> None:
    before = {node: (dataplane(space.lab, node), program_ids(space.lab, node)) for node in NODES}
    survive(space, lambda: None)
    for node, (process, programs) in before.items():
        assert dataplane(space.lab, node) != process
        assert program_ids(space.lab, node) == programs


@pytest.mark.both_families  # their programs hold those of one family
def test_nothing_is_lost_or_broken_by_an_upgrade_that_changes_programs(space: Space) -> None:
    before = {node: program_ids(space.lab, node) for node in NODES}

    def another_version_was_here() -> None:
        for node in NODES:
            stamp = space.lab.record.directory.node(node) / STAMP
            assert json.loads(stamp.read_text())["digest"]
            stamp.write_text(json.dumps({"digest": "of other sources"}))

    survive(space, another_version_was_here)
    for node, programs in before.items():
        after = program_ids(space.lab, node)
        assert all(after[name] != number for name, number in programs.items())


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    """A lab whose settings change."""
    with Lab("test-upgrade", nodes=2, values={"bpf.natMax": 65536}, expected_drops=EXPECTED_DROPS) as made:
        yield made


def set_anew(lab: Lab, **values: object) -> None:
    """The lab goes on with other values: they hold for what is started from now on."""
    dead = state.read(lab.record.directory.process("supervisor"), state.ProcessId)
    assert dead is not None
    assert processes.kill_and_wait([dead]) == []
    lab.record = msgspec.structs.replace(lab.record, values={**lab.record.values, **values})
    state.write(lab.record.directory.lab, lab.record)
    supervisor.spawn(lab.record)
    assert eventually(lambda: answers(lab), 10)


def answers(lab: Lab) -> bool:
    try:
        dialogue.ask(lab.record.directory.socket, {"do": "status"})
    except dialogue.SupervisorGone:
        return False
    return True


@pytest.mark.parametrize("entries", [131072, 32768])
def test_nothing_is_lost_or_broken_when_maps_get_another_size(own: Lab, entries: int) -> None:
    own.apply("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: resized\n")
    own.wait()
    changed = {"bpf.natMax": entries, "bpf.ctTcpMax": entries}
    survive(Space(own, "resized", 4), lambda: set_anew(own, **changed))
    for node in NODES:
        found = sizes(own, node)
        assert {name: found[declared_maps()[name].file] for name in ("ct_tcp", "nat")} == {
            "ct_tcp": entries,
            "nat": entries,
        }
        assert not any(name.endswith("_before") for name in found)


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_lost_or_broken_by_an_upgrade_that_changes_the_layout_of_maps(own: Lab, version: int) -> None:
    taken: dict[str, dict[str, int]] = {}

    def that_version_was_here() -> None:
        for node in NODES:
            taken[node] = turn_back(own.record.pins(node) / "maps", version)
            (own.record.directory.node(node) / STAMP).write_text(json.dumps({"digest": "of an earlier version"}))

    own.apply(f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: version{version}\n")
    own.wait()
    survive(Space(own, f"version{version}", 4), that_version_was_here)
    names = {1: ("connections", "services", "backends"), 2: ("ct_tcp", "services_v2", "backends_v2")}
    connections, services, backends = names[version]
    for node in NODES:
        assert taken[node][connections] >= 2 * RATE.streams
        assert min(taken[node][services], taken[node][backends]) >= 2
        assert not {*version1.WAYS_BACK, *version2.WAYS_BACK} & sizes(own, node).keys()
    if version == 1:  # these two are the same since
        assert min(taken["node1"][name] for name in ("nat", "choices")) >= RATE.streams
