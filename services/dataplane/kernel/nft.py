"""The program nft, in this process's network namespace. Decides nothing. Needs CAP_NET_ADMIN."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection

from services.dataplane.batch import answered


class NftError(OSError):
    """nftables refused; what was in force still is. The text says why."""


class NftRefusal(NftError):
    """It ran, and said no."""


class NftAbsent(NftError):
    """The program is not installed."""


async def apply(script: str) -> None:
    """Put a script in force, all of it or nothing. Raises: NftError."""
    await _nft("-f", "-", script=script)


async def has_chain(name: str, table: str) -> bool:
    """The table holds a chain of this name. Raises: NftError: it cannot be told."""
    if not await has_table(table):
        return False
    try:
        await _nft("list", "chain", "inet", table, name)
    except NftRefusal:
        return False
    return True


async def has_table(name: str) -> bool:
    """Whether there is such a table. Raises: NftError: it cannot be told."""
    return f"table inet {name}" in (await _nft("list", "tables", "inet")).splitlines()


async def counters(table: str, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Packets and bytes by counter; nothing while the table is not there."""
    try:
        listed = json.loads(await _nft("-j", "list", "counters", "table", "inet", table))
        found = [each["counter"] for each in listed["nftables"] if "counter" in each]
        return {each["name"]: (each["packets"], each["bytes"]) for each in found if each["name"] in names}
    except (NftError, ValueError, KeyError, TypeError):
        return {}


async def _nft(*arguments: str, script: str = "") -> str:
    # Not a pipe: nft may end before it has read, and writing to it would fail without a word of why it ended.
    pipe = asyncio.subprocess.PIPE
    try:
        given = os.memfd_create("nft")
        try:
            os.write(given, script.encode())
            os.lseek(given, 0, os.SEEK_SET)
            child = await asyncio.create_subprocess_exec("nft", *arguments, stdin=given, stdout=pipe, stderr=pipe)
        finally:
            os.close(given)
    except FileNotFoundError as failure:
        raise NftAbsent(f"nft does not start: {failure}; install nftables") from failure
    except OSError as failure:
        raise NftError(f"nft does not start: {failure}") from failure
    out, err = await answered(child)
    if child.returncode:
        words = err.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise NftRefusal(f"nft {arguments[0]}: {'; '.join(words[:3])}")
    return out.decode(errors="replace")
