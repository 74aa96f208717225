"""The machine's own file systems that a lab needs: cgroup v2 and bpf. Effects; needs CAP_SYS_ADMIN.

Mounts that were made here stay: they are the machine's, as its own boot would have made them.
"""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path

from lab import names
from lab.errors import LabError
from lab.state import BPF

CGROUP_PLACES = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))

_CGROUP2_MAGIC, _BPF_MAGIC = 0x63677270, 0xCAFE4A11  # include/uapi/linux/magic.h
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int = 0) -> None:
    """mount(2). Raises OSError."""
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def file_system(path: Path) -> int:
    """The magic number of what is mounted at `path`; 0 when there is nothing."""
    buffer = (ctypes.c_long * 32)()  # struct statfs starts with f_type and is smaller than this
    return buffer[0] if _libc.statfs(os.fsencode(path), ctypes.byref(buffer)) == 0 else 0


def bpf_file_system() -> Path:
    """Where BPF objects are pinned; mounted when it is not. Raises LabError."""
    if file_system(BPF) != _BPF_MAGIC:
        try:
            mount("bpffs", BPF, "bpf")
        except OSError as error:
            raise LabError(f"cannot mount the bpf file system at {BPF}: {error.strerror}; run as root") from error
    return BPF


def cgroup_root() -> Path:
    """The top of the cgroup v2 tree; mounted beside v1 when it is nowhere. Raises LabError."""
    for place in CGROUP_PLACES:
        if file_system(place) == _CGROUP2_MAGIC:
            return place
    place = CGROUP_PLACES[1] if CGROUP_PLACES[0].is_mount() else CGROUP_PLACES[0]
    try:
        place.mkdir(parents=True, exist_ok=True)
        mount("cgroup2", place, "cgroup2")
    except OSError as error:
        raise LabError(f"cannot mount the cgroup v2 file system at {place}: {error.strerror}; run as root") from error
    return place


def kill_cgroup(path: Path, seconds: float = 5.0) -> bool:
    """SIGKILL to every process in `path` and below, and wait until they are gone. True when none is left."""
    try:
        (path / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        return True
    deadline = time.monotonic() + seconds
    while populated(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def populated(path: Path) -> bool:
    """A process lives in `path` or below."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except OSError:
        return False


def remove_cgroup(path: Path, seconds: float = 2.0) -> None:
    """Remove `path` and all below it; its processes must have ended. Raises LabError when one did not."""
    for directory, _, _ in os.walk(path, topdown=False):
        deadline = time.monotonic() + seconds
        while True:
            try:
                Path(directory).rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LabError(f"cannot remove the cgroup {directory}: {error.strerror}") from error
                time.sleep(0.005)
            else:
                break


def remove_pins(lab: str) -> None:
    """Unpin everything of the lab; what the kernel still uses goes on until its namespace or cgroup is gone."""
    top = BPF / names.pins(lab)
    for directory, _, files in os.walk(top, topdown=False):
        for file in files:
            (Path(directory) / file).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            Path(directory).rmdir()
    with suppress(OSError):  # other labs' are still there
        top.parent.rmdir()
