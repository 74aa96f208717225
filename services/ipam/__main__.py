"""Wiring: blocks and addresses on the bus, and telling who goes without."""

from __future__ import annotations

import sys

from bus.control import run_control
from bus.revision import Revision
from bus.service import REFUSED, BadSettings, Service, run_service
from bus.telemetry import logger
from services.ipam.model import BlockAllocation
from services.ipam.service_addresses import Missing, ServiceAddresses
from services.ipam.settings import blocks
from services.ipam.together import Together

log = logger(__name__)


class Reporter:
    """`bus.control.ControlReport`: passes on how the models do, with the nodes that have no block to give and the
    Services that have not all addresses that they ask for."""

    def __init__(self, service: Service, model: BlockAllocation, addresses: ServiceAddresses) -> None:
        self._service = service
        self._model = model
        self._addresses = addresses
        self._short: list[str] = []
        self._waiting: dict[tuple[str, str], Missing] = {}

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self._service.check(name, ok, detail)

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        self._service.report(ready=ready, active=active, revision=revision)
        short = self._model.short
        self._service.check("pool", not short, f"no block is left for {', '.join(short)}" if short else "")
        if short and short != self._short:
            log.error(self._model.cure, nodes=short)
        self._short = short
        waiting = self._addresses.waiting
        for name, missing in sorted(waiting.items()) if active else ():
            if self._waiting.get(name) != missing:
                log.warning("a Service waits for an address", service="/".join(name), why=missing.detail)
        self._waiting = waiting


def main() -> None:
    try:
        model = blocks()
    except BadSettings as problem:
        sys.stderr.write(f"ipam: {problem}\n")
        sys.exit(REFUSED)
    run_service("ipam", lambda service: body(service, model))


async def body(service: Service, model: BlockAllocation) -> None:
    addresses = ServiceAddresses()
    await run_control(service.bus, Together(model, addresses), report=Reporter(service, model, addresses))


if __name__ == "__main__":
    main()
