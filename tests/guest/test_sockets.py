"""Debian's kernel ends sockets, so that their owners learn that a backend is gone."""

from __future__ import annotations

import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.dataplane.kernel.sock_diag import TCP, UDP, Peer, walk
from services.dataplane.shapes.layouts import pack_address

SO_COOKIE = 57


def cookie(of: socket.socket) -> int:
    return int(struct.unpack("=Q", of.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


def peer(of: socket.socket) -> Peer:
    address, port = of.getpeername()
    return pack_address(address), int(port).to_bytes(2, "big")


def test_sockets_are_ended_by_their_cookie() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as neighbour,
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as stream,
        ThreadPoolExecutor(1) as thread,
    ):
        datagrams.connect(("127.0.0.1", 7))
        neighbour.connect(("127.0.0.1", 7))
        wanted = {cookie(each): {peer(each)} for each in (datagrams, stream)}
        done = thread.submit(walk, wanted, (UDP, TCP), None, threading.Event()).result()
        assert done.ended == [(UDP, cookie(datagrams)), (TCP, cookie(stream))]
        for each in (datagrams, stream):
            with pytest.raises(ConnectionAbortedError):
                each.recv(1)
        assert neighbour.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
