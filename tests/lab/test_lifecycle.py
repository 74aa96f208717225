"""Labs come up, stand side by side, and leave nothing behind, whatever happens to them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab import cleanup, namespaces, processes, state
from lab.programs import ROOT
from tests.labs import Lab, eventually

NAME = "life"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    cleanup.clean(NAME)
    yield
    cleanup.clean(NAME)


def plexus(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments: str) -> tuple[int | None, str]:
    with plexus(*arguments) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out + err


POD = """
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {containers: [{name: main, image: traefik/whoami}]}
"""


def test_down_leaves_no_namespace_link_cgroup_pin_or_process() -> None:
    with Lab(NAME, nodes=1) as lab:
        lab.apply(POD)
        lab.wait()
        assert len(cleanup.left(NAME)) > 10
        assert run("lab", "down", "--name", NAME)[0] == 0
        assert cleanup.left(NAME) == []
        lab.check_clean = lambda: None  # type: ignore[method-assign]  # there is nothing left to ask


def test_down_after_kill_9_of_the_supervisor_leaves_nothing() -> None:
    with Lab(NAME, nodes=1) as lab:
        lab.apply(POD)
        lab.wait()
        supervisor = state.read(lab.record.directory.process("supervisor"), state.ProcessId)
        assert supervisor is not None
        assert processes.kill_and_wait([supervisor]) == []
        assert run("lab", "down", "--name", NAME)[0] == 0
        assert cleanup.left(NAME) == []
        lab.check_clean = lambda: None  # type: ignore[method-assign]  # there is nothing left to ask


def test_a_new_supervisor_goes_on_with_pods_that_were_half_made_and_every_address_is_given_once() -> None:
    pods = "---".join(POD.replace("name: a", f"name: a{number}") for number in range(30))
    with Lab(NAME, nodes=2) as lab:
        lab.apply(pods)
        directory = lab.record.directory
        assert eventually(lambda: 0 < sum(bool(box.addresses) for box in directory.sandboxes()) < 30, every=0.001)
        supervisor = state.read(directory.process("supervisor"), state.ProcessId)
        assert supervisor is not None
        assert processes.kill_and_wait([supervisor]) == []
        assert run("lab", "up", "--name", NAME, "--nodes", "2")[0] == 0
        lab.wait()
        boxes = directory.sandboxes()
        assert len({address for box in boxes for address in box.addresses}) == len(boxes) == 30
        lab.check_clean()
        assert run("lab", "down", "--name", NAME)[0] == 0
        assert cleanup.left(NAME) == []
        lab.check_clean = lambda: None  # type: ignore[method-assign]  # there is nothing left to ask


def test_down_of_what_is_not_there_is_fine() -> None:
    assert run("lab", "down", "--name", NAME)[0] == 0


def test_up_a_second_time_says_so_and_with_other_settings_is_refused() -> None:
    with Lab(NAME, nodes=1):
        status, said = run("lab", "up", "--name", NAME, "--nodes", "1")
        assert (status, "up already" in said) == (0, True)
        status, said = run("lab", "up", "--name", NAME, "--nodes", "2")
        assert (status, "other settings" in said, "lab down" in said) == (1, True, True)


def test_a_service_that_is_ready_again_answers() -> None:
    """Not before its predecessor's lease has ended; and whoever asks before that waits for it."""
    with Lab(NAME, nodes=1) as lab:
        lab.kill(control="resources")
        lab.revive(control="resources")
        lab.apply(POD)
        resources = state.read(lab.record.directory.process("resources"), state.ProcessId)
        assert resources is not None
        assert processes.kill_and_wait([resources]) == []
        lab.delete(POD)


def test_exec_of_a_name_that_nobody_can_look_up_fails_soon() -> None:
    with Lab(NAME, nodes=1) as lab:
        lab.apply(POD)
        lab.wait()
        began = time.monotonic()
        status, _ = run("lab", "exec", "--name", NAME, "a", "--", "curl", "-s", "http://svc.default.svc.cluster.local/")
        assert status == 6  # curl's word for it
        assert time.monotonic() - began < 5


def test_what_was_killed_stays_so_until_it_is_started() -> None:
    with Lab(NAME, nodes=1):
        assert run("lab", "kill", "--name", NAME, "--control", "lb") == (0, "lb is killed\n")
        status, said = run("lab", "kill", "--name", NAME, "--control", "lb")
        assert (status, "stopped already" in said) == (1, True)
        status, said = run("lab", "up", "--name", NAME, "--nodes", "1")
        assert (status, f"plexus lab start --name {NAME} --control lb" in said) == (1, True)
        assert run("lab", "start", "--name", NAME, "--control", "lb") == (0, "lb is ready\n")
        assert run("lab", "status", "--name", NAME)[0] == 0


@pytest.mark.parametrize("after", [0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_that_is_interrupted_cleans_up_after_itself(after: float, number: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it, and its children do
    with plexus("lab", "up", "--name", NAME, "--nodes", "2") as process:
        time.sleep(after)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert eventually(lambda: cleanup.left(NAME) == [], 2), cleanup.left(NAME)


@pytest.mark.parametrize("after", [0.3, 0.5, 1.0])
def test_down_cleans_up_after_an_up_that_was_killed(after: float) -> None:
    with plexus("lab", "up", "--name", NAME, "--nodes", "2") as process:
        time.sleep(after)
        process.kill()
        process.communicate(timeout=30)
    assert run("lab", "down", "--name", NAME)[0] == 0
    assert cleanup.left(NAME) == []


def test_down_while_up_is_at_work_ends_it() -> None:
    with plexus("lab", "up", "--name", NAME, "--nodes", "2") as process:
        assert eventually(state.Directory(NAME).topology.exists)
        assert run("lab", "down", "--name", NAME)[0] == 0
        process.communicate(timeout=30)
    assert cleanup.left(NAME) == []


def test_a_lab_whose_name_begins_as_anothers_is_not_taken_down_with_it() -> None:
    other = f"{NAME}-2"
    namespace = f"plx-{other}.node1"
    namespaces.create(namespace)
    try:
        cleanup.clean(NAME)
        assert namespaces.listed(f"plx-{other}.") == [namespace]
    finally:
        cleanup.clean(other)


def test_a_namespace_that_is_not_set_up_in_full_has_no_name() -> None:
    """Else whoever is killed between the two leaves pods in which the kernel speaks IPv6 to a cluster that has none."""
    namespace = f"plx-{NAME}.half"
    with pytest.raises(FileNotFoundError):
        namespaces.create(namespace, {"ipv4/conf/all/forwarding": "1", "ipv4/there-is-no-such": "1"})
    assert not namespaces.is_namespace(namespaces.path(namespace))
    assert namespaces.create(namespace, namespaces.sysctls([4]))
    assert namespaces.is_namespace(namespaces.path(namespace))


def test_exec_passes_status_output_and_input_through() -> None:
    with Lab(NAME, nodes=1) as lab:
        lab.apply(POD)
        lab.wait()
        status, said = run("lab", "exec", "--name", NAME, "a", "--", "/bin/sh", "-c", "cat /proc/self/cgroup; exit 7")
        assert status == 7
        assert f"plexus-{NAME}/node1/default_a_" in said
        assert run("lab", "exec", "--name", NAME, "--outside", "--", "true")[0] == 0
        status, said = run("lab", "exec", "--name", NAME, "b", "--", "true")
        assert (status, "default/a" in said) == (1, True)


def test_up_ends_as_soon_as_a_node_says_for_a_while_that_it_cannot_start() -> None:
    probe = ["unshare", "--net", "ip", "link", "add", "probe", "type", "geneve", "external"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        pytest.skip("this kernel has Geneve devices")
    status, said = run("lab", "up", "--name", NAME, "--nodes", "1", "--set", "tunnelProtocol=geneve")
    assert status == 1
    assert "node1.dataplane: " in said and "service cannot start: " in said and "geneve" in said.lower()
    assert "not ready after" not in said
    assert cleanup.left(NAME) == []
