"""What the demonstration expects, what it understands of an answer, and how it tells."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from cli.checks import Check, first_line, landing, landing_checks, one_of_webpods, web_checks, who_answers
from cli.demo import PODS, RULE
from cli.manifests import read
from cli.probe import request
from cli.telling import Teller

ROOT = Path(__file__).resolve().parents[3]


def test_the_manifests_of_the_demonstration_are_there() -> None:
    names = {each.manifest["metadata"]["name"] for each in read([*PODS, *RULE])}
    assert names == {"netpod", "webpod1", "webpod2", "svc", "deathstar", "tiefighter", "xwing", "rule1"}


def test_netpod_reaches_both_pods_and_the_service() -> None:
    checks = web_checks({"webpod1": "10.0.2.2", "webpod2": "10.0.3.2"}, "10.96.0.1")
    assert [(check.client, check.address, check.expected) for check in checks] == [
        ("default/netpod", "10.0.2.2", "webpod1 answers"),
        ("default/netpod", "10.0.3.2", "webpod2 answers"),
        ("default/netpod", "10.96.0.1", "a webpod answers"),
    ]


def test_the_xwing_lands_only_without_the_policy() -> None:
    assert [check.expected for check in landing_checks("10.96.0.2", xwing_may=True)] == ["Ship landed", "Ship landed"]
    assert [check.expected for check in landing_checks("10.96.0.2", xwing_may=False)] == ["Ship landed", "timed out"]


@pytest.mark.parametrize(
    ("understands", "answer", "seen"),
    [
        (who_answers, "200 Hostname: webpod1\nIP: 10.0.0.1\n", "webpod1 answers"),
        (who_answers, "timed out\n", "timed out"),
        (one_of_webpods, "200 Hostname: webpod2\n", "a webpod answers"),
        (one_of_webpods, "200 Hostname: netpod\n", "netpod answers"),
        (landing, "200 Ship landed\n", "Ship landed"),
        (landing, "403 Access denied\n", "403 Access denied"),
        (landing, "", "nothing"),
        (first_line, "x" * 100, "x" * 60),
    ],
)
def test_an_answer_is_understood(understands: object, answer: str, seen: str) -> None:
    assert understands(answer) == seen  # type: ignore[operator]  # one of four functions


def test_a_row_says_whether_it_is_as_expected() -> None:
    check = Check("default/xwing", "the Service", "10.96.0.2", "timed out", landing)
    assert check.row("timed out") == {
        "from": "xwing",
        "to": "the Service",
        "expected": "timed out",
        "seen": "timed out",
        "ok": True,
    }
    assert not check.row("200 Ship landed")["ok"]


def test_the_probe_tells_an_answer_a_refusal_and_silence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nShip landed\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert request("POST", "127.0.0.1", port, "/v1/request-landing", 5.0) == (True, "200 Ship landed")
        thread.join()
        assert request("GET", "127.0.0.1", port, "/", 0.05) == (False, "timed out")  # taken, but nobody reads
    assert request("GET", "127.0.0.1", port, "/", 1.0) == (False, "refused")


def told(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, soft_wrap=True, highlight=False)
    with Teller(2, console) as teller:
        with teller.step("first"):
            teller.say("one\ntwo")
        with teller.step("second"):
            teller.hint("waiting for node1")
    return out.getvalue()


def test_without_a_terminal_steps_are_plain_lines() -> None:
    lines = told(terminal=False).splitlines()
    assert lines[:3] == ["1/2  first", "     one", "     two"]
    assert lines[3].startswith("     done in ")
    assert "\x1b" not in told(terminal=False)
    assert "waiting" not in told(terminal=False)


def test_on_a_terminal_a_done_step_stays_and_the_display_goes() -> None:
    assert "✓ " in told(terminal=True)


INTERRUPTED = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from cli import demo
demo.cleanup.clean = lambda name: print("cleaned", name, flush=True)
demo.state.record = lambda name: None
def tell(name):
    print("telling", flush=True)
    {story}
demo.tell = tell
demo.demo(once=True, name="nobody")
"""


@pytest.mark.parametrize("story", ["time.sleep(20)", "import asyncio; asyncio.run(asyncio.sleep(20))"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demonstration_that_was_started_with_sigint_ignored_can_be_ended(story: str, number: signal.Signals) -> None:
    """As a shell does for what it starts in the background."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(story=story)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "telling\n"
        time.sleep(0.2)
        process.send_signal(number)
        said, _ = process.communicate(timeout=10)
    assert said == "cleaning up\ncleaned nobody\n"
    assert process.returncode != 0
