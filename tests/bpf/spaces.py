"""Network namespaces for tests of links: made, entered, and gone in the end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pyroute2 import netns

from services.dataplane.kernel import bpf
from services.dataplane.kernel.links import Links
from services.dataplane.shapes.devices import DeviceInfo
from services.dataplane.shapes.ip import PodIp

T = TypeVar("T")

PREFIX = "plxt-"
NAMESPACES = Path("/run/netns")
GATEWAY = "10.9.0.1"
GATEWAY6 = "fd00:9::1"


def ips(*addresses: str) -> tuple[PodIp, ...]:
    return tuple(PodIp(each, GATEWAY6 if ":" in each else GATEWAY) for each in addresses)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def inside(namespace: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["nsenter", f"--net={NAMESPACES / namespace}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def reaches(namespace: str, address: str) -> bool:
    return inside(namespace, "ping", "-c1", "-W1", address).returncode == 0


async def device_of(links: Links, name: str) -> DeviceInfo:
    """As the kernel has it."""
    (found,) = [each for each in (await links.list_devices()).devices if each.name == name]
    return found


def remove_leftovers() -> None:
    """Namespaces of test runs that were killed: the name bears the process id."""
    for path in NAMESPACES.glob(f"{PREFIX}*-*"):
        process = path.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdigit() and not Path("/proc", process).exists():
            subprocess.run(["ip", "netns", "delete", path.name], check=False, capture_output=True)


@contextlib.contextmanager
def making_namespaces() -> Iterator[Callable[[str], str]]:
    """Makes a namespace and says its full name."""
    remove_leftovers()
    made: list[str] = []

    def make(name: str) -> str:
        full = f"{PREFIX}{os.getpid()}-{name}"
        ip("netns", "add", full)
        made.append(full)
        return full

    try:
        yield make
    finally:
        for name in made:
            ip("netns", "delete", name)


def in_namespace(name: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` on a thread that stands in a namespace, as the dataplane's process does, and ends there."""
    outcome: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with (NAMESPACES / name).open() as file:
                netns.setns(file.fileno())
            outcome.append(asyncio.run(_awaited(main)))
        except BaseException as failure:  # noqa: BLE001 (raised again where it can be seen)
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return outcome[0]


async def _awaited(main: Callable[[], Awaitable[T]]) -> T:
    return await main()


@contextlib.contextmanager
def opened(namespace: str) -> Iterator[int]:
    with (NAMESPACES / namespace).open() as file:
        yield file.fileno()


@contextlib.contextmanager
def links() -> Iterator[Links]:
    made = Links()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def program(verdict: int) -> Iterator[int]:
    """A loaded tc program: r0 = `verdict`; exit. 0 lets a packet pass, 2 drops it."""
    instructions = struct.pack("=BBhi", 0xB7, 0, 0, verdict) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQ", 3, 2, ctypes.addressof(code), ctypes.addressof(licence))
    fd = bpf.call(5, attributes)
    try:
        yield fd
    finally:
        os.close(fd)
