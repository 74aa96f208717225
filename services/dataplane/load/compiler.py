"""The compiler's own process: C in, pinned programs out. Started by loader.py, ends when done, so its memory goes back.

Reads a JSON request from stdin, {"parent": process id, "pin_dir": ..., "generation": names the maps of these programs
alone, "defines": {...}, "units": {unit: [function]}}, and writes a JSON answer to stdout: {"programs": {function:
instructions}}. On failure it exits 1 with the compiler's or the verifier's words on stderr. It ends with its parent:
what it pinned later would take the place of the next one's.

Needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON or root, bcc (Debian python3-bpfcc) and the C library's headers; no kernel
headers: `headers/` holds the little that bcc expects of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from contextlib import closing
from pathlib import Path

from services.dataplane.shapes.programs import SOCKET_PROGRAMS

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

HERE = Path(__file__).parents[1]  # services/dataplane
SOURCES = HERE / "bpf"
_INCLUDE = re.compile(r'^#include "([^"]+)"\s*$')

FLAGS = [
    "-isystem", "/usr/include",
    "-isystem", f"/usr/include/{os.uname().machine}-linux-gnu",
    "-Werror=implicit-function-declaration",
    "-Wno-unused-function",
    "-Wno-constant-logical-operand",
]  # fmt: skip


def flatten(source: Path, seen: set[str] | None = None) -> str:
    """`source` with every quoted include in its place, once, and #line markers so that messages name the right file.

    bcc rewrites map calls in the main file only; this makes one file of all.
    """
    seen = set() if seen is None else seen
    name = source.relative_to(SOURCES)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(source.read_text().splitlines(), 1):
        found = _INCLUDE.match(line)
        if not found:
            lines.append(line)
            if line == "{":  # bcc puts a line of its own before each function: count anew in its body
                lines.append(f'#line {number + 1} "{name}"')
            continue
        if found[1] not in seen:
            seen.add(found[1])
            lines.append(flatten(SOURCES / "include" / found[1], seen))
        lines.append(f'#line {number + 1} "{name}"')
    return "\n".join(lines)


def compile_and_pin(
    pin_dir: Path, generation: str, defines: dict[str, str], units: dict[str, list[str]]
) -> dict[str, int]:
    """Load each function of each unit and pin it as `pin_dir`/programs/<function>, replacing the one before.

    Maps are made and pinned on first use under `pin_dir`/maps; steps are in their slots before a unit that comes after
    them is loaded. Returns instructions by function.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(HERE / "headers")
    from bcc import BPF

    from services.dataplane.kernel import bpf
    from services.dataplane.kernel import steps as own
    from services.dataplane.shapes.limits import steps

    flags = [*FLAGS, f'-DPIN_DIR="{pin_dir}"', f'-DGENERATION="{generation}"']
    flags.append(f"-DSET_RETVAL={int(bpf.has_set_retval())}")  # no choice of the node's: it is in no digest
    flags += [f"-D{name}={value}" for name, value in sorted(defines.items())]
    instructions: dict[str, int] = {}
    for unit, functions in units.items():
        module = BPF(text=flatten(SOURCES / "programs" / f"{unit}.bpf.c"), cflags=flags)
        for function in functions:
            attach_type = SOCKET_PROGRAMS.get(function, -1)
            kind = BPF.SCHED_CLS if attach_type < 0 else BPF.CGROUP_SOCK_ADDR
            loaded = module.load_func(function, kind, attach_type=attach_type)
            bpf.pin(loaded.fd, pin_dir / "programs" / function)
            if function in steps():
                with closing(bpf.Map.open(own.paths(pin_dir, generation)[0])) as array:
                    own.fill(array, function, loaded.fd)
            instructions[function] = len(module.dump_func(function)) // 8
    return instructions


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    request = json.load(sys.stdin)
    if os.getppid() != request["parent"]:
        sys.exit("whoever asked ended before the kernel could be told to end this with it")
    programs = compile_and_pin(Path(request["pin_dir"]), request["generation"], request["defines"], request["units"])
    json.dump({"programs": programs}, sys.stdout)


if __name__ == "__main__":
    main()
