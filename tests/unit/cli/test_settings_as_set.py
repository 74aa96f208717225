"""Settings are shown in the words that --set takes."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cli import status
from cli.__main__ import app
from cli.lab import LISTING
from cli.session import Target
from lab.settings import parse_set, settings

SETTINGS = {"bpf.enableTCX": False, "ipv6.enabled": True, "MTU": 1400}


def test_config_shows_true_and_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "target", lambda name: Target("a", "", settings=SETTINGS))
    shown = CliRunner().invoke(app, ["config"]).stdout.split()
    assert shown == ["SETTING", "VALUE", "bpf.enableTCX", "false", "ipv6.enabled", "true", "MTU", "1400"]


def test_what_lab_list_shows_can_be_given_to_set() -> None:
    asked = "bpf.enableTCX=false,ipam.operator.clusterPoolIPv4PodCIDRList={10.1.0.0/16,10.2.0.0/16}"
    [column] = [each for each in LISTING if each.title == "SETTINGS"]
    shown = column.of({"settings": dict(settings(parse_set(asked)).values)})
    assert ",".join(f"{key}={value}" for key, value in shown.items()) == asked
