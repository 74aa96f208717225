"""Keeps programs attached: to devices (by attach.py's plans) and, for socket load balancing, to a cgroup. Effects.

What someone removed by hand is back within `HEAL_SECONDS` and what it takes to look, and counted. The kernel tells of
filters, clsact, routes and addresses that change (rtnetlink); of links it tells nothing, so each is asked. Links,
programs and maps are held open here, so that a pin that is removed takes nothing with it (pins.py).

Attaching or detaching a tcx link waits 11 ms with the kernel's routing lock held (attach.py says for what), 15 times
what a clsact filter takes. So a new pod begins with clsact (links.py) and moves to tcx when no pod comes or goes.

One thread does all of it, so the event loop never waits for the routing lock.
Needs CAP_NET_ADMIN and CAP_BPF.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bus.telemetry import count, logger
from services.dataplane.batch import to_the_end
from services.dataplane.kernel import bpf, rtnl
from services.dataplane.kernel.bpf import LINK_TCX, TCX_EGRESS, TCX_INGRESS, LinkInfo
from services.dataplane.kernel.links import LinkError, advice
from services.dataplane.kernel.netlink import Netlink
from services.dataplane.kernel.pins import Pins, open_program
from services.dataplane.kernel.steps import Steps
from services.dataplane.shapes.attach import (
    Changed,
    Direction,
    Hook,
    Mechanism,
    Moves,
    Seen,
    Step,
    plan,
    suspects,
    target,
)
from services.dataplane.shapes.programs import SOCKET_PROGRAMS

log = logger(__name__)

T = TypeVar("T")

HEAL_SECONDS = 2.0
TOLD_SECONDS = 5.0  # what was found changed, at least, from when it was seen last
ATTACH_TYPE: dict[Direction, int] = {"ingress": TCX_INGRESS, "egress": TCX_EGRESS}
PROBLEMS_SHOWN = 5


class Events:
    """What the kernel tells of filters, routes and addresses, in the network namespace of the maker's thread."""

    GROUPS = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10
    """RTNLGRP_TC, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, each less one."""
    FILTERS = frozenset({36, 37, 44, 45})  # RTM_NEWQDISC, _DELQDISC, _NEWTFILTER, _DELTFILTER
    ADDRESSES = frozenset({20, 21})  # RTM_NEWADDR, _DELADDR
    ROUTES = frozenset({24, 25})  # RTM_NEWROUTE, _DELROUTE
    ROUTE_GONE = 25
    REPLACES = 0x100  # NLM_F_REPLACE: instead of another route, of which nothing else is told
    LOCAL = (255, 2)  # RT_TABLE_LOCAL, RTN_LOCAL: what the node's stack takes in
    OURS = (rtnl.POD_ROUTE_PROTOCOL, rtnl.NODE_ROUTE_PROTOCOL)

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, self.GROUPS))

    def close(self) -> None:
        self._socket.close()

    def take(self) -> Changed:
        """All that came since the last time."""
        devices: set[int] = set()
        routes = addresses = lost = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return Changed(frozenset(devices), routes, addresses, lost)
            except OSError as failure:
                if failure.errno != errno.ENOBUFS:
                    raise
                lost = routes = addresses = True
                continue
            while len(data) >= 24:  # nlmsghdr, and the part of tcmsg, rtmsg or ifaddrmsg that is read here
                size, kind, flags = struct.unpack_from("=IHH", data)
                if kind in self.FILTERS:
                    devices.add(struct.unpack_from("=i", data, 20)[0])
                elif kind in self.ROUTES:
                    is_ours = data[21] in self.OURS
                    routes |= is_ours if kind == self.ROUTE_GONE else not is_ours and bool(flags & self.REPLACES)
                    addresses = addresses or (data[20], data[23]) == self.LOCAL
                elif kind in self.ADDRESSES:
                    addresses = True
                data = data[max(16, (size + 3) & ~3) :]


class Hooks:
    """The hooks of the network namespace of the thread that makes this object, and the socket hooks of `cgroup`."""

    def __init__(self, pin_dir: Path, cgroup: Path, programs: dict[str, int], *, enable_tcx: bool) -> None:
        """
        Args:
            programs: file descriptors by name; they stay the caller's, open for as long as this is used.
            enable_tcx: false: clsact even where the kernel has tcx.
        Raises: OSError: the kernel does not let us ask whether it has tcx.
        """
        self._has_tcx = bpf.has_tcx()
        self.mechanism: Mechanism = "tcx" if enable_tcx and self._has_tcx else "clsact"
        self.pins = Pins(pin_dir)
        self._links = pin_dir / "links"
        self._pin_dir = pin_dir
        self._cgroup = cgroup
        self._programs = {name: (fd, bpf.program_id(fd)) for name, fd in programs.items()}
        self._netlink = Netlink()
        self._events = Events()
        self._thread = ThreadPoolExecutor(1, "hooks")
        self._kept: list[Hook] = []
        self._steps: Steps | None = None
        self._socket_programs: dict[str, int] = {}  # the kernel's numbers
        self._applied: dict[Hook, Mechanism] = {}
        self._told = Told()
        self._aside: list[int] = []  # links whose pin was taken for another's, until all hooks were looked at
        self._behind: dict[Hook, str] = {}  # hooks where another's tcx program runs before ours, and which
        self._moves = Moves()  # before such a one
        self._problems: dict[str, str] = {}  # by device and direction, or name of a socket program
        self._no_device: set[Hook] = set()  # those of `_problems` whose device is gone
        self._routes_gone = False
        self._addresses_changed = False

    def close(self) -> None:
        """Waits for what runs. What is attached stays so."""
        self._thread.shutdown()
        self._let_go()
        self.pins.close()
        self._netlink.close()
        self._events.close()

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await to_the_end(asyncio.wrap_future(self._thread.submit(work, *arguments)))
        except OSError as failure:
            raise LinkError(advice(failure)) from failure

    # What the node asks

    async def keep(self, hook: Hook) -> None:
        """One of the node's own hooks: its program is there when this returns, and kept there.

        Raises: LinkError.
        """
        await self._run(self._bring, hook, True)
        if hook not in self._kept:
            self._kept.append(hook)

    async def remove(self, hook: Hook) -> None:
        """What an earlier start with other settings left at one of the node's own hooks goes, or what was kept there.
        Others' programs stay; where the device is gone, its pin goes. What another hook is kept by stays, too: of a
        device that was renamed its programs, and its pin where another has the name now.

        Raises: LinkError.
        """
        self._kept = [each for each in self._kept if each != hook]
        await self._run(self._take_away, hook, tuple(self._kept))

    async def keep_sockets(self) -> None:
        """Socket load balancing for every process in the cgroup. A program that is there is replaced in one step.

        Raises: LinkError.
        """
        await self._run(self._attach_sockets)

    async def keep_pins(self, paths: Iterable[Path]) -> None:
        """What is pinned there now stays so: programs and maps, as links do.

        Raises: LinkError: something is not pinned.
        """

        def hold() -> None:
            for path in paths:
                self.pins.hold(path)

        await self._run(hold)

    async def keep_steps(self, steps: Steps) -> None:
        """What programs jump to is there when this returns, and kept there. They stay the caller's, open meanwhile.

        Raises: LinkError.
        """
        await self._run(steps.look)
        self._steps = steps

    async def adopt(self, hooks: Collection[Hook]) -> dict[Hook, str]:
        """After a restart: this version's programs at each, by the mechanism that is there. Returns what failed."""
        return await self._run(self._adopt, list(hooks))

    async def heal(self, pods: Callable[[], Iterable[Hook]], is_quiet: Callable[[], bool]) -> None:
        """Put back what is not as it was left, and move what waits for a quiet moment.

        Args:
            pods: the hooks of pods as of now; asked again before each change, as a pod may go meanwhile.
            is_quiet: no pod comes or goes.
        """
        problems: dict[str, str] = {}
        no_device: set[Hook] = set()

        async def bring(hook: Hook, *, may_move: bool) -> bool:
            """What is wrong with one keeps no other waiting."""
            try:
                return hook in {*self._kept, *pods()} and await self._run(self._bring, hook, may_move)
            except LinkError as problem:
                if hook in {*self._kept, *pods()}:
                    problems[f"{hook.device} {hook.direction}"] = str(problem)
                    if isinstance(problem.__cause__, OSError) and problem.__cause__.errno == errno.ENODEV:
                        no_device.add(hook)
                return False

        await self._run(self.pins.look)
        if self._steps is not None:
            await self._run(self._steps.look)
        wrong = await self._run(self._look, [*self._kept, *pods()])
        may_go_first = self._moves.take(filter(self._behind.__contains__, wrong), time.monotonic())
        for hook in wrong:
            where, before = f"{hook.device} {hook.direction}", self._behind.get(hook)
            if before is not None and hook not in may_go_first:
                continue
            if await bring(hook, may_move=False):
                self._told.add(where, f"{hook.program} was not attached")
                count("drift", kind="program")
                log.warning("program attached again", device=hook.device, program=hook.program)
            elif before is not None:
                self._told.add(where, f"{before} ran before {hook.program}")
                count("drift", kind="program")
                log.warning("another's program ran before ours", device=hook.device, program=hook.program, other=before)
        problems |= await self._run(self._heal_sockets)
        for hook in self._waiting():
            if not is_quiet():
                break
            if hook not in self._behind:
                await bring(hook, may_move=True)
        for what in problems.keys() - self._problems.keys():
            log.warning("program not attached, trying again", where=what, why=problems[what])
        self._problems, self._no_device = problems, no_device

    def take_routes_gone(self) -> bool:
        """Whether the kernel told of a route of ours that is gone since this was asked the last time."""
        gone, self._routes_gone = self._routes_gone, False
        return gone

    def take_addresses_changed(self) -> bool:
        """Whether the kernel told of an address that the node has or has not any more since this was asked the last
        time."""
        changed, self._addresses_changed = self._addresses_changed, False
        return changed

    def has(self, hooks: Iterable[Hook]) -> bool:
        """Each has been brought its program, as far as is known without asking the kernel again; or has no device, so
        nothing passes there."""
        return self._applied.keys() | self._no_device >= set(hooks)

    @property
    def differing(self) -> dict[str, str]:
        """What was not as it was left, and is told for some seconds though it is mended; and what cannot be mended. By
        device and direction, or name of a socket program."""
        cure = "take it away" if self.mechanism == "tcx" else "take it away, or enable tcx"
        behind = {
            f"{hook.device} {hook.direction}": f"{before} runs before {hook.program}: {cure}"
            for hook, before in self._behind.items()
        }
        return behind | self._told.words()

    @property
    def state(self) -> tuple[bool, str]:
        """Whether all is attached, and how: for the check "programs"."""
        if self._problems:
            shown = [f"{what}: {why}" for what, why in sorted(self._problems.items())[:PROBLEMS_SHOWN]]
            return False, f"{len(self._problems)} not attached: {'; '.join(shown)}"
        differing = self.differing
        if differing:
            shown = [f"{what}: {why}" for what, why in sorted(differing.items())[:PROBLEMS_SHOWN]]
            return False, f"{len(differing)} not as it was left: {'; '.join(shown)}"
        waiting = len(self._waiting())
        return True, f"{self.mechanism}, {waiting} of {len(self._applied)} not moved yet" if waiting else self.mechanism

    def _waiting(self) -> list[Hook]:
        return [hook for hook, mechanism in list(self._applied.items()) if mechanism != self.mechanism]

    # What runs on the thread

    def _adopt(self, hooks: list[Hook]) -> dict[Hook, str]:
        problems = {}
        for hook in hooks:
            try:
                self._bring(hook, False)
            except OSError as failure:
                problems[hook] = advice(failure)
        self._let_go()
        return problems

    def _let_go(self) -> None:
        while self._aside:
            os.close(self._aside.pop())

    def _bring(self, hook: Hook, may_move: bool) -> bool:
        """Do what `plan` says. Returns whether there was no program of ours, or another."""
        fd, program = self._programs[hook.program]
        seen = self._seen(hook)
        mechanism = target(self.mechanism, seen, may_move=may_move)
        for step in plan(program, mechanism, seen):
            self._do(step, hook, fd, seen)
        if mechanism == "tcx":
            self._hold(self._links / hook.pin)
            self._behind.pop(hook, None)
        self._applied[hook] = mechanism
        return not seen.holds(program)

    def _take_away(self, hook: Hook, kept: Collection[Hook]) -> None:
        seen = self._seen(hook)
        is_kept = any(each.is_at(hook) for each in kept)
        if seen.is_pinned and all(each.pin != hook.pin for each in kept):
            self._do(Step.REMOVE_TCX, hook, -1, replace(seen, tcx=None) if is_kept else seen)
        if is_kept:
            return
        for each in rtnl.list_attached(self._netlink, hook.index, hook.direction):
            if each.priority == rtnl.FILTER_PRIORITY and each.name == hook.program:
                rtnl.detach(self._netlink, hook.index, hook.direction, each.handle)

    def _seen(self, hook: Hook) -> Seen:
        link = self._link(self._links / hook.pin)
        filters = {
            each.handle: each.program_id
            for each in rtnl.list_attached(self._netlink, hook.index, hook.direction)
            if each.priority == rtnl.FILTER_PRIORITY
            and (each.handle == rtnl.FILTER_HANDLE or each.name in self._programs)
        }
        tcx = link.program_id if link and self._is_at(link, hook) else None
        first = self._first(hook)
        return Seen(
            tcx=tcx,
            is_pinned=link is not None,
            clsact=filters.pop(rtnl.FILTER_HANDLE, None),
            strays=tuple(filters),
            is_first=first in (None, tcx),
        )

    @staticmethod
    def _is_at(link: LinkInfo, hook: Hook) -> bool:
        return (link.type, link.target, link.attach_type) == (LINK_TCX, hook.index, ATTACH_TYPE[hook.direction])

    def _first(self, hook: Hook) -> int | None:
        """The kernel's number of the tcx program that runs first there; None: there is none, or no device."""
        if not self._has_tcx:
            return None
        try:
            return next(iter(bpf.tcx_programs(hook.index, ATTACH_TYPE[hook.direction])), None)
        except OSError as failure:
            if failure.errno not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
                raise
            return None

    def _do(self, step: Step, hook: Hook, fd: int, seen: Seen) -> None:
        pin = self._links / hook.pin
        match step:
            case Step.ATTACH_TCX:
                self._links.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # a link of another hook, whose pin may be here by mistake
                    self._aside.append(bpf.open_pinned(pin))
                bpf.attach_tcx(fd, hook.index, ATTACH_TYPE[hook.direction], pin)
                self.pins.drop(pin)
            case Step.REPLACE_TCX:
                self._with_link(pin, lambda link: bpf.replace_program(link, fd))
            case Step.REMOVE_TCX:
                if seen.tcx is not None:
                    self._with_link(pin, bpf.detach_link)
                self.pins.drop(pin)
                pin.unlink(missing_ok=True)
            case Step.SET_CLSACT:
                rtnl.attach(self._netlink, hook.index, fd, hook.direction, hook.program)
            case Step.REMOVE_CLSACT:
                rtnl.detach(self._netlink, hook.index, hook.direction)
            case Step.REMOVE_STRAYS:
                for handle in seen.strays:
                    rtnl.detach(self._netlink, hook.index, hook.direction, handle)

    def _look(self, wanted: list[Hook]) -> list[Hook]:
        """The hooks where something is to be done. Pins of devices that are gone go.

        What the kernel told is told once: a hook stays unknown, and so a suspect, until its program is there. One where
        ours is not first is a suspect each time.
        """
        try:
            changed = self._events.take()
            self._routes_gone = self._routes_gone or changed.routes
            self._addresses_changed = self._addresses_changed or changed.addresses
            for hook in self._applied.keys() - set(wanted):
                del self._applied[hook]
            for hook in self._behind:
                self._applied.pop(hook, None)  # is it still?
            self._behind.clear()
            self._let_go()
            self._unpin({hook.pin for hook in wanted})
            wrong = []
            for hook in suspects(wanted, self._applied, changed, self._is_as_left):
                self._applied.pop(hook, None)
                seen = self._seen(hook)
                if not seen.is_first and seen.holds(self._programs[hook.program][1]):
                    self._behind[hook] = _name_of(self._first(hook))
                    self._applied[hook] = "clsact" if seen.tcx is None else "tcx"
                mechanism = target(self.mechanism, seen, may_move=False)
                if plan(self._programs[hook.program][1], mechanism, seen):
                    wrong.append(hook)
                else:
                    self._applied[hook] = mechanism
        except OSError:
            self._applied.clear()  # what was told is lost: the next look is at every hook
            self._routes_gone = self._addresses_changed = True
            raise
        return wrong

    def _is_as_left(self, hook: Hook, mechanism: Mechanism) -> bool:
        first = self._first(hook)
        if mechanism == "clsact":
            return first is None
        link, program = self._link(self._links / hook.pin), self._programs[hook.program][1]
        return link is not None and self._is_at(link, hook) and link.program_id == program == first

    def _link(self, pin: Path) -> LinkInfo | None:
        held = self.pins.held(pin)
        return bpf.pinned_link(pin) if held is None else bpf.link_info(held)

    def _with_link(self, pin: Path, work: Callable[[int], None]) -> None:
        held = self.pins.held(pin)
        if held is None:
            with_link(pin, work)
        else:
            work(held)

    def _hold(self, pin: Path) -> None:
        """Without room for more open files a link goes with its pin, and comes back with the next look."""
        try:
            if self.pins.held(pin) is None:
                self.pins.hold(pin)
        except OSError as problem:
            log.warning(
                "a link is kept by its pin alone: raise the limit of open files", pin=pin.name, why=str(problem)
            )

    def _unpin(self, wanted: set[str]) -> None:
        for path in self.pins.paths():
            if path.parent == self._links and _is_of_device(path.name) and path.name not in wanted:
                self.pins.drop(path)
        with suppress(FileNotFoundError):
            for name in os.listdir(self._links):  # noqa: PTH208 (names are all that is wanted, every two seconds)
                if name.endswith(bpf.UNNAMED):  # of a process that was killed while it pinned
                    (self._links / name).unlink(missing_ok=True)
                elif _is_of_device(name) and name not in wanted:
                    link = bpf.pinned_link(self._links / name)
                    if link is not None and not link.target:
                        (self._links / name).unlink(missing_ok=True)

    # Sockets

    def _attach_sockets(self) -> None:
        for name in SOCKET_PROGRAMS:
            self._attach_socket(name)

    def _attach_socket(self, name: str) -> None:
        self._links.mkdir(parents=True, exist_ok=True)
        program = open_program(self._pin_dir, name)
        try:
            bpf.attach_cgroup(program, self._cgroup, SOCKET_PROGRAMS[name], self._links / name)
            self._socket_programs[name] = bpf.program_id(program)
            self.pins.drop(self._links / name)
            self._hold(self._links / name)
        finally:
            os.close(program)

    def _heal_sockets(self) -> dict[str, str]:
        problems = {}
        for name, program in self._socket_programs.items():
            link = self._link(self._links / name)
            try:
                attach_type = SOCKET_PROGRAMS[name]
                if link and link.program_id == program and bpf.is_at_cgroup(link, self._cgroup, attach_type):
                    continue
                self._attach_socket(name)
            except OSError as failure:
                problems[name] = advice(failure)
            else:
                self._told.add(name, "it was not attached")
                count("drift", kind="program")
                log.warning("program attached again", program=name)
        return problems


class Told:
    """What was found and mended, in words, for `TOLD_SECONDS` each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, float]] = {}  # when, on a clock that nobody sets

    def add(self, what: str, words: str) -> None:
        at = time.strftime("%H:%M:%S", time.gmtime())
        self._found[what] = f"{words}, at {at} UTC", time.monotonic()

    def words(self) -> dict[str, str]:
        now = time.monotonic()
        self._found = {what: each for what, each in self._found.items() if now - each[1] < TOLD_SECONDS}
        return {what: words for what, (words, _) in self._found.items()}


def _name_of(program: int | None) -> str:
    """What people find it by."""
    return "another's program" if program is None else f"another's program (bpftool prog show id {program})"


def _is_of_device(pin: str) -> bool:
    return pin.endswith(("-ingress", "-egress"))


def with_link(pin: Path, work: Callable[[int], None]) -> None:
    """Do something to the link that is pinned there, by its file descriptor. Raises: OSError."""
    link = bpf.open_pinned(pin)
    try:
        work(link)
    finally:
        os.close(link)
