"""Addresses of Services on the nodes' LAN: one node answers for each, whatever happens to it, and never two do."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from lab import processes, state
from tests.lab.neighbours import Neighbours
from tests.lab.space import Space
from tests.lab.test_load_balancers import balancer, outside, pool
from tests.labs import Lab, eventually

pytestmark = pytest.mark.both_families


def policy(space: Space, nodes: str = "") -> str:
    """Of the Services of the test's own namespace that are blue."""
    return f"""
apiVersion: cilium.io/v2alpha1
kind: CiliumL2AnnouncementPolicy
metadata: {{name: {space.name}}}
spec:
  serviceSelector: {{matchLabels: {{io.kubernetes.service.namespace: {space.name}, color: blue}}}}
  nodeSelector: {{{nodes}}}
  interfaces: ["^eth[0-9]+"]
  loadBalancerIPs: true
"""


def mac_of(lab: Lab, node: str) -> str:
    (link,) = json.loads(lab.exec_node(node, "ip", "-j", "link", "show", "eth0").stdout)
    return str(link["address"])


@contextmanager
def killed(lab: Lab, node: str) -> Iterator[None]:
    """Its dataplane: the programs stay attached, and the map is as it was."""
    lab.kill(node=node, service="dataplane")
    try:
        yield
    finally:
        lab.revive(node=node, service="dataplane")


@contextmanager
def stopped(lab: Lab, node: str) -> Iterator[None]:
    """SIGSTOP of its dataplane."""
    known = state.read(lab.record.directory.process(f"{node}.dataplane"), state.ProcessId)
    assert known is not None
    processes.kill(known, signal.SIGSTOP)
    try:
        yield
    finally:
        processes.kill(known, signal.SIGCONT)


@contextmanager
def cut_off(lab: Lab, node: str) -> Iterator[None]:
    """From the bus, and from nothing else."""
    buses = [str(lab.record.plan.control(family).ip) for family in lab.families]
    for bus in buses:
        assert not lab.exec_node(node, "ip", "route", "add", "blackhole", bus).returncode
    try:
        yield
    finally:
        for bus in buses:
            lab.exec_node(node, "ip", "route", "del", "blackhole", bus)


def all_renew(lab: Lab) -> bool:
    """Every node has a lease."""
    checks = [lab.checks(node).get("l2announcements") for node in lab.nodes]
    return all(check is not None and check.ok for check in checks)


def test_one_node_answers_and_another_takes_over_and_never_two_do(space: Space) -> None:
    lab = space.lab
    nodes = {mac_of(lab, node): node for node in lab.nodes}
    blue, red = balancer(space, "blue", 80, labels="color: blue"), balancer(space, "red", 80, labels="color: red")
    space.apply(pool(space), policy(space), blue, red)
    addresses = outside(space)
    (announced,), (other,) = addresses["blue"], addresses["red"]
    with Neighbours(lab, announced, other) as neighbours:
        heard = neighbours.heard[announced]
        holder = neighbours.until(announced, lambda mac: mac in nodes)
        for trouble in (killed, stopped, cut_off):
            with trouble(lab, nodes[holder]):
                heard.told.clear()
                holder = neighbours.until_another(announced, holder)
                assert eventually(partial(heard.told.__contains__, holder)), "who takes over says so"
            assert eventually(partial(all_renew, lab), 20)
        lab.kill(control="l2announce")
        lab.revive(control="l2announce")
        assert eventually(lambda: lab.plexus("wait").returncode == 0)
        assert neighbours.until(announced, bool) == holder, "who leads anew moves nothing"
        without = f"matchExpressions: [{{key: kubernetes.io/hostname, operator: NotIn, values: [{nodes[holder]}]}}]"
        lab.apply(policy(space, without))
        neighbours.until_another(announced, holder)
        assert [
            one["plexus"]["state"] for one in lab.get("l2announcement") if one["metadata"]["name"] == space.name
        ] == ["Announced"]
        space.delete(policy(space))
        neighbours.until(announced, lambda mac: not mac)
    space.delete(pool(space))
    assert heard.answered > 100
    assert not heard.twice, "several answered one question"
    assert not neighbours.heard[other].answered, "no policy selects it"
