"""plexus status, of a node that works by other means than BPF."""

from __future__ import annotations

from bus.messages.dataplane import Check, Health
from cli.status import health_row


def health(*checks: Check) -> Health:
    return Health(service="dataplane", instance="node1", ready=True, started_at=0.0, version="1", checks=list(checks))


def test_a_node_without_bpf_is_degraded_and_says_why() -> None:
    row = health_row("dataplane", "node1", health(Check(name="datapath", ok=False, detail="degraded: no BPF")), {})
    assert (row["state"], row["problem"]) == ("degraded", "datapath: degraded: no BPF")


def test_another_problem_does_not_make_a_node_degraded() -> None:
    row = health_row("dataplane", "node1", health(Check(name="routes", ok=False, detail="gone")), {})
    assert row["state"] == "ready"
