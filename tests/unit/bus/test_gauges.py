"""Gauges as Prometheus sees them."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, generate_latest

from bus.http import Counters
from bus.service import Service, Settings
from bus.testing import Hub, MemoryBus


def test_gauges_of_one_name_are_told_apart_by_their_labels() -> None:
    service = Service("dataplane", Settings(), MemoryBus(Hub(), "dataplane"))
    levels = {"nat": 0.5, "policy": 2.0}
    for name in tuple(levels):
        service.gauge("bpf_map_pressure", partial(levels.__getitem__, name), map=name)
    service.gauge("widgets", lambda: 3.0)
    registry = CollectorRegistry()
    registry.register(Counters(service))
    levels["nat"] = 0.25
    text = generate_latest(registry).decode()
    assert 'plexus_bpf_map_pressure{map="nat"} 0.25\nplexus_bpf_map_pressure{map="policy"} 2.0\n' in text
    assert text.count("# TYPE plexus_bpf_map_pressure gauge") == 1
    assert "\nplexus_widgets 3.0\n" in text
