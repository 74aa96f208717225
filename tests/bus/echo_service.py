"""A service for test_service.py to start: `python -m tests.bus.echo_service [fail|early]`."""

from __future__ import annotations

import asyncio
import sys

from bus.service import Service, run_service


async def body(service: Service) -> None:
    if sys.argv[1:] == ["fail"]:
        raise LookupError("the disk is on fire")
    service.check("disk", True, "there")
    service.realised({"resources": 7}, at=12.5)
    service.gauge("widgets", lambda: 3.0)
    service.counts("things", lambda: {(("colour", "red"),): 5})
    service.ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    run_service("identity", body, wait=sys.argv[1:] != ["early"])
