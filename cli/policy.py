"""plexus policy: policies of every kind together, what their selectors mean now, and what holds for one pod."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from bus import labels
from bus.addresses import all_of
from bus.messages.policy import PolicyRules, Selector, SelectorRule
from bus.messages.resources import LabelSelector, Notice, PortRange, Requirement
from bus.subjects import ENDPOINT, IDENTITY, RULES, SELECTOR
from bus.texts import visible
from cli.apply import Sources, refusal_line, warning_line
from cli.errors import Failed
from cli.get import read
from cli.lists import identity_name, listing
from cli.output import Column, Format, Output, Row, show, show_value
from cli.session import Name, Session, run
from cli.state import Picture, picture
from cli.wait import wait
from services.resources.kinds import every

Known = Mapping[str, Selector]
"""Selectors, by id."""

KINDS = ("NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")

app = typer.Typer(
    help="Policies of every kind: what they say, whom they mean, what holds.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command("wait")(wait)


@app.command("list")
def policies(name: Name = "", output: Output = Format.TABLE) -> None:
    """Every policy of every kind and namespace: whom it governs, and where it is in force."""
    found = run(all_policies, name)
    columns = [
        Column("KIND", "kind"),
        Column("NAMESPACE", lambda row: row["metadata"].get("namespace")),
        Column("NAME", lambda row: row["metadata"]["name"]),
        Column("RULES", lambda row: row["plexus"]["rules"]),
        Column("DENIES BY DEFAULT", lambda row: row["plexus"]["denies"]),
        Column("PODS", lambda row: len(row["plexus"]["pods"])),
        Column("REALISED ON", lambda row: f"{len(row['plexus']['realised'])} of {row['plexus']['nodes']} nodes"),
        Column("CLOSED", lambda row: len(row["plexus"].get("closed", ())) or ""),
    ]
    show(found, columns, output, empty="no policies")


async def all_policies(session: Session) -> list[dict[str, Any]]:
    return [each for kind in every() if kind.name in KINDS for each in await read(session, kind)]


@app.command("get")
def get(
    policy: Annotated[str, typer.Argument(metavar="[NAMESPACE/]NAME", help="A policy of any kind.")],
    name: Name = "",
    output: Output = Format.TABLE,
) -> None:
    """What the nodes were told of a policy: its rules, with whom each means now."""
    seen = run(pictured, name)
    namespace, _, own = policy.rpartition("/")
    wanted = [each for each in seen.of(RULES).values() if each.name.partition("/")[0] == own]
    found = [each for each in wanted if each.namespace == (namespace or "default")] or (
        [] if namespace else [each for each in wanted if not each.namespace]
    )
    if not found:
        raise Failed(f"there is no policy {namespace or 'default'}/{own}; plexus policy list shows them")
    known = selectors_in(seen)
    told = [rules_told(each, known) for each in found]
    if output is not Format.TABLE:
        show_value(told, output)
    else:
        print("\n".join(map(visible, (line for each in told for line in rule_lines(each)))))


@app.command("selectors")
def selectors(name: Name = "", output: Output = Format.TABLE) -> None:
    """Every selector that policies name: what it says, whom it means now, and which policies name it."""
    columns = [
        Column("ID", "id"),
        Column("SELECTS", "selects"),
        Column("MEMBERS", lambda row: [each["name"] or each["number"] for each in row["members"]]),
        Column("POLICIES", "policies"),
    ]
    listing((SELECTOR, RULES, IDENTITY), selector_rows, columns, name, output, "no selectors")


def selector_rows(seen: Picture) -> Sequence[Row]:
    identities = {each.number: each.labels for each in seen.of(IDENTITY).values()}
    users: dict[str, set[str]] = {}
    for rules in seen.of(RULES).values():
        for key in named_by(rules):
            users.setdefault(key, set()).add(called(rules))
    return [
        {
            "id": each.id,
            "selects": selects(each),
            "members": [
                {"number": number, "name": identity_name(number, identities.get(number, {}))} for number in each.members
            ],
            "partial": each.partial,
            "policies": sorted(users.get(each.id, ())),
        }
        for each in seen.of(SELECTOR).values()
    ]


@app.command("explain")
def explain(
    pod: Annotated[str, typer.Argument(metavar="[NAMESPACE/]POD", help="A pod.")],
    name: Name = "",
    output: Output = Format.TABLE,
) -> None:
    """What holds for a pod: for each direction whether it is closed, by whom, and what is let through or denied."""
    seen = run(pictured, name)
    namespace, _, own = pod.rpartition("/")
    wanted = (namespace or "default", own)
    endpoint = next((each for each in seen.of(ENDPOINT).values() if (each.namespace, each.pod) == wanted), None)
    if endpoint is None:
        raise Failed(f"there is no pod {'/'.join(wanted)} with an endpoint; plexus endpoint list shows them")
    identity = seen.of(IDENTITY).get((str(endpoint.identity),))
    known = selectors_in(seen)
    governing = [each for each in seen.of(RULES).values() if identity and is_for(each, known, identity.labels)]
    told = {
        "pod": "/".join(wanted),
        "addresses": all_of(endpoint),
        "identity": endpoint.identity,
        "state": endpoint.state,
        **{
            direction: direction_told(direction, governing, known, endpoint.identity)
            for direction in ("ingress", "egress")
        },
        "closed": [{"direction": each.direction, "why": each.why} for each in endpoint.closed],
    }
    if output is not Format.TABLE:
        show_value(told, output)
    else:
        print("\n".join(map(visible, explained(told))))


@app.command("validate")
def validate(filename: Sources, output: Output = Format.TABLE) -> None:
    """Read manifests as `plexus apply` would, without a cluster: what is wrong in them, and what would not be done."""
    from cli.manifests import read as read_files
    from services.resources.manifests.document import read_document
    from services.resources.manifests.meta import Resource

    read_all = [read_document(each) for each in read_files(filename)]
    refused = [line for each in read_all if not isinstance(each, Resource) for line in map(refusal_line, each)]
    if refused:
        raise Failed(*refused)
    resources = [each for each in read_all if isinstance(each, Resource)]
    warned = [
        warning_line(Notice(source=each.source, kind=each.key.kind, name=each.key.name, path=path, text=text))
        for each in resources
        for path, text in each.warnings
    ]
    if output is not Format.TABLE:
        show_value([{"kind": each.key.kind, "name": each.key.name, "ok": True} for each in resources], output)
        return
    for each in resources:
        place = f"{each.key.namespace}/" if each.key.namespace else ""
        print(visible(f"{each.key.kind.lower()}/{place}{each.key.name} would be taken"))
    for line in warned:
        print(visible(line))


async def pictured(session: Session) -> Picture:
    return await picture(session.bus, RULES, SELECTOR, IDENTITY, ENDPOINT)


def called(rules: PolicyRules) -> str:
    """ "CiliumNetworkPolicy/default/rule1", as nodes call it."""
    return f"{rules.kind}/{rules.namespace}/{rules.name}"


def named_by(rules: PolicyRules) -> Iterator[str]:
    yield rules.subject
    for rule in (*rules.rules, *rules.denies):
        yield from (*rule.selectors, *([rule.subject] if rule.subject else []))


def selectors_in(seen: Picture) -> Known:
    return {each.id: each for each in seen.of(SELECTOR).values()}


def is_for(rules: PolicyRules, known: Known, own: Mapping[str, str]) -> bool:
    subject = known.get(rules.subject)
    return subject is None or labels.selects(subject.selector, own)


def selects(selector: Selector) -> str:
    """In words: "app=web, team in (a, b)", "10.0.0.0/8 but 10.1.0.0/16"."""
    if selector.networks:
        return ", ".join(
            each.cidr + (f" but {' and '.join(each.except_cidrs)}" if each.except_cidrs else "")
            for each in selector.networks
        )
    having = (
        f", having {selector.having.protocol} {selector.having.port} as {selector.having.name}"
        if selector.having
        else ""
    )
    return (labels_in_words(selector.selector) or "every pod") + having


def labels_in_words(selector: LabelSelector) -> str:
    return ", ".join(requirement_in_words(each) for each in selector.requirements)


def requirement_in_words(requirement: Requirement) -> str:
    key = requirement.key.removeprefix("k8s:")
    match requirement.operator:
        case "In" if len(requirement.values) == 1:
            return f"{key}={requirement.values[0]}"
        case "In" | "NotIn":
            word = "in" if requirement.operator == "In" else "not in"
            return f"{key} {word} ({', '.join(requirement.values)})"
        case "Exists":
            return key
        case "DoesNotExist":
            return f"no {key}"


def rules_told(rules: PolicyRules, known: Known) -> dict[str, Any]:
    by_default = {"ingress": rules.deny_ingress_by_default, "egress": rules.deny_egress_by_default}
    subject = known.get(rules.subject)
    return {
        "policy": called(rules),
        "governs": selects(subject) if subject else "everyone: its subject is not known",
        "denies_by_default": [direction for direction, is_so in by_default.items() if is_so],
        "allows": [rule_told(rule, known) for rule in rules.rules],
        "denies": [rule_told(rule, known) for rule in rules.denies],
    }


def rule_told(rule: SelectorRule, known: Known) -> dict[str, Any]:
    peers = [selects(found) if (found := known.get(key)) else f"selector {key}" for key in rule.selectors]
    return {
        "direction": rule.direction,
        "peers": ["everyone"] if rule.any_peer else [*rule.entities, *peers] or ["nobody"],
        "ports": [port_in_words(each) for each in rule.ports] or ["every port"],
    }


def port_in_words(port: PortRange) -> str:
    if port.protocol in ("ICMP", "ICMPv6"):
        return f"{port.protocol} type {port.port - 1}" if port.port else port.protocol
    last = f"-{port.end_port}" if port.end_port else ""
    named = f" ({port.name})" if port.name else ""
    return f"{port.protocol} {port.port}{last}{named}" if port.port else f"{port.protocol} any"


def direction_told(direction: str, governing: Iterable[PolicyRules], known: Known, identity: int) -> dict[str, Any]:
    def own(rules: Iterable[SelectorRule]) -> Iterator[SelectorRule]:
        for rule in rules:
            subject = known.get(rule.subject)
            if rule.direction == direction and (not rule.subject or (subject and identity in subject.members)):
                yield rule

    mine = list(governing)
    by_default = [
        called(each)
        for each in mine
        if (each.deny_ingress_by_default if direction == "ingress" else each.deny_egress_by_default)
    ]
    return {
        "denies_by_default": by_default,
        "allows": [{"policy": called(each), **rule_told(rule, known)} for each in mine for rule in own(each.rules)],
        "denies": [{"policy": called(each), **rule_told(rule, known)} for each in mine for rule in own(each.denies)],
    }


def rule_lines(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"{told['policy']}, for {told['governs']}"
    for direction in told["denies_by_default"]:
        yield f"  {direction} is denied by default"
    for word in ("denies", "allows"):
        for rule in told[word]:
            yield f"  {word} {in_words(rule)}"


def in_words(rule: Mapping[str, Any]) -> str:
    way = "from" if rule["direction"] == "ingress" else "to"
    return f"{rule['direction']} {way} {'; '.join(rule['peers'])}: {', '.join(rule['ports'])}"


def explained(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"{told['pod']} ({', '.join(told['addresses'])}), identity {told['identity']}, {told['state']}"
    for direction in ("ingress", "egress"):
        found = told[direction]
        if found["denies_by_default"]:
            yield f"{direction} is denied by default, by {', '.join(found['denies_by_default'])}"
        else:
            yield f"{direction} is open" + (" but for what is denied" if found["denies"] else "")
        for each in told["closed"]:
            if each["direction"] == direction:
                yield f"  all of it is denied: {each['why']}"
        for word in ("denies", "allows"):
            for rule in found[word]:
                yield f"  {rule['policy']} {word} {in_words(rule)}"
