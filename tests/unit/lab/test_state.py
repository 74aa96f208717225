"""What is written down about labs, and which lab a command means."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bus import accounts
from bus.messages.dataplane import Health
from cli.__main__ import app
from lab import cleanup, execute, names, processes, programs, state, supervisor
from lab.errors import LabError
from lab.settings import Settings, settings


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RUN", tmp_path)
    monkeypatch.delenv(state.ENVIRONMENT_NAME, raising=False)
    monkeypatch.delenv(state.ENVIRONMENT_OWNER, raising=False)


def claim(name: str, nodes: int = 2, wanted: Settings | None = None) -> state.Record:
    return state.claim(name, names.nodes(nodes), wanted or Settings(), Path("/sys/fs/cgroup"))


def test_labs_take_different_slots_and_give_them_back() -> None:
    assert [claim("a").slot, claim("b").slot, claim("c").slot] == [0, 1, 2]
    state.Directory("b").remove()
    assert claim("d").slot == 1


def test_what_was_claimed_is_read_back() -> None:
    made = claim("a", 3, settings({"routingMode": "native"}))
    assert state.record("a") == made
    assert made.settings.get("routingMode") == "native"


def test_a_lab_bears_the_mark_of_who_brought_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    claim("somebodys")
    monkeypatch.setenv(state.ENVIRONMENT_OWNER, "ci-1")
    claim("ours")
    monkeypatch.setenv(state.ENVIRONMENT_OWNER, "ci-2")
    claim("another")
    assert state.owned_by("ci-1") == ["ours"]


def test_down_by_owner_leaves_the_labs_of_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[str] = []
    monkeypatch.setattr(cleanup, "clean", cleaned.append)
    for name, owner in (("a", ""), ("b", "ci-1"), ("c", "ci-2"), ("d", "ci-1")):
        monkeypatch.setenv(state.ENVIRONMENT_OWNER, owner)
        claim(name)
    done = CliRunner().invoke(app, ["lab", "down", "--owner", "ci-1"])
    assert (done.exit_code, cleaned) == (0, ["b", "d"])
    assert CliRunner().invoke(app, ["lab", "down", "--owner", "ci-1", "--all"]).exit_code == 2


def test_the_only_lab_is_meant_when_nobody_says() -> None:
    made = claim("a")
    assert state.find() == made


def test_the_environment_says_which_lab_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    claim("a")
    other = claim("b")
    monkeypatch.setenv(state.ENVIRONMENT_NAME, "b")
    assert state.find() == other
    assert state.find("a").name == "a"


def test_two_labs_and_nobody_says_is_an_error_that_names_them() -> None:
    claim("a")
    claim("b")
    with pytest.raises(LabError, match="a, b"):
        state.find()


def test_a_lab_that_is_not_there_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(LabError, match="plexus lab up"):
        state.find()
    claim("a")
    with pytest.raises(LabError, match="there is a; plexus lab up --name b"):
        state.find("b")


def test_a_torn_record_is_no_record() -> None:
    made = claim("a")
    made.directory.lab.write_bytes(b'{"name": "a", "sl')
    assert state.record("a") is None
    assert state.labs() == ["a"]


def test_a_pid_that_was_given_away_again_is_another_process() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    assert processes.is_alive(me)
    assert not processes.is_alive(state.ProcessId(me.pid, me.start_time - 1))


def test_a_process_that_ended_unfetched_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "30"]) as child:
        identity = processes.identify(child.pid)
        assert identity is not None
        assert processes.kill_and_wait([identity]) == []


def test_options_choose_one_process() -> None:
    lab = claim("a")
    assert programs.choose(lab, node="node1") == "node1.dataplane"
    assert programs.choose(lab, control="policy") == "policy"
    assert programs.choose(lab, bus=True) == "bus"
    for wrong in ({}, {"node": "node9"}, {"control": "x"}, {"node": "node1", "bus": True}):
        with pytest.raises(LabError):
            programs.choose(lab, **wrong)
    with pytest.raises(LabError, match="dataplane"):
        programs.choose(lab, node="node1", service="proxy")


def test_a_pod_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    lab = claim("a")
    box = state.Sandbox(
        uid="u", namespace="default", name="xwing", node="node1", netns="n", cgroup="/c", addresses=["10.0.0.1"]
    )
    state.write(lab.directory.pod("u"), box)
    assert execute.pod(lab, "xwing").netns == "n"
    assert execute.pod(lab, "default/xwing").netns == "n"
    with pytest.raises(LabError, match="there is: default/xwing"):
        execute.pod(lab, "other/xwing")


def test_every_service_is_a_user_of_its_own_on_the_bus() -> None:
    lab = claim("a", wanted=settings({"hubble.relay.enabled": True}))
    state.write(lab.directory.passwords, accounts.new_passwords(lab.nodes))
    told = [program.environment for program in programs.programs(lab).values() if program.service != "bus"]
    users = {each["PLEXUS_BUS_USER"]: each["PLEXUS_BUS_PASSWORD"] for each in told}
    users[lab.bus_user] = lab.bus_password
    bus = programs.bus_settings(lab)
    known = [*bus.users, *(tenant.user for tenant in bus.tenants)]
    assert users == {user.name: user.password for user in known}
    assert len(set(users.values())) == len(told) + 1
    assert lab.directory.path.stat().st_mode & 0o077 == 0


def test_flows_are_seen_unless_nobody_wants_them_and_put_together_if_somebody_does() -> None:
    usual, dark = claim("a"), claim("b", wanted=settings({"hubble.enabled": False}))
    whole = claim("c", wanted=settings({"hubble.relay.enabled": True}))
    found = [{*programs.programs(each)} & {"relay", "node1.hubble"} for each in (usual, dark, whole)]
    assert found == [{"node1.hubble"}, set(), {"relay", "node1.hubble"}]
    with pytest.raises(LabError, match="no service 'hubble' runs on a node"):
        programs.choose(dark, node="node1", service="hubble")
    with pytest.raises(LabError, match="no control service 'relay'"):
        programs.choose(usual, control="relay")
    assert programs.choose(whole, control="relay") == "relay"
    for each, said in ((usual, ""), (whole, ":4244")):
        told = programs.programs(each)["node1.hubble"].environment
        assert told.get("PLEXUS_HUBBLE_LISTEN_ADDRESS", "") == said and ("PLEXUS_HUBBLE_TLS_CERT" in told) == bool(said)
    with pytest.raises(LabError, match=r"hubble.relay.enabled: there is nobody to ask"):
        settings({"hubble.enabled": False, "hubble.relay.enabled": True})


def test_a_control_service_that_stands_by_is_not_ready_yet() -> None:
    found = programs.programs(claim("a"))

    def told(service: str, ready: bool, active: bool) -> str:
        health = Health(service=service, instance="x", started_at=0.0, version="1", ready=ready, active=active)
        return supervisor.not_ready(found[service], health)

    assert told("resources", ready=True, active=False) == "stands by"
    assert told("resources", ready=True, active=True) == ""
    assert told("node1.dataplane", ready=True, active=False) == ""
    assert told("lb", ready=False, active=True) == "not ready"


def test_every_program_is_told_who_and_where_it_is() -> None:
    lab = claim("a")
    found = programs.programs(lab)
    assert next(iter(found)) == "bus"
    assert set(found) >= {"resources", "identity", "ipam", "lb", "policy", "node1.dataplane", "node2.dataplane"}
    dataplane = found["node2.dataplane"]
    assert dataplane.environment["PLEXUS_NODE"] == "node2"
    assert dataplane.environment["PLEXUS_PIN_DIR"] == "/sys/fs/bpf/plexus/a/node2"
    assert dataplane.environment["PLEXUS_CGROUP"] == "/sys/fs/cgroup/plexus-a/node2"
