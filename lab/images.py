"""What the names of images mean here, for there are no images: a few programs of our own, else a pod sleeps. Pure.

    traefik/whoami                      answers HTTP with who it is and who asked
    cilium/starwars                     the deathstar's API
    anything else                       sleeps

A container's `command` (or `args` of an unknown image) is taken only when its program is one of PROGRAMS: a lab's pods
share this machine's files, and a manifest from anywhere must not run a shell on them. Everything else sleeps.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = frozenset({"curl", "iperf3", "ping", "sleep", "sockperf", "tcpdump", "wrk"})
SLEEP = ("sleep", "infinity")

_SERVER = Path(__file__).resolve().parent / "pod_server.py"
_HTTP_PORT = 80


@dataclass(frozen=True)
class Start:
    """How to start a container. `port`: it is ready when this TCP port listens; 0: as soon as it runs."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0


def start(container: Mapping[str, Any]) -> Start:
    """How to start a container of a checked Pod manifest."""
    image = repository(str(container.get("image", "")))
    command = [str(word) for word in container.get("command") or []]
    arguments = [str(word) for word in container.get("args") or []]
    environment = {str(each["name"]): str(each.get("value", "")) for each in container.get("env") or []}
    if command:
        return Start(tuple(command + arguments), environment) if command[0] in PROGRAMS else Start(SLEEP)
    if image == "traefik/whoami":
        port = whoami_port(arguments, environment)
        return Start(server("whoami", port), environment, port)
    if image == "cilium/starwars":
        return Start(server("starwars", _HTTP_PORT), environment, _HTTP_PORT)
    if arguments and arguments[0] in PROGRAMS:
        return Start(tuple(arguments), environment)
    return Start(SLEEP)


def server(name: str, port: int) -> tuple[str, ...]:
    """pod_server.py on a bare interpreter, which starts in 15 ms."""
    return (sys.executable, "-I", "-S", str(_SERVER), name, str(port))


def repository(image: str) -> str:
    """An image's name without registry, tag and digest: "quay.io/cilium/starwars:v2" is "cilium/starwars"."""
    parts = image.partition("@")[0].split("/")
    parts[-1] = parts[-1].partition(":")[0]
    if len(parts) > 1 and ("." in parts[0] or ":" in parts[0] or parts[0] == "localhost"):
        parts = parts[1:]
    return "/".join(parts)


def whoami_port(arguments: list[str], environment: Mapping[str, str]) -> int:
    """As the real one: --port N, --port=N or -port N, else $WHOAMI_PORT_NUMBER, else 80."""
    wanted = environment.get("WHOAMI_PORT_NUMBER", "")
    for position, word in enumerate(arguments):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "port":
            wanted = value if equals else "".join(arguments[position + 1 : position + 2])
    return int(wanted) if wanted.isdigit() and 0 < int(wanted) < 65536 else _HTTP_PORT
