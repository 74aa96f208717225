"""plexus observe: flows of all nodes with names, verdicts and policies, by the flags and in the forms of the public
client. Each node's own observer is asked; what it keeps is what there is."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.errors import Failed

if TYPE_CHECKING:
    from grpclib.client import Channel

    from services.hubble.api import observer_pb2 as api

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
PORT = 4245  # of a relay, when a server's address has none

Answer = Callable[["api.GetFlowsResponse"], Awaitable[None]]


@app.command(
    "observe",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
def observe(context: typer.Context) -> None:
    """Flows of all nodes: who spoke to whom, what became of it, and by which policy."""
    from argparse import Namespace

    from cli import flow_flags, flow_words

    parser = flow_flags.parser()
    given = parser.parse_args(context.args, Namespace(both=flow_flags.Both()))
    try:
        request = flow_flags.request(given)
    except flow_flags.Wrong as problem:
        parser.error(str(problem))
    if given.time_format.lower() not in flow_words.TIMES:
        parser.error(f"--time-format is one of {', '.join(flow_words.TIMES)}, not {given.time_format!r}")
    if given.output == "table" and given.follow:
        parser.error("a table has an end, and --follow has none; take -o compact")
    if given.print_raw_filters:
        print_raw(request)
        return
    look = flow_words.Look(
        output=given.output,
        names=given.ip_translation == "true" and not given.numeric,
        node=given.print_node_name,
        policies=given.print_policy_names,
        time=given.time_format.lower(),
        color=given.output != "table" and (given.color == "always" or (given.color == "auto" and sys.stdout.isatty())),
    )
    printer = flow_words.Printer(look)

    async def show(answer: api.GetFlowsResponse) -> None:
        if line := printer.line(answer):
            print(line, flush=request.follow)
        if not given.silent_errors and (aside := printer.aside(answer)):
            print(aside, file=sys.stderr, flush=True)

    server = given.server or ("" if given.name else os.environ.get("HUBBLE_SERVER", ""))
    asyncio.run(of_server(server, request, show) if server else of_lab(given.name, request, show))
    if table := printer.end():
        print(table)


def print_raw(request: api.GetFlowsRequest) -> None:
    """As --allowlist and --denylist take them."""
    from google.protobuf.json_format import MessageToJson

    for title, filters in (("allowlist", request.whitelist), ("denylist", request.blacklist)):
        if filters:
            print(f"{title}:")
        for each in filters:
            print(f"    - '{MessageToJson(each, preserving_proto_field_name=True, indent=None)}'")


async def of_lab(name: str, request: api.GetFlowsRequest, show: Answer) -> None:
    """Every node's observer, put together here. Raises: Failed: none answers."""
    from lab import state
    from services.hubble.asked import BadRequest, masked, matching, span
    from services.hubble.gather import Gathering
    from services.hubble.nodes import Nodes
    from services.hubble.peers import Peer

    lab = state.find(name)
    try:
        span(request)
        matching(request)
        mask = masked(request)
    except BadRequest as problem:
        raise Failed(str(problem)) from None
    nodes = Nodes(lambda peer: channel(peer.address))
    sockets = {node: f"unix:{lab.directory.hubble_socket(node)}" for node in lab.nodes}
    nodes.become({node: Peer(node, address) for node, address in sockets.items()})
    try:
        await Gathering(nodes, request, mask, show).run()
    finally:
        nodes.close()


async def of_server(address: str, request: api.GetFlowsRequest, show: Answer) -> None:
    """One server, whatever it is. Raises: Failed."""
    from grpclib.client import UnaryStreamMethod
    from grpclib.exceptions import GRPCError, StreamTerminatedError

    from services.hubble.api import observer_pb2 as api

    opened = channel(address)
    try:
        call = UnaryStreamMethod(opened, "/observer.Observer/GetFlows", api.GetFlowsRequest, api.GetFlowsResponse)
        async with call.open() as stream:
            await stream.send_message(request, end=True)
            async for answer in stream:
                await show(answer)
    except GRPCError as problem:
        raise Failed(f"{address}: {problem.message or problem.status.name}") from None
    except (OSError, StreamTerminatedError) as problem:
        raise Failed(f"{address} does not answer: {problem}; is that where a relay or an observer listens?") from None
    finally:
        opened.close()


def channel(address: str) -> Channel:
    """To "unix:/path", "host:port" or "host"."""
    from grpclib.client import Channel

    if address.startswith(("unix:", "/")):
        return Channel(path=str(Path(address.removeprefix("unix://").removeprefix("unix:"))))
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    if not colon or not port.isdecimal():
        host, port = address.removeprefix("tcp://"), str(PORT)
    return Channel(host.strip("[]"), int(port))
