"""How a program of ours is attached to a hook of a device, and the steps to that from what the kernel holds. Pure.

Two mechanisms. tcx (kernel 6.6): a link that holds the program, pinned, so that it outlives this process; its program
is replaced in a single step. clsact: a filter of the kernel's traffic control, which needs no pin.

Ours comes first among all programs on a hook, by either mechanism: a policy must hold, and a program before it that
says "pass" would end the packet's way there. Other owners' programs are never touched. They see what ours says
nothing about (TC_ACT_UNSPEC). A program that somebody puts before ours is behind it after the next look: the kernel
takes a program once at a hook, so ours waits in a clsact filter while its link is made anew, and leaves it then. Two
who both want to be first would do that for ever, so it is bounded (`Moves`): ours may stay behind, and that is told.

A hook is never without a program of ours: the new one is attached before the old one goes. That both are there for a
moment does no harm. The kernel runs tcx before clsact, on the same packet, and asks clsact only if tcx said
TC_ACT_UNSPEC; ours says so only of packets that it has neither changed nor counted, and would say so again. A packet
that is under way sees both or neither change: attaching and detaching a tcx link wait until no CPU is in the old list.

Source: kernel net/core/dev.c (sch_handle_ingress), kernel/bpf/tcx.c; docs/adr/0014-tcx-when-it-is-quiet.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

MOVES_PER_LOOK = 10  # before another's program: 0.2 s of the routing lock (kernel/hooks.py)
MOVES_PER_WINDOW, WINDOW_SECONDS = 3, 60.0  # of one hook

Direction = Literal["ingress", "egress"]
Mechanism = Literal["tcx", "clsact"]


@dataclass(frozen=True, slots=True)
class Hook:
    """A place where one program of ours belongs."""

    device: str
    index: int  # of the device
    direction: Direction  # seen from the host
    program: str

    @property
    def pin(self) -> str:
        """The name of its link's pin. The BPF file system allows no dots."""
        return f"{self.device.replace('%', '%25').replace('.', '%2e')}-{self.direction}"

    def is_at(self, other: Hook) -> bool:
        """The same place in the kernel, whatever its device was called."""
        return (self.index, self.direction) == (other.index, other.direction)


@dataclass(frozen=True, slots=True)
class Seen:
    """What of ours the kernel holds at a hook, each as the kernel's number of the program."""

    tcx: int | None = None  # of our pinned link; None: there is none, or it has lost its device
    is_pinned: bool = False  # there is a pin, whatever it is worth
    clsact: int | None = None  # of our filter
    strays: tuple[int, ...] = ()  # handles of filters of ours that this version does not make
    is_first: bool = True  # no tcx program of another runs before ours

    def holds(self, program: int) -> bool:
        return program in (self.tcx, self.clsact)


class Step(Enum):
    ATTACH_TCX = auto()  # a new link, first in line; its pin takes the place of one that is worth nothing
    REPLACE_TCX = auto()  # the program of the link
    REMOVE_TCX = auto()  # link and pin
    SET_CLSACT = auto()  # a new filter, or the program of the one that is there
    REMOVE_CLSACT = auto()
    REMOVE_STRAYS = auto()


def target(mechanism: Mechanism, seen: Seen, *, may_move: bool) -> Mechanism:
    """The mechanism to have: the wanted one, or, if it may not move now, the one that it is in already."""
    if may_move or not seen.is_first:
        return mechanism
    if mechanism == "tcx":
        return "clsact" if seen.tcx is None and seen.clsact is not None else "tcx"
    return "tcx" if seen.clsact is None and seen.tcx is not None else "clsact"


def plan(program: int, mechanism: Mechanism, seen: Seen) -> tuple[Step, ...]:
    """What to do, in this order; each step may be repeated. Nothing when all is as it should be.

    Args:
        program: the kernel's number of the program that should be there.
        mechanism: as `target` says.
    """
    steps = []
    if mechanism == "tcx":
        is_behind = seen.tcx is not None and not seen.is_first
        if is_behind and seen.clsact != program:
            steps.append(Step.SET_CLSACT)
        if is_behind:
            steps.append(Step.REMOVE_TCX)
        if is_behind or seen.tcx is None:
            steps.append(Step.ATTACH_TCX)
        elif seen.tcx != program:
            steps.append(Step.REPLACE_TCX)
        if is_behind or seen.clsact is not None:
            steps.append(Step.REMOVE_CLSACT)
    else:
        if seen.clsact != program:
            steps.append(Step.SET_CLSACT)
        if seen.is_pinned:
            steps.append(Step.REMOVE_TCX)
    if seen.strays:
        steps.append(Step.REMOVE_STRAYS)
    return tuple(steps)


class Moves:
    """When ours went before another's program, by hook."""

    def __init__(self) -> None:
        self._at: dict[Hook, list[float]] = {}

    def take(self, behind: Iterable[Hook], now: float) -> set[Hook]:
        """Those of the hooks at which ours may go first now; they count as moved. At most
        `MOVES_PER_LOOK`, those that moved least first, and none that did `MOVES_PER_WINDOW` times in `WINDOW_SECONDS`.

        Args:
            now: seconds, on a clock that nobody sets.
        """
        for hook, times in list(self._at.items()):
            self._at[hook] = [at for at in times if now - at < WINDOW_SECONDS]
            if not self._at[hook]:
                del self._at[hook]
        moved = {hook: len(self._at.get(hook, ())) for hook in behind}
        may = sorted((hook for hook in moved if moved[hook] < MOVES_PER_WINDOW), key=moved.__getitem__)
        for hook in may[:MOVES_PER_LOOK]:
            self._at.setdefault(hook, []).append(now)
        return set(may[:MOVES_PER_LOOK])


@dataclass(frozen=True, slots=True)
class Changed:
    """What the kernel told of since it was asked the last time."""

    devices: frozenset[int] = frozenset()  # whose filters changed, by index
    routes: bool = False  # a route that we made is gone, or may be: others put theirs in place of one
    addresses: bool = False  # the node has others than before
    lost: bool = False  # it had more to tell than there was room for: anything may have changed

    def concerns(self, hook: Hook) -> bool:
        return self.lost or hook.index in self.devices


def suspects(
    wanted: list[Hook],
    applied: dict[Hook, Mechanism],
    changed: Changed,
    is_as_left: Callable[[Hook, Mechanism], bool],
) -> list[Hook]:
    """The hooks to look at closely: those not seen before, those that the kernel told of, and those whose links are
    not what we left. Of links the kernel tells nothing, so each is asked for (`is_as_left`), which is cheap."""
    return [
        hook for hook in wanted if hook not in applied or changed.concerns(hook) or not is_as_left(hook, applied[hook])
    ]
