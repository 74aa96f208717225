"""Why packets are dropped, in the words that people know. Pure.

By `enum drop_reason` of services/dataplane/bpf/include/reasons.h; tests/contract/test_flow_records.py compares.
"""

from __future__ import annotations

from services.hubble.api import flow_pb2 as pb

NAMES = {
    132: "Invalid source ip",
    133: "Policy denied",
    134: "Invalid packet dropped",
    137: "CT: Unknown L4 protocol",
    139: "Unsupported L3 protocol",
    140: "Missed tail call",
    141: "Error writing to packet",
    147: "Error retrieving tunnel key",
    150: "Unknown L3 target address",
    151: "Stale or unroutable IP",
    155: "CT: Map insertion failed",
    156: "Invalid IPv6 extension header",
    158: "Service backend not found",
    163: "Unknown connection tracking state",
    167: "No mapping for NAT masquerade",
    168: "Unsupported protocol for NAT masquerade",
    169: "FIB lookup failed",
    170: "Encapsulation traffic is prohibited",
    175: "First logical datagram fragment not found",
    176: "Forbidden ICMPv6 message",
    177: "Denied by LB src range check",
    181: "Policy denied by denylist",
    182: "VLAN traffic disallowed by VLAN filter",
    196: "TTL exceeded",
}


def reason_name(number: int) -> str:
    """133 is "Policy denied". One that no node of ours has is called by its public name, or by its number."""
    if number in NAMES:
        return NAMES[number]
    try:
        return pb.DropReason.Name(number).replace("_", " ").capitalize()
    except ValueError:
        return str(number)
