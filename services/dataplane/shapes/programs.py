"""The programs, by name: which file has which, and what kind each is."""

from __future__ import annotations

from services.dataplane.shapes.limits import steps

STEPS = tuple(steps())

AGAIN = ("from_pod",)
"""Programs at hooks that steps jump back to: they begin anew with the packet."""

UNITS: dict[str, list[str]] = {
    **{step: [step] for step in STEPS if step not in AGAIN},  # before those that jump to them
    "pod": ["from_pod", "to_pod"],
    "netdev": ["from_netdev", "to_netdev"],
    "overlay": ["from_overlay"],
    "sock": ["connect4", "sendmsg4", "recvmsg4", "getpeername4", "connect6", "sendmsg6", "recvmsg6", "getpeername6"],
}
"""By file: bpf/programs/<unit>.bpf.c."""

TC_PROGRAMS = ("from_pod", "to_pod", "from_netdev", "to_netdev", "from_overlay")

# Source: enum bpf_attach_type
SOCKET_PROGRAMS = {
    "connect4": 10, "sendmsg4": 14, "recvmsg4": 19, "getpeername4": 29,
    "connect6": 11, "sendmsg6": 15, "recvmsg6": 20, "getpeername6": 30,
}  # fmt: skip
"""What each is attached as."""
