"""plexus status, version, config: how every service and node is."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bus.messages.dataplane import Health
from bus.services import ROOTS, instances
from bus.subjects import ENDPOINT, NODE, POD, STATES
from cli.errors import Failed
from cli.output import Column, Format, Output, Row, as_set, duration, show, show_value, size
from cli.session import Name, Session, run, target
from cli.state import healths, picture


def version(output: Output = Format.TABLE) -> None:
    """The version of this command."""
    found = installed_version()
    if output is Format.TABLE:
        print(f"plexus {found}")
    else:
        show_value({"version": found}, output)


def installed_version() -> str:
    """The distribution's version; "unknown" when it runs from a folder that nobody installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return of("plexus")
    except PackageNotFoundError:
        return "unknown"


def config(name: Name = "", output: Output = Format.TABLE) -> None:
    """The settings that the lab was started with."""
    found = target(name)
    settings = found.settings
    if output is Format.TABLE:
        rows = [{"setting": key, "value": as_set(value)} for key, value in settings.items()]
        show(rows, [Column("SETTING", "setting"), Column("VALUE", "value")], output, empty="no settings")
    else:
        show_value(settings, output)


def status(name: Name = "", output: Output = Format.TABLE) -> None:
    """How every service and node is. Exit status 1 when something is not well; that line says what."""
    found = run(look, name)
    if output is Format.TABLE:
        counts = f"{found.nodes} nodes, {found.pods} pods, {found.endpoints} endpoints"
        print(f"{found.place}: {counts}, revision {found.revision}")
        print()
        show(found.rows, COLUMNS, output)
    else:
        show_value(
            {
                "healthy": not found.problems,
                "revision": found.revision,
                "nodes": found.nodes,
                "pods": found.pods,
                "endpoints": found.endpoints,
                "services": found.rows,
                "problems": found.problems,
            },
            output,
        )
    if found.problems:
        more = f", and {len(found.problems) - 3} more" if len(found.problems) > 3 else ""
        raise Failed("not healthy: " + "; ".join(found.problems[:3]) + more + found.remedy)


DATAPATH = "datapath"  # the check by which a node says that it works without BPF


@dataclass(frozen=True)
class Found:
    """What `status` shows."""

    place: str
    nodes: int
    pods: int
    endpoints: int
    revision: int
    rows: list[Row]
    problems: list[str]
    remedy: str = ""  # what to look at, completing a line


async def look(session: Session) -> Found:
    """Ask everyone at once."""
    seen = await picture(session.bus, *(family for family in STATES if family.owner in ROOTS))
    nodes = [node for (node,) in seen.of(NODE)]
    answers = await healths(session.bus, instances(nodes, session.target.settings))
    rows = [health_row(owner, instance, answer, seen.revision) for (owner, instance), answer in answers.items()]
    problems = [f"{row['service']} {row['instance']}: {row['problem']}" for row in rows if row["problem"]]
    if not nodes:
        problems.append("there are no nodes")
    elif unknown := sorted({node for node, _, _ in seen.of(ENDPOINT)} - set(nodes)):
        problems.append(f"nobody reports {', '.join(unknown)}, which have pods")
    place = f"lab {session.target.lab}" if session.target.lab else session.target.url
    revision = seen.revision.get("resources", 0)
    remedy = f"; plexus lab status --name {session.target.lab} shows the processes" if session.target.lab else ""
    return Found(place, len(nodes), len(seen.of(POD)), len(seen.of(ENDPOINT)), revision, rows, problems, remedy)


def health_row(owner: str, instance: str, answer: Health | str, logs: dict[str, int]) -> Row:
    """One service's row. `logs`: the last sequence of each root log; the lag counts what it has not included."""
    if isinstance(answer, str):
        return {"service": owner, "instance": instance, "state": "down", "problem": answer}
    bad = [f"{check.name}: {check.detail or 'not ok'}" for check in answer.checks if not check.ok]
    if not answer.ready and not bad:
        bad = ["not ready"]
    state = "not ready" if not answer.ready else "ready" if answer.active else "standby"
    if answer.ready and any(check.name == DATAPATH and not check.ok for check in answer.checks):
        state = "degraded"  # its pods go on, by other means than the ones asked for
    lag = {root: max(0, logs.get(root, 0) - sequence) for root, sequence in answer.revision.items() if root in logs}
    return {
        "service": owner,
        "instance": instance,
        "state": state,
        "version": answer.version,
        "lag": sum(lag.values()),
        "revision": answer.revision,
        "resident_bytes": answer.resident_bytes,
        "seconds_up": seconds_since(answer.started_at),
        "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in answer.checks],
        "digests": answer.digests,
        "problem": "; ".join(bad),
    }


def seconds_since(moment: float) -> float:
    """0.0 for one that is to come; at most all that have been since the epoch."""
    now = time.time()
    return round(now - moment, 3) if 0 <= moment <= now else 0.0


COLUMNS = [
    Column("SERVICE", "service"),
    Column("INSTANCE", "instance"),
    Column("STATE", "state"),
    Column("LAG", "lag"),
    Column("MEMORY", lambda row: size(row.get("resident_bytes", 0))),
    Column("UP", lambda row: duration(row["seconds_up"]) if "seconds_up" in row else None),
    Column("VERSION", "version"),
    Column("PROBLEM", "problem"),
]
