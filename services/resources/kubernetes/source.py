"""Wiring: the API server's resources into the log, for as long as this replica is the active one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from bus.interface import Bus
from bus.messages.resources import Applied, Namespace
from bus.subjects import NAMESPACE
from services.resources.kubernetes.api import Api, Trouble, connected
from services.resources.kubernetes.following import Check, Following
from services.resources.kubernetes.mirror import WATCHED, here, plan_mirror
from services.resources.kubernetes.pending import Changes, Pending
from services.resources.kubernetes.telling import Telling
from services.resources.model import Plan
from services.resources.registry import KINDS
from services.resources.store import Store

IDENTIFIES = "kube-system"
"""The namespace whose uid stands for the cluster."""


class Writes(Protocol):
    """Whoever holds the log (`handlers.Handlers`)."""

    @property
    def store(self) -> Store: ...

    async def carry_out(self, make_plan: Callable[[], Plan]) -> Applied: ...


async def mirror(bus: Bus, writes: Writes, kubeconfig: str, check: Check, synced: Callable[[], None]) -> None:
    """Until cancelled. `synced` is called when the log holds all that there was. Raises: CannotStart."""
    told: set[str] = set()

    def checked(name: str, ok: bool, detail: str) -> None:
        told.add(name)
        check(name, ok, detail)

    try:
        async with connected(kubeconfig) as api:
            await mirror_from(bus, api, writes, checked, synced)
    finally:
        for name in told:
            check(name, True, "")  # whoever stands by has no API server that could be away


async def mirror_from(bus: Bus, api: Api, writes: Writes, check: Check, synced: Callable[[], None]) -> None:
    pending = Pending([each.name for each in WATCHED])
    telling = Telling(api, check)
    for kind in KINDS:
        if kind not in WATCHED:  # from a time when manifests were the source
            for key in here(writes.store, kind.name):
                pending.gone(key)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        for kind in WATCHED:
            following = Following(
                kind,
                api,
                pending,
                here=lambda name=kind.name: here(writes.store, name),  # type: ignore[misc]  # mypy takes no default here
                same_cluster=partial(_same_cluster, api, writes),
                check=check,
                clock=loop.time,
            )
            tasks.create_task(following.run(), name=f"follow {kind.plural}")
        tasks.create_task(telling.hear(bus), name="hear what is made of resources")
        tasks.create_task(telling.run(), name="write statuses back")
        tasks.create_task(write(pending, writes, telling.written, synced), name="write what was seen")


async def write(
    pending: Pending, writes: Writes, written: Callable[[Changes], None], synced: Callable[[], None]
) -> None:
    while True:
        changes = await pending.take()
        if changes:
            try:
                await writes.carry_out(lambda changes=changes: plan_mirror(writes.store, changes))  # type: ignore[misc]
            except BaseException:
                pending.back(changes)
                raise
            written(changes)
        synced()


async def _same_cluster(api: Api, writes: Writes) -> None:
    """A server of another cluster has none of what is in the log, and all of it would go."""
    known = writes.store.get(NAMESPACE.of(IDENTIFIES))
    metadata = known.manifest.get("metadata") if isinstance(known, Namespace) else None
    uid = metadata.get("uid") if isinstance(metadata, dict) else None
    if not uid:
        return
    try:
        found = (await api.get(f"/api/v1/namespaces/{IDENTIFIES}")).get("metadata")
    except Trouble as problem:  # whatever it is, it says nothing of the kind that is to be listed
        raise Trouble(str(problem), retry_after_seconds=problem.retry_after_seconds) from problem
    now = found.get("uid") if isinstance(found, dict) else None
    if now != uid:
        raise Trouble(
            f"{api.host} is the API server of another cluster: its {IDENTIFIES} has the uid {now}, not {uid}; correct "
            "the address, or, for a cluster that was made anew, install Plexus anew"
        )
