"""A start that cannot be says why in words, and leaves the rest to whoever reads them."""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bus.service import CannotStart, Service, Settings
from bus.testing import Hub
from services.dataplane import __main__ as dataplane
from services.dataplane.keep import asked
from services.dataplane.keep.asked import Asked
from services.dataplane.kernel import nft
from services.dataplane.load import loader, migrate
from services.dataplane.load.datapath import Known
from services.dataplane.load.loader import DatapathConfig
from services.dataplane.load.migrate import DoesNotFit, Migration
from services.dataplane.settings import NodeSettings
from services.dataplane.store.journal import Journal


async def live(folder: Path, service: Service | None = None) -> None:
    settings = replace(NodeSettings(node="n"), state_dir=folder)
    service = service or Service("dataplane", Settings(instance="n"), Hub().bus())
    await dataplane.live(service, settings, Known(), filled=False)


async def test_another_dataplane_with_the_same_state_is_told_of(tmp_path: Path) -> None:
    other = Journal.open(tmp_path / "endpoints.journal")
    with pytest.raises(CannotStart, match="is another dataplane running"):
        await live(tmp_path)
    await other.close()


async def test_a_map_that_fills_up_while_it_migrates_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Migration):
        def finish(self) -> int:
            raise DoesNotFit("x", 10, 9)

    async def nothing() -> None:
        """There is nothing to restore."""

    async def start(*_: object, **__: object) -> tuple[object, Migration, None]:
        return SimpleNamespace(restore=nothing, asked=Asked(service)), Full(tmp_path, (), may_be_live=False), None

    monkeypatch.setattr(dataplane, "start", start)
    service = Service("dataplane", Settings(instance="n"), Hub().bus())
    service.compare = nothing
    with pytest.raises(CannotStart, match="the map x holds 10 entries"):
        await live(tmp_path, service)
    assert service.compare is None, "who asks from now on would meet maps that are closed"


async def test_a_look_that_somebody_asked_for_ends_before_what_it_looks_at_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "PATIENCE_SECONDS", 0.0)
    service = Service("dataplane", Settings(instance="n"), Hub().bus())
    order: list[str] = []

    async def look(since: float) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("look")

    async def fails() -> None:
        await node.asked.wait(look, "maps", "drift")
        await asyncio.sleep(0)
        raise CannotStart("no")

    node = SimpleNamespace(restore=fails, asked=Asked(service))

    async def start(*given: object, **__: object) -> tuple[object, None, None]:
        stack = given[-2]
        assert isinstance(stack, AsyncExitStack)
        stack.callback(order.append, "closed")
        return node, None, None

    monkeypatch.setattr(dataplane, "start", start)
    with pytest.raises(CannotStart, match="no"):
        await live(tmp_path, service)
    assert order == ["look", "closed"]


def test_what_an_earlier_start_left_to_copy_and_does_not_fit_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Migration:
        raise DoesNotFit("x", 10, 9)

    monkeypatch.setattr(migrate, "begin", full)
    with pytest.raises(loader.LayoutError, match="the map x holds 10 entries"):
        loader._begin_migration(DatapathConfig(device_index=1), tmp_path)


async def test_nft_that_gets_no_file_is_as_nft_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("os.memfd_create", none_left)
    with pytest.raises(nft.NftError, match="Too many open files"):
        await nft.apply("")
