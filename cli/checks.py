"""Who should reach whom, and whether they did. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cli.output import Column, Row

TIMED_OUT = "timed out"
LANDED = "Ship landed"


@dataclass(frozen=True)
class Check:
    """One HTTP request from a pod, and what is expected of it."""

    client: str  # "default/netpod"
    server: str  # for people: "webpod1, by its address"
    address: str
    expected: str  # for people
    understands: Callable[[str], str]  # what the probe printed -> what a person is told was seen
    method: str = "GET"
    path: str = "/"
    port: int = 80

    def row(self, answer: str) -> Row:
        """For the table at the end."""
        seen = self.understands(answer)
        return {
            "from": self.client.removeprefix("default/"),
            "to": self.server,
            "expected": self.expected,
            "seen": seen,
            "ok": seen == self.expected,
        }


COLUMNS = [
    Column("FROM", "from"),
    Column("TO", "to"),
    Column("EXPECTED", "expected"),
    Column("SEEN", "seen"),
    Column("", lambda row: "ok" if row["ok"] else "NOT AS EXPECTED"),
]


def web_checks(addresses: Mapping[str, str], service: str) -> list[Check]:
    """Scenario 1: netpod reaches both web pods by address, and one of them through the Service.

    Args:
        addresses: by pod name.  service: the ClusterIP of `svc`.
    """
    direct = [
        Check("default/netpod", f"{pod}, by its address", addresses[pod], f"{pod} answers", who_answers)
        for pod in ("webpod1", "webpod2")
    ]
    return [*direct, Check("default/netpod", f"Service svc, {service}", service, "a webpod answers", one_of_webpods)]


def landing_checks(service: str, *, xwing_may: bool) -> list[Check]:
    """Scenario 2: who may land on the Death Star, by the ClusterIP of its Service."""
    return [
        Check(
            f"default/{ship}",
            "Service deathstar, request to land",
            service,
            LANDED if may else TIMED_OUT,
            landing,
            "POST",
            "/v1/request-landing",
        )
        for ship, may in (("tiefighter", True), ("xwing", xwing_may))
    ]


def who_answers(answer: str) -> str:
    """whoami tells its host's name: "webpod1 answers"."""
    names = [line.split(":", 1)[1].strip() for line in answer.splitlines() if "Hostname:" in line]
    return f"{names[0]} answers" if names else first_line(answer)


def one_of_webpods(answer: str) -> str:
    """Through the Service either will do."""
    found = who_answers(answer)
    return "a webpod answers" if found in ("webpod1 answers", "webpod2 answers") else found


def landing(answer: str) -> str:
    """The Death Star says "Ship landed"."""
    return LANDED if answer.startswith("200 ") and LANDED in answer else first_line(answer)


def first_line(answer: str) -> str:
    """The beginning of what came back."""
    lines = answer.strip().splitlines()
    return lines[0][:60] if lines else "nothing"
