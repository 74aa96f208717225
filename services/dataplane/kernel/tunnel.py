"""The tunnel device of a node, as this process made it: seen to be so, and put back where somebody else changed it.

Programs know the device by its index, a constant of theirs. So what keeps its index is mended in place; a
device that is gone, or of another making, is made anew by a start (`__main__.run`), which costs what the verifier
takes. Pods keep their programs meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.dataplane.kernel import rtnl
from services.dataplane.kernel.netlink import Netlink
from services.dataplane.kernel.rtnl import Protocol

LEAVE_ALONE = (
    "tell whatever manages devices on this node (NetworkManager, systemd-networkd) to leave plexus_* and lxc* alone"
)


class TunnelGone(Exception):
    """There is none with the index that programs know. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The device that there should be."""

    name: str
    index: int
    protocol: Protocol
    port: int
    mtu_bytes: int


def mend_tunnel(netlink: Netlink, wanted: Tunnel) -> str:
    """Returns what was wrong and what to do, "" when nothing was. Raises: TunnelGone. Refused."""
    found = rtnl.find_link_at(netlink, wanted.index)
    if found is None or (found.kind, found.tunnel_port) != (wanted.protocol, wanted.port):
        raise TunnelGone(f"{wanted.name} was removed: it is made anew, with its programs; {LEAVE_ALONE}")
    wrong = []
    try:
        if found.name != wanted.name:
            wrong.append(f"was named {found.name}")
            rtnl.rename(netlink, wanted.index, wanted.name)
        if found.mtu_bytes != wanted.mtu_bytes:
            wrong.append(f"had an MTU of {found.mtu_bytes} bytes, not {wanted.mtu_bytes}")
            rtnl.set_mtu(netlink, wanted.index, wanted.mtu_bytes)
    finally:  # whatever else is refused: the node is reached by it, and renaming may have set it down
        if wrong or not found.up:
            rtnl.set_up(netlink, wanted.index)
    if not found.up:
        wrong.append("was down")
    return f"{wanted.name} {' and '.join(wrong)}: put back; {LEAVE_ALONE}" if wrong else ""
