"""What a container runtime does for a pod: its namespace and cgroup, the CNI executable, its programs. Effects.

Every function blocks; the kubelet calls them in threads. All are safe to repeat.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bus.messages.resources import Pod
from lab import host, images, names, namespaces, processes
from lab.programs import ROOT
from lab.state import ProcessId, Record, Sandbox, write

CNI = ROOT / "build" / "plexus-cni"
CONTAINER = "PLEXUS_CONTAINER"  # in the environment of a pod's program: which of the containers it is
CNI_SECONDS = 60.0  # the executable itself gives up before
NETWORK = {"cniVersion": "1.0.0", "name": "plexus", "type": "plexus-cni"}


class CniFailed(Exception):
    """The CNI refused or could not; the text is its own."""


def containers(pod: Pod) -> dict[str, Mapping[str, Any]]:
    """A pod's containers by name."""
    return {each["name"]: each for each in pod.manifest.get("spec", {}).get("containers") or []}


def sandbox(lab: Record, pod: Pod) -> Sandbox:
    """What a pod's sandbox is called, before anything of it exists."""
    own = names.pod_namespace(lab.name, pod.node, pod.namespace, pod.name, pod.uid)
    return Sandbox(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        node=pod.node,
        netns=names.namespace(lab.name, pod.node) if pod.host_network else own,
        cgroup=str(lab.node_cgroup(pod.node) / names.pod_cgroup(pod.namespace, pod.name, pod.uid)),
        host_network=pod.host_network,
    )


def create(lab: Record, box: Sandbox) -> None:
    """Write the sandbox down, then make its cgroup and namespace: what exists is always written down."""
    write(lab.directory.pod(box.uid), box)
    Path(box.cgroup).mkdir(parents=True, exist_ok=True)
    if not box.host_network:
        namespaces.create(box.netns, namespaces.sysctls(lab.families))


def add(lab: Record, box: Sandbox) -> list[str]:
    """CNI ADD. The pod's addresses, in the order of the result. Raises CniFailed."""
    result = json.loads(call_cni(lab, box, "ADD"))
    return [str(each["address"]).partition("/")[0] for each in result.get("ips", [])]


def remove(lab: Record, box: Sandbox) -> None:
    """End the pod: programs, CNI DEL, namespace, cgroup. Raises CniFailed; then ask again later."""
    host.kill_cgroup(Path(box.cgroup))
    if not box.host_network:
        if namespaces.is_namespace(namespaces.path(box.netns)):
            call_cni(lab, box, "DEL")
        namespaces.remove(box.netns)
    host.remove_cgroup(Path(box.cgroup))
    lab.directory.pod(box.uid).unlink(missing_ok=True)


def call_cni(lab: Record, box: Sandbox, command: str) -> bytes:
    """Run the executable as a container runtime does. What it printed. Raises CniFailed."""
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "PLEXUS_CNI_SOCKET": str(lab.directory.cni_socket(box.node)),
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": box.uid,
        "CNI_NETNS": str(namespaces.path(box.netns)),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(CNI.parent),
        "CNI_ARGS": (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={box.namespace};K8S_POD_NAME={box.name};"
            f"K8S_POD_INFRA_CONTAINER_ID={box.uid};K8S_POD_UID={box.uid}"
        ),
        names.MARKER: lab.name,
    }
    try:
        done = subprocess.run(
            [str(CNI)],
            input=json.dumps(NETWORK).encode(),
            env=environment,
            capture_output=True,
            timeout=CNI_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CniFailed(f"CNI {command}: no answer within {CNI_SECONDS:.0f} s") from None
    except FileNotFoundError:
        raise CniFailed(f"{CNI} is missing; make setup builds it") from None
    if done.returncode:
        raise CniFailed(f"CNI {command}: {problem(done.stdout) or done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def problem(output: bytes) -> str:
    """The text of a CNI error result; "" when it is none."""
    try:
        said = json.loads(output)
        return ": ".join(filter(None, [str(said.get("msg", "")), str(said.get("details", ""))]))
    except (ValueError, AttributeError):
        return ""


def run(lab: Record, box: Sandbox, container: str, start: images.Start) -> processes.Running:
    """Start a container's program in the sandbox."""
    return processes.start(
        lab.name,
        start.arguments,
        netns=box.netns,
        cgroup=Path(box.cgroup),
        log=lab.directory.log(f"pods/{box.namespace}.{box.name}.{container}"),
        more={**start.environment, "HOSTNAME": box.name, "POD_IP": ",".join(box.addresses), CONTAINER: container},
        directory=Path("/"),
    )


def alive(box: Sandbox, container: str) -> ProcessId | None:
    """The container's program, when it still runs from before; also one that nobody had the time to write down."""
    known = box.processes.get(container)
    if known is not None and processes.is_alive(known):
        return known
    return processes.leader(Path(box.cgroup), f"{CONTAINER}={container}")
