"""Wiring: resources on the bus."""

from __future__ import annotations

import sys

from bus.service import REFUSED, BadSettings, Service, run_service
from services.resources.handlers import run
from services.resources.settings import Settings, from_environment


def main() -> None:
    try:
        settings = from_environment()
    except BadSettings as problem:
        sys.stderr.write(f"resources: {problem}\n")
        sys.exit(REFUSED)
    run_service("resources", lambda service: body(service, settings))


async def body(service: Service, settings: Settings) -> None:
    await run(service.bus, settings, service, service.check)


if __name__ == "__main__":
    main()
