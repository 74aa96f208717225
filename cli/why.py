"""plexus why: what becomes of a connection, asked of the nodes at its ends, each by the maps that its programs ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from bus.addresses import all_of, parse, with_port
from bus.messages.dataplane import Way, Why, WhyAnswer
from bus.subjects import ADDRESS, ENDPOINT, FRONTEND, IDENTITY, NODE, WHY
from bus.texts import visible
from cli.bpf import Names, names_of
from cli.errors import Failed
from cli.output import Format, Output, show_value
from cli.session import Name, Session, run
from cli.state import Picture, picture

if TYPE_CHECKING:
    from bus.interface import Bus

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
ECHO = {4: (1, 9), 6: (58, 129)}  # protocol, and type + 1, by which maps know an echo request
SECONDS = 5.0


@dataclass(frozen=True)
class End:
    """Who is asked about. `node`: where a pod is; "": it is none."""

    name: str
    addresses: tuple[str, ...]
    node: str = ""
    port: int = 0  # of a Service, the first
    protocol: str = ""


def why(
    source: Annotated[str, typer.Argument(metavar="SRC", help="[NAMESPACE/]POD, or an address.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="[NAMESPACE/]POD, svc/[NAMESPACE/]NAME, NODE, or an address.")
    ],
    port: Annotated[
        str,
        typer.Argument(
            metavar="PORT/PROTO", help="80, 53/UDP; without it a Service's first port, or a ping.", show_default=False
        ),
    ] = "",
    name: Name = "",
    output: Output = Format.TABLE,
) -> None:
    """Why a connection is let through or not: Service, policies of both ends and the way, as nodes' maps have them."""
    number, protocol = port_of(port)
    answer = run(lambda session: asked(session, source, destination, number, protocol), name)
    if output is not Format.TABLE:
        show_value(answer, output)
    else:
        print("\n".join(map(visible, lines(answer))))


def port_of(text: str) -> tuple[int, str]:
    """Of "80" or "53/udp". Raises typer.BadParameter."""
    if not text:
        return 0, ""
    number, _, protocol = text.partition("/")
    protocol = protocol.upper() or "TCP"
    if protocol not in PROTOCOLS:
        raise typer.BadParameter(f"{protocol!r} is not a protocol; use {', '.join(PROTOCOLS)}")
    if not number.isdecimal() or not 0 < int(number) < 65536:
        raise typer.BadParameter(f"{number!r} is not a port; use 1 to 65535, as in 53/UDP")
    return int(number), protocol


async def asked(session: Session, source: str, destination: str, port: int, protocol: str) -> dict[str, Any]:
    """Everything that the command shows. Raises: Failed."""
    seen = await picture(session.bus, ENDPOINT, FRONTEND, NODE, ADDRESS, IDENTITY)
    origin, called = end_of(seen, source), end_of(seen, destination)
    pair = common(origin, called)
    if not port and called.port:
        port, protocol = called.port, called.protocol
    number = PROTOCOLS[protocol] if protocol else ECHO[6 if ":" in pair[1] else 4][0]
    question = Why(
        source=pair[0],
        destination=pair[1],
        protocol=number,
        port=port if protocol else ECHO[6 if ":" in pair[1] else 4][1],
    )
    names = names_of(seen)
    first = await ask(session.bus, origin.node or called.node or first_node(seen), question)
    ways = [await way_of(session.bus, seen, question, each, first.node, names) for each in first.ways]
    allowed = bool(ways) and all(each["allowed"] for each in ways)
    return {
        "source": {"name": origin.name, "address": pair[0], "node": origin.node},
        "destination": {"name": called.name, "address": pair[1], "node": called.node},
        "protocol": protocol or "ICMP echo",
        "port": port,
        "service": first.service,
        "ways": ways,
        "allowed": allowed,
        "reason": "" if ways else "Service backend not found",
    }


async def way_of(bus: Bus, seen: Picture, question: Why, way: Way, node: str, names: Names) -> dict[str, Any]:
    """One backend, with what the other node says of it, too."""
    judged = [(node, each) for each in way.judged]
    there = node_of(seen, way.destination)
    if there and there != node:
        other = await ask(bus, there, msgspec.structs.replace(question, destination=way.destination, port=way.port))
        judged += [(there, each) for each in (other.ways[0].judged if other.ways else [])]
    return {
        "destination": way.destination,
        "destination_name": names.of("destination", way.destination),
        "port": way.port,
        "source_identity": way.source_identity,
        "source_identity_name": names.of("identity", way.source_identity),
        "destination_identity": way.destination_identity,
        "destination_identity_name": names.of("identity", way.destination_identity),
        "route": way.route,
        "judged": [{"node": where, **msgspec.structs.asdict(each)} for where, each in judged],
        "allowed": all(each.allowed for _, each in judged),
    }


async def ask(bus: Bus, node: str, question: Why) -> WhyAnswer:
    answer = await bus.ask(WHY, node, message=question, timeout=SECONDS)
    if answer.problem:
        raise Failed(f"{node}: {answer.problem}")
    return answer


def end_of(seen: Picture, text: str) -> End:
    """Raises: Failed: there is nobody of this name."""
    if parse(text) is not None:
        return End(text, (text,), node_of(seen, text))
    kind, _, rest = text.partition("/")
    if kind in ("svc", "service") and rest:
        namespace, _, name = rest.rpartition("/")
        service = seen.of(FRONTEND).get((namespace or "default", name))
        if service is None or not service.frontends:
            raise Failed(f"there is no Service {namespace or 'default'}/{name} with an address; plexus service list")
        fronts = service.frontends
        addresses = tuple(dict.fromkeys(front.address for front in fronts))
        return End(f"{service.namespace}/{service.name}", addresses, "", fronts[0].port, fronts[0].protocol)
    namespace, _, name = text.rpartition("/")
    for endpoint in seen.of(ENDPOINT).values():
        if (endpoint.namespace, endpoint.pod) == (namespace or "default", name):
            return End(f"{endpoint.namespace}/{endpoint.pod}", tuple(all_of(endpoint)), endpoint.node)
    node = seen.of(NODE).get((text,))
    if node is not None:
        return End(text, tuple(node.addresses))
    raise Failed(f"there is no pod {namespace or 'default'}/{name}, no node {text}, and it is no address")


def node_of(seen: Picture, address: str) -> str:
    """Where the pod is that has the address; "": no pod has."""
    return next((each.node for each in seen.of(ENDPOINT).values() if address in all_of(each)), "")


def first_node(seen: Picture) -> str:
    """For what no pod has to do with. Raises: Failed."""
    node = next((name for (name,) in seen.of(NODE)), "")
    if not node:
        raise Failed("there is no node that could be asked")
    return node


def common(origin: End, called: End) -> tuple[str, str]:
    """An address of each, of one family. Raises: Failed."""
    for there in called.addresses:
        for here in origin.addresses:
            if (":" in here) == (":" in there):
                return here, there
    raise Failed(f"{origin.name} and {called.name} have no address of the same family")


def lines(answer: dict[str, Any]) -> Iterable[str]:
    """For a person."""
    what = f"{answer['protocol']} {answer['port']}" if answer["port"] else answer["protocol"]
    yield f"{who(answer['source'])} -> {who(answer['destination'])}, {what}"
    if answer["service"]:
        count = len(answer["ways"])
        yield f"  Service {answer['service']}: {count} backend{'s' * (count != 1)}"
    for way in answer["ways"]:
        if answer["service"]:
            named = f" ({way['destination_name']})" if way["destination_name"] else ""
            yield f"  backend {with_port(way['destination'], way['port'])}{named}"
        if not way["judged"]:
            yield "  no pod is at either end: no policy is asked"
        for each in way["judged"]:
            yield from judgement(each, way)
        yield f"  route: {way['route']}"
    verdict = "allowed" if answer["allowed"] else f"denied{answer['reason'] and ': ' + answer['reason']}"
    yield verdict


def who(end: dict[str, str]) -> str:
    where = f", {end['node']}" if end["node"] else ""
    return end["address"] + where if end["name"] == end["address"] else f"{end['name']} ({end['address']}{where})"


def judgement(each: dict[str, Any], way: dict[str, Any]) -> Iterable[str]:
    side = "destination" if each["direction"] == "egress" else "source"
    number, named = way[f"{side}_identity"], way[f"{side}_identity_name"]
    peer = f"{'to' if side == 'destination' else 'from'} identity {number}" + (f" ({named})" if named else "")
    head = f"  {each['direction']} of {each['pod']} on {each['node']}, {peer}: "
    if not each["enforced"]:
        yield head + "allowed, no policy is enforced there"
        return
    by = f" by {', '.join(each['policies'])}" if each["policies"] else ""
    if each["audited"]:
        yield f"{head}allowed, because the node only looks; else: {each['reason']}{by}"
    elif each["allowed"]:
        yield f"{head}allowed{by}{each['reason'] and ', ' + each['reason']}"
    else:
        yield f"{head}denied: {each['reason']}{by}"
    if each["nearest"]:
        yield f"    nearest: {each['nearest']}"
