"""The executable prints one JSON document and ends, whatever the other end does."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXECUTABLE = Path(__file__).parents[4] / "build" / "plexus-cni"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    subprocess.run(["make", "-s", "-C", str(EXECUTABLE.parents[1] / "cni")], check=True)


def run(path: str | Path, stdin: bytes = b"{}", **variables: str) -> tuple[int, Any]:
    environment = {"CNI_COMMAND": "ADD", **variables, "PLEXUS_CNI_SOCKET": str(path)}
    done = subprocess.run([EXECUTABLE], input=stdin, env=environment, capture_output=True, timeout=20, check=False)
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def node(path: Path, answer: Callable[[socket.socket], None]) -> threading.Thread:
    """Serves one connection with `answer`, on a thread of its own."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def received(connection: socket.socket) -> bytes:
    """The whole request."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        piece = connection.recv(65536)
        assert piece
        data += piece
    return data[4:]


def test_the_versions_are_told_without_a_node() -> None:
    assert run("/nonexistent", CNI_COMMAND="VERSION") == (
        0,
        {"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]},
    )


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"ipam": {"cniVersion": "0.1.0"}, "x": "cniVersion", "q\\"": "{", "cniVersion" : "1.0.0"}', "1.0.0"),
        (b'{"cniVersion":"2.0.0"}', "2.0.0"),
        (b'{"cniVersion":"1.0.0\\u0022"}', "1.1.0"),
        (b'{"cniVersion":"' + b"1" * 100 + b'"}', "1.1.0"),
        (b'{"cniVersion":', "1.1.0"),
        (b'{"cniVersion', "1.1.0"),
        (b"", "1.1.0"),
    ],
)
def test_version_bears_the_version_that_was_asked_with(stdin: bytes, version: str) -> None:
    status, told = run("/nonexistent", stdin, CNI_COMMAND="VERSION")
    assert (status, told["cniVersion"], len(told["supportedVersions"])) == (0, version, 4)


@pytest.mark.parametrize(("asked", "told"), [("0.4.0", "0.4.0"), ("1.1.0", "1.1.0"), ("9.9.9", "1.0.0")])
def test_an_error_of_the_executables_own_bears_the_version_in_use(asked: str, told: str) -> None:
    text = json.dumps({"cniVersion": asked, "name": "plexus"}).encode()
    assert run("/nonexistent", text)[1]["cniVersion"] == told
    assert run("/nonexistent", text, CNI_ARGS="x" * 70_000)[1]["cniVersion"] == told


def test_text_in_details_is_as_it_was_given_and_utf8_whatever_it_was(tmp_path: Path) -> None:
    told = run(tmp_path / 'é€😀"\x01')[1]["details"]
    assert told.startswith(f'{tmp_path}/é€😀"\x01: ')
    for raw in (b"\xff", b"\xc0\xaf", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        told = run(os.fsdecode(bytes(tmp_path) + b"/a" + raw + b"b"))[1]["details"]
        assert told.startswith(f"{tmp_path}/a\ufffd") and "b: No such file" in told


@pytest.mark.parametrize(("verb", "code", "most_seconds"), [("STATUS", 5, 5.0), ("VERSION", 0, 5.0), ("DEL", 5, 19.0)])
def test_standard_input_that_never_ends_is_not_waited_for(
    tmp_path: Path, verb: str, code: int, most_seconds: float
) -> None:
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [EXECUTABLE],
            stdin=reading,
            env={"CNI_COMMAND": verb, "PLEXUS_CNI_SOCKET": str(tmp_path / "s")},
            capture_output=True,
            timeout=most_seconds,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)
    told = json.loads(done.stdout)
    assert (done.returncode, told.get("code", 0)) == (1 if code else 0, code)


@pytest.mark.parametrize("accepts", [True, False])
def test_status_does_not_wait_for_a_dataplane_that_hangs(tmp_path: Path, accepts: bool) -> None:
    """One that is stopped: the kernel takes the connection, and nobody reads. The runtime waits five seconds here."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1 if accepts else 0)
        waiting = socket.socket(socket.AF_UNIX)
        if not accepts:  # its queue is full, too
            waiting.connect(str(tmp_path / "s"))
        done = subprocess.run(
            [EXECUTABLE],
            input=b'{"cniVersion":"1.1.0","name":"plexus"}',
            env={"CNI_COMMAND": "STATUS", "PLEXUS_CNI_SOCKET": str(tmp_path / "s")},
            capture_output=True,
            timeout=5,
            check=False,
        )
        waiting.close()
    told = json.loads(done.stdout)
    assert (done.returncode, told["code"], told["cniVersion"]) == (1, 50, "1.1.0")


def test_the_request_arrives_as_it_was_given_and_the_answer_goes_out_as_it_came(tmp_path: Path) -> None:
    seen: list[bytes] = []
    text = b'{"cniVersion":"1.0.0", "long": "' + b"x" * 200_000 + b'"}\n'

    def answer(connection: socket.socket) -> None:
        seen.append(received(connection))
        frame = struct.pack("<IB", len(text) + 1, 7) + text
        for start in range(0, len(frame), 30_000):
            connection.sendall(frame[start : start + 30_000])

    thread = node(tmp_path / "s", answer)
    status, told = run(tmp_path / "s", b'{"name": "\0\xff"}' * 5000, CNI_IFNAME="eth0", OTHER="no")
    thread.join()
    assert (status, told) == (7, json.loads(text))
    variables, _, configuration = seen[0].partition(b"\0\0")
    assert set(variables.split(b"\0")) == {b"CNI_COMMAND=ADD", b"CNI_IFNAME=eth0"}
    assert configuration == b'{"name": "\0\xff"}' * 5000


def test_the_namespace_goes_along_opened(tmp_path: Path) -> None:
    inodes: list[int] = []

    def answer(connection: socket.socket) -> None:
        _, fds, _, _ = socket.recv_fds(connection, 65536, 4)
        for fd in fds:
            inodes.append(os.fstat(fd).st_ino)
            os.close(fd)
        connection.sendall(struct.pack("<IB", 1, 0))

    thread = node(tmp_path / "s", answer)
    assert run(tmp_path / "s", CNI_NETNS="/proc/self/ns/net") == (0, None)
    thread.join()
    assert inodes == [Path("/proc/self/ns/net").stat().st_ino]


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_without_a_node_the_runtime_is_told_what_to_do(tmp_path: Path, verb: str) -> None:
    status, told = run(tmp_path / 'no "socket"\n', CNI_COMMAND=verb)
    assert (status, told["code"]) == (1, 50 if verb == "STATUS" else 11)
    assert "start it" in told["msg"]
    assert 'no "socket"\n: No such file' in told["details"]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", 11),
        (b"\x10", 11),
        (struct.pack("<IB", 100, 0) + b"{", 11),
        (b"HTTP/1.1 400", 5),
        (b"\0" * 8, 5),
        (struct.pack("<IB", 6, 0) + b"hello", 5),
    ],
    ids=["nothing", "half a head", "half an answer", "another protocol", "an empty frame", "no JSON"],
)
@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_a_node_that_answers_badly_is_an_error_and_no_result(
    tmp_path: Path, frame: bytes, code: int, verb: str
) -> None:
    def answer(connection: socket.socket) -> None:
        received(connection)
        connection.sendall(frame)

    node(tmp_path / "s", answer)
    status, told = run(tmp_path / "s", CNI_COMMAND=verb)
    assert (status, told["code"]) == (1, 50 if verb == "STATUS" else code)


def test_a_refusal_before_the_request_was_read_is_passed_on(tmp_path: Path) -> None:
    text = b'{"code":5,"msg":"frame: too long"}'

    def answer(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(struct.pack("<IB", len(text) + 1, 1) + text)

    node(tmp_path / "s", answer)
    assert run(tmp_path / "s", b"x" * 900_000) == (1, json.loads(text))


@pytest.mark.parametrize(
    ("stdin", "variables", "code"),
    [(b" " * ((1 << 20) + 1), {}, 7), (b"{}", {"CNI_ARGS": "x" * 70_000}, 4)],
    ids=["configuration", "variables"],
)
def test_what_is_too_long_is_refused_at_once(
    tmp_path: Path, stdin: bytes, variables: dict[str, str], code: int
) -> None:
    status, told = run(tmp_path / "s", stdin, **variables)
    assert (status, told["code"]) == (1, code)
    assert "too long" in told["msg"]


def test_a_socket_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    status, told = run(tmp_path / ("x" * 120))
    assert (status, told["code"]) == (1, 4)


def test_a_pod_ends_while_the_dataplane_is_away_and_the_request_is_left_whole(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    told = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0"}
    assert run(path, b'{"name":"plexus"}', **told)[1]["code"] == 11, "no dataplane has ever been here"
    folder = tmp_path / "cni.sock.deleted"
    folder.mkdir()
    for _ in range(2):
        assert run(path, b'{"name":"plexus"}', **told) == (0, None)
    first, second = sorted(folder.iterdir())
    assert first.read_bytes() == second.read_bytes()
    variables, _, configuration = first.read_bytes().partition(b"\0\0")
    assert set(variables.split(b"\0")) == {f"{name}={value}".encode() for name, value in told.items()}
    assert configuration == b'{"name":"plexus"}' and first.stat().st_mode & 0o777 == 0o600


def test_only_a_deletion_is_left_and_only_where_nobody_serves(tmp_path: Path) -> None:
    path = tmp_path / "cni.sock"
    (tmp_path / "cni.sock.deleted").mkdir()
    for verb, code in (("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)):
        assert run(path, CNI_COMMAND=verb, CNI_CONTAINERID="a", CNI_IFNAME="eth0")[1]["code"] == code
    thread = node(path, lambda connection: None)
    assert run(path, CNI_COMMAND="DEL", CNI_CONTAINERID="a", CNI_IFNAME="eth0")[1]["code"] == 11, "it ended meanwhile"
    thread.join()
    assert list((tmp_path / "cni.sock.deleted").iterdir()) == []
