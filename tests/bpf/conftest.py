"""One load of the programs for all tests of this folder, in a pin directory of its own that goes when they end."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.dataplane import loader
from tests.bpf.datapath import NODE, Datapath

BPFFS = Path("/sys/fs/bpf")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pin directory of programs for native routing."""
    if not os.path.ismount(BPFFS):
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    pin_dir = BPFFS / f"plexus-test-{os.getpid()}"
    config = loader.DatapathConfig(node_address=NODE, device_index=1, ct_max=4096, nat_max=4096, sock_reverse_max=4096)
    try:
        asyncio.run(loader.load(config, pin_dir, tmp_path_factory.mktemp("state")))
        yield pin_dir
    finally:
        shutil.rmtree(pin_dir, ignore_errors=True)


@pytest.fixture
def datapath(programs: Path) -> Iterator[Datapath]:
    found = Datapath(programs)
    found.clear()
    yield found
    found.close()
