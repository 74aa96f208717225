"""Hooks where rules stand in for programs: nothing is attached, and what is left of ours is taken away.

Needs CAP_NET_ADMIN only: whoever may open a pin may detach what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from services.dataplane.kernel import bpf, rtnl
from services.dataplane.kernel.bpf import LINK_TCX
from services.dataplane.kernel.hooks import Hooks, with_link
from services.dataplane.kernel.netlink import Netlink
from services.dataplane.kernel.pins import Pins
from services.dataplane.shapes.attach import Hook
from services.dataplane.shapes.programs import TC_PROGRAMS


class NoHooks(Hooks):
    """See the module; a node works with it as with hooks that are kept. `pin_dir`: where programs before had theirs."""

    def __init__(self, pin_dir: Path) -> None:
        self.pins = Pins(pin_dir)
        self._links = pin_dir / "links"
        self._netlink = Netlink()
        self._thread = ThreadPoolExecutor(1, "hooks")

    def close(self) -> None:
        """Waits for what runs."""
        self._thread.shutdown()
        self._netlink.close()

    async def keep(self, hook: Hook) -> None:
        """Rules judge there."""

    async def remove(self, hook: Hook) -> None:
        """There is nothing."""

    async def adopt(self, hooks: Collection[Hook]) -> dict[Hook, str]:
        return {}

    async def heal(self, pods: Callable[[], Iterable[Hook]], is_quiet: Callable[[], bool]) -> None:
        """There is nothing that could be missing."""

    def take_routes_gone(self) -> bool:
        """Never: keep/heal.py looks itself, every half a minute."""
        return False

    def take_addresses_changed(self) -> bool:
        """Never, as above."""
        return False

    @property
    def differing(self) -> dict[str, str]:
        return {}

    @property
    def state(self) -> tuple[bool, str]:
        return True, "none: rules in their place"

    async def judged(self, hooks: Collection[Hook]) -> set[Hook]:
        """Those where a program of ours is attached. What cannot be seen counts as not there: rules judge it then.

        Raises: LinkError.
        """
        return await self._run(lambda: {hook for hook in hooks if self._is_attached(hook)})

    async def take_away(self, hooks: Collection[Hook]) -> None:
        """No program of ours is on any of these hooks, nor on any that has a pin: the sockets' among them.

        Raises: LinkError.
        """
        await self._run(self._clear, list(hooks))

    def _is_attached(self, hook: Hook) -> bool:
        with suppress(OSError):
            link = bpf.pinned_link(self._links / hook.pin)
            if link and (link.type, link.target) == (LINK_TCX, hook.index):
                return True
        return any(each.name == hook.program for each in self._filters(hook))

    def _clear(self, hooks: list[Hook]) -> None:
        for hook in hooks:
            for each in self._filters(hook):
                rtnl.detach(self._netlink, hook.index, hook.direction, each.handle)
        for pin in self._links.glob("*"):
            with suppress(OSError):  # then it ends a moment after its pin, unless somebody else holds it
                with_link(pin, bpf.detach_link)
            pin.unlink(missing_ok=True)

    def _filters(self, hook: Hook) -> list[rtnl.Attached]:
        """Ours at clsact, of this version or another."""
        return [
            each
            for each in rtnl.list_attached(self._netlink, hook.index, hook.direction)
            if each.priority == rtnl.FILTER_PRIORITY and (each.handle == rtnl.FILTER_HANDLE or each.name in TC_PROGRAMS)
        ]
