"""nats-py comes without aiohttp, and whoever wants that has it all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUS_FIRST = "import sys, bus.client; assert 'aiohttp' not in sys.modules; import aiohttp.web; aiohttp.ClientSession"
BUS_LAST = "import aiohttp, bus.client, sys; assert sys.modules['aiohttp'] is aiohttp"


@pytest.mark.parametrize("program", [BUS_FIRST, BUS_LAST])
def test_aiohttp_is_there_for_who_imports_it_and_not_with_the_bus(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)
