"""What a container runtime asks and is told: frame -> request, and result or error -> frame. Pure but for a look at
the network namespace that comes along.

Frames are described in cni/plexus-cni.c; cni_server.py receives them. Whatever is wrong with a request is a CNI error
that names the field.

Source: CNI specification 1.1.0 (and 0.3.1, 0.4.0, 1.0.0 for their results and verbs).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from bus.messages.dataplane import CONTAINERS
from services.dataplane.pods.addresses import Attachment
from services.dataplane.shapes.ip import EVERYTHING, PodIp

T = TypeVar("T")

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
VERBS = {"ADD": "0.3.1", "DEL": "0.3.1", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}  # verb -> since version

MAX_FRAME_BYTES = (1 << 20) + (64 << 10) + 1  # the executable's bounds: configuration, variables, separator

INCOMPATIBLE_VERSION = 1  # error codes of the specification
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
UNDECODABLE = 6
INVALID_CONFIGURATION = 7
INVALID_NAMESPACE = 8
TRY_AGAIN = 11
NOT_AVAILABLE = 50  # STATUS: no pod can be started
LIMITED = 51  # STATUS: nor do those that are here reach everybody
FAILED = 100  # 100 and up are the plugin's own
CHECK_FAILED = 101
ADDRESSES_EXHAUSTED = 102

REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")  # of a network, of a container
_NAME_SAID = "a letter or digit, then letters, digits, '_', '.', '-'; 253 at most"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_POD = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_UID = re.compile(r"[A-Za-z0-9-]{0,128}")

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_CLONE_NEWNET = 0x40000000


class CniError(Exception):
    """What the runtime is told. `code` as above, `message` names the field, `details` says more, as plain text."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


@dataclass(frozen=True, slots=True)
class Add:
    attachment: Attachment
    network: str  # the name of the network configuration
    namespace: str  # Kubernetes namespace, or CONTAINERS
    pod: str
    uid: str  # "" when the runtime does not say
    netns: str  # path, for the result
    netns_fd: int  # open until the call returns; duplicate it to keep it
    version: str


@dataclass(frozen=True, slots=True)
class Delete:
    attachment: Attachment
    network: str


@dataclass(frozen=True, slots=True)
class Check:
    attachment: Attachment
    network: str
    netns_fd: int  # as in Add
    previous: Previous


@dataclass(frozen=True, slots=True)
class Collect:
    """Everything of the network that is not among `valid` is to go (GC)."""

    network: str
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
        """An unknown attachment is done already; so is one that another network made."""

    async def check(self, request: Check) -> tuple[str, ...]:
        """What is wrong, in words; empty when all is as ADD left it."""

    async def collect(self, request: Collect) -> None:
        """As much as can be removed. Raises: CniError: something is left; the text says what."""

    async def status(self) -> None:
        """Raises: CniError: NOT_AVAILABLE or LIMITED, and why no pod can be started now."""


class Interface(msgspec.Struct, frozen=True):
    name: str = ""
    mac: str = ""
    sandbox: str = ""  # "": on the host


class Address(msgspec.Struct, frozen=True):
    address: str  # "10.0.1.2/32"
    interface: int | None = None  # place in the list of interfaces


class Previous(msgspec.Struct, frozen=True):
    """What the runtime remembers as the result of ADD, after all plugins of the chain."""

    interfaces: list[Interface] | None = None
    ips: list[Address] | None = None


class _Valid(msgspec.Struct, frozen=True, rename={"container_id": "containerID"}):
    container_id: str
    ifname: str


class _Configuration(msgspec.Struct, frozen=True, rename={"version": "cniVersion", "previous": "prevResult"}):
    """The part of the network configuration that concerns us; other fields may be there. What not every verb asks for
    is looked at by those that do: DEL must not fail over it."""

    name: str
    version: str = "0.1.0"  # what its absence means
    dns: Any = None
    previous: Any = None
    valid: Any = msgspec.field(default=None, name="cni.dev/valid-attachments")
    valid_before: Any = msgspec.field(default=None, name="cni.dev/attachments")  # what libcni 1.1 called it


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
            said = entry[:64].decode(errors="replace")
            raise CniError(INVALID_ENVIRONMENT, f'frame: "{said}" is not KEY=VALUE')
        try:
            variables[name.decode()] = value.decode()
        except UnicodeDecodeError as failure:
            said = name[:64].decode(errors="replace")
            raise CniError(INVALID_ENVIRONMENT, f"{said}: not UTF-8", str(failure)) from failure
    return variables, payload[end + 2 :]


def parse(variables: dict[str, str], configuration: bytes, netns_fd: int | None) -> tuple[Request, dict[str, Any]]:
    """The request, and the configuration's DNS settings for the result.

    Args:
        netns_fd: CNI_NETNS, opened by the executable; None when it could not be.
    Raises: CniError.
    """
    verb = variables.get("CNI_COMMAND", "")
    if verb not in VERBS:
        said = f'"{verb}" is none of {", ".join(VERBS)}' if verb else "missing"
        raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND: {said}")
    missing = [name for name in REQUIRED.get(verb, ()) if not variables.get(name)]
    if missing:
        raise CniError(INVALID_ENVIRONMENT, f"{', '.join(missing)}: missing")
    settings = _configuration(configuration)
    if verb == "DEL":  # best effort: whatever the rest says, it is to go
        return Delete(_attachment(variables), settings.name), {}
    _check_version(verb, settings.version)
    if not _NAME.fullmatch(settings.name):
        raise CniError(INVALID_CONFIGURATION, f"name: invalid: {_NAME_SAID}", settings.name[:300])
    dns: dict[str, Any] = _converted(settings.dns, dict[str, Any], "dns") or {} if verb == "ADD" else {}
    return _request(verb, variables, settings, netns_fd), dns


def _check_version(verb: str, version: str) -> None:
    if version not in VERSIONS:
        said = f'"{version}" is not supported: one of {", ".join(VERSIONS)}'
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion: {said}")
    if VERSIONS.index(version) < VERSIONS.index(VERBS[verb]):
        said = f"{verb} exists since {VERBS[verb]}, the configuration says {version}"
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion: {said}")


def _request(verb: str, variables: dict[str, str], settings: _Configuration, netns_fd: int | None) -> Request:
    match verb:
        case "STATUS":
            return Status()
        case "GC":
            valid = [
                *(_converted(settings.valid, list[_Valid], "cni.dev/valid-attachments") or []),
                *(_converted(settings.valid_before, list[_Valid], "cni.dev/attachments") or []),
            ]
            return Collect(settings.name, frozenset(Attachment(each.container_id, each.ifname) for each in valid))
        case "CHECK":
            previous = _converted(settings.previous, Previous, "prevResult")
            if previous is None:
                raise CniError(INVALID_CONFIGURATION, "prevResult: missing; CHECK needs what ADD answered")
            return Check(_attachment(variables), settings.name, _namespace(variables, netns_fd), previous)
    if settings.previous is not None:
        raise CniError(INVALID_CONFIGURATION, "prevResult: plexus-cni makes the interface and must be the first plugin")
    attachment = _attachment(variables)
    namespace, pod, uid = _pod(variables.get("CNI_ARGS", ""), attachment.container_id)
    return Add(
        attachment=attachment,
        network=settings.name,
        namespace=namespace,
        pod=pod,
        uid=uid,
        netns=variables.get("CNI_NETNS", ""),
        netns_fd=_namespace(variables, netns_fd),
        version=settings.version,
    )


def _pod(arguments_text: str, container_id: str) -> tuple[str, str, str]:
    """Namespace, name and uid of the pod. Who is not told of by Kubernetes is known by its container alone: podman
    gives a K8S_POD_NAME of its own making, and no namespace."""
    arguments = _arguments(arguments_text)
    if not arguments.get("K8S_POD_NAMESPACE"):
        return CONTAINERS, container_id, ""
    return (
        _argument(arguments, "K8S_POD_NAMESPACE", _NAMESPACE),
        _argument(arguments, "K8S_POD_NAME", _POD),
        _argument(arguments, "K8S_POD_UID", _UID, optional=True),
    )


def _converted(value: object, form: type[T], name: str) -> T | None:
    """A field of the configuration in its form; null is as absent."""
    try:
        return None if value is None else msgspec.convert(value, form)
    except msgspec.ValidationError as failure:
        raise CniError(INVALID_CONFIGURATION, f"network configuration: $.{name}: {failure}") from failure


def _usual(address: str) -> str:
    """In the form that this program writes: "FD00:0::2/128" is "fd00::2/128". What is no address stays as it is."""
    try:
        return str(ip_interface(address))
    except ValueError:
        return address


def _configuration(text: bytes) -> _Configuration:
    try:
        return msgspec.json.decode(text, type=_Configuration)
    except msgspec.ValidationError as failure:
        raise CniError(INVALID_CONFIGURATION, f"network configuration: {failure}") from failure
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise CniError(UNDECODABLE, "network configuration: not JSON", str(failure)) from failure


def asked_version(text: bytes) -> str:
    """The version to answer in: the asked one when it can be read and is ours."""
    try:
        version = msgspec.json.decode(text, type=_VersionOnly).version
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "1.0.0"
    return version if version in VERSIONS else "1.0.0"


def _attachment(variables: dict[str, str]) -> Attachment:
    container_id, ifname = variables["CNI_CONTAINERID"], variables["CNI_IFNAME"]
    if not _NAME.fullmatch(container_id):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_CONTAINERID: invalid: {_NAME_SAID}", container_id[:300])
    # net/core/dev.c, dev_valid_name
    if len(ifname.encode()) > 15 or ifname in (".", "..") or re.search(r"[/:\s\0]", ifname):
        raise CniError(INVALID_ENVIRONMENT, "CNI_IFNAME: not the name of an interface", ifname[:300])
    return Attachment(container_id, ifname)


def _namespace(variables: dict[str, str], netns_fd: int | None) -> int:
    path = variables["CNI_NETNS"]
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
            raise CniError(INVALID_ENVIRONMENT, f'CNI_ARGS: "{pair[:64]}" is not KEY=VALUE')
        arguments[name] = value
    return arguments


def _argument(arguments: dict[str, str], name: str, form: re.Pattern[str], *, optional: bool = False) -> str:
    value = arguments.get(name, "")
    if not value and not optional:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {name} is missing")
    if not form.fullmatch(value):
        raise CniError(INVALID_ENVIRONMENT, f"CNI_ARGS: {name} is invalid", value[:300])
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
    said: dict[str, Any] = {"address": _alone(ip.address), "gateway": ip.gateway, "interface": 1}
    if version in ("0.3.1", "0.4.0"):
        said["version"] = str(ip_address(ip.address).version)
    return said


def unlike(request: Check, made: PodInterface) -> tuple[str, ...]:
    """What the runtime remembers of the pod's interface and is not so, in words."""
    ifname, previous = request.attachment.ifname, request.previous
    interfaces = previous.interfaces or []
    place = next((place for place, each in enumerate(interfaces) if each.name == ifname and each.sandbox), None)
    inside = None if place is None else interfaces[place]
    host = next((each for each in interfaces if each.name == made.host_name and not each.sandbox), None)
    wrong = []
    for what, found, mac in (
        (f"interface {ifname} of the pod", inside, made.pod_mac),
        (f"host side {made.host_name}", host, made.host_mac),
    ):
        if found is None:
            wrong.append(f"prevResult has no {what}")
        elif found.mac.lower() != mac:
            wrong.append(f"prevResult has {found.mac or 'no MAC address'} for the {what}, the node gave {mac}")
    believed = {_usual(each.address) for each in previous.ips or [] if each.interface in (None, place)}
    given = {_alone(each.address) for each in made.ips}
    if believed != given:
        said = ", ".join(sorted(believed)) or "no address"
        wrong.append(f"prevResult has {said} for {ifname}, the node gave {', '.join(sorted(given))}")
    return tuple(wrong)


def _alone(address: str) -> str:
    return f"{address}/{ip_address(address).max_prefixlen}"


def refused(failure: CniError, version: str) -> Answer:
    body: dict[str, Any] = {"cniVersion": version, "code": failure.code, "msg": failure.message}
    if failure.details:
        body["details"] = failure.details
    return Answer(1, body)
