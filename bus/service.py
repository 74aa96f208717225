"""How every service starts, stops, and says how it is.

    def main() -> None:
        run_service("identity", lambda service: service.control(IdentityModel()))

SIGTERM and SIGINT cancel the body. A failing task ends the process with status 1 and one logged reason; its supervisor
starts it again. Settings come from the environment (`Settings`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bus.client import connect
from bus.control import Model, run_control
from bus.interface import Bus
from bus.late import LateBus
from bus.listening import listening, serve_when_asked
from bus.messages.dataplane import Check, Health, HealthQuestion, ReachedRevision
from bus.revision import Revision, includes
from bus.services import CONTROL, HEALTH
from bus.telemetry import Labels, configure_logs, logger
from bus.tls import ClientTls, Unusable, client_tls

log = logger(__name__)

REACHED_KEPT = 256  # how many revisions a service remembers the time of
CANNOT_START = "service cannot start"  # logged last by one that has to be helped first
REFUSED = 2  # exit status: the settings are wrong
FAILED = 1


class BadSettings(Exception):
    """A setting cannot be used; the text names it and says what would be right."""


class CannotStart(Exception):
    """The service cannot do its work on this machine; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What every service takes from the environment."""

    bus_url: str = "nats://127.0.0.1:4222"
    bus_user: str = ""
    bus_password: str = ""
    bus_password_file: str = ""  # where it stands, if not in the environment
    bus_tls_ca: str = ""  # PEM files, see bus/tls.py; "": no TLS
    bus_tls_cert: str = ""
    bus_tls_key: str = ""
    instance: str = CONTROL  # token of req.<owner>.health.<instance>; a node's name on a node
    http: str = ""  # "host:port" or "unix:/path" for health and metrics; "" is off
    log_level: str = "info"
    log_format: str = "json"

    @staticmethod
    def of(environment: Mapping[str, str]) -> Settings:
        """Raises: BadSettings."""
        names = (
            "bus_url",
            "bus_user",
            "bus_password",
            "bus_password_file",
            "bus_tls_ca",
            "bus_tls_cert",
            "bus_tls_key",
            "instance",
            "http",
            "log_level",
            "log_format",
        )
        given = {name: value for name in names if (value := environment.get(f"PLEXUS_{name.upper()}"))}
        if (file := given.get("bus_password_file")) and "bus_password" not in given:
            try:
                given["bus_password"] = Path(file).read_text().strip()
            except (OSError, UnicodeDecodeError) as problem:
                raise BadSettings(f"PLEXUS_BUS_PASSWORD_FILE {file} cannot be read: {problem}") from None
        settings = Settings(**given)
        if settings.http and not settings.http.startswith("unix:"):
            host, _, port = settings.http.rpartition(":")
            if not host or not port.isdigit() or int(port) > 65535:
                raise BadSettings(f'PLEXUS_HTTP is "host:port" or "unix:/path", not "{settings.http}"')
        if settings.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise BadSettings(f"PLEXUS_LOG_LEVEL is debug, info, warning or error, not {settings.log_level!r}")
        if settings.log_format not in ("json", "text"):
            raise BadSettings(f"PLEXUS_LOG_FORMAT is json or text, not {settings.log_format!r}")
        try:
            if (tls := settings.bus_tls) is not None:
                tls.context()
        except Unusable as problem:
            raise BadSettings(str(problem)) from None
        return settings

    @property
    def bus_tls(self) -> ClientTls | None:
        """Raises: tls.Unusable."""
        return client_tls(self.bus_url, self.bus_tls_ca, self.bus_tls_cert, self.bus_tls_key)


class Service:
    """What a service's body is given: its bus and settings, and where it says how it is."""

    def __init__(self, name: str, settings: Settings, bus: Bus) -> None:
        self.name = name
        self.settings = settings
        self.bus = bus
        self.started_at = time.time()
        self.is_ready = False
        self.is_active = True
        self.revision: dict[str, int] = {}
        self.revision_at = 0.0
        self.digests: Callable[[], dict[str, str]] = dict
        """Of what it holds, by family (bus/digest.py)."""
        self.compare: Callable[[], Awaitable[None]] | None = None
        """Called before a health that is to be a fresh one; it does not take long."""
        self._checks: dict[str, Check] = {}
        self._reached: deque[ReachedRevision] = deque(maxlen=REACHED_KEPT)
        self._gauges: dict[tuple[str, Labels], Callable[[], float]] = {}
        self._counts: dict[str, Callable[[], Mapping[Labels, int]]] = {}

    # -- the body says how it is

    def ready(self, ready: bool = True) -> None:
        """It can do its work (/readyz)."""
        if ready and not self.is_ready:
            log.info("ready", service=self.name, instance=self.settings.instance)
        self.is_ready = ready

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """One thing that is well or is not; health shows the latest of each name."""
        self._checks[name] = Check(name=name, ok=ok, detail=detail)

    def failing(self, *names: str) -> str:
        """What is not well of the checks of these names, in words; "" when all are."""
        found = (self._checks.get(name) for name in names)
        return "; ".join(f"{each.name}: {each.detail}" for each in found if each is not None and not each.ok)

    def realised(self, revision: Revision, at: float | None = None) -> None:
        """Everything up to `revision` is done since `at` (seconds since the epoch; default now)."""
        if revision and not includes(self.revision, revision):
            self.revision = dict(revision)
            self.revision_at = time.time() if at is None else at
            self._reached.append(ReachedRevision(revision=self.revision, at=self.revision_at))

    def gauge(self, name: str, read: Callable[[], float], /, **labels: str) -> None:
        """Show `read()` as the metric plexus_<name>, told apart by `labels`, which are the same for every use of it."""
        self._gauges[name, tuple(sorted(labels.items()))] = read

    def counts(self, name: str, read: Callable[[], Mapping[Labels, int]]) -> None:
        """Show what `read()` returns as the metric plexus_<name>_total, by its labels: what is counted elsewhere, as in
        the kernel."""
        self._counts[name] = read

    async def control(self, model: Model) -> None:
        """Run a pure model as this service, and report how it is."""
        await run_control(self.bus, model, report=self)

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        """control.Report: how `control` is doing."""
        self.ready(ready)
        self.is_active = active
        self.realised(revision)

    # -- the world asks

    def health(self) -> Health:
        stuck = self.bus.stuck()
        writes = [Check(name="writes", ok=False, detail=stuck)] if stuck else []
        return Health(
            service=self.name,
            instance=self.settings.instance,
            ready=self.is_ready,
            active=self.is_active,
            started_at=self.started_at,
            version=version(),
            checks=[*self._checks.values(), *writes],
            revision=self.revision,
            revision_at=self.revision_at,
            reached=list(self._reached),
            resident_bytes=resident_bytes(),
            digests=self.digests(),
        )

    def gauges(self) -> dict[tuple[str, Labels], float]:
        """Every gauge's value now: (name, labels) -> value."""
        own = {
            "ready": float(self.is_ready),
            "active": float(self.is_active),
            "resident_bytes": float(resident_bytes()),
            "revision_age_seconds": max(0.0, time.time() - self.revision_at) if self.revision_at else 0.0,
        }
        return {(name, ()): value for name, value in own.items()} | {key: read() for key, read in self._gauges.items()}

    def counted(self) -> dict[tuple[str, Labels], int]:
        """What `counts` was given, as it is now: (name, labels) -> value."""
        return {(name, labels): value for name, read in self._counts.items() for labels, value in read().items()}


def run_service(name: str, body: Callable[[Service], Awaitable[None]], *, wait: bool = True) -> None:
    """Run `body` as the service `name` until it is told to stop; then the process exits. `wait`: see `serve`."""
    try:
        settings = Settings.of(os.environ)
    except BadSettings as problem:
        sys.stderr.write(f"{name}: {problem}\n")
        sys.exit(REFUSED)
    configure_logs(settings.log_level, settings.log_format)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_run(name, settings, body, wait))
    sys.exit(status)


async def _run(name: str, settings: Settings, body: Callable[[Service], Awaitable[None]], wait: bool) -> int:
    task = asyncio.current_task()
    assert task is not None
    stopped: list[str] = []

    def stop(which: signal.Signals) -> None:
        stopped.append(which.name)
        task.cancel()

    loop = asyncio.get_running_loop()
    for which in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(which, stop, which)
    try:
        await serve(name, settings, body, wait=wait)
    except asyncio.CancelledError:
        if not stopped:
            raise
        log.info("stopped", service=name, signal=stopped[0])
        return 0
    except (Exception, BaseExceptionGroup) as problem:  # noqa: BLE001  # the last place that can say why it ends
        failed(name, _first(problem))
        return FAILED
    return 0


def failed(name: str, problem: BaseException) -> None:
    """Say why the process ends: in one line where the text says what to do, else with where it happened."""
    if isinstance(problem, (BadSettings, CannotStart)):
        log.error(CANNOT_START, service=name, why=str(problem))
    else:
        log.error("service failed; it has to be started again", service=name, why=repr(problem), cause=problem)


async def serve(name: str, settings: Settings, body: Callable[[Service], Awaitable[None]], *, wait: bool) -> None:
    """Connect, answer for health, run the body. `wait`: for the bus, before the body; else it may come later."""
    async with AsyncExitStack() as stack:
        start_tracing(name)
        bus: Bus
        late: LateBus | None = None
        if wait:
            bus = await stack.enter_async_context(_connection(name, settings))
        else:
            bus = late = LateBus()
        service = Service(name, settings, bus)
        door = stack.enter_context(listening(settings.http)) if settings.http else None
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        own = [tasks.create_task(_answer_health(service), name="answer health")]
        if door is not None:
            own.append(tasks.create_task(serve_when_asked(door, service), name="serve pages"))
        if late is not None:
            own.append(tasks.create_task(_arrive(late, name, settings), name="connect"))
        log.info("started", service=name, instance=settings.instance, version=version())
        try:
            await body(service)
        finally:
            for task in own:
                task.cancel()


def _connection(name: str, settings: Settings) -> AbstractAsyncContextManager[Bus]:
    return connect(
        settings.bus_url,
        name=f"{name} {settings.instance}",
        user=settings.bus_user,
        password=settings.bus_password,
        tls=settings.bus_tls,
    )


async def _arrive(late: LateBus, name: str, settings: Settings) -> None:
    """The connection, for as long as the service runs."""
    async with _connection(name, settings) as bus:
        late.arrived(bus)
        await asyncio.Event().wait()


async def _answer_health(service: Service) -> None:
    async def answer(question: HealthQuestion) -> Health:
        if question.compare and service.compare is not None:
            await service.compare()
        return service.health()

    await service.bus.answer(HEALTH[service.name], service.settings.instance, handler=answer)


def start_tracing(name: str) -> None:
    """OpenTelemetry, when somebody listens: OTEL_EXPORTER_OTLP_ENDPOINT is set and an exporter is installed.

    Without, nothing is imported: trace headers still pass through (telemetry.caused_by).
    """
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource.create({"service.name": f"plexus-{name}"}))
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[import-not-found,unused-ignore]
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("traces stay here: install opentelemetry-exporter-otlp-proto-http to send them")
    else:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def version() -> str:
    """Of the installed package; "0" in a bare source tree."""
    try:
        return metadata.version("plexus")
    except metadata.PackageNotFoundError:
        return "0"


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _first(problem: BaseException) -> BaseException:
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
