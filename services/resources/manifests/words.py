"""The syntax of single words: names, labels, ports, addresses. Each check answers None, or what is wrong with the word.

Sources: Kubernetes, "Object Names and IDs" and "Labels and Selectors"; RFC 1123 section 2.1, RFC 1035 section 2.3.1,
RFC 6335 section 5.1 (service names), RFC 4632 (CIDR).
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from bus.addresses import family as family_of
from bus.addresses import is_mapped, parse
from bus.messages.resources import Family
from bus.texts import is_subdomain
from services.resources.manifests.strict import nearest

PROTOCOLS = ("TCP", "UDP", "SCTP")  # those that have ports

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def dns_label(text: str) -> str | None:
    """A DNS-1123 label: at most 63 of a-z, 0-9 and "-"."""
    if len(text) <= 63 and _LABEL.fullmatch(text):
        return None
    return f'"{text}" is not a name; use at most 63 of a-z, 0-9 and "-", the first and last a letter or digit'


def service_name(text: str) -> str | None:
    """A DNS-1035 label: as `dns_label`, and it starts with a letter."""
    if len(text) <= 63 and _SERVICE.fullmatch(text):
        return None
    return f'"{text}" is not a Service name; use at most 63 of a-z, 0-9 and "-", the first a letter, the last no "-"'


def dns_subdomain(text: str) -> str | None:
    """DNS-1123 labels with dots between: at most 253 characters."""
    if is_subdomain(text):
        return None
    return f'"{text}" is not a name; use at most 253 of a-z, 0-9, "-" and ".", the first and last a letter or digit'


def label_key(text: str) -> str | None:
    """A name of at most 63, perhaps after a DNS subdomain and "/"."""
    prefix, slash, name = text.rpartition("/")
    if len(name) <= 63 and _QUALIFIED.fullmatch(name) and (not slash or dns_subdomain(prefix) is None):
        return None
    return (
        f'"{text}" is not a label key; use name or domain/name, the name at most 63 of letters, digits, "-", "_", "."'
    )


def annotation_key(text: str) -> str | None:
    """As a label's key; capitals may also stand before the "/": Kubernetes compares annotations' keys without case."""
    if label_key(text.lower()) is None:
        return None
    return (
        f'"{text}" is not an annotation key; use name or domain/name, the name at most 63 of letters, digits, '
        '"-", "_", "."'
    )


def label_value(text: str) -> str | None:
    """Empty, or at most 63 of letters, digits, "-", "_" and "."."""
    if text == "" or (len(text) <= 63 and _QUALIFIED.fullmatch(text)):
        return None
    return (
        f'"{text}" is not a label value; use at most 63 of letters, digits, "-", "_", ".", '
        "the first and last a letter or digit"
    )


def port_name(text: str) -> str | None:
    """An IANA service name: at most 15 of a-z, 0-9 and single "-", one letter among them."""
    if len(text) <= 15 and _PORT_NAME.fullmatch(text):
        return None
    return f'"{text}" is not a port name; use at most 15 of a-z, 0-9 and single "-", with at least one letter'


def port_number(number: int) -> str | None:
    return None if 1 <= number <= 65535 else f"{number} is not a port; use 1 to 65535"


def protocol(word: str) -> str | None:
    """Of a port."""
    if word in PROTOCOLS:
        return None
    return f'"{word}" is not a protocol; use TCP, UDP or SCTP{nearest(word, PROTOCOLS)}'


def address(text: str, family: Family | None = None) -> str | None:
    """An IP address of the family, or of any."""
    found = parse(text)
    if found is None:
        return _no_address(text)
    if family is not None and family_of(found) != family:
        return f"{text} is not an {family} address"
    return None


def _no_address(text: str) -> str:
    try:
        found = ip_address(text)
    except ValueError:
        return f'"{text}" is not an IP address'
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        return f"{text} has a zone, which means something on one machine only; leave out %{found.scope_id}"
    return f"{text} is an IPv4 address written as an IPv6 one; write the IPv4 address"


def endpoint_address(text: str, family: Family | None = None) -> str | None:
    """An address that a backend may have: not loopback, link-local, multicast, 0.0.0.0 or ::, as Kubernetes asks."""
    wrong = address(text, family)
    found = parse(text)
    if wrong is not None or found is None:
        return wrong
    if found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified:
        return f"{text} cannot be an endpoint: it is a loopback, link-local, multicast or unspecified address"
    return None


def cidr(text: str, bare_address: bool = False) -> str | None:
    """A block of addresses of either family; `bare_address`: "10.0.0.1" stands for itself."""
    _, slash, length = text.partition("/")
    try:
        if not slash and not bare_address:
            raise ValueError
        if "%" in text or (slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", length)):
            raise ValueError
        network = ip_network(text, strict=False)
    except ValueError:
        return f'"{text}" is not a CIDR; one is written like 10.0.0.0/8 or fd00::/8'
    if is_mapped(network):
        return f"{text} is of IPv4 addresses written as IPv6 ones; write the IPv4 CIDR"
    return None


def plain_cidr(text: str) -> str:
    """The one form of a valid CIDR: "fd00:10::/64", no bits set beyond its length; of an address, that of it alone.
    Another text stays as it is."""
    return text if cidr(text, bare_address=True) is not None else str(ip_network(text, strict=False))


def excluded_cidr(text: str, block: str) -> str | None:
    """`text` is a CIDR inside the valid CIDR `block`, and smaller."""
    wrong = cidr(text)
    if wrong is not None:
        return wrong
    inner, outer = ip_network(text, strict=False), ip_network(block, strict=False)
    inside = inner != outer and (
        (isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network) and inner.subnet_of(outer))
        or (isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network) and inner.subnet_of(outer))
    )
    return None if inside else f"{text} is not inside {block}; an exception must be a smaller part of it"
