"""The command line: `setup`, and `run COMMAND...`."""

from __future__ import annotations

import argparse
import sys

from tools.guest.boot import run
from tools.guest.kernel import GuestFailed, NoPackage, fetch, kernel

NO_PACKAGE = 77  # exit status, as test programs have it for "cannot be tried here"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.guest", description="Another kernel on this machine.")
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("setup", help="have qemu and Debian's kernel (needs root); 77: no package")
    commands.add_parser("check", help="exit 0 when both are there, else name what is missing")
    runs = commands.add_parser("run", help="boot, run a command in this directory, end with its exit status")
    runs.add_argument("--timeout", type=float, default=900, help="seconds; the guest is ended then (status 124)")
    runs.add_argument("--memory", type=int, default=3072, help="megabytes")
    runs.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND...")
    chosen = parser.parse_args()
    try:
        if chosen.action == "setup":
            fetch()
            return 0
        if chosen.action == "check":
            kernel()
            return 0
        command = [each for at, each in enumerate(chosen.command) if at or each != "--"]
        if not command:
            runs.error("name a command to run")
        return run(command, timeout_seconds=chosen.timeout, memory_megabytes=chosen.memory)
    except GuestFailed as problem:
        print(f"guest: {problem}", file=sys.stderr)
        return NO_PACKAGE if isinstance(problem, NoPackage) else 1


sys.exit(main())
