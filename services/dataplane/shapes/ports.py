"""The ports that masqueraded connections take: a range of their own, beside those of the node's own connections. Pure.

Source: docs/adr/0006-masquerade-ports.md
"""

from __future__ import annotations

from settings.ports import LAST, LEAST, NODE_PORTS_END, Ports

OWN_LEAST = 4096  # what the node keeps for connections of its own, for each remote address and port


def ports_beside(own: Ports) -> Ports | None:
    """What masqueraded connections may have, where the node's own take `own` (net.ipv4.ip_local_port_range): all above
    these, and of these all but the first `OWN_LEAST`; None: that leaves too few."""
    first = max(NODE_PORTS_END, min(own.first + OWN_LEAST, own.last + 1))
    return Ports(first) if LAST - first >= LEAST - 1 else None
