"""What makes no sense, or cannot be settled now, is passed over: logged once, and shown by the check "changes" until it
is said anew or taken back. What was good before it stays in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bus.messages import Message
from bus.service import Service
from bus.telemetry import count, logger

log = logger(__name__)

SHOWN = 5  # subjects that the check names

Hear = Callable[[str, Message | None], None]
"""Makes a subject's value the node's own; None is its end. Raises: whatever a message that makes no sense causes."""


class Changes:
    """Those of which one node hears."""

    def __init__(self, service: Service, hear: Hear) -> None:
        self._service = service
        self._hear = hear
        self._refused: dict[str, str] = {}  # by subject: why what it says was passed over
        self._unsettled: dict[str, str] = {}  # what could not be brought up to date, as it was logged

    def take(self, subject: str, message: Message | None) -> bool:
        """Whether it made sense."""
        try:
            self._hear(subject, message)
        except Exception as problem:  # noqa: BLE001  # one senseless message must not stop the node
            self._refused[subject] = repr(problem)
            count("changes_refused", owner=subject.split(".")[1])
            log.error(
                "a change makes no sense and is passed over: correct what it says at its source",
                subject=subject,
                why=repr(problem),
            )
            return False
        self._refused.pop(subject, None)
        return True

    def tell(self, unsettled: Mapping[str, str]) -> None:
        """The check. `unsettled`: what the model could not bring up to date, and why."""
        for what in unsettled.keys() - self._unsettled.keys():
            log.error("not up to date: correct what is said of it at its source", what=what, why=unsettled[what])
        self._unsettled = dict(unsettled)
        problems = self._refused | self._unsettled
        shown = ", ".join(sorted(problems)[:SHOWN])
        self._service.check("changes", not problems, f"{len(problems)} passed over: {shown}" if problems else "")
