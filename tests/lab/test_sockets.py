"""Sockets that are connected to a backend by a Service, and learn when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from lab import execute
from tests.connections import PORT, Connections, command
from tests.lab.space import Space
from tests.lab.test_services import echoes, web

GONE = "ECONNABORTED"


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """What a test starts, ended with it."""
    with ExitStack() as stack:
        yield stack


def of_pod(space: Space, held: ExitStack, pod: str, kind: str = "SOCK_DGRAM") -> Connections:
    place = execute.pod(space.lab.record, f"{space.name}/{pod}")
    return held.enter_context(closing(Connections(space.lab.start(place, *command(space.family, kind)))))


def of_node(space: Space, held: ExitStack, node: str, kind: str = "SOCK_DGRAM") -> Connections:
    place = execute.node(space.lab.record, node)
    return held.enter_context(closing(Connections(space.lab.start(place, *command(space.family, kind)))))


def test_what_went_while_the_dataplane_was_away_is_told_when_it_is_back(space: Space, held: ExitStack) -> None:
    gone, stays = web(space, "gone", "node2"), space.pod("stays", "node3", image="sleeper")
    services = [space.service("one", "web", PORT, "UDP"), space.service("two", "stays", PORT, "UDP")]
    space.apply(space.pod("client"), gone, stays, *services)
    one, two = space.cluster_address("one"), space.cluster_address("two")
    held.enter_context(echoes(space, "gone", "stays"))
    caller = of_pod(space, held, "client")
    for name, address, answer in (("one", one, "gone"), ("two", two, "stays")):
        assert (caller.connect(name, address), caller.ask(name)) == ("connected", answer)
    caller.begin_to_wait("one")
    space.lab.kill(node="node1", service="dataplane")
    space.lab.delete(gone)
    space.lab.revive(node="node1", service="dataplane")
    assert caller.waited() == GONE
    assert caller.ask("two") == "stays"


def test_a_connected_socket_learns_that_its_backend_was_deleted_and_no_other_socket_is_met(
    space: Space, held: ExitStack
) -> None:
    clients = [space.pod(name, node) for name, node in (("client", "node1"), ("second", "node1"), ("third", "node3"))]
    gone, stays = web(space, "gone", "node2"), space.pod("stays", "node3", image="sleeper")
    services = [space.service("one", "web", PORT, "UDP"), space.service("two", "stays", PORT, "UDP")]
    space.apply(*clients, gone, stays, *services)
    one, two, direct = space.cluster_address("one"), space.cluster_address("two"), space.address("gone")
    held.enter_context(echoes(space, "gone", "stays"))
    callers = [of_pod(space, held, pod) for pod in ("client", "second", "third")]
    callers += [of_node(space, held, node) for node in ("node1", "node2")]
    for caller in callers:
        for name, address, answer in (("one", one, "gone"), ("two", two, "stays"), ("direct", direct, "gone")):
            assert (caller.connect(name, address), caller.ask(name)) == ("connected", answer)
        caller.begin_to_wait("one")
    space.delete(gone)
    assert [caller.waited() for caller in callers] == [GONE] * 5
    assert [caller.connect("one", one) for caller in callers] == ["ECONNREFUSED"] * 5
    space.apply(web(space, "fresh", "node1"))
    held.enter_context(echoes(space, "fresh"))
    for caller in callers:
        assert (caller.connect("one", one), caller.ask("one")) == ("connected", "fresh")
        assert caller.ask("two") == "stays"
        assert caller.state("two") == [two, 0]
        assert caller.state("direct") == [direct, 0]
