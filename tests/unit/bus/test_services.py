"""A service is one row of bus/services.py: all else about it follows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bus import accounts
from bus.services import BY_NAME, SERVICES, instances
from bus.subjects import OWNERS

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("cli", "lab", "services", "settings", "tools")

ROWS = """
    Service(name="bgp"),
    Service(name="egress"),
    Service(name="clustermesh"),
    Service(name="proxy", is_on_nodes=True),
"""
SUBJECTS = """
ROUTE = State("state.bgp.route", ("address",), log_messages.Vouched)
GATEWAY = State("state.egress.gateway", ("name",), log_messages.Vouched)
LISTENER = State("state.proxy.listener", ("node", "name"), log_messages.Vouched)
"""
LOOK = """
import json
from bus import accounts, log, services
from cli import tail
from lab import programs
from lab.state import Record

passwords = accounts.new_passwords(["n1"])
users = [*accounts.users(passwords), *(each.user for each in accounts.tenants(["n1"], passwords))]
lab = Record(name="t", slot=1, nodes=["n1"], values={}, cgroup_root="/sys/fs/cgroup")
print(json.dumps({
    "passwords": sorted(passwords),
    "rights": {each.name: [each.publish, each.subscribe] for each in users},
    "health": {name: each.head for name, each in services.HEALTH.items()},
    "instances": services.instances(["n1"]),
    "programs": {each.name: each.arguments[1:] for each in programs.programs(lab).values()},
    "streams": {each["name"]: "max_msg_size" in each for each in map(log.log_config, accounts.OWNERS)},
    "copied": [each["name"] for each in log.journal_config()["sources"]],
    "shown": [each.head for each in tail.known()],
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is known of services where four rows and three families are added, and nothing else."""
    place = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "bus", place / "bus", ignore=shutil.ignore_patterns("__pycache__"))
    for package in PACKAGES:
        (place / package).symlink_to(ROOT / package)
    insert(place / "bus/services.py", before="\n)\n\nBY_NAME", text=ROWS.rstrip())
    insert(place / "bus/subjects.py", before="\nSTATES:", text=SUBJECTS)
    child = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=place, capture_output=True, text=True, check=False, timeout=60
    )
    assert child.returncode == 0, child.stderr
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def insert(path: Path, *, before: str, text: str) -> None:
    head, mark, tail = path.read_text().partition(before)
    assert mark
    path.write_text(head + text + mark + tail)


def test_a_row_gives_a_service_its_process_its_health_and_its_user(found: dict[str, Any]) -> None:
    for name in ("bgp", "egress", "clustermesh"):
        assert found["programs"][name] == ["-m", f"services.{name}"]
        assert [name, "control"] in found["instances"]
        assert name in found["passwords"]
    assert found["programs"]["n1.proxy"] == ["-m", "services.proxy"]
    assert ["proxy", "n1"] in found["instances"]
    assert "proxy-n1" in found["passwords"]
    for name in ("bgp", "egress", "clustermesh", "proxy"):
        assert found["health"][name] == f"req.{name}.health"
        assert f"req.{name}.health" in found["shown"]


def test_who_has_a_log_writes_it_and_everyone_reads_it(found: dict[str, Any]) -> None:
    publish, subscribe = found["rights"]["egress"]
    own = ["state.egress.>", "delta.egress", "lease.egress", "evt.egress.>", "$JS.API.STREAM.CREATE.STATE_EGRESS"]
    assert set(own) <= set(publish)
    assert "req.egress.>" in subscribe
    for user in ("identity", "clustermesh"):
        assert "$JS.API.DIRECT.GET.STATE_EGRESS" in found["rights"][user][0]
        assert "stored.egress.>" in found["rights"][user][1]
    for user in ("node-n1", "proxy-n1"):
        assert "log.read.STATE_EGRESS" in found["rights"][user][0]
        assert "delta.egress" in found["rights"][user][1]
    assert "$JS.API.STREAM.CREATE.STATE_EGRESS" in found["rights"]["resources"][0]
    assert "STATE_EGRESS" in found["copied"]


def test_a_service_without_a_log_writes_none(found: dict[str, Any]) -> None:
    publish, _ = found["rights"]["clustermesh"]
    assert "evt.clustermesh.>" in publish
    assert not [each for each in publish if each.startswith(("state.", "delta."))]
    assert "$JS.API.STREAM.CREATE.STATE_CLUSTERMESH" not in publish


def test_a_service_on_the_nodes_writes_only_keys_of_its_node(found: dict[str, Any]) -> None:
    publish, subscribe = found["rights"]["proxy-n1"]
    own = {"state.proxy.*.n1.>", "state.proxy.vouched.n1", "evt.proxy.*.n1", "evt.proxy.*.n1.>"}
    assert {each for each in publish if each.startswith(("state.", "evt.", "delta.", "lease.", "$"))} == own
    assert [each for each in publish if each.startswith("req.") and not each.endswith(".snapshot")] == []
    assert [each for each in subscribe if each.startswith("req.")] == ["req.proxy.*.n1"]
    assert found["streams"]["STATE_PROXY"], "each writer's messages are bounded"
    assert "STATE_PROXY" not in found["copied"]


def test_what_is_turned_off_is_asked_for_by_nobody() -> None:
    assert ("hubble", "n1") in instances(["n1"]) and ("relay", "control") not in instances(["n1"])
    assert ("hubble", "n1") not in instances(["n1"], {"hubble.enabled": False})
    assert ("relay", "control") in instances(settings={"hubble.relay.enabled": True, "hubble.enabled": True})


def test_every_log_is_some_services() -> None:
    assert set(OWNERS) <= set(BY_NAME)
    assert len(BY_NAME) == len(SERVICES)


def test_every_service_has_its_folder_and_its_place_in_the_documents() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    threats = (ROOT / "docs/threat-model.md").read_text()
    for each in SERVICES:
        folder = each.module.replace(".", "/")
        assert (ROOT / folder / "__main__.py").is_file(), each.name
        assert f"\n| `{folder}`" in architecture, each.name
        user = each.user_on("<node>") if each.is_on_nodes else each.name
        assert re.search(rf"^\| `[^`]+` \| [^|]*`{user}`", threats, re.MULTILINE), each.name


def test_rights_are_those_that_the_threat_model_tells() -> None:
    logs = ("resources", "identity", "ipam", "lb", "policy", "l2announce", "dataplane")
    owned = logs[:-1]
    streams = [f"STATE_{each.upper()}" for each in logs]
    reads = [
        *(
            subject
            for each in (*streams, "JOURNAL")
            for subject in (
                f"$JS.API.DIRECT.GET.{each}",
                f"$JS.API.STREAM.MSG.GET.{each}",
                f"$JS.API.STREAM.INFO.{each}",
            )
        ),
        *("$JS.API.STREAM.MSG.GET.LEASES", "$JS.API.STREAM.INFO.LEASES"),
        *(f"$JS.API.DIRECT.GET.JOURNAL.state.{each}.vouched.{each}" for each in owned),
    ]
    snapshots = [f"req.{each}.snapshot" for each in owned]
    stored = [f"stored.{each}.>" for each in logs]
    for each in accounts.users(accounts.new_passwords([]))[1:]:
        name = each.name
        has_log = name != "relay"
        made = [f"STATE_{name.upper()}", "STATE_DATAPLANE", "LEASES", "JOURNAL"] if has_log else []
        made += [stream for stream in streams[1:-1] if name == "resources"]
        makes = [f"$JS.API.STREAM.CREATE.{stream}" for stream in made]
        log = {"state": [f"state.{name}.>"], "delta": [f"delta.{name}"]} if has_log else {"state": [], "delta": []}
        says = [*log["state"], f"evt.{name}.>", *log["delta"], f"lease.{name}"]
        hears = [f"_INBOX.{name}.>", "delta.*", "evt.>", f"req.{name}.>", f"lease.{name}", *stored]
        assert list(each.publish or ()) == [*reads, *makes, *says, *snapshots]
        assert list(each.subscribe or ()) == hears
    node, observer = accounts.tenants(["a.b"], accounts.new_passwords(["a.b"]))
    assert node.user.name == "node-a.b"
    assert list(node.asks) == [
        *("state.dataplane.*.a%2Eb.>", "state.dataplane.vouched.a%2Eb"),
        *("evt.dataplane.*.a%2Eb", "evt.dataplane.*.a%2Eb.>"),
        *(f"log.{call}.{stream}" for stream in streams for call in ("read", "last", "info")),
        *(subject for each in owned for subject in (f"log.word.{each}.{each}", f"req.{each}.snapshot")),
        "req.resources.podstatus.a%2Eb",
        "req.l2announce.renew.a%2Eb",
    ]
    assert list(node.hears) == [*(f"delta.{each}" for each in owned), *stored]
    assert list(node.answers) == ["req.dataplane.*.a%2Eb"]
    assert observer.user.name == "hubble-a.b"
    assert list(observer.asks) == [
        *("evt.hubble.*.a%2Eb", "evt.hubble.*.a%2Eb.>"),
        *(f"log.{call}.{stream}" for stream in streams for call in ("read", "last", "info")),
        *(subject for each in owned for subject in (f"log.word.{each}.{each}", f"req.{each}.snapshot")),
        "req.dataplane.deciders.a%2Eb",
    ]
    assert list(observer.hears) == list(node.hears)
    assert list(observer.answers) == ["req.hubble.*.a%2Eb"]
