"""The port that stands for a client's own where another connection to the same backend has that (docs/adr/0023).

Source: bpf/include/substitute.h
"""

from __future__ import annotations

PRIVILEGED_PORTS = 1024
OTHER_PORTS = 65536 - PRIVILEGED_PORTS


def substitute_port(port: int, number: int) -> int:
    """The port that stands for `port`; number 0: itself."""
    return _shifted(port, 32768 + 439 * number) if number else port


def own_port(substitute: int, number: int) -> int:
    """The port for which a substitute stands."""
    return _shifted(substitute, OTHER_PORTS - (32768 + 439 * number)) if number else substitute


def _shifted(port: int, places: int) -> int:
    if port < PRIVILEGED_PORTS:
        return (port + places) % PRIVILEGED_PORTS
    return PRIVILEGED_PORTS + (port - PRIVILEGED_PORTS + places) % OTHER_PORTS
