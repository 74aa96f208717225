"""What goes wrong ends in one line and an exit status, never in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import __main__ as cli
from cli.errors import Failed

ROOT = Path(cli.__file__).resolve().parent.parent
runner = CliRunner()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """`plexus fail` raises what the test puts into the list."""
    errors: list[BaseException] = []

    def fail() -> None:
        raise errors[0]

    app = typer.Typer(add_completion=False)
    app.command("fail")(fail)
    monkeypatch.setitem(cli.COMMANDS, "fail", cli.Lazy("cli.nowhere", "fail", "Fails", "Start here"))
    monkeypatch.setattr(cli, "load", lambda name, lazy: typer.main.get_command(app))
    monkeypatch.delenv("PLEXUS_DEBUG", raising=False)
    return errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Failed("no lab is up; plexus lab up makes one"), "no lab is up; plexus lab up makes one"),
        (Failed("two\nlines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), "x.yaml: No such file or directory"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ExceptionGroup("group", [ExceptionGroup("g", [Failed("inner")]), ValueError("x")]), "inner"),
    ],
)
def test_an_error_is_one_line_and_status_1(failing: list[BaseException], error: Exception, line: str) -> None:
    failing.append(error)
    result = runner.invoke(cli.app, ["fail"])
    assert result.exit_code == 1
    assert result.stderr == f"plexus: {line}\n"
    assert result.stdout == ""


def test_several_refusals_are_a_line_each(failing: list[BaseException]) -> None:
    failing.append(Failed("one", "two"))
    assert runner.invoke(cli.app, ["fail"]).stderr == "plexus: one\nplexus: two\n"


def test_a_bug_is_one_line_too_and_says_how_to_see_more(failing: list[BaseException]) -> None:
    failing.append(KeyError("x"))
    result = runner.invoke(cli.app, ["fail"])
    assert result.exit_code == 1
    assert result.stderr.startswith("plexus: internal error, KeyError: 'x'; run it again with --debug")


def test_debug_shows_the_traceback(failing: list[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    failing.append(KeyError("x"))
    monkeypatch.setenv("PLEXUS_DEBUG", "1")
    assert isinstance(runner.invoke(cli.app, ["fail"]).exception, KeyError)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["get"],
        ["get", "unicorns"],
        ["apply"],
        ["wait", "--timeout", "soon"],
        ["get", "pods", "-o", "xml"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_a_misspelt_command_is_guessed() -> None:
    assert "Did you mean 'apply'?" in runner.invoke(cli.app, ["aply"]).stderr


def test_debug_may_stand_anywhere_but_in_somebody_elses_command() -> None:
    assert cli.without_debug(["get", "pods", "--debug"]) == (["get", "pods"], True)
    rest = ["lab", "exec", "p", "--", "tool", "--debug"]
    assert cli.without_debug(rest) == (rest, False)


def test_every_command_can_be_loaded_and_has_help() -> None:
    for name in cli.COMMANDS:
        result = runner.invoke(cli.app, [name, "--help"])
        assert result.exit_code == 0, name
        assert "Usage: " in result.stdout


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments], capture_output=True, text=True, cwd=ROOT, check=False, timeout=20
    )


def test_help_lists_every_command_and_imports_none_of_them() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert all(f"  {name} " in result.stdout for name in cli.COMMANDS)
    check = (
        "import cli.__main__, sys; print([m for m in sys.modules if m.split('.')[0] in ('bus', 'rich', 'nats', 'lab')])"
    )
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout == "[]\n"


def test_help_takes_no_longer_than_a_few_starts_of_the_interpreter() -> None:
    def seconds(*command: str) -> float:
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        return time.monotonic() - started

    helping, starting = [], []
    for _ in range(5):  # in turn, so that what else the machine does is in both
        helping.append(seconds(sys.executable, "-m", "cli", "--help"))
        starting.append(seconds(sys.executable, "-c", ""))
    assert min(helping) < 12 * min(starting)


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cli", "version"]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT) as process:
        os.close(writer)
        _, said = process.communicate(timeout=20)
    assert said == b""
