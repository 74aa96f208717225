"""plexus bpf: addresses are named in whatever form a row has them; a node that is silent has no empty maps."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cli import bpf
from cli.bpf import Names, address_in, named

NAMES = Names({}, {"10.0.0.1": "default/web", "fd00::1": "default/web", "fd00::2": "node1"})


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1/32", "10.0.0.1"),
        ("10.0.0.0/24", "10.0.0.0/24"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("fd00::1/128", "fd00::1"),
        ("fd00::/32", "fd00::/32"),
        ("[fd00::1]:80", "fd00::1"),
        ("fd00::1:80", "fd00::1:80"),
    ],
)
def test_the_address_is_found_in_every_form(value: str, address: str) -> None:
    assert address_in(value) == address


def test_both_families_are_named_in_connections_and_in_the_ipcache() -> None:
    assert named("node1", {"source": "[fd00::1]:4000", "destination": "10.0.0.1:80"}, NAMES) == {
        "node": "node1",
        "source": "[fd00::1]:4000",
        "destination": "10.0.0.1:80",
        "source_name": "default/web",
        "destination_name": "default/web",
    }
    assert named("node2", {"prefix": "fd00::2/128"}, NAMES)["prefix_name"] == "node1"


def test_an_address_that_only_begins_like_a_known_one_is_not_named() -> None:
    assert named("node1", {"address": "fd00::1:80"}, NAMES) == {"node": "node1", "address": "fd00::1:80"}


@pytest.mark.parametrize(("problems", "says_empty"), [([], True), (["node1: no answer: timeout"], False)])
def test_only_a_node_that_answered_has_no_entries(
    monkeypatch: pytest.MonkeyPatch, problems: list[str], says_empty: bool
) -> None:
    monkeypatch.setattr(bpf, "run", lambda main, name: ([], problems))
    done = CliRunner().invoke(bpf.app, ["ct", "list"])
    assert ("no entries in ct" in done.stderr) is says_empty
    assert done.exit_code == (1 if problems else 0)
