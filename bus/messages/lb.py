"""lb: service addresses and the backends behind them."""

from __future__ import annotations

from bus.messages import Message, Part
from bus.messages.resources import Protocol


class Backend(Part, frozen=True, kw_only=True):
    address: str
    port: int
    node: str = ""


class Frontend(Part, frozen=True, kw_only=True):
    """An address and port that clients use. No backends: packets to it are dropped with "Service backend not found";
    serviceNoBackendResponse says whether their senders are told."""

    address: str
    port: int
    protocol: Protocol
    port_name: str = ""
    backends: list[Backend] = []  # sorted by address, port
    draining: list[Backend] = []  # about to end, and still serve who is connected to them: they get nothing new


class LoadBalancedService(Message, frozen=True, kw_only=True):
    """All frontends of one Service. Subject: state.lb.service.<namespace>.<name>"""

    namespace: str
    name: str
    frontends: list[Frontend] = []  # sorted by address, port, protocol
