"""plexus endpoint, identity, service, ipam, l2: the services' own view, a row for each thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from bus import labels
from bus.addresses import all_of, order, parse, parse_network, with_port
from bus.subjects import ANNOUNCEMENT, BLOCK, ENDPOINT, FRONTEND, IDENTITY, State
from cli.output import Column, Format, Output, Row, show
from cli.session import Name, Session, run
from cli.state import Picture, picture

endpoint = typer.Typer(help="Pods' places in the network.", no_args_is_help=True, rich_markup_mode=None)
identity = typer.Typer(help="Label sets and their numbers.", no_args_is_help=True, rich_markup_mode=None)
service = typer.Typer(help="Service addresses and their backends.", no_args_is_help=True, rich_markup_mode=None)
l2 = typer.Typer(help="Addresses of Services on the nodes' networks.", no_args_is_help=True, rich_markup_mode=None)
ipam = typer.Typer(help="Blocks of pod addresses.", no_args_is_help=True, rich_markup_mode=None)

RESERVED = {number: name for name, number in labels.RESERVED.items()}
AGGREGATES = {11: "cluster", 13: "world", 14: "remote-node"}  # in the policy map only
_POD_LABELS = "k8s:io.kubernetes.pod.", "k8s:io.cilium.k8s."


@endpoint.callback()
@identity.callback()
@service.callback()
@ipam.callback()
@l2.callback()
def group() -> None:
    """Keeps `list` a word of its own while it is the only one."""


@endpoint.command("list")
def endpoints(name: Name = "", output: Output = Format.TABLE) -> None:
    """Every pod's endpoint: node, address, identity, state."""
    columns = [
        Column("NODE", "node"),
        Column("POD", "pod"),
        Column("ADDRESS", "addresses"),
        Column("IDENTITY", "identity"),
        Column("STATE", state_shown),
        Column("INTERFACE", "interface"),
        Column("LABELS", lambda row: short_labels(row["labels"])),
    ]
    listing((ENDPOINT, IDENTITY), endpoint_rows, columns, name, output, "no endpoints")


def state_shown(row: Row) -> str:
    """With the directions that are denied as a whole."""
    closed = [each["direction"] for each in row["closed"]]
    return f"{row['state']}, {' and '.join(closed)} denied" if closed else str(row["state"])


def endpoint_rows(seen: Picture) -> Sequence[Row]:
    identities = seen.of(IDENTITY)
    return [
        {
            "node": each.node,
            "pod": f"{each.namespace}/{each.pod}",
            "address": each.address,
            "addresses": all_of(each),
            "identity": each.identity,
            "state": each.state,
            "closed": [{"direction": one.direction, "why": one.why, "policies": one.policies} for one in each.closed],
            "interface": each.interface,
            "interface_index": each.interface_index,
            "mac": each.mac,
            "uid": each.uid,
            "labels": found.labels if (found := identities.get((str(each.identity),))) else {},
        }
        for each in seen.of(ENDPOINT).values()
    ]


@identity.command("list")
def identities(name: Name = "", output: Output = Format.TABLE) -> None:
    """Every identity: number, labels, and how many endpoints bear it. The reserved ones come first."""
    columns = [
        Column("NUMBER", "number"),
        Column("ENDPOINTS", "endpoints"),
        Column("NAMESPACE", lambda row: row["labels"].get("k8s:io.kubernetes.pod.namespace")),
        Column("LABELS", lambda row: short_labels(row["labels"])),
    ]
    listing((IDENTITY, ENDPOINT), identity_rows, columns, name, output, "no identities")


def identity_rows(seen: Picture) -> Sequence[Row]:
    bearers = [each.identity for each in seen.of(ENDPOINT).values()]
    reserved = [{"number": number, "labels": {f"reserved:{word}": ""}} for number, word in RESERVED.items()]
    others = [{"number": each.number, "labels": each.labels} for each in seen.of(IDENTITY).values()]
    rows: list[dict[str, Any]] = [*reserved, *sorted(others, key=lambda row: str(row["number"]).zfill(10))]
    return [{**row, "endpoints": bearers.count(row["number"])} for row in rows]


@service.command("list")
def services(name: Name = "", output: Output = Format.TABLE) -> None:
    """Every frontend, and the backends behind it."""
    columns = [
        Column("SERVICE", "service"),
        Column("FRONTEND", lambda row: with_port(row["address"], row["port"])),
        Column("PROTOCOL", "protocol"),
        Column("BACKENDS", lambda row: [with_port(each["address"], each["port"]) for each in row["backends"]]),
    ]
    listing((FRONTEND,), service_rows, columns, name, output, "no services")


def service_rows(seen: Picture) -> Sequence[Row]:
    return [
        {
            "service": f"{each.namespace}/{each.name}",
            "address": front.address,
            "port": front.port,
            "protocol": front.protocol,
            "port_name": front.port_name,
            "backends": [{"address": b.address, "port": b.port, "node": b.node} for b in front.backends],
        }
        for each in seen.of(FRONTEND).values()
        for front in each.frontends
    ]


@ipam.command("list")
def blocks(name: Name = "", output: Output = Format.TABLE) -> None:
    """Every block of pod addresses: its node, and how many addresses are in use."""
    columns = [
        Column("BLOCK", "cidr"),
        Column("NODE", "node"),
        Column("USED", "used"),
        Column("SIZE", "size"),
    ]
    listing((BLOCK, ENDPOINT), block_rows, columns, name, output, "no blocks")


def block_rows(seen: Picture) -> Sequence[Row]:
    addresses = {address for each in seen.of(ENDPOINT).values() for text in all_of(each) if (address := parse(text))}
    rows = []
    for block in sorted(seen.of(BLOCK).values(), key=lambda each: (each.node, order(each.cidr.partition("/")[0]))):
        network = parse_network(block.cidr)
        if network is None:
            continue
        used = sorted((address for address in addresses if address in network), key=int)
        rows.append(
            {
                "cidr": block.cidr,
                "node": block.node,
                "used": len(used),
                "size": network.num_addresses,
                "addresses": [str(address) for address in used],
            }
        )
    return rows


@l2.command("list")
def announcements(name: Name = "", output: Output = Format.TABLE) -> None:
    """Every address that a node announces (ARP, NDP): the node, the Services, and by which policies."""
    columns = [
        Column("ADDRESS", "address"),
        Column("NODE", "node"),
        Column("SERVICES", "services"),
        Column("POLICIES", "policies"),
    ]
    listing((ANNOUNCEMENT,), announcement_rows, columns, name, output, "no announcements")


def announcement_rows(seen: Picture) -> Sequence[Row]:
    found = sorted(seen.of(ANNOUNCEMENT).values(), key=lambda each: order(each.address))
    return [
        {"address": each.address, "node": each.node, "services": each.services, "policies": each.policies}
        for each in found
    ]


def listing(
    families: tuple[State[Any], ...],
    rows: Callable[[Picture], Sequence[Row]],
    columns: list[Column],
    name: str,
    output: Format,
    empty: str,
) -> None:
    """Read, make rows, show."""

    async def main(session: Session) -> Picture:
        return await picture(session.bus, *families)

    show(rows(run(main, name)), columns, output, empty=empty)


def short_labels(labels: dict[str, str]) -> dict[str, str]:
    """The pod's own labels, without the "k8s:" that all of them have."""
    return {key.removeprefix("k8s:"): value for key, value in labels.items() if not key.startswith(_POD_LABELS)}


def identity_name(number: int, labels: dict[str, str]) -> str:
    """What a person calls an identity: "world", or its pod labels, or its network."""
    if number in RESERVED or number in AGGREGATES:
        return RESERVED.get(number) or AGGREGATES[number]
    return ",".join(f"{key}={value}" if value else key for key, value in short_labels(labels).items())
