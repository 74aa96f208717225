"""One boot of the guest: qemu, the command's output as it comes, its exit status."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from tools.guest.kernel import BUILD, HERE, QEMU, GuestFailed, Kernel, kernel

TIMED_OUT = 124  # as timeout(1)
CONSOLE_LINES = 25  # of the kernel's, shown when the guest ended before its command


def run(command: list[str], *, timeout_seconds: float, memory_megabytes: int) -> int:
    """The exit status of `command`, run in the guest in this directory; 124 when it took too long.

    Its output goes to stdout; stdout and stderr are one there.
    Raises: GuestFailed: something is missing, or the guest ended before the command did.
    """
    guest = kernel()
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="run-") as folder:
        shared = Path(folder)
        (shared / "modules").write_text(str(guest.modules))
        (shared / "command").write_text(f"{_exports()}cd {shlex.quote(str(Path.cwd()))}\nexec {shlex.join(command)}\n")
        began = time.monotonic()
        print(f"guest: Linux {guest.release}, emulated: {shlex.join(command)}", flush=True)
        try:
            ended = subprocess.run(_qemu(guest, shared, memory_megabytes), timeout=timeout_seconds, check=False)
        except subprocess.TimeoutExpired:
            print(f"guest: ended after {timeout_seconds:.0f} s (--timeout)\n{_console(shared)}", flush=True)
            return TIMED_OUT
        status = shared / "status"
        if not status.exists():
            raise GuestFailed(
                f"it ended (qemu: {ended.returncode}) before its command. Its console:\n{_console(shared)}"
            )
        print(f"guest: {time.monotonic() - began:.0f} s", flush=True)
        return int(status.read_text())


def _exports() -> str:
    """What the command is told by environment variables goes along: ours and pytest's."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(("PLEXUS_", "PYTEST_"))}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(chosen.items()))


def _qemu(guest: Kernel, shared: Path, memory_megabytes: int) -> list[str]:
    words = (
        "console=ttyS0 loglevel=5 panic=-1 reboot=t mitigations=off random.trust_cpu=on no_timer_check "
        f"rdinit=/init plexus.init={HERE / 'inside.sh'}"
    )
    return [
        QEMU, "-accel", "tcg,thread=multi",
        "-cpu", "qemu64",  # a third quicker than "max" under emulation
        "-smp", str(os.cpu_count() or 1), "-m", str(memory_megabytes),
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-kernel", str(guest.image), "-initrd", str(guest.initramfs), "-append", words,
        "-serial", f"file:{shared / 'console'}", "-serial", "stdio",
        "-virtfs", "local,path=/,mount_tag=machine,security_model=none,readonly=on,multidevs=remap",
        "-virtfs", f"local,path={shared},mount_tag=shared,security_model=none",
    ]  # fmt: skip


def _console(shared: Path) -> str:
    try:
        lines = (shared / "console").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-CONSOLE_LINES:])
