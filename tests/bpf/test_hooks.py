"""Programs on real hooks of real devices: by tcx and by clsact, replaced and moved under traffic, healed, shared."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.telemetry import counted
from services.dataplane.kernel import bpf, rtnl
from services.dataplane.kernel.hooks import HEAL_SECONDS, Hooks
from services.dataplane.kernel.links import LinkError
from services.dataplane.kernel.netlink import Refused
from services.dataplane.shapes.attach import Hook, Mechanism
from services.dataplane.shapes.programs import SOCKET_PROGRAMS
from tests.bpf.attaching import (
    DROP,
    MECHANISMS,
    NEXT,
    OK,
    POD,
    Counter,
    Place,
    check_under_traffic,
    delete_clsact,
    delete_filter,
    detach,
    foreign_filter,
    foreign_link,
    inside_here,
    unpin,
    unpin_all,
    with_pod,
)
from tests.bpf.conftest import BPFFS
from tests.bpf.spaces import GATEWAY, ips, opened, reaches

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

HANDLE = rtnl.FILTER_HANDLE


@pytest.fixture
def counter() -> Iterator[Counter]:
    made = Counter()
    yield made
    made.close()


@pytest.fixture
def pins() -> Iterator[Path]:
    """A pin directory of our own. What is pinned in it, and nowhere else, goes with it."""
    made = BPFFS / f"plexus-test-hooks-{os.getpid()}"
    (made / "links").mkdir(parents=True)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_program_is_replaced_under_traffic_and_every_packet_meets_one(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, mechanism: Mechanism
) -> None:
    versions = [counter.program(OK) for _ in range(2)]

    async def work(place: Place) -> None:
        with place.process(mechanism, versions[0]) as hooks:
            await place.heal(hooks)
        assert place.how() == {mechanism}

        async def change() -> None:
            for turn in range(100):
                with place.process(mechanism, versions[turn % 2]) as hooks:
                    assert await hooks.adopt(place.hooks_of_pod) == {}
                await asyncio.sleep(0.003)

        await check_under_traffic(place, counter, change)
        assert place.how() == {mechanism}

    with_pod(namespaces, pins, versions[1], work)


def test_a_program_moves_to_the_other_mechanism_under_traffic_and_every_packet_meets_one(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    versions = [counter.program(OK) for _ in range(2)]

    async def work(place: Place) -> None:
        async def change() -> None:
            for turn in range(10):
                mechanism = MECHANISMS[turn % 2]
                with place.process(mechanism, versions[turn // 2 % 2]) as hooks:  # an upgrade now and then
                    await hooks.adopt(place.hooks_of_pod)
                    await place.heal(hooks)
                    assert hooks.state == (True, mechanism)
                assert place.how() == {mechanism}

        await check_under_traffic(place, counter, change)

    with_pod(namespaces, pins, versions[0], work)


def test_a_new_pod_begins_with_clsact_and_moves_to_tcx_when_it_is_quiet(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        assert place.how() == {"clsact"}
        assert not place.links.is_quiet
        with place.process("tcx", program) as hooks:
            await place.heal(hooks, is_quiet=False)
            assert place.how() == {"clsact"}
            assert hooks.state == (True, "tcx, 2 of 2 not moved yet")
            await place.heal(hooks, is_quiet=True)
            assert place.how() == {"tcx"}
            assert hooks.state == (True, "tcx")

    with_pod(namespaces, pins, program, work)


def test_a_restart_takes_over_pinned_links_as_they_are(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program, newer = counter.program(OK), counter.program(OK)

    def ids() -> list[int]:
        found = [bpf.pinned_link(path) for path in sorted((pins / "links").iterdir())]
        return [each.id for each in found if each is not None]

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
        before = ids()
        assert len(before) == 2
        for each in (program, newer):
            with place.process("tcx", each) as hooks:
                await hooks.adopt(place.hooks_of_pod)
                assert hooks.state == (True, "tcx")
            assert ids() == before
            assert place.tcx() == place.tcx("egress") == [bpf.program_id(each)]

    with_pod(namespaces, pins, program, work)


@pytest.mark.parametrize(
    ("mechanism", "remove", "hooks_hit"),
    [
        ("tcx", detach, 1),
        ("clsact", delete_filter, 1),
        ("clsact", delete_clsact, 2),
    ],
)
def test_what_was_removed_by_hand_is_back_within_five_seconds_and_counted(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    mechanism: Mechanism,
    remove: Callable[[Place], None],
    hooks_hit: int,
) -> None:
    program = counter.program(DROP)

    async def work(place: Place) -> None:
        with place.process(mechanism, program) as hooks:
            await place.heal(hooks)
            assert place.how() == {mechanism}
            async with place.healing(hooks):
                before = counted("drift", kind="program")
                remove(place)
                removed = time.monotonic()
                while counted("drift", kind="program") < before + hooks_hit:
                    assert time.monotonic() - removed < 5
                    await asyncio.sleep(0.01)
                assert place.how() == {mechanism}
                await asyncio.sleep(HEAL_SECONDS + 0.5)
                assert counted("drift", kind="program") == before + hooks_hit, "counted twice"
        assert not reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, program, work)


@pytest.mark.parametrize(("remove", "pins_hit"), [(unpin, 1), (unpin_all, 2)])
def test_while_a_pin_is_gone_every_packet_meets_its_program_and_the_pin_comes_back(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, remove: Callable[[Place], None], pins_hit: int
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            links = [bpf.pinned_link(pins / "links" / each.pin) for each in place.hooks_of_pod]

            async def change() -> None:
                before = counted("drift", kind="program"), counted("drift", kind="pin")
                for _ in range(5):
                    remove(place)
                    await asyncio.sleep(0.01)
                    await place.heal(hooks)
                assert (counted("drift", kind="program"), counted("drift", kind="pin") - 5 * pins_hit) == before

            await check_under_traffic(place, counter, change)
            is_well, said = hooks.pins.state
            assert not is_well and place.hooks_of_pod[0].pin in said
            await place.heal(hooks)
            is_well, said = hooks.pins.state
            assert is_well and place.hooks_of_pod[0].pin in said
            assert [bpf.pinned_link(pins / "links" / each.pin) for each in place.hooks_of_pod] == links
        with place.process("tcx", program) as hooks:
            await hooks.adopt(place.hooks_of_pod)
            assert place.how() == {"tcx"}

    with_pod(namespaces, pins, program, work)


def test_a_program_that_was_exchanged_by_hand_is_put_back(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program, strange = counter.program(DROP), counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            link = bpf.open_pinned(place.pins / "links" / place.hooks_of_pod[0].pin)
            bpf.replace_program(link, strange)
            os.close(link)
            await place.heal(hooks)
            assert place.tcx() == [bpf.program_id(program)]

    with_pod(namespaces, pins, program, work)


def test_a_restart_after_an_older_version_leaves_none_of_its_filters(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, program = counter.program(OK), counter.program(OK)

    async def work(place: Place) -> None:
        monkeypatch.undo()
        assert place.filters() == [(1, bpf.program_id(older))]
        with place.process("clsact", program) as hooks:
            await hooks.adopt(place.hooks_of_pod)
        assert place.filters() == [(rtnl.FILTER_HANDLE, bpf.program_id(program))]

    monkeypatch.setattr(rtnl.detach, "__defaults__", (1,))
    monkeypatch.setattr(rtnl._filter, "__kwdefaults__", {"handle": 1})
    with_pod(namespaces, pins, older, work)


@pytest.mark.parametrize(
    ("mechanism", "fails"), [("clsact", "attach"), ("clsact", "list_attached"), ("tcx", "list_attached")]
)
def test_what_fails_once_is_tried_again_and_told_meanwhile(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: Mechanism,
    fails: str,
) -> None:
    """The kernel tells only once that a filter is gone."""
    program = counter.program(DROP)

    def refuses(*_: object) -> None:
        raise Refused(errno.ENOBUFS, "no room", "attach")

    async def work(place: Place) -> None:
        remove = {"clsact": delete_filter, "tcx": unpin}[mechanism]
        with place.process(mechanism, program) as hooks:
            await place.heal(hooks)
            remove(place)
            with monkeypatch.context() as patched:
                patched.setattr(rtnl, fails, refuses)
                for _ in range(2):
                    if fails == "attach":
                        await place.heal(hooks)
                        assert not hooks.state[0]
                    else:
                        with pytest.raises(LinkError):
                            await place.heal(hooks)
                    assert not hooks.has(place.hooks_of_pod)
            await place.heal(hooks)
            assert place.how() == {mechanism}
            assert hooks.has(place.hooks_of_pod)
            assert mechanism == "tcx" or (not hooks.state[0] and "was not attached" in hooks.state[1])
            monkeypatch.setattr("services.dataplane.kernel.hooks.TOLD_SECONDS", 0.0)
            assert hooks.state == (True, mechanism)

    with_pod(namespaces, pins, program, work)


# Others


def test_ours_comes_first_and_others_stay_in_both_mechanisms(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, newer, theirs = counter.program(NEXT), counter.program(NEXT), counter.program(NEXT)
    mine, latest, their_id = map(bpf.program_id, (ours, newer, theirs))

    async def work(place: Place) -> None:
        for priority, handle in ((1, 1), (1, 2), (5, 1)):
            foreign_filter(place, theirs, priority, handle, monkeypatch)
        others = sorted([(1, their_id), (2, their_id), (1, their_id)])

        def check(tcx: list[int], filters: list[int]) -> None:
            """By tcx and by clsact, in order: ours, and theirs all along."""
            assert place.tcx() == [*tcx, their_id]
            found = place.filters()
            assert [number for handle, number in found if handle == rtnl.FILTER_HANDLE] == filters
            assert sorted(each for each in found if each[0] != rtnl.FILTER_HANDLE) == others

        with foreign_link(theirs, place.hooks_of_pod[0].index):
            with place.process("tcx", ours) as hooks:
                check([], [mine])
                await place.heal(hooks)
                check([mine], [])
            with place.process("tcx", newer) as hooks:
                await hooks.adopt(place.hooks_of_pod)
                check([latest], [])
            with place.process("clsact", ours) as hooks:
                await hooks.adopt(place.hooks_of_pod)
                await place.heal(hooks)
                check([], [mine])
                assert place.filters()[0] == (rtnl.FILTER_HANDLE, mine), "one of theirs runs before ours"
            assert reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, ours, work)


@pytest.mark.parametrize("begins", ["tcx", "clsact"])
def test_who_puts_a_program_before_ours_is_behind_it_after_the_next_look_and_is_told(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    monkeypatch: pytest.MonkeyPatch,
    begins: str,
) -> None:
    """Whatever says "pass" there would end the packet's way before ours could judge it."""
    ours, theirs = counter.program(DROP), counter.program(OK)
    mine, their_id = map(bpf.program_id, (ours, theirs))

    async def work(place: Place) -> None:
        with place.process("tcx", ours, counter.program(OK)) as hooks:
            await place.heal(hooks, is_quiet=begins == "tcx")
            assert (place.tcx(), place.filters()) == (([mine], []) if begins == "tcx" else ([], [(HANDLE, mine)]))
            assert set(hooks.differing) == {f"{place.hooks_of_pod[1].device} egress"}  # it had ours as well
            index = place.hooks_of_pod[0].index
            with foreign_link(theirs, index, bpf.FIRST):
                assert place.tcx()[0] == their_id and reaches(place.pod, GATEWAY)
                await place.heal(hooks, is_quiet=False)
                assert (place.tcx(), place.filters()) == ([mine, their_id], [])
                assert not reaches(place.pod, GATEWAY)
                ok, words = hooks.state
                assert not ok and f"id {their_id}" in words and place.hooks_of_pod[0].device in words
                monkeypatch.setattr("services.dataplane.kernel.hooks.TOLD_SECONDS", 0.0)
                await place.heal(hooks)
                assert hooks.state == (True, "tcx")

    with_pod(namespaces, pins, ours, work)


@pytest.mark.parametrize("begins", ["tcx", "clsact"])
def test_who_wants_to_be_first_as_well_gets_it_after_three_times_and_is_told_for_as_long_as_it_is_there(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    monkeypatch: pytest.MonkeyPatch,
    begins: str,
) -> None:
    """Each move waits with the routing lock held, which the start of every pod needs."""
    monkeypatch.setattr("services.dataplane.kernel.hooks.TOLD_SECONDS", 0.0)
    ours, theirs = counter.program(NEXT), counter.program(NEXT)
    mine, their_id = map(bpf.program_id, (ours, theirs))

    async def work(place: Place) -> None:
        def first() -> contextlib.AbstractContextManager[int]:
            return foreign_link(theirs, place.hooks_of_pod[0].index, bpf.FIRST)

        with place.process("tcx", ours) as hooks:
            await place.heal(hooks, is_quiet=begins == "tcx")
            for _ in range(3):
                with first():
                    await place.heal(hooks)
                    assert place.tcx() == [mine, their_id]
            with first():
                before = counted("drift", kind="program")
                for _ in range(3):
                    await place.heal(hooks)
                    assert place.tcx() == [their_id, mine]
                    assert hooks.has(place.hooks_of_pod)
                    ok, words = hooks.state
                    assert not ok and f"(bpftool prog show id {their_id}) runs before from_pod" in words
                assert counted("drift", kind="program") == before
                with monkeypatch.context() as later:
                    later.setattr("services.dataplane.shapes.attach.WINDOW_SECONDS", 0.0)
                    await place.heal(hooks)
                assert place.tcx() == [mine, their_id]
            await place.heal(hooks)
            assert hooks.state == (True, "tcx")

    with_pod(namespaces, pins, ours, work)


def test_a_filter_of_ours_that_is_left_behind_anothers_program_does_not_move_when_it_is_quiet_either(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dataplane.shapes.attach.MOVES_PER_LOOK", 0)
    ours, theirs = counter.program(NEXT), counter.program(NEXT)

    async def work(place: Place) -> None:
        with place.process("tcx", ours) as hooks, foreign_link(theirs, place.hooks_of_pod[0].index):
            await place.heal(hooks, is_quiet=True)
            assert place.tcx() == [bpf.program_id(theirs)]
            assert place.filters() == [(HANDLE, bpf.program_id(ours))]
            assert place.tcx("egress") == [bpf.program_id(ours)]
            assert not hooks.state[0]

    with_pod(namespaces, pins, ours, work)


def test_where_ours_may_not_be_tcx_whoever_is_before_it_is_told_for_as_long_as_it_is_there(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    ours, theirs = counter.program(NEXT), counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("clsact", ours) as hooks:
            await place.heal(hooks)
            with foreign_link(theirs, place.hooks_of_pod[0].index):
                for _ in range(2):
                    await place.heal(hooks)
                    assert not hooks.state[0] and f"id {bpf.program_id(theirs)}" in hooks.state[1]
            await place.heal(hooks)
            assert hooks.state == (True, "clsact")

    with_pod(namespaces, pins, ours, work)


@pytest.mark.parametrize("moved", ["exchanged", "renamed"])
def test_a_link_is_believed_by_its_hook_and_not_by_the_name_of_its_pin(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, moved: str
) -> None:
    ours, other = counter.program(OK), counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", ours, other) as hooks:
            await place.heal(hooks)
        ingress, egress = (pins / "links" / hook.pin for hook in place.hooks_of_pod)
        aside = pins / "aside"
        ingress.rename(aside)
        if moved == "exchanged":
            egress.rename(ingress)
            aside.rename(egress)
        with place.process("tcx", ours, other) as hooks:
            assert await hooks.adopt(place.hooks_of_pod) == {}
            await place.heal(hooks)
            found = {direction: place.tcx(direction) for direction in ("ingress", "egress")}
            assert found == {"ingress": [bpf.program_id(ours)], "egress": [bpf.program_id(other)]}
            link = bpf.pinned_link(ingress)
            assert link and (link.attach_type, link.program_id) == (
                bpf.TCX_INGRESS,
                bpf.program_id(ours),
            )
        assert reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, ours, work)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_hook_that_is_not_used_any_more_is_left_to_others(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: Mechanism,
) -> None:
    ours, theirs = counter.program(NEXT), counter.program(NEXT)
    their_id = bpf.program_id(theirs)

    async def work(place: Place) -> None:
        foreign_filter(place, theirs, 1, 2, monkeypatch)
        with foreign_link(theirs, place.hooks_of_pod[0].index), place.process(mechanism, ours) as hooks:
            await place.heal(hooks)
            for _ in range(2):
                await hooks.remove(place.hooks_of_pod[0])
                assert (place.tcx(), place.filters()) == ([their_id], [(2, their_id)])
            assert len(place.tcx("egress")) + len(place.filters("egress")) == 1
            assert not (pins / "links" / place.hooks_of_pod[0].pin).exists()

    with_pod(namespaces, pins, ours, work)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_ours_drops_stays_dropped_though_somebody_elses_program_passes_all(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    monkeypatch: pytest.MonkeyPatch,
    mechanism: Mechanism,
) -> None:
    drop, passing = counter.program(DROP), counter.program(OK)

    async def work(place: Place) -> None:
        delete_filter(place)
        if mechanism == "clsact":
            foreign_filter(place, passing, 1, 1, monkeypatch)
        with contextlib.ExitStack() as stack:
            if mechanism == "tcx":
                stack.enter_context(foreign_link(passing, place.hooks_of_pod[0].index))
            assert reaches(place.pod, GATEWAY)
            with place.process(mechanism, drop, passing) as hooks:
                await place.heal(hooks)
            assert not reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, passing, work)


# Devices that go, and what cannot be done


def test_the_pins_of_a_device_that_is_gone_go(namespaces: Callable[[str], str], pins: Path, counter: Counter) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            assert len(list((pins / "links").iterdir())) == 2
            before = counted("drift", kind="program")
            gone, place.hooks_of_pod = place.hooks_of_pod, []
            await place.heal(hooks)
            assert len(list((pins / "links").iterdir())) == 2, "a pod that is on its way out stays guarded"
            await place.links.delete_pod_link(gone[0].device)
            await place.heal(hooks)
            assert list((pins / "links").iterdir()) == []
            assert counted("drift", kind="program") == before

    with_pod(namespaces, pins, program, work)


def test_a_device_that_came_back_under_its_name_has_its_program(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
        await place.links.delete_pod_link(place.hooks_of_pod[0].device)
        with opened(place.pod) as fd:
            link = await place.links.create_pod_link(fd, "c1", "eth0", ips(POD), 1500)
        place.hooks_of_pod = [
            Hook(link.host_name, link.host_index, each.direction, each.program) for each in place.hooks_of_pod
        ]
        with place.process("tcx", program) as hooks:
            assert await hooks.adopt(place.hooks_of_pod) == {}
            assert place.how() == {"tcx"}

    with_pod(namespaces, pins, program, work)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("change", ["renamed", "made anew", "names exchanged"])
def test_a_device_that_takes_anothers_place_keeps_its_programs_when_the_other_is_left(
    namespaces: Callable[[str], str], pins: Path, counter: Counter, mechanism: Mechanism, change: str
) -> None:
    """As keep/uplinks.py follows a device: what is new is kept first, then what is old is removed."""
    program = counter.program(OK)

    def hooks_of(device: str) -> list[Hook]:
        index = socket.if_nametoindex(device)
        return [Hook(device, index, "ingress", "from_pod"), Hook(device, index, "egress", "to_pod")]

    def do(*commands: str) -> None:
        assert [inside_here("ip", *each.split()) for each in commands] == [0] * len(commands)

    async def work(place: Place) -> None:
        do("link add up1 type veth peer name up2", "link set up1 up", "link set up2 up")
        with place.process(mechanism, program) as hooks:
            before = [*hooks_of("up1"), *hooks_of("up2")]
            for hook in before:
                await hooks.keep(hook)
            names = ["up1", "up2"]
            if change == "renamed":
                do("link set up1 down", "link set up1 name lan1", "link set lan1 up")
                names[0] = "lan1"
            elif change == "made anew":
                do("link delete up1", "link add up1 type veth peer name up2", "link set up1 up", "link set up2 up")
            else:
                do("link set up1 down", "link set up2 down", "link set up1 name aside", "link set up2 name up1")
                do("link set aside name up2", "link set up1 up", "link set up2 up")
            now = [hook for name in names for hook in hooks_of(name)]
            for hook in now:
                await hooks.keep(hook)
            for hook in set(before) - set(now):
                await hooks.remove(hook)
            for name in names:
                place.hooks_of_pod = hooks_of(name)
                assert place.how() == {mechanism}
            found = {each.name for each in (pins / "links").iterdir()}
            assert found == ({hook.pin for hook in now} if mechanism == "tcx" else set())
            drift = counted("drift", kind="program")
            place.hooks_of_pod = []
            await place.heal(hooks)
            assert (counted("drift", kind="program"), hooks.state) == (drift, (True, mechanism))
            for hook in now:
                await hooks.remove(hook)
            for name in names:
                place.hooks_of_pod = hooks_of(name)
                assert [*place.tcx(), *place.filters(), *place.tcx("egress"), *place.filters("egress")] == []

    with_pod(namespaces, pins, program, work)


def test_a_pin_of_a_process_that_was_killed_while_it_pinned_goes(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program, newer = counter.program(OK), counter.program(OK)

    async def work(place: Place) -> None:
        hook = place.hooks_of_pod[0]
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            left = pins / "links" / "left"
            bpf.attach_tcx(newer, hook.index, bpf.TCX_INGRESS, left)
            left.rename(pins / "links" / f"{hook.pin}_new")
            assert len(place.tcx(hook.direction)) == 2
            await place.heal(hooks)
            assert place.how() == {"tcx"}

    with_pod(namespaces, pins, program, work)


def test_a_device_that_somebody_removed_is_told_once_and_keeps_nobody_else_waiting(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            missing = Hook("gone", 999, "ingress", "from_pod")
            present = list(place.hooks_of_pod)
            place.hooks_of_pod = [missing, *present]
            await place.heal(hooks)
            ok, said = hooks.state
            assert not ok
            assert "gone ingress" in said
            assert "ENODEV" in said or "No such device" in said
            assert hooks.has([missing, *present]), "nobody is there to be judged"
            assert not hooks.has([Hook("other", 998, "ingress", "from_pod")])
            place.hooks_of_pod = present
            assert place.how() == {"tcx"}, "the others have moved meanwhile"
            await place.heal(hooks)
            assert hooks.state == (True, "tcx")
            with pytest.raises(LinkError):
                await hooks.keep(missing)

    with_pod(namespaces, pins, program, work)


# Routes and sockets


def test_a_pods_route_that_another_took_the_place_of_is_told_and_comes_back(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    """Of the one that is gone the kernel tells nothing."""
    program = counter.program(OK)

    async def work(place: Place) -> None:
        wanted = {POD: place.hooks_of_pod[0].index}
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            hooks.take_routes_gone()
            assert inside_here("ip", "route", "add", "10.9.0.99", "dev", "lo") == 0
            await place.heal(hooks)
            assert not hooks.take_routes_gone(), "one more harms nobody"
            assert inside_here("ip", "route", "replace", POD, "dev", "lo") == 0
            await place.heal(hooks)
            assert hooks.take_routes_gone()
            assert await place.links.mend_pod_routes(wanted) == [POD]
            assert reaches(place.pod, GATEWAY)
            await place.heal(hooks)
            assert not hooks.take_routes_gone(), "what we put back calls for nothing"

    with_pod(namespaces, pins, program, work)


def test_a_pods_route_removed_by_hand_is_told_and_comes_back(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        wanted = {POD: place.hooks_of_pod[0].index}
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            assert not hooks.take_routes_gone()
            assert await place.links.mend_pod_routes(wanted) == []
            assert inside_here("ip", "route", "delete", POD) == 0
            await place.heal(hooks)
            assert hooks.take_routes_gone()
            assert not hooks.take_routes_gone()
            assert await place.links.mend_pod_routes({**wanted, "10.9.0.99": 999}) == [POD]
            assert reaches(place.pod, GATEWAY)

    with_pod(namespaces, pins, program, work)


def test_an_address_that_the_node_is_given_or_loses_is_told_and_seen(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: Place) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
            hooks.take_addresses_changed()
            before = await place.links.own_addresses()
            assert not any(each.startswith(("127.", "fe80:", "::1")) for each in before)
            for address in ("169.254.20.10/32", "fd00:53::a/128"):
                for command, wanted in (("add", before | {address.partition("/")[0]: "lo"}), ("delete", before)):
                    assert inside_here("ip", "address", command, address, "dev", "lo") == 0
                    await place.heal(hooks)
                    assert hooks.take_addresses_changed()
                    assert not hooks.take_addresses_changed()
                    assert await place.links.own_addresses() == wanted

    with_pod(namespaces, pins, program, work)


def test_a_socket_program_whose_link_was_removed_by_hand_is_back_and_counted(programs: Path, counter: Counter) -> None:
    group = next(path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if path.is_dir())
    group = group / f"plexus-test-hooks-{os.getpid()}"
    group.mkdir()

    def pinned(name: str) -> bpf.LinkInfo | None:
        return bpf.pinned_link(programs / "links" / name)

    async def main() -> None:
        hooks = Hooks(programs, group, {}, enable_tcx=True)
        try:
            await hooks.keep_sockets()
            unpinned, detached, *_ = SOCKET_PROGRAMS
            before, pins_before = counted("drift", kind="program"), counted("drift", kind="pin")
            (programs / "links" / unpinned).unlink()
            link = bpf.open_pinned(programs / "links" / detached)
            bpf.detach_link(link)
            os.close(link)
            await hooks.heal(list, lambda: True)
            for name in SOCKET_PROGRAMS:
                found = pinned(name)
                assert found is not None
                assert found.target == group.stat().st_ino
            assert counted("drift", kind="program") == before + 1, "a link without its pin is attached all the time"
            assert counted("drift", kind="pin") == pins_before + 1
            await hooks.heal(list, lambda: True)
            assert counted("drift", kind="program") == before + 1, "a link without its pin is attached all the time"
            assert counted("drift", kind="pin") == pins_before + 1
        finally:
            hooks.close()
            for name in SOCKET_PROGRAMS:
                (programs / "links" / name).unlink(missing_ok=True)

    try:
        asyncio.run(main())
    finally:
        group.rmdir()
