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
from typing import Annotated

import typer

from bus.interface import Bus
from bus.messages.dataplane import Flow, FlowBatch
from bus.messages.resources import Apply
from bus.subjects import APPLY, POD, SERVICE
from cli.apply import refusal_line
from cli.checks import COLUMNS, TIMED_OUT, Check, landing_checks, web_checks
from cli.errors import Failed
from cli.manifests import read
from cli.monitor import flows, line
from cli.output import Column, Row, table
from cli.session import Session, target, with_session
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
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        problems = show(name)
        if not once:
            invite(name)
            with suppress(KeyboardInterrupt):
                signal.pause()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave things behind
        print("cleaning up", flush=True)
        cleanup.clean(name)
    if problems:
        raise Failed(*problems)


def refuse_if_taken(name: str) -> None:
    """Raises Failed: a lab of that name is there, and it is not ours to take down."""
    if state.record(name) is not None:
        raise Failed(f"there is a lab {name} already; plexus lab down --name {name} removes it, or take another --name")


def show(name: str) -> list[str]:
    """Bring the lab up and tell the story; what was not as expected, a line each."""
    with Teller(steps=5) as teller:
        with teller.step(f"{NODES} nodes in network namespaces, NATS, the services, BPF on every node"):
            lab, _ = up(name, NODES, {}, teller.hint)
            teller.say(", ".join(f"{node} {lab.plan.node(n).ip}" for n, node in enumerate(lab.nodes, 1)))
        return asyncio.run(with_session(lambda session: story(session, lab, teller), target(name)))


def invite(name: str) -> None:
    """Things to try while the lab is up."""
    examples = EXAMPLES.relative_to(Path.cwd()) if EXAMPLES.is_relative_to(Path.cwd()) else EXAMPLES
    print(
        f"""
The lab stays up. In another terminal, for example:
  plexus status                                   how everything is
  plexus get pods                                 addresses, identities, nodes
  plexus monitor                                  drops and verdicts as they happen, while you
  plexus lab exec xwing -- curl -m 1 -X POST ADDRESS-OF-DEATHSTAR/v1/request-landing
  plexus delete -f {examples}/star-wars/policy.yaml && plexus wait -o json
  plexus bpf policy list                          the policy as the kernel has it
  plexus bus tail 'state.policy.>' --current      the policy as it travels
  plexus lab kill --node node2                    kill -9 its dataplane: packets go on
Commands find the lab by themselves while it is the only one, else by --name {name}. Ctrl-C here removes it.""",
        flush=True,
    )


async def story(session: Session, lab: Record, teller: Teller) -> list[str]:
    """Everything after the lab is up; what was not as expected, a line each."""
    bus = session.bus
    with teller.step("two web pods behind a Service, a client; a Death Star and two ships"):
        await apply(bus, PODS)
        await realised(bus, PODS_SECONDS)
        seen = await picture(bus, POD, SERVICE)
        pods = {name: pod for (_, name), pod in seen.of(POD).items()}
        services = {name: service.cluster_addresses[0] for (_, name), service in seen.of(SERVICE).items()}
        for name, pod in pods.items():
            labels = ",".join(f"{key}={value}" for key, value in pod.labels.items())
            teller.say(f"{name:<11}{pod.address:<14}{pod.node:<7}{labels}")
        for name, address in services.items():
            teller.say(f"{name:<11}{address:<14}ClusterIP")
    addresses = {name: pod.address for name, pod in pods.items()}
    before = [*web_checks(addresses, services["svc"]), *landing_checks(services["deathstar"], xwing_may=True)]
    after = landing_checks(services["deathstar"], xwing_may=False)
    with teller.step("no policy yet: everybody reaches everybody"):
        rows = await make_checks(lab, before)
    return await with_policy(session.bus, lab, teller, rows, after, addresses["xwing"])


async def with_policy(
    bus: Bus, lab: Record, teller: Teller, rows: list[Row], after: Sequence[Check], xwing: str
) -> list[str]:
    """The policy, the ships' requests again, and the drop that tells of it. `xwing` is its address."""
    drops: asyncio.Queue[tuple[str, Flow]] = asyncio.Queue()

    async def listen() -> None:
        async for item in flows(bus):
            if not isinstance(item, FlowBatch) and item[1].type == "drop" and item[1].source == xwing:
                drops.put_nowait(item)

    listening = asyncio.create_task(listen(), name="listen for drops")
    try:
        with teller.step("CiliumNetworkPolicy rule1: only the empire may land, on port 80"):
            await apply(bus, RULE)
            result = await realised(bus, POLICY_SECONDS)
            teller.say(in_words(result))
        with teller.step("the ships try again"):
            again = await make_checks(lab, after)
            try:
                node, flow = await asyncio.wait_for(drops.get(), DROP_SECONDS)
                told = flow.reason or "no reason"
                teller.say(line(node, flow))
            except TimeoutError:
                told = "no drop was told of"
    finally:
        listening.cancel()
    drop = {"from": "xwing", "to": "Service deathstar, why not", "expected": "Policy denied", "seen": told}
    every = [*({**row, "when": "no policy"} for row in rows), *({**row, "when": "rule1"} for row in again)]
    every.append({**drop, "ok": told == "Policy denied", "when": "rule1"})
    return summary(every, teller)


def summary(rows: Sequence[Row], teller: Teller) -> list[str]:
    """Who reached whom, expected and seen; a line for each row that was otherwise."""
    columns = [Column("WHEN", "when"), *COLUMNS]
    teller.say("")
    teller.say(table(rows, columns, terminal=False), indent="  ")
    return [
        f"{row['when']}: {row['from']} to {row['to']}: expected {row['expected']}, seen {row['seen']}"
        for row in rows
        if not row["ok"]
    ]


async def apply(bus: Bus, sources: Sequence[str]) -> None:
    """What `plexus apply -f` does. Raises Failed with a line for each refusal."""
    answer = await bus.ask(APPLY, message=Apply(documents=read(sources)), timeout=10.0)
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
