"""Masqueraded connections and the node's own share no port."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.service import BadSettings
from services.dataplane.load import masquerade
from services.dataplane.load.loader import DatapathConfig
from services.dataplane.load.masquerade import settle
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.ports import ports_beside
from settings.ports import Ports

LINUX = Ports(32_768, 60_999)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its settings, as Linux has them by default."""
    (tmp_path / "ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text("\n")
    monkeypatch.setattr(masquerade, "SYSCTLS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("own", "first"),
    [
        (LINUX, 36_864),
        (Ports(40_000, 60_999), 44_096),
        (Ports(40_000, 40_099), 40_100),  # all that are above
        (Ports(1024, 65_535), 32_768),  # not into Kubernetes' node ports
        (Ports(10_000, 20_000), 32_768),
        (Ports(60_416, 65_535), 64_512),  # 1024 are left
        (Ports(60_417, 65_535), None),
        (Ports(60_417, 64_511), 64_512),
    ],
)
def test_the_nodes_own_keep_some_and_masqueraded_connections_have_the_others(own: Ports, first: int | None) -> None:
    assert ports_beside(own) == (None if first is None else Ports(first))


def test_with_linuxs_defaults_there_are_28000_and_they_are_those_of_the_programs() -> None:
    found = ports_beside(LINUX)
    assert found is not None and found.last - found.first + 1 >= 28_000
    config = DatapathConfig(device_index=1)
    assert found == Ports(config.nat_port_min, config.nat_port_max)


def test_what_is_taken_is_kept_from_the_nodes_own_once_and_beside_what_was(kernel: Path) -> None:
    reserved = kernel / "ip_local_reserved_ports"
    reserved.write_text("8080,9000-9010\n")
    for _ in range(2):
        assert settle("") == Ports(36_864)
        assert reserved.read_text() == "8080,9000-9010,36864-65535"


def test_a_range_above_the_nodes_own_needs_no_reservation(kernel: Path) -> None:
    assert settle("61000-65535") == Ports(61_000)
    assert (kernel / "ip_local_reserved_ports").read_text() == "\n"


def test_the_range_that_was_asked_for_is_taken_and_reserved(kernel: Path) -> None:
    assert settle("40000-49999") == Ports(40_000, 49_999)
    assert (kernel / "ip_local_reserved_ports").read_text() == "40000-49999"


def test_where_nothing_can_be_reserved_only_the_ports_above_are_taken(
    kernel: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (kernel / "ip_local_reserved_ports").unlink()
    (kernel / "ip_local_reserved_ports").mkdir()
    assert settle("") == Ports(61_000)
    assert "mount /proc/sys writable" in caplog.text


def test_a_node_that_leaves_too_few_ports_is_told_and_some_are_taken(
    kernel: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (kernel / "ip_local_port_range").write_text("62000\t65535\n")
    assert settle("") == Ports(64_512)
    assert "ip_local_port_range" in caplog.text


@pytest.mark.parametrize("asked", ["40000", "40000-41000", "30000-40000", "50000-40000", "40000-70000", "a-b", "-"])
def test_a_range_that_cannot_be_is_refused_by_name(asked: str) -> None:
    with pytest.raises(BadSettings, match="PLEXUS_MASQUERADE_PORTS is"):
        NodeSettings.of({"PLEXUS_NODE": "n", "PLEXUS_MASQUERADE_PORTS": asked})
    found = NodeSettings.of({"PLEXUS_NODE": "n", "PLEXUS_MASQUERADE_PORTS": "40000-65535"})
    assert found.masquerade_ports == "40000-65535"
