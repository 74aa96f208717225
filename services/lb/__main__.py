"""Wiring: load balancing on the bus, and telling what Services go without."""

from __future__ import annotations

from bus.control import run_control
from bus.revision import Revision
from bus.service import Service, run_service
from bus.telemetry import count, logger
from services.lb.model import LoadBalancing

log = logger(__name__)


class Reporter:
    """`bus.control.ControlReport`: passes on how the model does, with the Services that fail or lack something."""

    def __init__(self, service: Service, model: LoadBalancing) -> None:
        self._service = service
        self._model = model
        self._failed: set[tuple[str, str]] = set()

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self._service.check(name, ok, detail)

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        self._service.report(ready=ready, active=active, revision=revision)
        failed, without = self._model.failed, len(self._model.left_out)
        for name in sorted(failed.keys() - self._failed):
            count("services_failed")
            log.error("a Service keeps its old backends; correct it", service="/".join(name), why=failed[name])
        self._failed = set(failed)
        names = ", ".join(sorted(map("/".join, failed)))
        self._service.check("services", not failed, f"keeping old backends: {names}" if failed else "")
        self._service.check("backends", not without, f"{without} Services go without; the log says" if without else "")


def left_out(reason: str, facts: dict[str, str]) -> None:
    """Count and log one thing left out as it arises."""
    count("backends_left_out", reason=reason)
    log.warning("left out of a Service", reason=reason, **facts)


async def body(service: Service) -> None:
    model = LoadBalancing(left_out)
    await run_control(service.bus, model, report=Reporter(service, model))


def main() -> None:
    run_service("lb", body)


if __name__ == "__main__":
    main()
