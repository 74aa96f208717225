"""Health, readiness and metrics over HTTP (/healthz, /livez, /readyz, /metrics), imported when somebody asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from socket import socket
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bus.telemetry import counters

if TYPE_CHECKING:
    from bus.service import Service


class Counters(Collector):
    """Every counter of telemetry.py as plexus_<name>_total, every gauge of the service as plexus_<name>."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        families: dict[str, list[tuple[dict[str, str], int]]] = {}
        for (name, labels), value in (*counters().items(), *self._service.counted().items()):
            families.setdefault(name, []).append((dict(labels), value))
        for name, samples in sorted(families.items()):
            names = sorted({label for given, _ in samples for label in given})
            family = CounterMetricFamily(f"plexus_{name}", name.replace("_", " "), labels=names)
            for given, value in samples:
                family.add_metric([given.get(label, "") for label in names], value)
            yield family
        levels: dict[str, GaugeMetricFamily] = {}
        for (name, labels), level in self._service.gauges().items():
            if name not in levels:
                words = name.replace("_", " ")
                levels[name] = GaugeMetricFamily(f"plexus_{name}", words, labels=[label for label, _ in labels])
            levels[name].add_metric([value for _, value in labels], level)
        yield from levels.values()


def application(service: Service) -> web.Application:
    """The pages. /healthz: 200 while checks are well; /readyz: 200 once ready; both show health as JSON. /livez: 200
    while the process answers at all. A check that is not well is no reason to end it: what it waits for stays away."""
    registry = CollectorRegistry()
    registry.register(Counters(service))
    ProcessCollector(registry=registry)

    async def healthz(_: web.Request) -> web.Response:
        return _health(service, all(check.ok for check in service.health().checks))

    async def readyz(_: web.Request) -> web.Response:
        return _health(service, service.is_ready)

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    pages = web.Application()
    found = {"healthz": healthz, "livez": livez, "readyz": readyz, "metrics": metrics}
    pages.add_routes([web.get(f"/{name}", page) for name, page in found.items()])
    return pages


def _health(service: Service, well: bool) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(service.health()), status=200 if well else 503, content_type="application/json"
    )


@asynccontextmanager
async def serving(service: Service, door: socket) -> AsyncIterator[None]:
    """Serve the pages to who comes by `door`, which listens, while the block lasts."""
    runner = web.AppRunner(application(service), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, door).start()
        yield
    finally:
        await runner.cleanup()
