"""One load of the programs for all tests of this folder, in a pin directory of its own that goes when they end."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.dataplane.load import build, loader
from services.dataplane.parts.masquerade import Masquerade
from tests.bpf.datapath import DEVICE_INDEX, NODE, NODE6, SERVICES, SERVICES6, SIZES, V4, V6, Datapath, Family, Routed
from tests.bpf.spaces import making_namespaces

BPFFS = Path("/sys/fs/bpf")
CROWDED = 64  # entries of each map of a `crowded` node
NATIVE_CIDRS = ["198.51.100.0/25", "2001:db8:51::/64"]


@pytest.fixture(scope="session", autouse=True)
def leftovers() -> None:
    """Pins of runs that were killed: the last part of their name is the process that made them."""
    for folder in BPFFS.glob("plexus-test-*-*"):
        if not Path("/proc", folder.name.rpartition("-")[2]).exists():
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """The programs are compiled where nobody has, once for all processes that test."""
    asyncio.run(build.build())


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pin directory of programs for native routing, both families."""
    with loaded("native", tmp_path_factory.mktemp("state")) as pin_dir:
        yield pin_dir


@pytest.fixture(scope="session")
def tunnel_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for a tunnel."""
    with loaded("tunnel", tmp_path_factory.mktemp("state"), tunnel_index=1) as pin_dir:
        yield pin_dir


@contextmanager
def loaded(name: str, state: Path, **settings: Any) -> Iterator[Path]:
    """Programs and maps of a configuration, in a pin directory that goes when the block ends."""
    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    pin_dir = BPFFS / f"plexus-test-{name}-{os.getpid()}"
    wanted: dict[str, Any] = {
        "node_address": NODE,
        "node_address6": NODE6,
        "ipv6": True,
        "device_index": DEVICE_INDEX,
        "services": SERVICES,
        "services6": SERVICES6,
        "sizes": SIZES,
        "nat_port_min": 61_000,  # few, so that a test can hold them all
    } | settings
    try:
        asyncio.run(loader.load(loader.DatapathConfig(**wanted), pin_dir, state))
        yield pin_dir
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


@pytest.fixture(params=[V4, V6], ids=str)
def at(request: pytest.FixtureRequest) -> Family:
    """Addresses of either family: a test that takes it holds for both."""
    found: Family = request.param
    return found


@pytest.fixture
def datapath(programs: Path) -> Iterator[Datapath]:
    with closing(Datapath(programs)) as found:
        found.clear()
        yield found


@pytest.fixture(scope="session")
def native_namespace(programs: Path) -> Iterator[Routed]:
    with closing(Routed(programs)) as found:
        yield found


@pytest.fixture
def routed(native_namespace: Routed) -> Routed:
    native_namespace.clear()
    return native_namespace


@pytest.fixture(scope="session")
def tunnel_namespace(tunnel_programs: Path) -> Iterator[Routed]:
    with closing(Routed(tunnel_programs)) as found:
        yield found


@pytest.fixture
def tunnelled(tunnel_namespace: Routed) -> Routed:
    tunnel_namespace.clear()
    for key, value in Masquerade(NATIVE_CIDRS).table.wanted.items():
        tunnel_namespace.maps["masq_exclude"].set(key, value)
    return tunnel_namespace


@pytest.fixture(scope="session")
def crowded_namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    few = {f"{name}_MAX": CROWDED for name in ("CT_TCP", "CT_ANY", "NAT", "FRAGMENTS", "CHOICES")}
    with loaded("crowded", tmp_path_factory.mktemp("state"), sizes=few) as pin_dir, closing(Routed(pin_dir)) as found:
        yield found


@pytest.fixture
def crowded(crowded_namespace: Routed) -> Routed:
    """Programs whose maps of what traffic fills have room for very little."""
    crowded_namespace.clear()
    return crowded_namespace


@pytest.fixture
def namespaces() -> Iterator[Callable[[str], str]]:
    """Makes a network namespace and says its full name."""
    with making_namespaces() as make:
        yield make
