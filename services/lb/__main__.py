"""Wiring: load balancing on the bus."""

from __future__ import annotations

from bus.service import run_service
from services.lb.model import LoadBalancing


def main() -> None:
    run_service("lb", lambda service: service.control(LoadBalancing()))


if __name__ == "__main__":
    main()
