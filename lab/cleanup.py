"""`plexus lab down`: leaves nothing, whatever state the lab is in. Effects.

It needs no supervisor and no record: what belongs to a lab is found by its name, by the mark in its processes'
environments, and by its cgroup. Safe to repeat, also while an earlier one was cut short.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from lab import host, names, namespaces, processes, state, topology
from lab.errors import LabError
from lab.state import BPF, Directory, ProcessId


def clean(name: str) -> None:
    """Remove a lab. Raises LabError naming what could not be removed."""
    directory = Directory(names.check(name))
    group = host.cgroup_root() / names.cgroup(name)
    problems: list[str] = []

    def attempt(what: str, step: Callable[[], object]) -> None:
        try:
            step()
        except (OSError, LabError) as error:
            problems.append(f"{what}: {error}")

    stop_up(directory)
    attempt("processes", lambda: kill_all(name, group))
    attempt("pins", lambda: host.remove_pins(name))
    for namespace in namespaces.listed(names.namespace_prefix(name)):
        attempt(f"namespace {namespace}", partial(namespaces.remove, namespace))
    attempt("management link", lambda: topology.detach_root(name))
    attempt("cgroup", lambda: host.remove_cgroup(group))
    if problems:
        raise LabError(f"lab {name} is not all gone: {'; '.join(problems)}; run plexus lab down --name {name} again")
    directory.remove()


def stop_up(directory: Directory) -> None:
    """End a `lab up` that is at work, unless it is us: it would go on making things."""
    working = state.read(directory.up, ProcessId)
    if working is not None and working.pid not in processes.ancestors():
        processes.kill_and_wait([working])


def kill_all(name: str, group: Path) -> None:
    """SIGKILL to all that is in the lab's cgroup, and all that bears its mark. Raises LabError when some stay."""
    host.kill_cgroup(group)
    while found := processes.marked(name):
        if left := processes.kill_and_wait(found):
            raise LabError(f"these do not end: {', '.join(str(each.pid) for each in left)}")


def rests() -> list[str]:
    """The names of all labs of which anything is left on this machine."""
    found = set(state.labs())
    found |= {each.removeprefix("plx-").partition(".")[0] for each in namespaces.listed("plx-") if "." in each}
    with suppress(LabError, OSError):
        found |= {each.name.removeprefix("plexus-") for each in host.cgroup_root().glob("plexus-*") if each.is_dir()}
    with suppress(OSError):
        found |= {each.name for each in (BPF / "plexus").iterdir()}
    return sorted(name for name in found if is_name(name))


def is_name(name: str) -> bool:
    try:
        names.check(name)
    except LabError:
        return False
    return True


def left(name: str) -> list[str]:
    """What there is of a lab, in words; for tests."""
    found = [f"namespace {each}" for each in namespaces.listed(names.namespace_prefix(name))]
    found += [f"process {msgspec.to_builtins(each)}" for each in processes.marked(name)]
    places = {
        "cgroup": host.cgroup_root() / names.cgroup(name),
        "pins": BPF / names.pins(name),
        "directory": Directory(name).path,
        "link": Path("/sys/class/net", names.management_link(name)),
    }
    return found + [f"{what} {place}" for what, place in places.items() if place.exists()]
