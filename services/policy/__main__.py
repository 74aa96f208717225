"""Wiring: policy on the bus, and telling which policies fail."""

from __future__ import annotations

from bus.control import run_control
from bus.revision import Revision
from bus.service import Service, run_service
from bus.subjects import POLICY
from bus.telemetry import count, logger
from services.policy.model import PolicyModel

log = logger(__name__)


class Reporter:
    """`bus.control.ControlReport`: passes on how the model does, with the policies that only deny."""

    def __init__(self, service: Service, model: PolicyModel) -> None:
        self._service = service
        self._model = model

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        self._service.check(name, ok, detail)

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        self._service.report(ready=ready, active=active, revision=revision)
        failed = ["/".join(POLICY.parse(subject)) for subject in sorted(self._model.failed)]
        self._service.check("policies", not failed, f"denying only: {', '.join(failed)}" if failed else "")


def failed(reason: str, policy: str) -> None:
    """Count and log one policy that does not compile, or whose rules cannot be said."""
    count("policies_failed", reason=reason)
    log.error("a policy fails and only denies; correct and apply it again", reason=reason, policy=policy)


async def body(service: Service) -> None:
    model = PolicyModel(failed)
    await run_control(service.bus, model, report=Reporter(service, model))


def main() -> None:
    run_service("policy", body)


if __name__ == "__main__":
    main()
