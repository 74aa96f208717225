"""A node whose kernel refuses BPF, on the real kernel: what is left of programs, and what is no reason to fall back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.dataplane.fallback.hooks import NoHooks
from services.dataplane.fallback.maps import RuleMaps
from services.dataplane.fallback.rules import TABLE, removal
from services.dataplane.fallback.rules import Place as RulesPlace
from services.dataplane.kernel import nft
from services.dataplane.kernel.links import LinkError
from services.dataplane.load import loader
from services.dataplane.model import NodeModel
from services.dataplane.shapes.attach import Mechanism
from tests.bpf.attaching import MECHANISMS, NEXT, OK, Counter, foreign_filter, foreign_link, unpin, with_pod
from tests.bpf.attaching import Place as PodPlace
from tests.bpf.conftest import BPFFS
from tests.bpf.spaces import in_namespace, inside
from tests.bpf.test_start import Place, place

__all__ = ["place"]  # the fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


@pytest.fixture
def counter() -> Iterator[Counter]:
    made = Counter()
    yield made
    made.close()


@pytest.fixture
def pins() -> Iterator[Path]:
    made = BPFFS / f"plexus-test-fallback-{os.getpid()}"
    (made / "links").mkdir(parents=True)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_programs_of_before_are_seen_and_taken_away_and_those_of_others_stay(
    namespaces: Callable[[str], str],
    pins: Path,
    counter: Counter,
    mechanism: Mechanism,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, theirs = counter.program(OK), counter.program(NEXT)

    async def work(place: PodPlace) -> None:
        with place.process(mechanism, program) as hooks:
            await place.heal(hooks)
        assert place.how() == {mechanism}
        foreign_filter(place, theirs, 7, 0x7, monkeypatch)
        others = place.filters()[-1:]
        with foreign_link(theirs, place.hooks_of_pod[0].index), closing(NoHooks(pins)) as left:
            ours = place.tcx()[:1] if mechanism == "tcx" else []
            linked = [each for each in place.tcx() if each not in ours]
            assert await left.judged(place.hooks_of_pod) == set(place.hooks_of_pod)
            await left.take_away(place.hooks_of_pod)
            assert await left.judged(place.hooks_of_pod) == set()
            assert (place.filters(), place.tcx()) == (others, linked)
            assert (place.filters("egress"), place.tcx("egress")) == ([], [])
            assert list((pins / "links").iterdir()) == []
            await left.take_away(place.hooks_of_pod)  # again: nothing to do

    with_pod(namespaces, pins, program, work)


def test_a_pin_that_is_gone_does_not_make_a_hook_look_judged(
    namespaces: Callable[[str], str], pins: Path, counter: Counter
) -> None:
    program = counter.program(OK)

    async def work(place: PodPlace) -> None:
        with place.process("tcx", program) as hooks:
            await place.heal(hooks)
        unpin(place)
        with closing(NoHooks(pins)) as left:
            assert await left.judged(place.hooks_of_pod) == {place.hooks_of_pod[1]}

    with_pod(namespaces, pins, program, work)


@pytest.mark.parametrize("problem", [loader.LoadError("no"), LinkError("no"), PermissionError(1, "no")])
def test_what_the_kernel_refuses_or_was_not_built_makes_a_node_fall_back(
    place: Place, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    async def refuses(*_: object) -> loader.Loaded:
        raise problem

    monkeypatch.setattr(loader, "load", refuses)

    async def main() -> None:
        async with place.running(IPV6_ENABLED="true") as node:
            assert place.fallback is not None
            (check,) = [each for each in node.service.health().checks if each.name == "datapath"]
            assert (check.ok, check.detail) == (False, f"degraded: nftables rules instead of BPF: {problem}")
            assert "plexus_fallback" in inside(place.namespace, "nft", "list", "tables").stdout

    in_namespace(place.namespace, main)


def test_maps_that_would_be_lost_are_no_reason_to_fall_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*_: object) -> loader.Loaded:
        raise loader.LayoutError("drain the node")

    monkeypatch.setattr(loader, "load", refuses)

    async def main() -> None:
        with pytest.raises(loader.LayoutError, match="drain"):
            async with place.running():
                pass
        assert "plexus_fallback" not in inside(place.namespace, "nft", "list", "tables").stdout

    in_namespace(place.namespace, main)


@pytest.mark.parametrize("devices", [("lo",), ()])
def test_a_node_puts_its_rules_in_force_without_a_device_too(
    namespaces: Callable[[str], str], tmp_path: Path, devices: tuple[str, ...]
) -> None:
    own = RulesPlace(devices=devices, own_addresses=frozenset(), tunnel="tun", tunnel_port=8472)

    async def main() -> None:
        maps = RuleMaps(lambda: own, tmp_path, NodeModel("n").by_rules)
        assert await maps.apply()
        assert (maps.problem, await nft.has_table(TABLE)) == ("", True)

    in_namespace(namespaces("rules"), main)


def test_rules_of_the_kernel_are_seen_and_a_pod_with_programs_is_known_by_its_index(
    namespaces: Callable[[str], str], tmp_path: Path
) -> None:
    namespace = namespaces("rules")

    async def main() -> None:
        maps = RuleMaps(
            lambda: RulesPlace(devices=("lo",), own_addresses=frozenset(), guarded=frozenset({4711})),
            tmp_path,
            NodeModel("n").by_rules,
        )
        assert not await nft.has_table(TABLE)
        assert not await nft.has_chain("raw", TABLE)
        assert await maps.apply()
        assert await nft.has_table(TABLE)
        assert (await nft.has_chain("raw", TABLE), await nft.has_chain("no_such", TABLE)) == (True, False)
        listed = inside(namespace, "nft", "list", "chain", "inet", TABLE, "forward_pods").stdout
        assert "iif 4711 return" in listed
        assert "oif 4711 return" in listed
        await nft.apply(removal())
        assert await maps.heal()
        await maps.remove()
        assert not await nft.has_table(TABLE)

    in_namespace(namespace, main)
