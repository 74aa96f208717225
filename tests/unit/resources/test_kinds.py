"""A kind of manifest is its message, its subject, and one file with a row: all else follows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bus.subjects import POD
from services.resources import order
from services.resources.kind import Kind
from services.resources.kinds import named
from services.resources.registry import BY_NAME, KINDS, MAKERS

ROOT = Path(__file__).resolve().parents[3]

MESSAGE = '''

class Redirect(Message, frozen=True, kw_only=True):
    """Subject: state.resources.redirect.<namespace>.<name>"""

    namespace: str
    name: str
    address: str
    manifest: dict[str, Any] = {}
    warnings: list[str] = []
'''
SUBJECT = """
REDIRECT = State("state.resources.redirect", ("namespace", "name"), resources.Redirect)
"""
KIND = '''
"""cilium.io/v2 CiliumLocalRedirectPolicy."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import Redirect
from bus.subjects import NODE, REDIRECT
from services.resources.kind import Form, Kind, Known
from services.resources.manifests import words
from services.resources.manifests.meta import Key, Manifest, Resource
from services.resources.manifests.strict import Problems, Schema


class Spec(Schema, frozen=True, kw_only=True):
    address: str


class Redirects(Manifest, frozen=True, kw_only=True):
    spec: Spec


def read(found: Redirects, raw: dict[str, Any], key: Key, source: str, problems: Problems) -> Resource:
    problems.add_if("spec.address", words.address(found.spec.address))
    message = Redirect(namespace=key.namespace, name=key.name, address=found.spec.address, manifest=raw)
    return Resource(key, source, ((REDIRECT.of(key.namespace, key.name), message),))


def manifest() -> Form:
    return Form(Redirects, read, words.dns_subdomain)


def status(redirect: Redirect, known: Known) -> dict[str, Any]:
    return {"plexus": {"nodes": len(known.of(NODE))}, "status": {"ok": True}}


KIND = Kind(
    name="CiliumLocalRedirectPolicy",
    api_version="cilium.io/v2",
    plural="ciliumlocalredirectpolicies",
    short=("clrp",),
    state=REDIRECT,
    manifest=manifest,
    before=("Pod",),
    fixed={"address": "spec.address"},
    columns={"ADDRESS": "spec.address", "NODES": "plexus.nodes"},
    status=status,
    draws_on=(NODE,),
)
'''
NEW = "{apiVersion: cilium.io/v2, kind: CiliumLocalRedirectPolicy, metadata: {name: r}, spec: {address: 169.254.1.1}}"
ASK = """
import asyncio, json, sys
import yaml
from bus.messages.resources import Apply, Document
from bus.testing import Hub
from cli.get import columns, kind_named, read
from cli.output import table
from cli.session import Session, Target
from services.resources.handlers import Handlers
from services.resources.settings import Settings

async def main():
    hub, told = Hub(), []
    handlers = Handlers(await hub.bus("resources").own("resources"), Settings(), lambda: "uid")
    for delete, *texts in json.load(sys.stdin):
        before = hub.log("resources").last
        documents = [Document(source="test", manifest=yaml.safe_load(text)) for text in texts]
        applied = await handlers.apply(Apply(documents=documents, delete=delete))
        log = sorted(hub.log("resources").entries.values(), key=lambda entry: entry.sequence)
        kind = kind_named("clrp")
        objects = await read(Session(hub.bus("cli"), Target("t", "memory:")), kind)
        told.append({
            "changes": {each.name: each.change for each in applied.outcomes},
            "refusals": {each.path: each.problem for each in applied.refusals},
            "written": [entry.subject.partition(".resources.")[2] for entry in log if entry.sequence > before],
            "objects": objects,
            "table": table(objects, columns(kind, True), terminal=False).split(),
        })
    print(json.dumps(told))

asyncio.run(main())
"""
OUR_POD = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {containers: [{name: c, image: i}]}}"
OUR_NODE = """{apiVersion: v1, kind: Node, metadata: {name: node1},
 status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}"""
NAMESPACE = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This one, with a message, its subject and the file of a kind more, and nothing else."""
    place = tmp_path_factory.mktemp("checkout")
    for package in ("bus", "services/resources"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    for other in ("cli", "lab", "settings", "services/__init__.py", "services/dataplane"):
        (place / other).symlink_to(ROOT / other)
    with (place / "bus/messages/resources.py").open("a") as messages:
        messages.write(MESSAGE)
    subjects = place / "bus/subjects.py"
    head, mark, tail = subjects.read_text().partition("\nSTATES:")
    subjects.write_text(head + SUBJECT + mark + tail)
    (place / "services/resources/kinds/cilium_local_redirect_policy.py").write_text(KIND)
    return place


def told(checkout: Path, *calls: tuple[bool, *tuple[str, ...]]) -> list[dict[str, Any]]:
    """What each call changes, and what `plexus get` shows after it. A call: whether it deletes, and manifests."""
    child = subprocess.run(
        [sys.executable, "-c", ASK],
        check=False,
        cwd=checkout,
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    found: list[dict[str, Any]] = json.loads(child.stdout)
    return found


def test_a_file_with_a_row_makes_a_kind_that_is_applied_shown_and_deleted(checkout: Path) -> None:
    here, there = NEW.replace("name: r", "name: r, namespace: a"), NEW.replace("169.254.1.1", "169.254.1.2")
    bad, misspelt = NEW.replace("169.254.1.1", "nowhere"), NEW.replace("address:", "adress:")
    made, again, changed, wrong, unknown, gone = told(
        checkout,
        (False, OUR_POD, here, NEW, OUR_NODE, NAMESPACE),
        (False, NEW),
        (False, there),
        (False, bad),
        (False, misspelt),
        (True, NAMESPACE),
    )
    assert made["changes"] == {"p": "created", "r": "created", "node1": "created", "a": "created"}
    assert made["written"][-3:] == ["redirect.a.r", "redirect.default.r", "pod.a.p"], "before the pods"
    assert made["written"].index("namespace.a") < made["written"].index("redirect.a.r")
    (_, shown) = made["objects"]
    assert shown["kind"] == "CiliumLocalRedirectPolicy" and shown["metadata"] == {"name": "r", "namespace": "default"}
    assert shown["spec"] == {"address": "169.254.1.1"} and shown["status"] == {"ok": True}
    assert made["table"] == [
        *("NAMESPACE", "NAME", "ADDRESS", "NODES"),
        *("a", "r", "169.254.1.1", "1"),
        *("default", "r", "169.254.1.1", "1"),
    ]
    assert again["changes"] == {"r": "unchanged"} and again["written"] == []
    assert list(changed["refusals"]) == ["spec.address"], "it is fixed"
    assert list(wrong["refusals"]) == ["spec.address"]
    assert "spec.adress" in unknown["refusals"]
    assert gone["changes"] == {"a": "deleted"}
    assert gone["written"] == ["pod.a.p", "redirect.a.r", "namespace.a"], "a namespace goes with all that is in it"


def row(name: str, **said: Any) -> Kind:
    """A row of which no manifest is read."""
    manifest: Any = None
    return Kind(name=name, api_version="v1", plural=f"{name.lower()}s", state=POD, manifest=manifest, **said)


def test_rows_that_cannot_be_put_in_order_are_refused() -> None:
    space = row("Namespace", is_namespaced=False)
    with pytest.raises(order.NoOrder, match="A names B, and there is no such kind"):
        order.said([space, row("A", after=("B",))])
    with pytest.raises(order.NoOrder, match="stand on each other"):
        order.said([space, row("A", after=("B",)), row("B", after=("A",))])


def test_what_governs_pods_is_said_before_whatever_makes_them_and_taken_away_after() -> None:
    said, taken = order.said(KINDS), order.taken(KINDS)
    assert said[0] == "Namespace" or said.index("Namespace") < min(map(said.index, ("Pod", "Service", "NetworkPolicy")))
    for policy in ("NetworkPolicy", "CiliumNetworkPolicy"):
        for other in ("Pod", *(each.name for each in MAKERS.values())):
            assert said.index(policy) < said.index(other)
            assert taken.index("policy") > taken.index(BY_NAME[other].state.noun)
    for maker in MAKERS.values():
        assert said.index(maker.name) < said.index("Pod")
        assert taken.index(maker.state.noun) < taken.index("pod"), "or it would make them again"
    assert taken.index("service") < taken.index("clusteraddress") < taken.index("namespace") == len(taken) - 1


def test_every_name_is_one_kinds_and_finds_it() -> None:
    names = [name for kind in KINDS for name in kind.names]
    assert len(names) == len(set(names))
    for kind in KINDS:
        for name in (*kind.names, kind.name, kind.plural.upper()):
            assert named(name) is kind
    assert named("no-such") is None


def test_what_pods_are_owned_by_is_called_as_its_family_is() -> None:
    assert {noun: kind.state.noun for noun, kind in MAKERS.items()} == {noun: noun for noun in MAKERS}
