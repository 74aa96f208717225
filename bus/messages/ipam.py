"""ipam: which node holds which block of pod addresses."""

from __future__ import annotations

from bus.messages import Message


class Block(Message, frozen=True, kw_only=True):
    """A block belongs to one node; made by compare-and-set. Subject: state.ipam.block.<cidr>"""

    cidr: str  # "10.0.1.0/24", "fd00:10::/120"
    node: str
