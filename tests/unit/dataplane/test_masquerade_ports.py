"""Masqueraded connections and the node's own share no port."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.dataplane import datapath
from services.dataplane.limits import limit
from services.dataplane.settings import nat_port_min


@pytest.mark.parametrize(
    ("last_local_port", "first"),
    [
        (60_999, 61_000),  # Linux's default is the default of limits.h
        (50_000, 50_001),
        (64_511, 64_512),  # 1024 are left
        (64_512, None),
        (65_535, None),
        (20_000, 32_768),  # not into Kubernetes' node ports
    ],
)
def test_masqueraded_connections_begin_above_the_nodes_own(last_local_port: int, first: int | None) -> None:
    assert nat_port_min(last_local_port) == first


def test_a_node_that_leaves_too_few_ports_is_told_and_gets_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ports = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(datapath, "LOCAL_PORTS", ports)
    ports.write_text("32768\t50000\n")
    assert datapath.masquerade_ports() == 50_001
    assert not caplog.records
    ports.write_text("1024\t65535\n")
    assert datapath.masquerade_ports() == limit("NAT_PORT_MIN") == nat_port_min(60_999)
    assert "ip_local_port_range" in caplog.text
