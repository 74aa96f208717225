"""Wiring: identity on the bus, and telling whose address is refused."""

from __future__ import annotations

from bus.control import run_control
from bus.revision import Revision
from bus.service import Service, run_service
from bus.telemetry import count, logger
from services.identity.model import IdentityModel

log = logger(__name__)


class Reporter:
    """`bus.control.ControlReport`: passes on how the model does, with the addresses that it withholds."""

    def __init__(self, service: Service, model: IdentityModel) -> None:
        self._service = service
        self._model = model

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self._service.check(name, ok, detail)

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        self._service.report(ready=ready, active=active, revision=revision)
        refused = len(self._model.refused)
        self._service.check("addresses", not refused, f"{refused} refused; the log says which" if refused else "")


def refused(reason: str, facts: dict[str, str]) -> None:
    """Count and log one refusal as it arises."""
    count("addresses_refused", reason=reason)
    log.warning("address refused", reason=reason, **facts)


async def body(service: Service) -> None:
    model = IdentityModel(refused)
    await run_control(service.bus, model, report=Reporter(service, model))


def main() -> None:
    run_service("identity", body)


if __name__ == "__main__":
    main()
