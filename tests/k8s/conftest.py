"""`resources` with Kubernetes as its source, on a bus in memory, before an API server over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bus.messages import Message
from bus.revision import Revision
from bus.subjects import state_of
from bus.testing import Hub
from services.resources.handlers import run
from services.resources.kubernetes.rights import rules
from services.resources.settings import Settings
from tests.k8s.apiserver import ApiServer, serving

PATIENCE_SECONDS = 30.0


async def until(holds: Callable[[], Any], what: str = "") -> None:
    """Waits for it. Fails after PATIENCE_SECONDS."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never so: {what}") from None


def kubeconfig(path: Path, url: str) -> Path:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "users": [{"name": "test", "user": {"token": "secret"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return path


class Place:
    """An API server, and what the bus has of it."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.hub = Hub()
        self.checks: dict[str, str] = {}
        self.is_ready = False
        self._folder = folder
        self._replicas: list[asyncio.Task[None]] = []

    def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
        self.is_ready = ready and active

    def check(self, name: str, ok: bool, detail: str) -> None:
        self.checks[name] = "" if ok else detail

    @property
    def states(self) -> Mapping[str, Message]:
        return self.hub.states("resources")

    def names(self, noun: str) -> set[str]:
        """Of a family, "namespace/name"."""
        found = set()
        for subject in self.states:
            family = state_of(subject)
            if family is not None and family.noun == noun:
                found.add("/".join(family.parse(subject)))
        return found

    def wrong(self) -> str:
        return "; ".join(filter(None, self.checks.values()))

    def start(self) -> asyncio.Task[None]:
        """One more replica."""
        file = kubeconfig(self._folder / "kubeconfig", self.server.url)
        settings = Settings(source="kubernetes", kubeconfig=str(file))
        task = asyncio.create_task(run(self.hub.bus("resources"), settings, self, self.check), name="resources")
        self._replicas.append(task)
        return task

    async def synced(self) -> None:
        await until(lambda: self.is_ready, "all that there is is on the bus")

    async def started(self) -> None:
        self.start()
        await self.synced()

    async def stop(self) -> None:
        for task in self._replicas:
            task.cancel()
        await asyncio.gather(*self._replicas, return_exceptions=True)
        self._replicas.clear()
        self.is_ready = False


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with serving() as server:
        server.rules = rules()
        found = Place(server, tmp_path)
        try:
            yield found
        finally:
            await found.stop()
