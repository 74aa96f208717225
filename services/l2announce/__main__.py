"""Wiring: who announces what on the bus, and the leases of nodes."""

from __future__ import annotations

import sys

from bus.control import LEASE_SECONDS, Leading, run_control
from bus.service import REFUSED, BadSettings, Service, run_service
from services.l2announce.handlers import Leases
from services.l2announce.model import Announcing
from services.l2announce.settings import L2Settings


def main() -> None:
    try:
        settings = L2Settings.of()
    except BadSettings as problem:
        sys.stderr.write(f"l2announce: {problem}\n")
        sys.exit(REFUSED)
    run_service("l2announce", lambda service: body(service, settings))


async def body(service: Service, settings: L2Settings) -> None:
    model = Announcing(settings.l2_lease_duration)

    async def lease(leading: Leading) -> None:
        await Leases(model, leading, settings.l2_lease_duration).run(service.bus)

    # Nodes are granted nothing while another replica takes over, so that is to be done well before leases run out.
    lead_seconds = min(LEASE_SECONDS, max(1.0, settings.l2_lease_duration / 2))
    await run_control(service.bus, model, report=service, lease_seconds=lead_seconds, beside=lease)


if __name__ == "__main__":
    main()
