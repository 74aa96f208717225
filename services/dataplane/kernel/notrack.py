"""The host does not track what is tracked already: rules against its connection tracking, for the node's own pods.

With native routing, packets between the host's stack and pods pass the host's connection tracking although BPF tracks
them too: an entry and a look-up a packet for nothing, and a table that pods can fill. The rules are nftables' `notrack`
in a table of their own, `inet plexus_notrack`. They are removed where the setting is off, and while rules stand in for
BPF (fallback), which need the host's tracking.

Source: `installNoConntrackIptablesRules` of the Helm chart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import ip_network

from bus.telemetry import logger
from services.dataplane.kernel import nft

log = logger(__name__)

TABLE = "plexus_notrack"
LOOK_SECONDS = 5.0  # how often blocks, and whether the rules are there, are looked at


def render(blocks: Iterable[str]) -> str:
    """For nft: packets from and to these CIDRs are not tracked. No blocks: no rules."""
    script = [f"table inet {TABLE}", f"delete table inet {TABLE}"]
    networks = [ip_network(each) for each in sorted(blocks)]
    if networks:
        rules = [
            f"{'ip' if each.version == 4 else 'ip6'} {side} {each} notrack"
            for each in networks
            for side in ("saddr", "daddr")
        ]
        for hook in ("prerouting", "output"):
            head = [f"chain {hook} {{", f"type filter hook {hook} priority raw; policy accept;"]
            script += [f"table inet {TABLE} {{", *head, *rules, "}", "}"]
    return "\n".join(script) + "\n"


async def keep(blocks: Callable[[], Iterable[str]]) -> None:
    """Keep the rules as the node's blocks are, for ever. What nft refuses is logged once and tried again."""
    in_force: list[str] | None = None  # not known: those of a process before this one, of other blocks
    problem = ""
    while True:
        wanted = sorted(blocks())
        try:
            if wanted != in_force or (in_force and not await nft.has_chain("prerouting", TABLE)):
                await nft.apply(render(wanted))
                in_force = wanted
            problem = ""
        except nft.NftError as failure:
            if str(failure) != problem:
                log.warning("pods' connections are tracked by the host, trying again", why=str(failure))
            problem = str(failure)
        await asyncio.sleep(LOOK_SECONDS)


async def remove() -> None:
    """No such rules; also when nft is not there to have made any."""
    try:
        await nft.apply(render(()))
    except nft.NftAbsent:
        return
    except nft.NftError as failure:
        log.warning("rules against connection tracking are still there", why=str(failure))
