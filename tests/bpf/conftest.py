"""One load of the programs for all tests of this folder, in a pin directory of its own that goes when they end."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from services.dataplane import loader
from tests.bpf.datapath import NODE, Datapath, Routed

BPFFS = Path("/sys/fs/bpf")
NATIVE_CIDR = "198.51.100.0/25"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pin directory of programs for native routing."""
    with _loaded("native", tmp_path_factory.mktemp("state")) as pin_dir:
        yield pin_dir


@pytest.fixture(scope="session")
def tunnel_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same for a tunnel; TEST-NET-2's lower half is not masqueraded."""
    with _loaded("tunnel", tmp_path_factory.mktemp("state"), tunnel_index=1, native_cidr=NATIVE_CIDR) as pin_dir:
        yield pin_dir


@contextmanager
def _loaded(name: str, state: Path, tunnel_index: int = 0, native_cidr: str = "") -> Iterator[Path]:
    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    pin_dir = BPFFS / f"plexus-test-{name}-{os.getpid()}"
    config = loader.DatapathConfig(
        node_address=NODE,
        device_index=1,
        tunnel_index=tunnel_index,
        native_cidr=native_cidr,
        sizes={"CT_TCP_MAX": 16384, "CT_ANY_MAX": 16384, "NAT_MAX": 16384, "SOCK_REVERSE_MAX": 4096},
    )
    try:
        asyncio.run(loader.load(config, pin_dir, state))
        yield pin_dir
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


@pytest.fixture
def datapath(programs: Path) -> Iterator[Datapath]:
    with closing(Datapath(programs)) as found:
        found.clear()
        yield found


@pytest.fixture
def routed(programs: Path) -> Iterator[Routed]:
    with closing(Routed(programs)) as found:
        found.clear()
        yield found


@pytest.fixture
def tunnelled(tunnel_programs: Path) -> Iterator[Routed]:
    with closing(Routed(tunnel_programs)) as found:
        found.clear()
        yield found
