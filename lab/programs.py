"""Which processes a lab consists of. Pure.

The bus and the control services run on the control host, a dataplane on each node. All of them are the product:
what differs from a real cluster is only who starts them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bus import accounts, services
from bus.server import ServerSettings, find_binary
from bus.services import SERVICES, Service
from lab import certificates, names, state
from lab.errors import LabError
from lab.plan import BUS_PORT
from lab.state import Record

BUS = "bus"
RELAY_PORT = 4245  # on the management network: pods and the LAN do not get there
ROOT = Path(__file__).resolve().parent.parent  # of the checkout: `python -m services.x` is found from here


@dataclass(frozen=True)
class Program:
    """A process that the supervisor keeps alive."""

    name: str  # "bus", "identity", "node1.dataplane"; names its log and its record too
    service: str  # "bus", "identity", "dataplane"
    host: str  # whose namespace and cgroup it runs in: "control", "node1"
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def instance(self) -> str:
        """The last token of its health subject."""
        return services.CONTROL if self.host == names.CONTROL else self.host


def programs(lab: Record) -> dict[str, Program]:
    """Every process of a lab, by name; the bus first."""
    there = services_of(lab)
    found = [bus(lab), *(control_service(lab, each) for each in there if not each.is_on_nodes)]
    found += [node_service(lab, node, each) for node in lab.nodes for each in there if each.is_on_nodes]
    return {program.name: program for program in found}


def services_of(lab: Record) -> list[Service]:
    """Those that are turned on."""
    settings = {each.switch: lab.settings.get(each.switch) for each in SERVICES if each.switch}
    return [each for each in SERVICES if each.runs_with(settings)]


def bus(lab: Record) -> Program:
    return Program(BUS, BUS, names.CONTROL, (find_binary(), "-c", str(lab.directory.bus / "nats-server.conf")))


def bus_settings(lab: Record) -> ServerSettings:
    """The bus listens in the control host's namespace, for the LAN and for the management network, which is IPv4."""
    passwords = state.read(lab.directory.passwords, dict[str, str]) or {}
    return ServerSettings(
        store=lab.directory.bus / "store",
        host="[::]" if 6 in lab.families else "0.0.0.0",
        port=BUS_PORT,
        users=accounts.users(passwords),
        tenants=accounts.tenants(lab.nodes, passwords),
        tls=certificates.server(lab.directory.certificates, verify=bool(lab.settings.get("bus.tls.verifyClients")))
        if lab.settings.get("bus.tls.enabled")
        else None,
    )


def control_service(lab: Record, service: Service) -> Program:
    name = service.name
    environment = common(lab, name, services.CONTROL, name) | lab.settings.environment(lab.plan, name)
    environment |= hubble_files(lab, name)
    environment["PLEXUS_RELAY_LISTEN_ADDRESS"] = f"{lab.plan.management_control.ip}:{RELAY_PORT}"
    return Program(name, name, names.CONTROL, command(service), environment)


def node_service(lab: Record, node: str, service: Service) -> Program:
    """Each of a node's services is told where everything of the node is."""
    name = f"{node}.{service.name}"
    environment = common(lab, name, node, service.user_on(node)) | lab.settings.environment(lab.plan, service.name)
    environment |= {
        "PLEXUS_NODE": node,
        "PLEXUS_STATE_DIR": str(lab.directory.node(node)),
        "PLEXUS_PIN_DIR": str(lab.pins(node)),
        "PLEXUS_CGROUP": str(lab.node_cgroup(node)),
        "PLEXUS_CNI_SOCKET": str(lab.directory.cni_socket(node)),
        "PLEXUS_HUBBLE_SOCKET": str(lab.directory.hubble_socket(node)),
    }
    environment |= hubble_files(lab, node)
    return Program(name, service.name, node, command(service), environment)


def hubble_files(lab: Record, holder: str) -> dict[str, str]:
    """By what observers and the relay know each other; "" but for them."""
    if not lab.has_hubble_tls:
        return {}
    files = certificates.of_hubble(lab.directory.hubble_certificates, holder)
    return {f"PLEXUS_HUBBLE_TLS_{name}": path for name, path in files.items()}


def command(service: Service) -> tuple[str, ...]:
    return sys.executable, "-m", service.module


def common(lab: Record, name: str, instance: str, user: str) -> dict[str, str]:
    """What every service is told. `user`: who it is on the bus."""
    tls = lab.bus_tls(user)
    files = {"CA": tls.authority, "CERT": tls.certificate, "KEY": tls.key} if tls else {}
    return {f"PLEXUS_BUS_TLS_{name}": path for name, path in files.items() if path} | {
        "PLEXUS_BUS_URL": lab.plan.bus_url(lab.families[0]),
        "PLEXUS_BUS_USER": user,
        "PLEXUS_BUS_PASSWORD": lab.password(user),
        "PLEXUS_INSTANCE": instance,
        "PLEXUS_HTTP": f"unix:{lab.directory.path}/http/{name}.sock",
    }


def choose(lab: Record, *, node: str = "", service: str = "", control: str = "", bus: bool = False) -> str:
    """The name of the process that the options of `lab kill` and `lab start` mean. Raises LabError."""
    if sum(map(bool, (node, control, bus))) != 1:
        raise LabError("say which process: --node NODE [SERVICE], --control SERVICE or --bus")
    if bus:
        return BUS
    there = services_of(lab)
    if control:
        known = [each.name for each in there if not each.is_on_nodes]
        if control not in known:
            raise LabError(f"there is no control service {control!r}; there is {', '.join(known)}")
        return control
    check_node(lab, node)
    known = [each.name for each in there if each.is_on_nodes]
    service = service or known[0]
    if service not in known:
        raise LabError(f"no service {service!r} runs on a node; there is {', '.join(known)}")
    return f"{node}.{service}"


def check_node(lab: Record, node: str) -> str:
    """`node`, when the lab has it. Raises LabError."""
    if node not in lab.nodes:
        raise LabError(f"lab {lab.name} has no node {node!r}; it has {', '.join(lab.nodes)}")
    return node
