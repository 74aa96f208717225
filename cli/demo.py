"""plexus demo: a cluster, a Service, a policy, a drop with its reason. Real BPF, real NATS; nothing is left behind.

What it shows is two scenarios: web pods behind a ClusterIP, and ships that may or may not land on the Death Star. The
manifests are those under examples/, so everything can be done again by hand.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from bus.interface import Bus
from bus.messages.hubble import Flow, FlowBatch
from bus.messages.resources import Apply
from bus.subjects import POD, SERVICE
from cli.apply import carried_out, refusal_line
from cli.checks import COLUMNS, TIMED_OUT, Check, landing_checks, web_checks
from cli.errors import Failed
from cli.manifests import read
from cli.monitor import flows, line
from cli.output import Column, Format, Row, show, text
from cli.session import target, with_session
from cli.state import picture
from cli.telling import Teller
from cli.wait import in_words, realised
from lab import cleanup, execute, state
from lab.state import Record
from lab.up import up

PROBE = Path(__file__).with_name("probe.py")
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PODS = [str(EXAMPLES / "pods-and-service"), str(EXAMPLES / "star-wars" / "pods.yaml")]
RULE = [str(EXAMPLES / "star-wars" / "policy.yaml")]
NODES = 3
PODS_SECONDS = 30.0  # until every pod is ready; usually two
POLICY_SECONDS = 10.0  # until every node enforces; usually 0.05
ANSWER_SECONDS = 5.0  # a request that should be answered
SILENCE_SECONDS = 1.0  # a request that should not: three SYNs are enough
DROP_SECONDS = 3.0  # from the last request until its drop must have been told


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Run through, clean up; exit 0 only if all was as expected.")
    ] = False,
    name: Annotated[str, typer.Option("--name", metavar="N", help="What to call its lab.")] = "demo",
) -> None:
    """Show it all: three nodes, a ClusterIP Service, a CiliumNetworkPolicy, and the drop that it causes, by name.

    Without --once the lab stays up for trying things until Ctrl-C. Nothing is left behind either way.
    """
    refuse_if_taken(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started us in the background had it ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        rows, services = tell(name)
        print()
        show(rows, [Column("WHEN", "when"), *COLUMNS], Format.TABLE)
        if not once:
            invite(name, services["deathstar"])
            with suppress(KeyboardInterrupt):
                signal.pause()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave things behind
        print("cleaning up", flush=True)
        cleanup.clean(name)
    if problems := [problem(row) for row in rows if not row["ok"]]:
        raise Failed(*problems)
    print("all was as expected")


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler: end as Ctrl-C does, also inside asyncio, which has a handler of its own for that."""
    signal.raise_signal(signal.SIGINT)


def refuse_if_taken(name: str) -> None:
    """Raises Failed: a lab of that name is there, and it is not ours to take down."""
    if state.record(name) is not None:
        raise Failed(f"there is a lab {name} already; plexus lab down --name {name} removes it, or take another --name")


def tell(name: str) -> tuple[list[Row], dict[str, str]]:
    """Bring the lab up and tell the story. What was checked, and the Services' addresses by name."""
    print("Plexus on this machine: real BPF, real NATS. Ctrl-C at any time leaves nothing behind.", flush=True)
    with Teller(steps=5) as teller:
        with teller.step(f"a cluster: {NODES} nodes in network namespaces, the bus, the services, BPF on every node"):
            lab, _ = up(name, NODES, {}, teller.hint)
            teller.say(", ".join(f"{node} {lab.node_addresses(node)[0]}" for node in lab.nodes))
        return asyncio.run(with_session(lambda session: story(session.bus, lab, teller), target(name)))


def problem(row: Row) -> str:
    """What was not as expected."""
    return f"{row['when']}: {row['from']} to {row['to']}: expected {row['expected']}, seen {row['seen']}"


def invite(name: str, deathstar: str) -> None:
    """Things to try while the lab is up. `deathstar`: its Service's address."""
    examples = EXAMPLES.relative_to(Path.cwd()) if EXAMPLES.is_relative_to(Path.cwd()) else EXAMPLES
    print(
        f"""
The lab stays up until Ctrl-C here. In another terminal, for example:
  plexus status                                 how everything is
  plexus get pods                               addresses, identities, nodes
  plexus observe -f --print-policy-names        flows as they come, with names and verdicts, while you
  plexus lab exec xwing -- curl -m 1 -X POST {deathstar}/v1/request-landing
  plexus delete -f {examples}/star-wars/policy.yaml && plexus wait
  plexus bpf policy list                        the policy as the kernel has it
  plexus bus tail 'state.policy.>' --current    the policy as it travels
  plexus lab kill --node node2                  kill -9 its dataplane: packets go on
Commands find the lab by themselves while it is the only one, else by --name {name}.""",
        flush=True,
    )


async def story(bus: Bus, lab: Record, teller: Teller) -> tuple[list[Row], dict[str, str]]:
    """Everything after the lab is up: both scenarios, before and after the policy."""
    with teller.step("two web pods behind a Service, a client; a Death Star and two ships"):
        await apply(bus, PODS)
        await realised(bus, PODS_SECONDS)
        seen = await picture(bus, POD, SERVICE)
        pods = {name: pod for (_, name), pod in seen.of(POD).items()}
        services = {name: service.cluster_addresses[0] for (_, name), service in seen.of(SERVICE).items()}
        for name, pod in pods.items():
            teller.say(f"{name:<12}{pod.address:<16}{pod.node:<7}{text(pod.labels)}")
        for name, address in services.items():
            teller.say(f"{name:<12}{address:<16}ClusterIP")
    addresses = {name: pod.address for name, pod in pods.items()}
    before = [*web_checks(addresses, services["svc"]), *landing_checks(services["deathstar"], xwing_may=True)]
    after = landing_checks(services["deathstar"], xwing_may=False)
    with teller.step("no policy yet: everybody reaches everybody"):
        rows = await make_checks(lab, before)
    drops: asyncio.Queue[tuple[str, Flow]] = asyncio.Queue()
    listening = asyncio.create_task(hear_drops(bus, addresses["xwing"], drops), name="listen for drops")
    try:
        with teller.step("CiliumNetworkPolicy rule1: only the empire may land, on port 80"):
            await apply(bus, RULE)
            teller.say(in_words(await realised(bus, POLICY_SECONDS)))
        with teller.step("the ships try again"):
            again = await make_checks(lab, after)
            again.append(await reason_row(drops, teller))
    finally:
        listening.cancel()
    return [*({**row, "when": "no policy"} for row in rows), *({**row, "when": "rule1"} for row in again)], services


async def hear_drops(bus: Bus, source: str, drops: asyncio.Queue[tuple[str, Flow]]) -> None:
    """Put every drop of this address into the queue, with the node that told it; until cancelled."""
    async for item in flows(bus):
        if not isinstance(item, FlowBatch) and item[1].type == "drop" and item[1].source == source:
            drops.put_nowait(item)


async def reason_row(drops: asyncio.Queue[tuple[str, Flow]], teller: Teller) -> Row:
    """The reason that was told for the drop, as a row of the table."""
    try:
        node, flow = await asyncio.wait_for(drops.get(), DROP_SECONDS)
    except TimeoutError:
        told = "no drop was told of"
    else:
        told = flow.reason
        teller.say(line(node, flow))
    wanted = "Policy denied"
    return {"from": "xwing", "to": "the reason of its drop", "expected": wanted, "seen": told, "ok": told == wanted}


async def apply(bus: Bus, sources: Sequence[str]) -> None:
    """What `plexus apply -f` does. Raises Failed with a line for each refusal."""
    answer = await carried_out(bus, Apply(documents=read(sources)))
    if answer.refusals:
        raise Failed(*map(refusal_line, answer.refusals))


async def make_checks(lab: Record, checks: Sequence[Check]) -> list[Row]:
    """All of them at once: each its row of the table."""
    answers = await asyncio.gather(*(probe(lab, check) for check in checks))
    return [check.row(answer) for check, answer in zip(checks, answers, strict=True)]


async def probe(lab: Record, check: Check) -> str:
    """Run the request inside the pod's namespace and cgroup; what it printed."""
    seconds = SILENCE_SECONDS if check.expected == TIMED_OUT else ANSWER_SECONDS
    request = [check.method, check.address, str(check.port), check.path, str(seconds)]
    program = [sys.executable, "-IS", str(PROBE), *request]
    process = await asyncio.create_subprocess_exec(
        *execute.command(execute.pod(lab, check.client), program),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return said.decode(errors="replace")
