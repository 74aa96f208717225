"""Network namespaces, as `ip netns` knows them: bound under /run/netns. Effects; needs CAP_SYS_ADMIN, CAP_NET_ADMIN."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.host import mount

NETNS = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)


def sysctls(families: Collection[int], *, forwards: bool = False) -> dict[str, str]:
    """How a host of the lab is set, for `create`.

    Without IPv6 it has none at all. With it, addresses are usable at once: they are given once each, so nobody need ask
    for a second owner; and nobody asks for a router, for every route is written down.
    """
    if 6 in families:
        values = {"accept_dad": "0", "accept_ra": "0", "router_solicitations": "0", "forwarding": str(int(forwards))}
    else:
        values = {"disable_ipv6": "1"}
    found = {f"ipv6/conf/{which}/{key}": value for which in ("all", "default") for key, value in values.items()}
    return found | ({"ipv4/ip_forward": "1"} if forwards else {})


def path(name: str) -> Path:
    return NETNS / name


def create(name: str, sysctls: dict[str, str] | None = None) -> bool:
    """Make a namespace with its loopback up. False when it was there already; then it is left as it is.

    It has its name last, so whoever is killed half-way leaves none that is there and not as it should be.
    Runs in the calling thread, which is in the new namespace for a moment: no await, no other thread is touched.

    Args:
        sysctls: below /proc/sys/net, as "ipv4/ip_forward": "1".
    """
    ready_directory()
    target = path(name)
    if is_namespace(target):
        return False
    target.touch(mode=0o444)
    with returning():
        check(_libc.unshare(_CLONE_NEWNET), "unshare")
        loopback_up()
        for key, value in (sysctls or {}).items():
            Path("/proc/sys/net", key).write_text(value)
        mount("/proc/thread-self/ns/net", target, "none", _MS_BIND)
    return True


@contextmanager
def returning() -> Iterator[None]:
    """The calling thread is in its own network namespace again when the block ends. No await within."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            check(_libc.setns(home, _CLONE_NEWNET), "setns")
        finally:
            os.close(home)


@contextmanager
def inside(name: str) -> Iterator[int]:
    """The calling thread is in a namespace for the block: sockets made there stay there. No await within.

    Yields the namespace's descriptor, valid within the block.
    """
    with returning(), path(name).open("rb") as there:
        check(_libc.setns(there.fileno(), _CLONE_NEWNET), "setns")
        yield there.fileno()


def remove(name: str) -> None:
    """Take a namespace's name away; it ends with its last process and socket. Safe to repeat."""
    target = path(name)
    while _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:
        pass
    with suppress(FileNotFoundError):
        target.unlink()


def listed(prefix: str) -> list[str]:
    """The namespaces whose names start with `prefix`."""
    with suppress(FileNotFoundError):
        return sorted(each.name for each in NETNS.iterdir() if each.name.startswith(prefix))
    return []


def is_namespace(target: Path) -> bool:
    """A namespace is bound there, not only an empty file that a crash left."""
    try:
        return target.stat().st_dev != NETNS.stat().st_dev
    except FileNotFoundError:
        return False


def ready_directory() -> None:
    """/run/netns as `ip netns` makes it: a shared mount, so that other mount namespaces see what is added."""
    NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        mount("none", NETNS, "none", _MS_SHARED | _MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(str(NETNS), NETNS, "none", _MS_BIND | _MS_REC)
        mount("none", NETNS, "none", _MS_SHARED | _MS_REC)


def loopback_up() -> None:
    """Bring `lo` of the current namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def check(result: int, call: str) -> None:
    """Raises OSError when a system call failed."""
    if result:
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")


def command(name: str, cgroup: Path | None, arguments: list[str]) -> list[str]:
    """How to run `arguments` inside a namespace and a cgroup, and nothing else changed: one process, no fork between.

    The shell moves itself into the cgroup, becomes nsenter, which becomes the program. /sys stays the machine's own
    (`ip netns exec` would hide the bpf and cgroup file systems).

    Args:
        name: of a namespace; "": stay in ours.
        cgroup: None: stay in ours.
    """
    entered = ["nsenter", f"--net={path(name)}", "--", *arguments] if name else arguments
    if cgroup is None:
        return entered
    return ["/bin/sh", "-c", 'echo 0 >"$0" && exec "$@"', str(cgroup / "cgroup.procs"), *entered]
