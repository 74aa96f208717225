"""ipam: which node holds which block of pod addresses, and which Services have which address of a pool."""

from __future__ import annotations

from bus.messages import Message, Part


class Block(Message, frozen=True, kw_only=True):
    """A block belongs to one node; made by compare-and-set. Subject: state.ipam.block.<cidr>"""

    cidr: str  # "10.0.1.0/24", "fd00:10::/120"
    node: str


class AddressHolder(Part, frozen=True, kw_only=True):
    """A Service that has an address, with all that decides whether another may have it too."""

    namespace: str
    name: str
    ports: list[str]  # "80/TCP", sorted
    sharing_key: str = ""  # "": it has the address alone
    sharing_namespaces: list[str] = []  # with whose Services besides its own namespace's; "*": with all
    is_local: bool = False  # externalTrafficPolicy Local: who shares the address has the same backends
    selector: dict[str, str] = {}  # where it is local


class ServiceAddress(Message, frozen=True, kw_only=True):
    """An address of a pool and the Services that have it, changed by compare-and-set alone: so no address is ever given
    twice. Several have the same sharing key, and no port in common. Subject: state.ipam.serviceaddress.<address>"""

    address: str
    services: list[AddressHolder]  # who came first stands first


class AddressRequest(Message, frozen=True, kw_only=True):
    """What became of what a Service of type LoadBalancer asks for.

    Subject: state.ipam.addressrequest.<namespace>.<name>
    """

    namespace: str
    name: str
    addresses: list[str] = []  # that it has, IPv4 first; who has an address in truth, ServiceAddress says
    satisfied: bool
    reason: str = ""  # one word: "satisfied", "no_pool", "out_of_ips"...
    detail: str = ""  # for people


class PoolUse(Message, frozen=True, kw_only=True):
    """How a LoadBalancer pool is. Subject: state.ipam.pooluse.<name>

    The numbers are decimal texts: a pool of IPv6 addresses has more than 64 bits hold.
    """

    name: str
    total: str
    used: str
    available: str
    conflict: str = ""  # with which other pool it overlaps, for people; "": with none
