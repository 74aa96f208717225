"""A node boots while the bus is away: what it knew last is in force, no more and no less."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from lab import execute, names, processes, runtime, supervisor
from lab.programs import programs
from lab.state import Sandbox
from tests.lab.space import Space, curl
from tests.lab.test_policy import DENY
from tests.labs import Lab, eventually

pytestmark = pytest.mark.timeout(300)  # a busy machine takes long

NODE = "node1"


@pytest.fixture
def space() -> Iterator[Space]:
    with Lab("test-boot", nodes=2, expected_drops=("Policy denied",)) as made:
        yield Space(made, "default", 4)


@contextmanager
def booted_without_bus(lab: Lab) -> Iterator[None]:
    """The node as after a reboot, at work while the bus is dead: of the kernel's state nothing is left."""
    lab.kill(bus=True)
    lab.kill(node=NODE)
    shutil.rmtree(lab.record.pins(NODE))
    for link in json.loads(ip(lab, "-j", "link", "show", "type", "veth")):
        if link["ifname"].startswith("lxc"):
            ip(lab, "link", "delete", link["ifname"])
    ip(lab, "link", "delete", "plexus_vxlan")
    for hook in ("ingress", "egress"):
        run("tc", "-n", names.namespace(lab.name, NODE), "filter", "delete", "dev", "eth0", hook, check=False)
    running = supervisor.start(lab.record, programs(lab.record)[f"{NODE}.dataplane"])
    try:
        yield
    finally:
        processes.kill(running.identity)
        asyncio.run(running.ended())  # our child: we take its status


def run(*command: str, check: bool = True) -> str:
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout


def ip(lab: Lab, *arguments: str) -> str:
    return run("ip", "-n", names.namespace(lab.name, NODE), *arguments)


def start_anew(lab: Lab, box: Sandbox) -> str:
    """As the runtime does after a boot. The pod's address."""
    found: list[str] = []

    def added() -> bool:
        try:
            found.extend(runtime.add(lab.record, box))
        except runtime.CniFailed:
            return False
        return True

    assert eventually(added, 40)  # the programs are loaded anew
    return found[0]


@contextmanager
def stranger(lab: Lab, like: Sandbox) -> Iterator[Sandbox]:
    """A pod of whose labels nothing is known."""
    box = msgspec.structs.replace(
        like,
        uid="stranger",
        name="stranger",
        addresses=[],
        netns=names.pod_namespace(lab.name, NODE, "default", "stranger", "stranger"),
        cgroup=str(lab.record.node_cgroup(NODE) / "stranger"),
        processes={},
    )
    runtime.create(lab.record, box)
    try:
        yield box
    finally:
        runtime.remove(lab.record, box)


def ask_from(box: Sandbox, address: str) -> str:
    """As `Space.get`, from a sandbox that the lab does not know."""
    place = execute.Place(box.netns, Path(box.cgroup))
    command = execute.command(place, curl(address, seconds=1))
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def test_pods_start_and_talk_and_policy_holds_while_the_bus_is_away_and_after(space: Space) -> None:
    lab = space.lab
    space.apply(
        space.pod("client"),
        space.pod("open"),
        space.pod("closed"),
        space.pod("far", "node2"),
        space.service("far", "far"),
        DENY.format(namespace=space.name, app="closed", direction="Ingress"),
    )
    far, service = space.address("far"), space.cluster_address("far")
    boxes = {box.name: box for box in lab.record.directory.sandboxes()}
    ahead = lab.record.pins(NODE) / "ahead"
    assert eventually(lambda: not ahead.exists(), 10)  # what was heard is on the disk
    with booted_without_bus(lab):
        addresses = {name: start_anew(lab, boxes[name]) for name in ("client", "open", "closed")}
        assert eventually(lambda: space.get("client", addresses["open"], seconds=1) != "", 15)
        assert "Hostname: far" in space.get("client", far)
        assert "Hostname: far" in space.get("client", service)
        assert space.get("client", addresses["closed"], seconds=1) == ""
        assert space.get("open", addresses["closed"], seconds=1) == ""

        with stranger(lab, boxes["open"]) as unknown:
            assert start_anew(lab, unknown)
            assert ask_from(unknown, far) == ""

        lab.revive(bus=True)
        assert eventually(lambda: lab.plexus("wait", "--timeout", "5s", check=False).returncode == 0, 30)
        space.apply(DENY.format(namespace=space.name, app="client", direction="Egress").replace("deny", "stop"))
        assert space.get("client", far, seconds=1) == ""
        lab.delete(DENY.format(namespace=space.name, app="client", direction="Egress").replace("deny", "stop"))
        lab.wait()
        assert "Hostname: far" in space.get("client", far)
    lab.revive(node=NODE)
