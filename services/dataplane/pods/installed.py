"""`python -m services.dataplane.pods.installed install|uninstall`: the CNI executable and its configuration on a host.

A runtime may start the executable, and read the folder of configurations, at any moment. So each file is written beside
its place and moved there, whole; the executable is there before a configuration names it, and goes after that. The file
of the configuration sorts before those of other plugins, because a runtime takes the first.

Its cniVersion is 1.1.0, so a runtime that knows that version asks for STATUS, and counts the node as ready when the
dataplane has addresses to give.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXECUTABLE = "plexus-cni"
CONFIGURATION = "05-plexus.conflist"
NETWORK = "plexus"
BUILT = Path(__file__).resolve().parents[3] / "build" / EXECUTABLE


def conflist(chained: Sequence[str] = ()) -> dict[str, Any]:
    """As a runtime reads it. `chained`: plugins that come after ours, "portmap" for host ports."""
    others = [{"type": each, "capabilities": {"portMappings": True}} for each in chained]
    return {"cniVersion": "1.1.0", "name": NETWORK, "plugins": [{"type": EXECUTABLE}, *others]}


def install(executable: Path, programs: Path, configurations: Path, chained: Sequence[str] = ()) -> list[str]:
    """Returns which files were written; none where all is as it should be. Raises: OSError."""
    text = json.dumps(conflist(chained), indent=2) + "\n"
    written = [
        _written(programs / EXECUTABLE, executable.read_bytes(), 0o755),
        _written(configurations / CONFIGURATION, text.encode(), 0o644),
    ]
    return [str(each) for each in written if each is not None]


def uninstall(programs: Path, configurations: Path) -> list[str]:
    """Returns which files are gone. Those of others stay. Raises: OSError."""
    gone = []
    for file in (configurations / CONFIGURATION, programs / EXECUTABLE):
        for each in (file, _beside(file)):
            if each.exists():
                each.unlink()
                gone.append(str(each))
    return gone


def _written(file: Path, content: bytes, mode: int) -> Path | None:
    """Its place, if it was not so already."""
    if file.is_file() and file.read_bytes() == content and file.stat().st_mode & 0o777 == mode:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(file)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        os.fchmod(out.fileno(), mode)  # whatever the umask
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return file


def _beside(file: Path) -> Path:
    """Where it is written first: no runtime takes that for a configuration, or for a plugin that one names."""
    return file.with_name(f".{file.name}.new")


def main() -> None:
    parser = argparse.ArgumentParser(prog="installed", description="the CNI executable and its configuration")
    parser.add_argument("what", choices=["install", "uninstall"])
    parser.add_argument("--executable", type=Path, default=BUILT)
    parser.add_argument("--programs", type=Path, default=Path("/opt/cni/bin"))
    parser.add_argument("--configurations", type=Path, default=Path("/etc/cni/net.d"))
    parser.add_argument("--chain", action="append", default=[], choices=["portmap"])
    given = parser.parse_args()
    try:
        if given.what == "install":
            done = install(given.executable, given.programs, given.configurations, given.chain)
        else:
            done = uninstall(given.programs, given.configurations)
    except OSError as problem:
        sys.stderr.write(f"cni: {given.what} failed: {problem}; mount the host's folders writable\n")
        sys.exit(1)
    sys.stdout.write(f"cni: {given.what}: {', '.join(done) or 'nothing to do'}\n")


if __name__ == "__main__":
    main()
