"""What is on a wire: tcpdump in one of the lab's namespaces. Effects."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from lab import namespaces

START_SECONDS = 5.0
FLUSH_SECONDS = 0.3  # what is on its way when the block ends is still taken


class Capture:
    """Records packets from entering the block until leaving it; `lines` and `file` are for afterwards.

    Args:
        netns: name of a network namespace.
        device: "any" is every link in it.
        expression: a pcap filter: "tcp port 80 and host 10.128.0.5".
    """

    def __init__(self, netns: str, device: str = "eth0", expression: str = "") -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="plexus-capture-")
        self.file = Path(self._folder.name) / "packets.pcap"
        options = ["-i", device, "-n", "-U", "-Z", "root", "--immediate-mode", "-w", str(self.file)]
        self._command = namespaces.command(netns, None, ["tcpdump", *options, expression])
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Capture:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        stderr = self._process.stderr
        deadline = time.monotonic() + START_SECONDS
        while stderr is not None:
            line = stderr.readline()
            if "listening on" in line:
                return self
            if not line or time.monotonic() > deadline:
                self._stop()
                raise RuntimeError(f"tcpdump did not start: {line.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        time.sleep(FLUSH_SECONDS)
        self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=5)

    def lines(self, *options: str) -> list[str]:
        """One packet a line, as tcpdump tells it, numbers only. `options`: of tcpdump, such as -e or -v."""
        told = subprocess.run(
            ["tcpdump", "-n", "-t", *options, "-r", str(self.file)], capture_output=True, text=True, check=True
        )
        return told.stdout.splitlines()
