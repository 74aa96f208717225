"""The node's end of the CNI: a request arrives as a frame over a unix socket, and leaves as one call of `Pods`.

The first half is pure: frame -> request -> result or error. The second half is the socket. Frames are described in
cni/plexus-cni.c. Every request gets exactly one answer; whatever is wrong with it is a CNI error that names the field.

Source: CNI specification 1.1.0 (and 0.3.1, 0.4.0, 1.0.0 for their results and verbs).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol

import msgspec

from bus.telemetry import count, logger
from services.dataplane.addresses import EVERYTHING, Attachment, PodIp

log = logger(__name__)

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
VERBS = {"ADD": "0.3.1", "DEL": "0.3.1", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}  # verb -> since version

MAX_FRAME_BYTES = (1 << 20) + (64 << 10) + 1  # the executable's bounds: configuration, variables, separator
READ_SECONDS = 5.0  # for a request to arrive whole; the executable sends it in one go
WORK_SECONDS = 50.0  # for `Pods` to do it; below the executable's 60, so that our answer is the one that is seen
MAX_CONNECTIONS = 64  # served at once; more wait in the kernel's queue
QUEUED_CONNECTIONS = 256

INCOMPATIBLE_VERSION = 1  # error codes of the specification
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
UNDECODABLE = 6
INVALID_CONFIGURATION = 7
INVALID_NAMESPACE = 8
TRY_AGAIN = 11
NOT_AVAILABLE = 50
FAILED = 100  # 100 and up are the plugin's own
CHECK_FAILED = 101
ADDRESSES_EXHAUSTED = 102

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_POD = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_UID = re.compile(r"[A-Za-z0-9-]{0,128}")

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000


class CniError(Exception):
    """What the runtime is told. `code` as above, `message` names the field, `details` says more."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


@dataclass(frozen=True, slots=True)
class Add:
    attachment: Attachment
    namespace: str  # Kubernetes namespace
    pod: str
    uid: str  # "" when the runtime does not say
    netns: str  # path, for the result
    netns_fd: int  # open until the call returns; duplicate it to keep it
    version: str


@dataclass(frozen=True, slots=True)
class Delete:
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Check:
    attachment: Attachment
    netns_fd: int  # as in Add
    addresses: tuple[str, ...]  # what the runtime believes, "10.0.1.2", "fd00::2"; empty when it does not say


@dataclass(frozen=True, slots=True)
class Collect:
    """Everything that is not among `valid` is to go (GC)."""

    valid: frozenset[Attachment]


@dataclass(frozen=True, slots=True)
class Status:
    """Is the node ready for ADD?"""


Request = Add | Delete | Check | Collect | Status


@dataclass(frozen=True, slots=True)
class PodInterface:
    """What ADD made."""

    host_name: str
    host_mac: str
    pod_mac: str
    ips: tuple[PodIp, ...]  # one of each family
    mtu_bytes: int


class Pods(Protocol):
    """Who does it. Calls about one container come one after the other, others at the same time.

    Any method may raise CniError; any other exception is logged and told as code 100.
    """

    async def add(self, request: Add) -> PodInterface:
        """Asked again for the same attachment, it answers the same."""

    async def delete(self, request: Delete) -> None:
        """An unknown attachment is done already."""

    async def check(self, request: Check) -> tuple[str, ...]:
        """What is wrong, in words; empty when all is as ADD left it."""

    async def collect(self, request: Collect) -> None: ...

    async def status(self) -> str:
        """Why no pod can be started now; "" when all is ready."""


class _Valid(msgspec.Struct, frozen=True, rename={"container_id": "containerID"}):
    container_id: str
    ifname: str


class _Address(msgspec.Struct, frozen=True):
    address: str


class _Previous(msgspec.Struct, frozen=True):
    ips: list[_Address] = []


class _Configuration(msgspec.Struct, frozen=True, rename={"version": "cniVersion", "previous": "prevResult"}):
    """The part of the network configuration that concerns us; other fields may be there."""

    name: str
    type: str = ""
    version: str = "0.1.0"  # what its absence means
    dns: dict[str, Any] = {}
    previous: _Previous | None = None
    valid: list[_Valid] | None = msgspec.field(default=None, name="cni.dev/valid-attachments")


class _VersionOnly(msgspec.Struct, frozen=True, rename={"version": "cniVersion"}):
    version: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int  # exit status of the executable
    body: dict[str, Any] | None  # for its standard output; None: nothing

    def frame(self) -> bytes:
        text = b"" if self.body is None else msgspec.json.encode(self.body) + b"\n"
        return struct.pack("<IB", len(text) + 1, self.status) + text


# Frame -> request


def split(payload: bytes) -> tuple[dict[str, str], bytes]:
    """The CNI_* variables and the standard input in a frame.

    Raises: CniError: the frame is not as cni/plexus-cni.c writes it.
    """
    if payload.startswith(b"\0"):
        return {}, payload[1:]
    end = payload.find(b"\0\0")
    if end < 0:
        raise CniError(IO_FAILURE, "frame: the list of variables does not end", "is the executable of this version?")
    variables = {}
    for entry in payload[:end].split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if not equals or not name:
            raise CniError(INVALID_ENVIRONMENT, f"frame: {entry[:64]!r} is not KEY=VALUE")
        try:
            variables[name.decode()] = value.decode()
        except UnicodeDecodeError as failure:
            raise CniError(INVALID_ENVIRONMENT, f"{name[:64]!r}: not UTF-8", str(failure)) from failure
    return variables, payload[end + 2 :]


def parse(variables: dict[str, str], configuration: bytes, netns_fd: int | None) -> tuple[Request, str, dict[str, Any]]:
    """The request, the version to answer in, and the configuration's DNS settings for the result.

    Args:
        netns_fd: CNI_NETNS, opened by the executable; None when it could not be.
    Raises: CniError.
    """
    verb = variables.get("CNI_COMMAND", "")
    if verb not in VERBS:
        known = ", ".join(VERBS)
        raise CniError(
            INVALID_ENVIRONMENT, f'CNI_COMMAND: "{verb}" is none of {known}' if verb else _missing("COMMAND")
        )
    settings = _configuration(configuration)
    if settings.version not in VERSIONS:
        said = f'"{settings.version}" is not supported: one of {", ".join(VERSIONS)}'
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion: {said}")
    if VERSIONS.index(settings.version) < VERSIONS.index(VERBS[verb]):
        said = f"{verb} exists since {VERBS[verb]}, the configuration says {settings.version}"
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion: {said}")
    return _request(verb, variables, settings, netns_fd), settings.version, settings.dns


def _request(verb: str, variables: dict[str, str], settings: _Configuration, netns_fd: int | None) -> Request:
    match verb:
        case "STATUS":
            return Status()
        case "GC":
            if settings.valid is None:
                raise CniError(INVALID_CONFIGURATION, "cni.dev/valid-attachments: missing; GC needs the list")
            return Collect(frozenset(Attachment(valid.container_id, valid.ifname) for valid in settings.valid))
        case "DEL":
            return Delete(_attachment(variables))
        case "CHECK":
            previous = settings.previous or _Previous()
            addresses = tuple(_usual(found.address.partition("/")[0]) for found in previous.ips)
            return Check(_attachment(variables), _namespace(variables, netns_fd), addresses)
    if settings.previous is not None:
        raise CniError(INVALID_CONFIGURATION, "prevResult: plexus-cni makes the interface and must be the first plugin")
    arguments = _arguments(variables.get("CNI_ARGS", ""))
    return Add(
        attachment=_attachment(variables),
        namespace=_argument(arguments, "K8S_POD_NAMESPACE", _NAMESPACE),
        pod=_argument(arguments, "K8S_POD_NAME", _POD),
        uid=_argument(arguments, "K8S_POD_UID", _UID, optional=True),
        netns=variables.get("CNI_NETNS", ""),
        netns_fd=_namespace(variables, netns_fd),
        version=settings.version,
    )


def _usual(address: str) -> str:
    """In the form that this program writes: "FD00:0::2" is "fd00::2". What is no address stays as it is."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address


def _missing(name: str) -> str:
    return f"CNI_{name}: missing"


def _configuration(text: bytes) -> _Configuration:
    try:
        return msgspec.json.decode(text, type=_Configuration)
    except msgspec.ValidationError as failure:
        raise CniError(INVALID_CONFIGURATION, f"network configuration: {failure}") from failure
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise CniError(UNDECODABLE, "network configuration: not JSON", str(failure)) from failure


def asked_version(text: bytes) -> str:
    """The version to write an error in: the asked one when it can be read and is ours."""
    try:
        version = msgspec.json.decode(text, type=_VersionOnly).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "1.0.0"
    return version if version in VERSIONS else "1.0.0"


def _attachment(variables: dict[str, str]) -> Attachment:
    container_id, ifname = variables.get("CNI_CONTAINERID", ""), variables.get("CNI_IFNAME", "")
    if not container_id:
        raise CniError(INVALID_ENVIRONMENT, _missing("CONTAINERID"))
    if not _CONTAINER_ID.fullmatch(container_id):
        said = "a letter or digit, then letters, digits, '_', '.', '-'; 253 at most"
        raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID: invalid: {said}", repr(container_id[:300]))
    if not ifname:
        raise CniError(INVALID_ENVIRONMENT, _missing("IFNAME"))
    # net/core/dev.c, dev_valid_name
    if len(ifname.encode()) > 15 or ifname in (".", "..") or re.search(r"[/:\s\0]", ifname):
        raise CniError(INVALID_ENVIRONMENT, "CNI_IFNAME: not the name of an interface", repr(ifname[:300]))
    return Attachment(container_id, ifname)


def _namespace(variables: dict[str, str], netns_fd: int | None) -> int:
    path = variables.get("CNI_NETNS", "")
    if not path:
        raise CniError(INVALID_ENVIRONMENT, _missing("NETNS"))
    if netns_fd is None:
        raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS: the executable could not open it", path[:300])
    try:
        kind = fcntl.ioctl(netns_fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        raise CniError(INVALID_NAMESPACE, "CNI_NETNS: not a network namespace", path[:300])
    if os.fstat(netns_fd).st_ino == Path("/proc/thread-self/ns/net").stat().st_ino:
        raise CniError(INVALID_NAMESPACE, "CNI_NETNS: the node's own namespace, not a pod's", path[:300])
    return netns_fd


def _arguments(text: str) -> dict[str, str]:
    arguments = {}
    for pair in filter(None, text.split(";")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {pair[:64]!r} is not KEY=VALUE")
        arguments[name] = value
    return arguments


def _argument(arguments: dict[str, str], name: str, form: re.Pattern[str], *, optional: bool = False) -> str:
    value = arguments.get(name, "")
    if not value and not optional:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {name} is missing")
    if not form.fullmatch(value):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {name} is invalid", repr(value[:300]))
    return value


# Result -> answer


def added(request: Add, made: PodInterface, dns: dict[str, Any]) -> Answer:
    """The result of ADD in the version that was asked for."""
    host: dict[str, Any] = {"name": made.host_name, "mac": made.host_mac}
    pod: dict[str, Any] = {"name": request.attachment.ifname, "mac": made.pod_mac, "sandbox": request.netns}
    if request.version == "1.1.0":
        host["mtu"] = pod["mtu"] = made.mtu_bytes
    body = {
        "cniVersion": request.version,
        "interfaces": [host, pod],
        "ips": [_ip(each, request.version) for each in made.ips],
        "routes": [{"dst": EVERYTHING[ip_address(each.gateway).version], "gw": each.gateway} for each in made.ips],
        "dns": dns,
    }
    return Answer(0, body)


def _ip(ip: PodIp, version: str) -> dict[str, Any]:
    parsed = ip_address(ip.address)
    said: dict[str, Any] = {"address": f"{parsed}/{parsed.max_prefixlen}", "gateway": ip.gateway, "interface": 1}
    if version in ("0.3.1", "0.4.0"):
        said["version"] = str(parsed.version)
    return said


def refused(failure: CniError, version: str) -> Answer:
    body: dict[str, Any] = {"cniVersion": version, "code": failure.code, "msg": failure.message}
    if failure.details:
        body["details"] = failure.details
    return Answer(1, body)


# The socket


class Server:
    """Serves `pods` on a unix stream socket for as long as `run` runs."""

    def __init__(self, path: Path, pods: Pods) -> None:
        self._path = path
        self._pods = pods
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}  # container id -> its lock and how many want it

    async def run(self) -> None:
        """Until cancelled; the socket then goes, and requests under way are cut off (the runtime asks again)."""
        listener, inode = _listen(self._path)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._free.acquire()
                    task = tasks.create_task(self._serve(await _accept(listener)), name="cni request")
                    task.add_done_callback(lambda _: self._free.release())
        finally:
            listener.close()
            if self._path.exists() and self._path.stat().st_ino == inode:
                self._path.unlink()

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, one request, one answer."""
        with connection:
            fds: list[int] = []
            try:
                answer = await self._answer(_receive(connection, fds), fds)
                async with asyncio.timeout(READ_SECONDS):
                    await asyncio.get_running_loop().sock_sendall(connection, answer.frame())
            except (OSError, TimeoutError) as failure:
                log.debug("cni client went away", why=str(failure))
            finally:
                for fd in fds:
                    os.close(fd)

    async def _answer(self, receive: Awaitable[bytes | CniError], fds: list[int]) -> Answer:
        """Raises: OSError: of `receive` alone."""
        payload: bytes | CniError
        try:
            async with asyncio.timeout(READ_SECONDS):
                payload = await receive
        except TimeoutError:
            payload = CniError(IO_FAILURE, f"frame: not whole within {READ_SECONDS:g} s")
        version = "1.0.0"
        verb = ""
        try:
            if isinstance(payload, CniError):
                raise payload
            variables, configuration = split(payload)
            version = asked_version(configuration)
            verb = variables.get("CNI_COMMAND", "")
            request, version, dns = parse(variables, configuration, fds[0] if fds else None)
            async with asyncio.timeout(WORK_SECONDS):
                answer = await self._do(request, version, dns)
        except CniError as failure:
            log.warning("cni request refused", verb=verb, code=failure.code, why=failure.message, more=failure.details)
            answer = refused(failure, version)
        except TimeoutError:
            log.warning("cni request took too long", verb=verb)
            answer = refused(CniError(TRY_AGAIN, "not done in time: see the dataplane's log, then try again"), version)
        except Exception as failure:  # noqa: BLE001 (one place for all requests: told, counted, logged)
            log.error("cni request failed: report this with the stack below", cause=failure, verb=verb)
            answer = refused(
                CniError(FAILED, f"{type(failure).__name__}: {failure}", "see the dataplane's log"), version
            )
        count(
            "cni_requests", verb=verb if verb in VERBS else "invalid", result="ok" if answer.status == 0 else "refused"
        )
        return answer

    async def _do(self, request: Request, version: str, dns: dict[str, Any]) -> Answer:
        match request:
            case Add():
                async with self._turn(request.attachment.container_id):
                    return added(request, await self._pods.add(request), dns)
            case Delete():
                async with self._turn(request.attachment.container_id):
                    await self._pods.delete(request)
            case Check():
                async with self._turn(request.attachment.container_id):
                    problems = await self._pods.check(request)
                if problems:
                    raise CniError(CHECK_FAILED, problems[0], "; ".join(problems[1:]))
            case Collect():
                await self._pods.collect(request)
            case Status():
                reason = await self._pods.status()
                if reason:
                    raise CniError(NOT_AVAILABLE, reason)
        return Answer(0, None)

    @asynccontextmanager
    async def _turn(self, container_id: str) -> AsyncIterator[None]:
        """One request of a container at a time, in order of arrival."""
        lock, wanted = self._turns.get(container_id, (asyncio.Lock(), 0))
        self._turns[container_id] = (lock, wanted + 1)
        try:
            async with lock:
                yield
        finally:
            lock, wanted = self._turns[container_id]
            if wanted == 1:
                del self._turns[container_id]
            else:
                self._turns[container_id] = (lock, wanted - 1)


def _listen(path: Path) -> tuple[socket.socket, int]:
    """A listening socket at `path` and its inode; what was there before is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        inode = fresh.stat().st_ino
        listener.listen(QUEUED_CONNECTIONS)
        fresh.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener, inode


async def _accept(listener: socket.socket) -> socket.socket:
    """The next connection; when the kernel cannot give one (no file descriptor is left), a little later."""
    while True:
        try:
            return (await asyncio.get_running_loop().sock_accept(listener))[0]
        except OSError as failure:
            log.error("cannot accept CNI requests: raise the limit of open files", why=str(failure))
            await asyncio.sleep(0.2)


async def _receive(connection: socket.socket, fds: list[int]) -> bytes | CniError:
    """The payload of one frame, or what is wrong with it: too long, or ended early.

    The first file descriptor that comes along is added to `fds`, others are closed.
    """
    data = bytearray()
    wanted = 4
    while len(data) < wanted:
        piece = await _read(connection, min(wanted - len(data), 1 << 16), fds)
        if not piece:
            return CniError(IO_FAILURE, f"frame: ended after {len(data)} of {wanted} bytes")
        data += piece
        if len(data) == 4 == wanted:
            wanted += int.from_bytes(data, "little")
            if wanted - 4 > MAX_FRAME_BYTES:
                return CniError(IO_FAILURE, f"frame: {wanted - 4} bytes announced, {MAX_FRAME_BYTES} are the most")
    return bytes(data[4:])


async def _read(connection: socket.socket, size: int, fds: list[int]) -> bytes:
    while True:
        try:
            # Room for one descriptor: the kernel closes any that do not fit.
            piece, came, _, _ = socket.recv_fds(connection, size, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(connection)
            continue
        for fd in came:
            if fds:
                os.close(fd)
            else:
                fds.append(fd)
        return piece


async def _readable(connection: socket.socket) -> None:
    """Returns when there is something to read. (asyncio's own reading drops file descriptors.)"""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    descriptor = connection.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
