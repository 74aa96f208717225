"""Rules against the host's connection tracking."""

from __future__ import annotations

import asyncio

import pytest

from bus.service import BadSettings
from services.dataplane.kernel import nft
from services.dataplane.kernel.notrack import keep, remove, render
from services.dataplane.settings import NodeSettings


def test_both_ways_of_each_block_are_untracked_where_packets_come_in_and_where_the_host_sends() -> None:
    script = render(["fd00:10::/120", "10.0.1.0/24"])
    for hook in ("prerouting", "output"):
        chain = script.split(f"chain {hook} {{\n")[1].split("\n}", maxsplit=1)[0].splitlines()
        assert chain[1:] == [
            "ip saddr 10.0.1.0/24 notrack",
            "ip daddr 10.0.1.0/24 notrack",
            "ip6 saddr fd00:10::/120 notrack",
            "ip6 daddr fd00:10::/120 notrack",
        ]


def test_without_blocks_nothing_is_left() -> None:
    assert render([]) == "table inet plexus_notrack\ndelete table inet plexus_notrack\n"


def test_a_tunnel_and_untracked_pods_do_not_go_together() -> None:
    asked = {"PLEXUS_NODE": "node1", "PLEXUS_NO_CONNTRACK_RULES": "true"}
    assert NodeSettings.of(asked | {"PLEXUS_ROUTING_MODE": "native"}).no_conntrack_rules
    with pytest.raises(BadSettings, match="PLEXUS_ROUTING_MODE=native"):
        NodeSettings.of(asked)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scripts for nft; the kernel cannot be asked what is there."""
    given: list[str] = []

    async def apply(script: str) -> None:
        given.append(script)

    async def cannot_tell(*_: str) -> bool:
        raise nft.NftError("nft does not start")

    monkeypatch.setattr(nft, "apply", apply)
    monkeypatch.setattr(nft, "has_chain", cannot_tell)
    return given


async def test_rules_go_without_a_question_whether_there_are_any(applied: list[str]) -> None:
    await remove()
    assert applied == [render(())]


async def test_rules_for_blocks_of_a_process_before_this_one_go_though_there_is_no_block_now(
    applied: list[str],
) -> None:
    keeping = asyncio.create_task(keep(list))
    await asyncio.sleep(0)
    keeping.cancel()
    assert applied == [render(())]


async def test_that_nft_does_not_start_is_not_taken_for_no_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(nft.NftAbsent, match="install nftables"):
        await nft.has_chain("prerouting", "plexus_notrack")
    await remove()  # where there is no nft, there is nothing to say
