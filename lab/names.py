"""What everything that belongs to a lab is called. Pure.

Every name holds the lab's own name, delimited so that the lab "a" never takes what belongs to the lab "a-b" for its
own: a lab's name has no dot, and a dot ends it in the names of namespaces.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from lab.errors import LabError

DEFAULT = "plexus"

# Every process of a lab has this in its environment. Not PLEXUS_LAB: people export that in their shells.
MARKER = "PLEXUS_LAB_MEMBER"

# The lab's own hosts beside the nodes.
ROUTER, CONTROL, LAN, OUTSIDE = "router", "control", "lan", "outside"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,10}[a-z0-9])?")
_LONGEST_READABLE = 150  # characters of a pod's namespace name before its hash; a file name holds 255


def check(name: str) -> str:
    """`name`, when it may be a lab's: 1 to 12 of a-z, 0-9 and "-", with no "-" at the ends. Raises LabError."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} cannot be a lab's name: take 1 to 12 of a-z, 0-9 and '-', no '-' first or last")
    return name


def nodes(count: int) -> list[str]:
    """node1 .. node<count>."""
    return [f"node{number}" for number in range(1, count + 1)]


def namespace_prefix(lab: str) -> str:
    """What every network namespace of the lab starts with, and nobody else's."""
    return f"plx-{lab}."


def namespace(lab: str, host: str) -> str:
    """The network namespace of a node or of one of the lab's own hosts."""
    return namespace_prefix(lab) + host


def pod_namespace(lab: str, node: str, pod_namespace: str, pod: str, uid: str) -> str:
    """A pod's network namespace. The uid makes it new for a pod that is made again under its old name."""
    readable = f"{node}.{pod_namespace}.{pod}"[:_LONGEST_READABLE]
    return f"{namespace_prefix(lab)}{readable}.{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def management_link(lab: str) -> str:
    """The one link in the root namespace: it leads to the control host. 15 characters at most, as the kernel wants."""
    return f"px-{lab}"


def cgroup(lab: str) -> str:
    """The lab's directory in the cgroup v2 tree; all its processes live below."""
    return f"plexus-{lab}"


def pod_cgroup(namespace: str, pod: str, uid: str) -> str:
    """A pod's directory below its node's. Kubernetes names have no underscore."""
    return f"{namespace}_{pod}"[:_LONGEST_READABLE] + f"_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def pins(lab: str) -> PurePosixPath:
    """Where the lab's BPF objects are pinned, relative to the bpf file system; a directory per node below."""
    return PurePosixPath("plexus", lab)
