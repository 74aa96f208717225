"""l2announce: which node answers for which address of a Service, on the networks that it is on."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from bus.messages import Message, Part


class Announcement(Message, frozen=True, kw_only=True):
    """The one node that is to answer for an address of a Service (ARP, neighbour discovery); changed by compare-and-set
    alone. Whether it may do so at this moment, `Granted` says. Subject: state.l2announce.announcement.<address>"""

    address: str
    node: str
    services: list[str]  # "namespace/name" of those that have the address, sorted
    policies: list[str]  # names of the policies by which this node does it, sorted
    before: list[
        str
    ] = []  # nodes that live and did it before, sorted: neighbours may still send to them, and are served


class Lease(Message, frozen=True, kw_only=True):
    """How long leases of nodes may be: none is granted that is longer, and who begins to grant waits for as long.
    Changed by compare-and-set alone. Subject: state.l2announce.lease.<name>"""

    name: str  # "nodes"
    seconds: float


class PolicyUse(Message, frozen=True, kw_only=True):
    """How a CiliumL2AnnouncementPolicy does. Subject: state.l2announce.policyuse.<name>"""

    name: str
    nodes: int  # that it selects
    able_nodes: int  # those of them that answer, and so could announce
    addresses: int  # of the Services that it selects
    waiting: list[str] = []  # the first of those addresses that nobody announces: no node that is selected answers
    waiting_count: int = 0  # how many those are


class Renewal(Message, frozen=True, kw_only=True):
    """A node asks for its lease anew, several times in its length. Question: req.l2announce.renew.<node>"""

    node: str
    process: Annotated[
        str, Meta(max_length=64)
    ]  # of which the question is: another one for each process, and each start of the node
    number: int  # rises with each question of a process
    term: Annotated[str, Meta(max_length=64)] = ""  # as the last answer named it; "": there was none yet
    holds: list[str] = []  # addresses that its kernel may be answering for


class HeldAddress(Part, frozen=True, kw_only=True):
    """An address that a node is to announce."""

    address: str
    granted: bool  # from when the node asked, for `Granted.seconds`; else it keeps what it has, and no longer
    interfaces: list[str] = []  # RE2, found anywhere in a device's name; empty: every device that leads out
    tell: bool = True  # to say unasked where it is now; False: who has it cached at another node is served there


class Granted(Message, frozen=True, kw_only=True):
    """The answer to `Renewal`. An address that is not in it the node takes away at once, and then says so."""

    term: (
        str  # of whoever answers; one who does not know the node's asks it to say again what it holds. "": nobody leads
    )
    seconds: float  # that a grant lasts, counted on the node's clock from before it asked
    addresses: list[HeldAddress] = []
