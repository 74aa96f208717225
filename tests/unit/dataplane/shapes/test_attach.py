"""Plans for a hook, carried out by a hook in memory that runs programs as the kernel does: tcx, then clsact."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.shapes.attach import (
    MOVES_PER_LOOK,
    MOVES_PER_WINDOW,
    WINDOW_SECONDS,
    Changed,
    Hook,
    Mechanism,
    Moves,
    Seen,
    Step,
    plan,
    suspects,
    target,
)

NEW, OLD = 20, 10
HOOK = Hook("lxc1", 7, "ingress", "from_pod")

programs = st.sampled_from([None, OLD, NEW])
seens = st.builds(
    lambda tcx, dead, clsact, strays, first: Seen(tcx, dead or tcx is not None, clsact, tuple(strays), first),
    programs,
    st.booleans(),
    programs,
    st.lists(st.integers(1, 9), max_size=2, unique=True),
    st.booleans(),
)
mechanisms = st.sampled_from(["tcx", "clsact"])


def done(step: Step, seen: Seen) -> Seen:
    match step:
        case Step.ATTACH_TCX | Step.REPLACE_TCX:
            assert (step is Step.REPLACE_TCX) == (seen.tcx is not None), "a second link, or the program of none"
            return replace(seen, tcx=NEW, is_pinned=True, is_first=seen.is_first or step is Step.ATTACH_TCX)
        case Step.REMOVE_TCX:
            return replace(seen, tcx=None, is_pinned=False)
        case Step.SET_CLSACT:
            return replace(seen, clsact=NEW)
        case Step.REMOVE_CLSACT:
            return replace(seen, clsact=None)
        case Step.REMOVE_STRAYS:
            return replace(seen, strays=())


def is_guarded(seen: Seen) -> bool:
    return seen.tcx is not None or seen.clsact is not None


@given(seens, mechanisms, st.booleans())
def test_a_plan_ends_with_one_program_by_the_mechanism_and_leads_there_guarded(
    seen: Seen, mechanism: Mechanism, may_move: bool
) -> None:
    wanted = target(mechanism, seen, may_move=may_move)
    guarded, was_first = is_guarded(seen), seen.is_first
    for step in plan(NEW, wanted, seen):
        seen = done(step, seen)
        assert is_guarded(seen) or not guarded, "a moment without a program"
        guarded = is_guarded(seen)
    by_tcx, by_clsact = Seen(tcx=NEW, is_pinned=True), Seen(clsact=NEW, is_first=was_first)
    assert seen == (by_tcx if wanted == "tcx" else by_clsact)
    assert plan(NEW, wanted, seen) == ()


@given(seens, mechanisms, mechanisms, st.integers(0, 3))
def test_who_was_killed_at_any_step_is_followed_by_one_who_ends_right(
    seen: Seen, first: Mechanism, second: Mechanism, steps: int
) -> None:
    for step in plan(NEW, first, seen)[:steps]:
        seen = done(step, seen)
    for step in plan(NEW, second, seen):
        seen = done(step, seen)
    assert plan(NEW, second, seen) == ()
    assert seen.holds(NEW)


def test_ours_waits_in_a_filter_while_it_goes_before_anothers_program() -> None:
    behind = Seen(tcx=NEW, is_pinned=True, is_first=False)
    before = (Step.SET_CLSACT, Step.REMOVE_TCX, Step.ATTACH_TCX, Step.REMOVE_CLSACT)
    assert plan(NEW, "tcx", behind) == before
    assert plan(NEW, "tcx", replace(behind, tcx=OLD)) == before


def test_where_another_runs_before_it_a_filter_does_not_wait_for_a_quiet_moment() -> None:
    assert target("tcx", Seen(clsact=NEW, is_first=False), may_move=False) == "tcx"
    assert target("clsact", Seen(clsact=NEW, is_first=False), may_move=False) == "clsact"


def test_a_program_stays_where_it_is_until_it_may_move() -> None:
    at_clsact, at_tcx = Seen(clsact=OLD), Seen(tcx=OLD, is_pinned=True)
    assert target("tcx", at_clsact, may_move=False) == "clsact"
    assert target("clsact", at_tcx, may_move=False) == "tcx"
    assert plan(NEW, "clsact", at_clsact) == (Step.SET_CLSACT,)
    assert plan(NEW, "tcx", at_clsact) == (Step.ATTACH_TCX, Step.REMOVE_CLSACT)
    assert plan(NEW, "clsact", at_tcx) == (Step.SET_CLSACT, Step.REMOVE_TCX)


def test_what_is_nowhere_or_by_both_goes_by_the_wanted_mechanism() -> None:
    for seen in (Seen(), Seen(tcx=OLD, is_pinned=True, clsact=OLD)):
        assert target("tcx", seen, may_move=False) == "tcx"
        assert target("clsact", seen, may_move=False) == "clsact"


def test_a_pin_whose_link_lost_its_device_goes() -> None:
    assert plan(NEW, "clsact", Seen(is_pinned=True, clsact=NEW)) == (Step.REMOVE_TCX,)
    assert plan(NEW, "tcx", Seen(is_pinned=True)) == (Step.ATTACH_TCX,)


def test_ours_goes_first_three_times_in_a_minute_and_then_leaves_it_for_as_long() -> None:
    moves, moved = Moves(), []
    for now in range(0, 240, 2):
        moved += [now] * bool(moves.take([HOOK], now))
    assert moved[:4] == [0, 2, 4, WINDOW_SECONDS]
    for at in moved:
        assert sum(at <= other < at + WINDOW_SECONDS for other in moved) <= MOVES_PER_WINDOW
    assert moves.take([replace(HOOK, index=8)], 241) == {replace(HOOK, index=8)}, "another device of the name"


def test_one_look_moves_a_few_and_none_waits_for_ever_though_all_are_behind_again_and_again() -> None:
    hooks, moves = [Hook(f"lxc{index}", index, "ingress", "from_pod") for index in range(200)], Moves()
    moved: set[Hook] = set()
    for look in range(20):
        chosen = moves.take(hooks, 2.0 * look)
        assert len(chosen) == MOVES_PER_LOOK
        assert not chosen & moved, "again, though others have not been moved yet"
        moved |= chosen
    assert moved == set(hooks)
    assert not moves.take([], 100)


def test_only_what_is_new_was_told_of_or_lost_its_link_is_looked_at() -> None:
    hooks = [Hook(f"lxc{index}", index, "ingress", "from_pod") for index in range(5)]
    new, told, unlinked, at_tcx, at_clsact = hooks
    applied: dict[Hook, Mechanism] = {told: "tcx", unlinked: "tcx", at_tcx: "tcx", at_clsact: "clsact"}
    changed = Changed(frozenset({told.index, 99}))
    assert suspects(hooks, applied, changed, lambda hook, _: hook != unlinked) == [new, told, unlinked]
    assert suspects(hooks, applied, Changed(lost=True), lambda hook, _: True) == hooks


def test_pins_of_two_devices_never_share_a_name_that_the_file_system_takes() -> None:
    names = ["eth0", "eth0.1", "eth0%2e1", "eth0-ingress"]
    pins = {Hook(name, 1, direction, "p").pin for name in names for direction in ("ingress", "egress")}
    assert len(pins) == 2 * len(names)
    assert not any("." in pin for pin in pins)
