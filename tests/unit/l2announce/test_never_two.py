"""No two nodes ever answer for one address, whatever happens to nodes, processes, clocks and the bus."""

from __future__ import annotations

import pytest

from services.l2announce import grants
from tests.unit.l2announce.world import LONGEST, SECONDS, World

TROUBLE_SECONDS = 120.0


def through(seed: int) -> World:
    """A world that has gone through trouble."""
    world = World(seed)
    world.trouble(TROUBLE_SECONDS)
    world.run(TROUBLE_SECONDS)
    return world


@pytest.mark.parametrize("seed", range(8))
def test_no_two_nodes_ever_answer_and_afterwards_one_does(seed: int) -> None:
    world = through(seed)
    assert world.moves >= 3, "nothing was at stake"
    world.calm()
    world.run(world.now + LONGEST + 6 * SECONDS)
    assert world.answered().keys() == set(world.asked())


def violated(seeds: range) -> bool:
    for seed in seeds:
        try:
            through(seed)
        except AssertionError:
            return True
    return False


def test_the_trouble_finds_a_margin_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "MARGIN", -0.5)
    assert violated(range(8))


def test_the_trouble_finds_a_term_that_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants.Grants, "is_settled", lambda self, now: True)
    assert violated(range(8))
