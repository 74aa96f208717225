"""What is told of a map that is nearly full."""

from __future__ import annotations

import pytest

from services.dataplane.keep import pressure
from services.dataplane.keep.pressure import setting_of


def test_the_setting_that_makes_a_map_larger_is_named() -> None:
    assert (setting_of("ct_tcp"), setting_of("backends")) == ("bpf.ctTcpMax", "bpf.lbMapMax")


def test_a_map_that_no_setting_makes_larger_names_the_number_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "HELM", {})
    assert setting_of("ipcache") == "IPCACHE_MAX in bpf/include/limits.h"
