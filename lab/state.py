"""What is written down about a lab: /run/plexus/lab/<name>.

    lab.json               slot, nodes, settings: written first, never changed
    topology               empty; there once every link is
    certificates/          of the bus and its users, with bus.tls.enabled
    passwords.json         of the bus, by user; for root's eyes, as is the whole directory
    up.json                the `lab up` that is at work, while it is
    processes/<name>.json  a process that runs, by pid and start time
    stopped/<name>         empty; the process was stopped by hand and stays so
    pods/<uid>.json        a pod's sandbox
    logs/, logs/pods/      what processes and pods printed
    nodes/<node>/          the node's own disk: dataplane state, CNI socket
    bus/                   the bus's store
    supervisor.sock        questions to the supervisor

Everything else is found by its name (names.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from lab import names
from lab.errors import LabError
from lab.plan import SLOTS, Family, Plan
from lab.settings import Settings

if TYPE_CHECKING:
    from bus.tls import ClientTls

RUN = Path("/run/plexus/lab")
BPF = Path("/sys/fs/bpf")
OPERATOR = "operator"  # the bus user that may do everything, as bus/accounts.py calls it
ENVIRONMENT_NAME = "PLEXUS_LAB"  # which lab a command means
ENVIRONMENT_OWNER = "PLEXUS_LAB_OWNER"  # who brings it up; any word, for `lab down --owner`

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """lab.json."""

    name: str
    slot: int
    nodes: list[str]
    values: dict[str, Any]
    cgroup_root: str  # where the machine has its cgroup v2 tree
    owner: str = ""  # as $PLEXUS_LAB_OWNER said when it was brought up
    subnets: int = 1  # LANs that the nodes are in, by turns
    fabric_routes: bool = False  # the router knows which node has which pods, as a cloud's fabric does

    @property
    def plan(self) -> Plan:
        return Plan(self.slot, self.subnets)

    @property
    def families(self) -> tuple[Family, ...]:
        return self.settings.families

    def node_addresses(self, node: str) -> list[str]:
        """One for each family, in the order of the families. Raises ValueError: there is no such node."""
        number = self.nodes.index(node) + 1
        return [str(self.plan.node(number, family).ip) for family in self.families]

    @property
    def settings(self) -> Settings:
        return Settings(self.values)

    @property
    def directory(self) -> Directory:
        return Directory(self.name)

    @property
    def bus_url(self) -> str:
        """The bus as this machine's root namespace reaches it."""
        return self.plan.management_bus_url

    @property
    def bus_user(self) -> str:
        """Who the command line and the supervisor are on the bus."""
        return OPERATOR

    @property
    def bus_password(self) -> str:
        """Of `bus_user`; "" when the lab is not so far yet."""
        return self.password(OPERATOR)

    def bus_tls(self, user: str = OPERATOR) -> ClientTls | None:
        """What `user` connects to the bus with; None: it speaks in the clear."""
        if not self.settings.get("bus.tls.enabled"):
            return None
        from lab import certificates

        verify = bool(self.settings.get("bus.tls.verifyClients"))
        return certificates.client(self.directory.certificates, user, verify=verify)

    @property
    def has_hubble_tls(self) -> bool:
        """Observers are asked over the network, and only by who has a certificate."""
        return bool(self.settings.get("hubble.relay.enabled") and self.settings.get("hubble.tls.enabled"))

    def password(self, user: str) -> str:
        """Of a user of the bus."""
        return (read(self.directory.passwords, dict[str, str]) or {}).get(user, "")

    @property
    def cgroup(self) -> Path:
        """All the lab's processes live below."""
        return Path(self.cgroup_root, names.cgroup(self.name))

    def node_cgroup(self, node: str) -> Path:
        """Socket hooks are attached here: they see the node's own processes and its pods'."""
        return self.cgroup / node

    def host_cgroup(self, host: str) -> Path:
        """Where the processes of a node itself live, or of one of the lab's own hosts."""
        return self.cgroup / host / "host"

    def pins(self, node: str) -> Path:
        """Where the node's BPF objects are pinned."""
        return BPF / names.pins(self.name) / node


class ProcessId(msgspec.Struct, frozen=True):
    """A process for certain: a pid alone may have been given away again."""

    pid: int
    start_time: int  # clock ticks since boot, /proc/<pid>/stat field 22


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """pods/<uid>.json: what the kubelet made for a pod."""

    uid: str
    namespace: str
    name: str
    node: str
    netns: str  # name under /run/netns; the node's own for a pod in the host's network
    cgroup: str  # absolute path
    host_network: bool = False
    addresses: list[str] = []  # none until the CNI gave them
    processes: dict[str, ProcessId] = {}  # by container

    def address(self, family: Family) -> str:
        """The first one of a family; "" without any."""
        return next((each for each in self.addresses if (":" in each) == (family == 6)), "")


class Directory:
    """The paths of one lab. Knows nothing; asks the disk each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = RUN / name

    @property
    def lab(self) -> Path:
        return self.path / "lab.json"

    @property
    def certificates(self) -> Path:
        """Of the bus, and of its users."""
        return self.path / "certificates"

    @property
    def passwords(self) -> Path:
        return self.path / "passwords.json"

    @property
    def topology(self) -> Path:
        return self.path / "topology"

    @property
    def up(self) -> Path:
        return self.path / "up.json"

    @property
    def socket(self) -> Path:
        return self.path / "supervisor.sock"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def bus(self) -> Path:
        return self.path / "bus"

    def process(self, name: str) -> Path:
        return self.path / "processes" / f"{name}.json"

    def stopped(self, name: str) -> Path:
        return self.path / "stopped" / name

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def pod(self, uid: str) -> Path:
        return self.path / "pods" / f"{uid}.json"

    def node(self, node: str) -> Path:
        return self.path / "nodes" / node

    @property
    def hubble_certificates(self) -> Path:
        return self.path / "hubble-certificates"

    def hubble_socket(self, node: str) -> Path:
        return self.node(node) / "hubble.sock"

    def cni_socket(self, node: str) -> Path:
        return self.node(node) / "cni.sock"

    def make(self, nodes: list[str]) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("processes", "stopped", "pods", "logs/pods", "bus", "http", *(f"nodes/{node}" for node in nodes)):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """lab.json goes last: while it is there, the slot is taken and `lab down` finds the lab."""
        for child in self.path.glob("*"):
            if child == self.lab:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def sandboxes(self) -> list[Sandbox]:
        """Every pod that has a sandbox, by namespace and name."""
        found = [read(path, Sandbox) for path in (self.path / "pods").glob("*.json")]
        return sorted((each for each in found if each is not None), key=lambda each: (each.namespace, each.name))


def read(path: Path, kind: type[T]) -> T | None:
    """A record from the disk; None when it is not there or is torn."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def write(path: Path, record: msgspec.Struct | dict[str, str]) -> None:
    """Put a record on the disk, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(msgspec.json.encode(record))
    scratch.replace(path)


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock over slots: two labs that start at once take different ones."""
    RUN.mkdir(parents=True, exist_ok=True)
    with (RUN / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def labs() -> list[str]:
    """Every lab that is or was there, by name: also the rests of one that did not come up."""
    with suppress(FileNotFoundError):
        return sorted(path.name for path in RUN.iterdir() if path.is_dir() and not path.name.startswith("."))
    return []


def record(name: str) -> Record | None:
    """What is known about a lab; None: there is no such lab."""
    return read(Directory(name).lab, Record)


def owned_by(owner: str) -> list[str]:
    """Every lab that this owner brought up, by name."""
    return [each.name for each in map(record, labs()) if each is not None and each.owner == owner]


def claim(
    name: str, nodes: list[str], wanted: Settings, cgroup_root: Path, subnets: int = 1, *, fabric_routes: bool = False
) -> Record:
    """Take the lowest free slot and write the lab down. Raises LabError when all are taken."""
    with locked():
        taken = {each.slot for each in map(record, labs()) if each is not None and each.name != name}
        free = next((slot for slot in range(SLOTS) if slot not in taken), None)
        if free is None:
            raise LabError(f"{SLOTS} labs are up, which is all this machine has addresses for; take one down first")
        made = Record(
            name=name,
            slot=free,
            nodes=nodes,
            values=dict(wanted.values),
            cgroup_root=str(cgroup_root),
            owner=os.environ.get(ENVIRONMENT_OWNER, ""),
            subnets=subnets,
            fabric_routes=fabric_routes,
        )
        made.directory.make(nodes)
        write(made.directory.lab, made)
        return made


def find(name: str = "") -> Record:
    """The lab that a command means: `name`, else $PLEXUS_LAB, else the only one. Raises LabError."""
    name = name or os.environ.get(ENVIRONMENT_NAME, "")
    there = [each for each in map(record, labs()) if each is not None]
    if name:
        found = next((each for each in there if each.name == names.check(name)), None)
        if found is None:
            known = f"; there is {', '.join(each.name for each in there)}" if there else ""
            raise LabError(f"there is no lab {name!r}{known}; plexus lab up --name {name} makes it")
        return found
    if not there:
        raise LabError("no lab is up; plexus lab up makes one")
    if len(there) > 1:
        raise LabError(f"several labs are up: {', '.join(each.name for each in there)}; say which by --name")
    return there[0]
