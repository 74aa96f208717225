"""Every CNI request gets one answer, and what is wrong with it is named."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.telemetry import counted
from services.dataplane.pods import cni, cni_server
from services.dataplane.pods.addresses import Attachment
from services.dataplane.shapes.ip import PodIp
from tests.unit.dataplane.test_node import until

CONFIGURATION = {"cniVersion": "1.0.0", "name": "plexus", "type": "plexus-cni"}
VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/proc/1/ns/net",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1;K8S_POD_UID=0a-1",
}


def payload(variables: dict[str, str], configuration: bytes) -> bytes:
    return b"".join(f"{name}={value}".encode() + b"\0" for name, value in variables.items()) + b"\0" + configuration


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def request(configuration: dict[str, Any] | bytes = b"", /, **changes: str | None) -> bytes:
    """A frame like that of a good ADD, but for `changes` (None: left out; names without CNI_)."""
    variables = VARIABLES | {f"CNI_{name}": value for name, value in changes.items() if value is not None}
    for name, value in changes.items():
        if value is None:
            del variables[f"CNI_{name}"]
    text = configuration if isinstance(configuration, bytes) and configuration else None
    if text is None:
        text = json.dumps(CONFIGURATION | (configuration if isinstance(configuration, dict) else {})).encode()
    return framed(payload(variables, text))


class Recorder:
    """Pods that does nothing but remember, or what a test says."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.problems: tuple[str, ...] = ()
        self.unready: Exception | None = None
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.at_once = 0
        self.most_at_once = 0

    async def add(self, request: cni.Add) -> cni.PodInterface:
        raise AssertionError("no test here has a namespace to add")

    async def delete(self, request: cni.Delete) -> None:
        self.calls.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.gate is not None:
            await self.gate.wait()
        self.at_once -= 1
        if self.failure is not None:
            raise self.failure

    async def check(self, request: cni.Check) -> tuple[str, ...]:
        return self.problems

    async def collect(self, request: cni.Collect) -> None:
        self.calls.append(request)

    async def status(self) -> None:
        if self.unready is not None:
            raise self.unready


@asynccontextmanager
async def serving(path: Path, pods: Recorder) -> AsyncIterator[Path]:
    task = asyncio.create_task(cni_server.Server(path, pods).run())
    while not path.exists():
        await asyncio.sleep(0.001)
        if task.done():
            task.result()
    try:
        yield path
    finally:
        task.cancel()
        await asyncio.wait([task])


async def ask(path: Path, data: bytes, *, close: bool = False, fds: list[int] | None = None) -> tuple[int, Any]:
    """Exit status and decoded answer. `close`: end the sending side, as a dying executable would."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        await loop.sock_connect(connection, str(path))
        if fds:
            socket.send_fds(connection, [data[:1]], fds)
            data = data[1:]
        try:
            await loop.sock_sendall(connection, data)
            if close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        with suppress(ConnectionResetError):  # after the answer, when it came before all was read
            while piece := await loop.sock_recv(connection, 65536):
                answer += piece
    assert int.from_bytes(answer[:4], "little") == len(answer) - 4
    return answer[4], json.loads(answer[5:]) if answer[5:] else None


ALL_MISSING = "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME: missing"
BAD_REQUESTS: list[tuple[str, bytes, int, str]] = [
    ("no verb", request(COMMAND=None), 4, "CNI_COMMAND: missing"),
    ("an unknown verb", request(COMMAND="EXPLODE"), 4, "CNI_COMMAND"),
    ("no container id", request(CONTAINERID=None), 4, "CNI_CONTAINERID: missing"),
    ("a container id with a slash", request(CONTAINERID="../../etc"), 4, "CNI_CONTAINERID"),
    ("a container id that is too long", request(CONTAINERID="c" * 254), 4, "CNI_CONTAINERID"),
    ("no interface name", request(IFNAME=None), 4, "CNI_IFNAME: missing"),
    ("an interface name that is too long", request(IFNAME="e" * 16), 4, "CNI_IFNAME"),
    ("an interface name with a slash", request(IFNAME="a/b"), 4, "CNI_IFNAME"),
    ("an interface name with a line break", request(IFNAME="a\nb"), 4, "CNI_IFNAME"),
    ("an interface called ..", request(IFNAME=".."), 4, "CNI_IFNAME"),
    ("no namespace", request(NETNS=None), 4, "CNI_NETNS: missing"),
    ("a namespace that could not be opened", request(), 4, "CNI_NETNS"),
    ("no pod name", request(ARGS="K8S_POD_NAMESPACE=default"), 4, "K8S_POD_NAME is missing"),
    ("nothing that ADD needs", request(CONTAINERID=None, NETNS=None, IFNAME=None), 4, ALL_MISSING),
    ("a network name that no file can have", request({"name": "-bad/"}), 7, "name"),
    ("a network name that is too long", request({"name": "n" * 254}), 7, "name"),
    ("CHECK without what ADD answered", request(COMMAND="CHECK"), 7, "prevResult: missing"),
    ("CHECK with a list for a result", request({"prevResult": []}, COMMAND="CHECK"), 7, "$.prevResult"),
    (
        "CHECK with a number for an address",
        request({"prevResult": {"ips": [{"address": 1}]}}, COMMAND="CHECK"),
        7,
        "ips",
    ),
    ("arguments without =", request(ARGS="K8S_POD_NAMESPACE"), 4, "CNI_ARGS"),
    ("a pod name in capitals", request(ARGS="K8S_POD_NAMESPACE=default;K8S_POD_NAME=Web"), 4, "K8S_POD_NAME"),
    ("a namespace with a dot", request(ARGS="K8S_POD_NAMESPACE=a.b;K8S_POD_NAME=web"), 4, "K8S_POD_NAMESPACE"),
    ("a pod name that is too long", request(ARGS=f"K8S_POD_NAMESPACE=a;K8S_POD_NAME={'a.' * 130}a"), 4, "K8S_POD_NAME"),
    ("no JSON", request(b"{"), 6, "network configuration"),
    ("nothing at all", framed(payload(VARIABLES, b"")), 6, "network configuration"),
    ("JSON too deep", request(b"[" * 100_000), 7, "network configuration"),
    ("JSON too deep in a field", request(b'{"name":"a","x":' + b"[" * 100_000), 6, "network configuration"),
    ("a list", request(b"[]"), 7, "network configuration"),
    ("a name that is a number", request({"name": 7}), 7, "$.name"),
    ("no network name", request(b'{"cniVersion":"1.0.0"}'), 7, "`name`"),
    ("DNS settings that are text", request({"dns": "8.8.8.8"}), 7, "$.dns"),
    ("no version", request(b'{"name":"plexus"}'), 1, "cniVersion"),
    ("a version to come", request({"cniVersion": "9.0.0"}), 1, "cniVersion"),
    ("a version that is a number", request({"cniVersion": 1.0}), 7, "$.cniVersion"),
    ("CHECK before it existed", request({"cniVersion": "0.3.1"}, COMMAND="CHECK"), 1, "CHECK exists since 0.4.0"),
    ("STATUS before it existed", request(COMMAND="STATUS"), 1, "STATUS exists since 1.1.0"),
    (
        "GC with a damaged list",
        request({"cniVersion": "1.1.0", "cni.dev/valid-attachments": [{"containerID": 1}]}, COMMAND="GC"),
        7,
        "containerID",
    ),
    ("an earlier plugin", request({"prevResult": {"ips": []}}), 7, "prevResult"),
    ("a frame without the separator", framed(b"CNI_COMMAND=ADD"), 5, "frame"),
    ("an empty frame", framed(b""), 5, "frame"),
    ("a variable without =", framed(b"CNI_COMMAND\0\0{}"), 4, "KEY=VALUE"),
    ("a variable that is not UTF-8", framed(b"CNI_COMMAND=\xff\0\0{}"), 4, "UTF-8"),
    ("a frame that is too long", struct.pack("<I", 0xFFFFFFFF) + b"x" * 100, 5, "frame"),
]


@pytest.mark.parametrize(
    ("data", "code", "named"), [row[1:] for row in BAD_REQUESTS], ids=[row[0] for row in BAD_REQUESTS]
)
async def test_a_bad_request_is_refused_by_one_error_that_names_the_place(
    tmp_path: Path, data: bytes, code: int, named: str
) -> None:
    async with serving(tmp_path / "cni.sock", Recorder()) as path:
        status, answer = await ask(path, data)
        assert status == 1
        assert (answer["code"], answer["cniVersion"] in cni.VERSIONS) == (code, True)
        assert named in answer["msg"]
        assert await ask(path, request(COMMAND="DEL")) == (0, None)


async def test_a_frame_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = request(COMMAND="DEL")
    async with serving(tmp_path / "cni.sock", Recorder()) as path:
        for cut in (0, 1, 3, 4, 5, len(whole) - 1):
            status, answer = await ask(path, whole[:cut], close=True)
            assert (status, answer["code"]) == (1, 5)
            assert "frame" in answer["msg"]


async def test_a_frame_that_never_comes_whole_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni_server, "READ_SECONDS", 0.05)
    async with serving(tmp_path / "cni.sock", Recorder()) as path:
        status, answer = await ask(path, b"\x10\0")
        assert (status, answer["code"]) == (1, 5)


@given(st.binary(max_size=200))
def test_no_frame_makes_the_parser_fail_in_another_way(data: bytes) -> None:
    try:
        variables, configuration = cni.split(data)
        cni.asked_version(configuration)
        cni.parse(variables, configuration, None)
    except cni.CniError:
        pass


@given(
    st.dictionaries(st.sampled_from(sorted(VARIABLES)), st.text(max_size=30)),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["cniVersion", "name", "dns", "ips", "prevResult", "cni.dev/valid-attachments"]), inner
            )
        ),
    ),
)
def test_no_configuration_makes_the_parser_fail_in_another_way(changes: dict[str, str], configuration: object) -> None:
    text = json.dumps(configuration).encode()
    try:
        cni.asked_version(text)
        cni.parse(VARIABLES | changes, text, None)
    except cni.CniError:
        pass


async def test_descriptors_that_come_along_are_closed_however_many(tmp_path: Path) -> None:
    async with serving(tmp_path / "cni.sock", Recorder()) as path:
        await ask(path, request(COMMAND="DEL"))
        before = len(list(Path("/proc/self/fd").iterdir()))
        with open("/dev/null") as null:  # noqa: PTH123
            for data in (request(COMMAND="DEL"), request(), framed(b"CNI_COMMAND=ADD"), request(b"{")):
                for count in (1, 3):
                    await ask(path, data, fds=[null.fileno()] * count)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_file_is_not_taken_for_a_network_namespace(tmp_path: Path) -> None:
    async with serving(tmp_path / "cni.sock", Recorder()) as path:
        for place, named in (("/dev/null", "not a network namespace"), ("/proc/self/ns/net", "the node's own")):
            with open(place) as file:  # noqa: PTH123
                status, answer = await ask(path, request(), fds=[file.fileno()])
            assert (status, answer["code"]) == (1, 8)
            assert named in answer["msg"]


async def test_removal_works_without_a_namespace_and_without_a_pod_name(tmp_path: Path) -> None:
    pods = Recorder()
    async with serving(tmp_path / "cni.sock", pods) as path:
        assert await ask(path, request(COMMAND="DEL", NETNS=None, ARGS=None)) == (0, None)
    assert pods.calls == [cni.Delete(Attachment("c1", "eth0"), "plexus")]


@pytest.mark.parametrize(
    "strange",
    [
        {"prevResult": "none"},
        {"prevResult": {"ips": 7, "interfaces": "eth0"}},
        {"dns": None},
        {"dns": "8.8.8.8"},
        {"cni.dev/valid-attachments": 1},
        {"cniVersion": "9.9.9"},
    ],
    ids=["a result that is text", "a result of other forms", "null for DNS", "text for DNS", "a list that is none",
         "a version to come"],
)  # fmt: skip
async def test_removal_is_done_whatever_else_the_configuration_says(tmp_path: Path, strange: dict[str, Any]) -> None:
    pods = Recorder()
    async with serving(tmp_path / "cni.sock", pods) as path:
        assert await ask(path, request(strange, COMMAND="DEL")) == (0, None)
    assert pods.calls == [cni.Delete(Attachment("c1", "eth0"), "plexus")]


VALID = [{"containerID": "c1", "ifname": "eth0"}]


@pytest.mark.parametrize(
    ("listed", "valid"),
    [
        ({"cni.dev/valid-attachments": VALID}, {Attachment("c1", "eth0")}),
        ({"cni.dev/attachments": VALID}, {Attachment("c1", "eth0")}),
        ({"cni.dev/valid-attachments": []}, set()),
        ({"cni.dev/valid-attachments": None}, set()),
        ({}, set()),
    ],
    ids=["a list", "a list under its first name", "an empty list", "null", "no list"],
)
async def test_garbage_collection_passes_on_what_is_to_stay_of_which_network(
    tmp_path: Path, listed: dict[str, Any], valid: set[Attachment]
) -> None:
    pods = Recorder()
    async with serving(tmp_path / "cni.sock", pods) as path:
        assert await ask(path, request({"cniVersion": "1.1.0", "name": "net7", **listed}, COMMAND="GC")) == (0, None)
    assert pods.calls == [cni.Collect("net7", frozenset(valid))]


async def test_status_tells_why_the_node_is_not_ready(tmp_path: Path) -> None:
    pods = Recorder()
    async with serving(tmp_path / "cni.sock", pods) as path:
        assert await ask(path, request({"cniVersion": "1.1.0"}, COMMAND="STATUS")) == (0, None)
        pods.unready = cni.CniError(51, "no block of addresses yet", "routes: none")
        status, answer = await ask(path, request({"cniVersion": "1.1.0"}, COMMAND="STATUS"))
        said = {"code": 51, "msg": "no block of addresses yet", "details": "routes: none"}
        assert (status, answer) == (1, {"cniVersion": "1.1.0", **said})
        pods.unready = RuntimeError("oops")
        status, answer = await ask(path, request({"cniVersion": "1.1.0"}, COMMAND="STATUS"))
        assert (status, answer["code"]) == (1, 50)


async def test_text_in_an_error_is_as_it_was_given(tmp_path: Path) -> None:
    async with serving(tmp_path / "cni.sock", Recorder()) as path:
        for changes, given in (({"CONTAINERID": 'né\\"\n'}, 'né\\"\n'), ({"IFNAME": "a/é"}, "a/é")):
            _, answer = await ask(path, request(**changes))
            assert answer["details"] == given
        _, answer = await ask(path, request({"name": "ñ/"}))
        assert answer["details"] == "ñ/"
        _, answer = await ask(path, request(ARGS="é\\"))
        assert '"é\\"' in answer["msg"]


async def test_a_failure_of_ours_is_told_and_the_next_request_is_served(tmp_path: Path) -> None:
    pods = Recorder()
    async with serving(tmp_path / "cni.sock", pods) as path:
        for failure, code in ((cni.CniError(102, "full"), 102), (RuntimeError("oops"), 100), (OSError(28, "x"), 100)):
            pods.failure = failure
            status, answer = await ask(path, request(COMMAND="DEL"))
            assert (status, answer["code"]) == (1, code)
        pods.failure = None
        assert await ask(path, request(COMMAND="DEL")) == (0, None)


async def test_work_that_takes_too_long_is_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_server, "WORK_SECONDS", 0.05)
    pods = Recorder()
    pods.gate = asyncio.Event()
    async with serving(tmp_path / "cni.sock", pods) as path:
        status, answer = await ask(path, request(COMMAND="DEL"))
        assert (status, answer["code"]) == (1, 11)


async def test_requests_about_one_container_take_turns_and_others_do_not_wait(tmp_path: Path) -> None:
    pods = Recorder()
    pods.gate = asyncio.Event()
    async with serving(tmp_path / "cni.sock", pods) as path:
        same = [asyncio.create_task(ask(path, request(COMMAND="DEL"))) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert pods.most_at_once == 1
        other = asyncio.create_task(ask(path, request(COMMAND="DEL", CONTAINERID="c2")))
        await asyncio.sleep(0.05)
        assert pods.most_at_once == 2
        pods.gate.set()
        assert await asyncio.gather(*same, other) == [(0, None)] * 4


async def test_idle_connections_do_not_keep_a_request_out_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni_server, "READ_SECONDS", 0.1)
    async with serving(tmp_path / "cni.sock", Recorder()) as path:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(cni_server.MAX_CONNECTIONS + 10)]
        for connection in idle:
            connection.connect(str(path))
        assert await ask(path, request(COMMAND="DEL")) == (0, None)
        for connection in idle:
            connection.close()


async def test_the_socket_is_for_root_alone_replaces_a_stale_one_and_goes_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "cni.sock"
    path.parent.mkdir()
    path.touch()
    server = asyncio.create_task(cni_server.Server(path, Recorder()).run())
    await asyncio.sleep(0.05)
    assert path.is_socket() and path.stat().st_mode & 0o777 == 0o600
    assert await ask(path, request(COMMAND="DEL")) == (0, None)
    server.cancel()
    await asyncio.wait([server])
    assert [each.name for each in path.parent.iterdir()] == ["cni.sock.deleted"], "for deletions while nobody is here"


def left(path: Path, name: str, frame: bytes) -> Path:
    """As the executable leaves a request while nobody serves the socket."""
    folder = path.with_name(path.name + ".deleted")
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(frame[4:])
    return folder / name


async def test_what_was_to_be_deleted_while_nobody_was_here_is_done_first_and_in_order(tmp_path: Path) -> None:
    path, pods = tmp_path / "cni.sock", Recorder()
    for name in ("b", "a"):
        left(path, name, request(COMMAND="DEL", CONTAINERID=f"box-{name}", NETNS=None))
    left(path, "c.new", request(COMMAND="DEL", CONTAINERID="half"))
    pods.gate = asyncio.Event()
    server = asyncio.create_task(cni_server.Server(path, pods).run())
    try:
        await until(lambda: len(pods.calls) == 1)
        assert not path.exists(), "nobody can add before"
        pods.gate.set()
        await until(path.exists)
        assert [call.attachment.container_id for call in pods.calls if isinstance(call, cni.Delete)] == [
            "box-a",
            "box-b",
        ]
        assert [each.name for each in (tmp_path / "cni.sock.deleted").iterdir()] == ["c.new"]
    finally:
        server.cancel()
        await asyncio.wait([server])


async def test_a_deletion_that_fails_is_tried_again_and_one_that_cannot_be_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni_server, "LOOK_SECONDS", 0.01)
    path, pods = tmp_path / "cni.sock", Recorder()
    pods.failure = cni.CniError(cni.FAILED, "not now")
    file = left(path, "a", request(COMMAND="DEL"))
    lost = [
        left(path, "b", framed(b"garbage")),
        left(path, "c", request()),
        left(path, "d", request(b"{", COMMAND="DEL")),
    ]
    async with serving(path, pods):
        assert file.exists() and not any(each.exists() for each in lost)
        pods.failure = None
        await until(lambda: not file.exists())
    assert all(isinstance(call, cni.Delete) for call in pods.calls)


@pytest.mark.parametrize("deed", ["removed", "replaced", "directory removed"])
async def test_a_socket_that_somebody_removed_is_there_again_and_told_until_it_is_seen_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    monkeypatch.setattr(cni_server, "LOOK_SECONDS", 0.01)
    path = tmp_path / "run" / "cni.sock"
    told: list[str] = []
    before = counted("drift", kind="file")
    server = asyncio.create_task(cni_server.Server(path, Recorder(), told.append).run())
    try:
        await until(lambda: "" in told)
        path.unlink()
        if deed == "replaced":
            path.touch()
        elif deed != "removed":
            shutil.rmtree(path.parent)
        await until(lambda: any(told))
        await until(lambda: not told[-1])
        assert {each.partition(": ")[0] for each in told if each} == {
            f"{path} was removed or replaced, so no pod could start"
        }
        assert await ask(path, request(COMMAND="DEL")) == (0, None)
        assert counted("drift", kind="file") == before + 1
    finally:
        server.cancel()
        await asyncio.wait([server])
    assert [each.name for each in path.parent.iterdir()] == ["cni.sock.deleted"], "for deletions while nobody is here"


@pytest.mark.parametrize("version", cni.VERSIONS)
def test_the_result_of_add_is_of_the_version_that_was_asked_for(version: str) -> None:
    asked = cni.Add(Attachment("c1", "eth0"), "plexus", "default", "web", "", "/run/netns/web", 3, version)
    ips = (PodIp("10.0.1.2", "10.0.1.1"), PodIp("fd00::2", "fd00::1"))
    made = cni.PodInterface("lxc1", "02:00:00:00:00:01", "02:00:00:00:00:02", ips, 1450)
    frame = cni.added(asked, made, {"nameservers": ["10.96.0.10"]}).frame()
    assert frame[4] == 0
    result = json.loads(frame[5:])
    assert result["cniVersion"] == version
    assert result["interfaces"][1]["sandbox"] == "/run/netns/web"
    assert ("mtu" in result["interfaces"][0]) == (version == "1.1.0")
    told = [each.pop("version", None) for each in result["ips"]]
    assert told == (["4", "6"] if version in ("0.3.1", "0.4.0") else [None, None])
    assert result["ips"] == [
        {"address": "10.0.1.2/32", "gateway": "10.0.1.1", "interface": 1},
        {"address": "fd00::2/128", "gateway": "fd00::1", "interface": 1},
    ]
    assert result["interfaces"][1]["name"] == "eth0"
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.0.1.1"}, {"dst": "::/0", "gw": "fd00::1"}]
    assert result["dns"] == {"nameservers": ["10.96.0.10"]}


@pytest.mark.parametrize(
    "arguments", [None, "", "IgnoreUnknown=1;K8S_POD_NAME=happy_turing", "K8S_POD_NAMESPACE=;K8S_POD_NAME="]
)
def test_a_container_of_no_pod_is_known_by_its_id(monkeypatch: pytest.MonkeyPatch, arguments: str | None) -> None:
    monkeypatch.setattr(cni, "_namespace", lambda *_: 3)
    variables = VARIABLES | {"CNI_ARGS": arguments or ""}
    asked, _ = cni.parse(variables, json.dumps(CONFIGURATION).encode(), 3)
    assert isinstance(asked, cni.Add)
    assert (asked.namespace, asked.pod, asked.uid, asked.network) == ("containers", "c1", "", "plexus")


MADE = cni.PodInterface(
    "lxc1",
    "02:00:00:00:00:01",
    "02:00:00:00:00:0a",
    (PodIp("10.0.1.2", "10.0.1.1"), PodIp("fd00::2", "fd00::1")),
    1450,
)
HOST = {"name": "lxc1", "mac": "02:00:00:00:00:01"}
POD = {"name": "eth0", "mac": "02:00:00:00:00:0A", "sandbox": "/x"}
BOTH = [{"address": "10.0.1.2/32", "interface": 1}, {"address": "FD00:0::2/128", "interface": 1}]


def believed(monkeypatch: pytest.MonkeyPatch, previous: dict[str, Any]) -> tuple[str, ...]:
    monkeypatch.setattr(cni, "_namespace", lambda *_: 3)
    text = json.dumps(CONFIGURATION | {"prevResult": previous}).encode()
    asked, _ = cni.parse(VARIABLES | {"CNI_COMMAND": "CHECK"}, text, 3)
    assert isinstance(asked, cni.Check)
    return cni.unlike(asked, MADE)


def test_check_believes_what_is_so_in_whatever_spelling_and_leaves_others_things_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert believed(monkeypatch, {"interfaces": [HOST, POD], "ips": BOTH}) == ()
    ifb, theirs = {"name": "ifb0", "mac": "02:00:00:00:00:99"}, {"address": "192.0.2.1/24", "interface": 2}
    assert believed(monkeypatch, {"interfaces": [HOST, POD, ifb], "ips": [*BOTH, theirs]}) == ()


@pytest.mark.parametrize(
    ("previous", "says"),
    [
        ({}, "no interface eth0"),
        ({"interfaces": None, "ips": None}, "no interface eth0"),
        ({"interfaces": [HOST], "ips": BOTH}, "no interface eth0"),
        ({"interfaces": [HOST, {**POD, "sandbox": ""}], "ips": BOTH}, "no interface eth0"),
        ({"interfaces": [{**HOST, "name": "lxc2"}, POD], "ips": BOTH}, "no host side lxc1"),
        ({"interfaces": [HOST, {**POD, "mac": "02:00:00:00:00:0b"}], "ips": BOTH}, "02:00:00:00:00:0b"),
        ({"interfaces": [{**HOST, "mac": ""}, POD], "ips": BOTH}, "no MAC address for the host side"),
        ({"interfaces": [HOST, POD]}, "no address"),
        ({"interfaces": [HOST, POD], "ips": BOTH[:1]}, "fd00::2/128"),
        ({"interfaces": [HOST, POD], "ips": [*BOTH, {"address": "10.0.1.9/32", "interface": 1}]}, "10.0.1.9/32"),
        ({"interfaces": [HOST, POD], "ips": [{"address": "10.0.1.2/24"}, BOTH[1]]}, "10.0.1.2/24"),
        ({"interfaces": [HOST, POD], "ips": [{"address": "x"}, BOTH[1]]}, "x"),
    ],
)
def test_check_names_what_the_runtime_believes_and_is_not_so(
    monkeypatch: pytest.MonkeyPatch, previous: dict[str, Any], says: str
) -> None:
    assert any(says in each for each in believed(monkeypatch, previous))
