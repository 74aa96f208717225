"""What is used of nats-py. Everything else takes it from here, so that aiohttp is not loaded with it.

nats-py loads aiohttp for WebSockets, if it is installed, and does without otherwise. Nobody speaks them here, and it
would cost each process 0.15 s at its start, and 11 MB those that need no aiohttp for `http.py`.
"""

# ruff: noqa: E402

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator

from bus.telemetry import count, logger

_is_hidden = "aiohttp" not in sys.modules
if _is_hidden:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # as the import system says "not installed"

from nats import errors
from nats.aio.client import Client as _Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol import parser

if _is_hidden:
    del sys.modules["aiohttp"]


log = logger(__name__)


async def arrivals(subscription: Subscription) -> AsyncIterator[Msg]:
    """What comes in. All that waits already follows in the same turn of the event loop: nats-py's own iterator makes a
    task for each message, so that whoever merges what comes in was woken for one at a time, however many there were."""
    async for message in subscription.messages:
        yield message
        for _ in range(subscription.pending_msgs):
            waiting = subscription._pending_queue.get_nowait()
            subscription._pending_queue.task_done()
            subscription._pending_size -= len(waiting.data)
            yield waiting


# As the server does, which takes every byte but these for part of a subject. nats-py ends the connection over a form
# feed, which whoever may write any key may put into one.
parser.MSG_RE = re.compile(rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+(\d+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+(\d+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n")


class Client(_Client):
    """nats-py's; no message ends its connection, and headers are read in a third of the time: a log is read with nine
    to a message."""

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """What nats-py cannot read (a subject that is no UTF-8, a status of strange bytes) is passed over."""
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as problem:  # noqa: BLE001  # any that gets through ends the reading of this connection
            count("bus_unreadable")
            log.warning("message dropped: it cannot be read", subject=repr(subject), why=repr(problem))

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """`Name: Value` to a line. Of several of one name the last counts; the server adds its own after all others."""
        lines = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n"))
        return {name.strip(" "): value.strip(" ") for name, colon, value in lines if colon}

    async def _process_err(self, err_msg: str) -> None:
        """What the server says of a subject is told; all else it says before it ends the connection, and the next one
        may be taken (a password that is set right, an answer that was too large). nats-py would never come back."""
        if parser.PERMISSIONS_ERR in err_msg or self.is_connecting:
            await super()._process_err(err_msg)
        else:
            await self._process_op_err(errors.Error(f"nats: {err_msg.strip(chr(39))}"))

    async def _process_connect_init(self) -> None:
        """A connection of which nothing came is dropped. Whose TLS failed never tells its end: nats-py waits for it."""
        try:
            await super()._process_connect_init()
        except OSError:  # TimeoutError and ssl.SSLError are such
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]  # nats-py has no type for it
                self._transport = None
            raise


__all__ = ["Client", "Msg", "Subscription", "errors"]
