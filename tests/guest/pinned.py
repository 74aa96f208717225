"""A node's programs and maps, built before the guest booted, loaded as the dataplane loads them."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from services.dataplane.load import loader
from services.dataplane.shapes.sizes import NAMES
from tests.guest.prepare import configuration

FEW = dict.fromkeys(NAMES, 4096)  # entries of every map: the guest has little memory


def pin_all(name: str, pin_dir: Path) -> None:
    """Everything of a configuration of prepare.py, under `pin_dir`."""
    with tempfile.TemporaryDirectory() as state:
        asyncio.run(loader.load(replace(configuration(name), sizes=FEW), pin_dir, Path(state)))
