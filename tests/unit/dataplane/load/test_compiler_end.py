"""The compiler's process ends with the one that asked, whichever moment that dies in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[4]
COMPILER = [sys.executable, "-m", "services.dataplane.load.compiler"]
PARENT = f"""
import subprocess, sys
child = subprocess.Popen({COMPILER!r}, stdin=0)
print(child.pid, flush=True)
child.wait()
"""


def until(claim: Callable[[], object]) -> None:
    ends = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < ends
        time.sleep(0.01)


def is_reading(process: int) -> bool:
    """It waits for its request."""
    call, first, *_ = [*Path(f"/proc/{process}/syscall").read_text().split(), ""]
    return call in ("0", "63") and first == "0x0"  # read(2) on x86-64 and on ARM, of stdin


def test_it_is_killed_with_its_parent() -> None:
    reading, writing = os.pipe()  # stays open here: no end of the input ends the compiler
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdin=reading, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: is_reading(child))
        parent.kill()
    try:
        until(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text())
    finally:
        os.close(reading)
        os.close(writing)


def test_it_does_nothing_for_a_parent_that_died_before_it_could_be_told() -> None:
    request = {"parent": 1 << 30, "pin_dir": "/nowhere", "defines": {}, "units": {}}
    asked = subprocess.run(
        COMPILER, cwd=ROOT, input=json.dumps(request), capture_output=True, text=True, timeout=60, check=False
    )
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "ended before" in asked.stderr
