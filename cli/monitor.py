"""plexus monitor: drops and policy verdicts as they happen, with names."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bus.messages.hubble import Flow, FlowBatch
from bus.subjects import FLOWS
from bus.texts import visible
from cli.errors import Failed
from cli.lists import identity_name
from cli.output import clock, json_line, parse_duration
from cli.session import Name, Session, run
from cli.state import settled
from services.dataplane.shapes.protocols import name_of

if TYPE_CHECKING:
    from bus.interface import Bus


class Kind(StrEnum):
    DROP = "drop"
    VERDICT = "policy-verdict"


class Form(StrEnum):
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class Filter:
    """Which flows are shown. A side is a pod ("default/web"), an address, or "" for anyone."""

    type: str = ""
    source: str = ""
    destination: str = ""

    def takes(self, flow: Flow) -> bool:
        return (
            self.type in ("", flow.type)
            and self.source in ("", flow.source, flow.source_pod)
            and self.destination in ("", flow.destination, flow.destination_pod)
        )


def monitor(
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="Of this node only.")] = "",
    kind: Annotated[Kind | None, typer.Option("--type", help="Only these.")] = None,
    source: Annotated[str, typer.Option("--from", metavar="POD", help="From this [NAMESPACE/]POD or address.")] = "",
    destination: Annotated[str, typer.Option("--to", metavar="POD", help="To this [NAMESPACE/]POD or address.")] = "",
    most: Annotated[int, typer.Option("--max", "--last", metavar="N", min=0, help="End after N; 0: never.")] = 0,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="End after this time: 10s, 2m.")] = "",
    name: Name = "",
    output: Annotated[Form, typer.Option("-o", "--output", help="json: a line for each flow.")] = Form.TEXT,
) -> None:
    """Drops and policy verdicts as they happen, until Ctrl-C.

    With --max and --timeout: exit status 1 when the time ended first.
    """
    wanted = Filter(kind.value if kind else "", pod(source), pod(destination))
    seconds = parse_duration(timeout) if timeout else None
    shown = run(lambda session: follow(session, node, wanted, most, seconds, output), name)
    if most and shown < most:
        raise Failed(f"{shown} of {most} flows within {timeout}")


def pod(given: str) -> str:
    """ "web" is "default/web"; addresses and whole names stay."""
    plain_name = given and "/" not in given and not given.replace(".", "").isdigit() and ":" not in given
    return f"default/{given}" if plain_name else given


async def follow(session: Session, node: str, wanted: Filter, most: int, seconds: float | None, output: Form) -> int:
    """Print until `most` or `seconds` are reached; how many were printed."""
    shown = 0

    async def tell() -> None:
        await settled(session.bus)
        print(f"listening to {node or 'every node'}; Ctrl-C ends", file=sys.stderr, flush=True)

    telling = asyncio.create_task(tell(), name="tell that we listen")
    try:
        async with asyncio.timeout(seconds):
            async for item in flows(session.bus, node):
                if isinstance(item, FlowBatch):
                    print(f"{visible(item.node)}: {item.lost} events were lost", file=sys.stderr, flush=True)
                elif wanted.takes(item[1]):
                    print(as_json(*item) if output is Form.JSON else line(*item), flush=True)
                    shown += 1
                    if shown == most:
                        return shown
    except TimeoutError:
        pass
    finally:
        telling.cancel()
    return shown


async def flows(bus: Bus, node: str = "") -> AsyncIterator[tuple[str, Flow] | FlowBatch]:
    """(node, flow) of each flow; a batch itself when it tells of losses, before its flows."""
    async for _, batch in bus.watch_events(FLOWS.of(node) if node else FLOWS.all(), FlowBatch):
        if batch.lost:
            yield batch
        for flow in batch.flows:
            yield batch.node, flow


def side(pod_name: str, address: str, port: int, identity: int, labels: dict[str, str]) -> str:
    """ "default/web:80", or an address with what is known of it: "192.0.2.9:80 (world)"."""
    where = f"[{address}]" if ":" in address else address
    who = pod_name or where
    name = "" if pod_name else identity_name(identity, labels)
    return f"{who}:{port}" * bool(port) + who * (not port) + (f" ({name})" if name else "")


def line(node: str, flow: Flow) -> str:
    """One flow on one line: time, node, from, to, protocol, verdict, reason, policies."""
    at = clock(flow.at)
    source = side(flow.source_pod, flow.source, flow.source_port, flow.source_identity, flow.source_labels)
    destination = side(
        flow.destination_pod,
        flow.destination,
        flow.destination_port,
        flow.destination_identity,
        flow.destination_labels,
    )
    protocol = name_of(flow.protocol)
    verdict = f"{flow.verdict}, {flow.reason}" if flow.reason else flow.verdict
    way = f"{source} -> {destination} {protocol}" if flow.protocol else "no IPv4"
    parts = [f"{at} {node}: {way} {flow.direction}".rstrip(), verdict]
    if flow.policies:
        parts.append(", ".join(flow.policies))
    return visible("  ".join(parts))


def as_json(node: str, flow: Flow) -> str:
    """The flow with all its keys on one line of JSON."""
    values: dict[str, Any] = {field: getattr(flow, field) for field in flow.__struct_fields__}
    return json_line({"node": node, **values})
