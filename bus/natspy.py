"""What is used of nats-py. Everything else takes it from here, so that aiohttp is not loaded with it.

nats-py loads aiohttp for WebSockets, if it is installed, and does without otherwise. Nobody speaks them here, and it
would cost each process 0.15 s at its start, and 11 MB those that need no aiohttp for `http.py`.
"""

# ruff: noqa: E402

from __future__ import annotations

import sys

_is_hidden = "aiohttp" not in sys.modules
if _is_hidden:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # as the import system says "not installed"

from nats import errors
from nats.aio.client import Client as _Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

if _is_hidden:
    del sys.modules["aiohttp"]


class Client(_Client):
    """nats-py's, with headers read in a third of the time: a log is read with nine to a message."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """`Name: Value` to a line. Of several of one name the last counts; the server adds its own after all others."""
        lines = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n"))
        return {name.strip(): value.strip() for name, colon, value in lines if colon}


__all__ = ["Client", "Msg", "Subscription", "errors"]
