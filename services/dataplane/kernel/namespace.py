"""The network namespace in which this process is, as the kernel's programs know it."""

from __future__ import annotations

import socket

SO_NETNS_COOKIE = 71  # kernel 5.14


def cookie() -> int:
    """A number that no other namespace has until the next boot; they are given out from 1 on. Raises: OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
