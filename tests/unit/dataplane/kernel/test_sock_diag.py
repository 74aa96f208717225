"""What the kernel answers about sockets, taken apart; and what is no answer of its."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.kernel import sock_diag
from services.dataplane.kernel.sock_diag import (
    ESTABLISHED,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    SOCK_DIAG_BY_FAMILY,
    Found,
    SocketDiag,
    Unanswered,
    answers,
)

ANY = range(1 << 64)
IDENTIFIER = struct.pack(
    "=2s2s16s16sIQ", b"\x9c\x40", b"\x00\x35", b"\x0a\x00\x00\x05" + bytes(12), b"\x0a\x00\x00\x09" + bytes(12), 0, 77
)
ONE = struct.pack("=BBBB", socket.AF_INET, ESTABLISHED, 0, 0) + IDENTIFIER + bytes(20)
MARK = b"\x05\x00\x08\x00\x00\x00\x00\x00"  # an attribute after it: INET_DIAG_SHUTDOWN


def message(kind: int, body: bytes, sequence: int = 1) -> bytes:
    padded = body + bytes(-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 2, sequence, 0) + padded


def test_sockets_come_in_parts_and_the_end_mark_says_how_it_went() -> None:
    data = message(SOCK_DIAG_BY_FAMILY, ONE + MARK) * 2
    mapped = bytes(10) + b"\xff\xff\x0a\x00\x00\x09"
    expected = Found(77, ESTABLISHED, mapped, b"\x00\x35", socket.AF_INET, IDENTIFIER)
    assert answers(data, 1, {77}) == ([expected] * 2, None)
    assert answers(data, 1, {78}) == ([], None)
    assert answers(message(NLMSG_DONE, bytes(4)), 1, ANY) == ([], 0)
    refused = struct.pack("=i", -errno.EOPNOTSUPP) + bytes(16)
    assert answers(message(NLMSG_ERROR, refused), 1, ANY) == ([], errno.EOPNOTSUPP)


def test_the_late_answer_to_an_earlier_question_is_passed_over() -> None:
    late = message(SOCK_DIAG_BY_FAMILY, ONE, 7) + message(NLMSG_DONE, bytes(4), 7) + message(NLMSG_NOOP, b"", 8)
    assert answers(late, 8, ANY) == ([], None)
    assert answers(late + message(NLMSG_DONE, bytes(4), 8), 8, ANY) == ([], 0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00", id="no header"),
        pytest.param(struct.pack("=IHHII", 0, 20, 0, 1, 0), id="no length"),
        pytest.param(struct.pack("=IHHII", 15, 20, 0, 1, 0), id="shorter than its header"),
        pytest.param(struct.pack("=IHHII", 17, 20, 0, 1, 0), id="longer than what came"),
        pytest.param(struct.pack("=IHHII", 0xFFFFFFFF, 20, 0, 1, 0), id="very long"),
        pytest.param(message(SOCK_DIAG_BY_FAMILY, ONE[:-1]), id="half a socket"),
        pytest.param(message(99, ONE), id="another kind"),
        pytest.param(message(NLMSG_DONE, b"\x00\x00"), id="half an end"),
        pytest.param(message(SOCK_DIAG_BY_FAMILY, ONE) + b"\x01\x02", id="something after it"),
    ],
)
def test_what_the_kernel_would_not_say_is_refused(data: bytes) -> None:
    with pytest.raises(Unanswered):
        answers(data, 1, ANY)


WHOLE = message(SOCK_DIAG_BY_FAMILY, ONE + MARK) + message(NLMSG_DONE, bytes(4))


@given(
    st.one_of(
        st.binary(max_size=400),
        st.integers(0, len(WHOLE)).map(lambda at: WHOLE[:at]),
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)).map(
            lambda change: WHOLE[: change[0]] + bytes([change[1]]) + WHOLE[change[0] + 1 :]
        ),
    )
)
def test_any_bytes_are_an_answer_or_refused(data: bytes) -> None:
    try:
        found, number = answers(data, 1, ANY)
    except Unanswered:
        return
    assert all(len(each.address) == 16 and len(each.port) == 2 and len(each.identifier) == 48 for each in found)
    assert number is None or -(1 << 31) <= number <= 1 << 31


class Answering:
    """In the place of a netlink socket: gives what the test says, from whom it says, and the last of it for ever."""

    def __init__(self, *given: tuple[bytes, int, int]) -> None:
        self.given = list(given)  # data, flags, port id of the sender

    def sendto(self, data: bytes, to: tuple[int, int]) -> None:
        assert to == (0, 0)

    def recvmsg(self, size: int) -> tuple[bytes, list[object], int, tuple[int, int]]:
        data, flags, sender = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        return data, [], flags, (sender, 0)


def asked(*given: tuple[bytes, int, int]) -> list[Found]:
    diag = SocketDiag()
    with diag:
        diag._socket.close()
        diag._socket = Answering(*given)  # type: ignore[assignment]  # what is asked of it, it has
        try:
            return diag.sockets(socket.AF_INET, sock_diag.UDP, ANY)
        finally:
            diag._socket = socket.socket()


def test_what_another_process_of_the_pod_says_is_no_answer() -> None:
    forged = message(SOCK_DIAG_BY_FAMILY, ONE) + message(NLMSG_DONE, bytes(4))
    assert asked((forged, 0, 4711), (b"nonsense", 0, 12), (message(NLMSG_DONE, bytes(4)), 0, 0)) == []


def test_a_part_that_was_cut_off_is_refused() -> None:
    with pytest.raises(Unanswered):
        asked((message(SOCK_DIAG_BY_FAMILY, ONE), socket.MSG_TRUNC, 0))


def test_who_talks_in_between_for_ever_is_not_listened_to_for_ever() -> None:
    with pytest.raises(Unanswered):
        asked((b"noise", 0, 4711))


def test_an_error_at_the_end_of_a_list_is_raised() -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        asked((message(NLMSG_DONE, struct.pack("=i", -errno.ENOENT)), 0, 0))
    assert raised.value.errno == errno.ENOENT


def test_a_walk_that_is_told_to_stop_is_not_whole() -> None:
    stop = threading.Event()
    stop.set()
    done = sock_diag.walk({1: {(bytes(16), bytes(2))}}, [sock_diag.UDP], None, stop)
    assert not done.is_whole
    assert not done.ended


@pytest.mark.parametrize("listed", ["", "0\n", "0\n4194305\n"])
def test_a_process_without_a_number_is_not_seen_and_one_that_has_ended_is_no_loss(tmp_path: Path, listed: str) -> None:
    """4194305 is more than any process has."""
    pod = tmp_path / "pod"
    pod.mkdir()
    for folder in (tmp_path, pod):
        (folder / "cgroup.procs").write_text("4194305\n" + listed)
    done = sock_diag.Walk()
    assert list(sock_diag._namespaces(tmp_path, done)) == [()]
    assert done.is_whole == (not listed)
    assert bool(done.problems) == bool(listed)
