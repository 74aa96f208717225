"""Which lab, or which bus: found, connected to, and left again."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli.errors import Failed

if TYPE_CHECKING:
    from bus.interface import Bus
    from bus.tls import ClientTls
    from lab.state import Record

T = TypeVar("T")

CONNECT_SECONDS = 3.0  # the bus is on this machine, or near it

Name = Annotated[
    str, typer.Option("--name", metavar="N", help="The lab; default: $PLEXUS_LAB, else the only one that runs.")
]


@dataclass(frozen=True)
class Target:
    """Where to connect. `lab` is "" for a bus that was given by PLEXUS_BUS_URL."""

    lab: str
    url: str
    user: str = ""
    password: str = ""
    tls: ClientTls | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # the lab's, Helm keys


@dataclass(frozen=True)
class Session:
    """What a command holds while it runs."""

    bus: Bus
    target: Target


def target(name: str = "") -> Target:
    """The lab called `name`, else $PLEXUS_LAB, else the only one there is, else the bus at $PLEXUS_BUS_URL.

    Raises: lab.errors.LabError: there is no such lab, none at all, or several.
    """
    from lab import state

    user, password = os.environ.get("PLEXUS_BUS_USER", ""), os.environ.get("PLEXUS_BUS_PASSWORD", "")
    url = os.environ.get("PLEXUS_BUS_URL", "")
    if url and not name and not os.environ.get(state.ENVIRONMENT_NAME) and not state.labs():
        from bus.tls import Unusable, client_tls

        files = (os.environ.get(f"PLEXUS_BUS_TLS_{name}", "") for name in ("CA", "CERT", "KEY"))
        try:
            return Target("", url, user, password, client_tls(url, *files))
        except Unusable as error:
            raise Failed(str(error)) from None
    found = state.find(name)
    account = (user, password) if user else (found.bus_user, found.bus_password)
    return Target(found.name, found.bus_url, *account, found.bus_tls(account[0]), settings_of(found))


def settings_of(lab: Record) -> dict[str, Any]:
    """The Helm keys that a lab runs with: what was asked for, and the defaults of the rest."""
    from settings.rows import KEYS

    effective = {key: lab.settings.get(key) for key in KEYS}
    return {key: value for key, value in effective.items() if value is not None}


def run(main: Callable[[Session], Awaitable[T]], name: str = "") -> T:
    """Find the lab, connect, do `main`, leave. Ctrl-C cancels `main`."""
    return asyncio.run(with_session(main, target(name)))


async def with_session(main: Callable[[Session], Awaitable[T]], where: Target) -> T:
    """Do `main` with a connection. Raises: Failed: the bus is not there, or a question was not answered."""
    from bus.client import connect
    from bus.interface import BusError, TurnedAway, Unanswered
    from bus.telemetry import configure_logs
    from bus.tls import Unusable

    if os.environ.get("PLEXUS_DEBUG"):
        configure_logs("debug", "text")
    else:
        logging.basicConfig(handlers=[logging.NullHandler()])  # what matters reaches the user as a line of ours

    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                account = {"user": where.user, "password": where.password}
                opened = connect(where.url, name="plexus", **account, tls=where.tls, patient=False)
                bus = await stack.enter_async_context(opened)
        except (TurnedAway, Unusable) as error:
            raise Failed(f"the bus at {where.url} is not to be had like this: {error}") from error
        except (TimeoutError, OSError, BusError) as error:
            why = f" ({error})" if str(error) else ""
            remedy = f"plexus lab start --name {where.lab} --bus starts it" if where.lab else "look at PLEXUS_BUS_URL"
            raise Failed(f"the bus at {where.url} does not answer{why}; {remedy}") from error
        try:
            return await main(Session(bus, where))
        except Unanswered as error:
            service = error.subject.split(".")[1]
            raise Failed(f"the service {service} did not answer: {error.why}; plexus status shows more") from error
