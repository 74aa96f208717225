"""The kernel is brought to what the model says; and the model learns what found no room.

An entry of policy that is missing denies nothing. So a direction of which not all is in the map is denied as a whole,
at once and for as long as there is no room for all of it; the endpoint and its policies say so. The same of a network
that may not call a Service: then nobody outside may, a write later. What is missing of any other map stays owed: it
opens nothing.
"""

from __future__ import annotations

import errno

from bus.service import Service
from services.dataplane.kernel.maps import Maps
from services.dataplane.model import NodeModel
from services.dataplane.part import LocalPod

POLICY, RANGES = "policy", "source_ranges"
NAMED = 3  # pods that a check is about


class Writing:
    """Of one node. Whoever calls it holds the lock of those who write."""

    def __init__(self, service: Service, maps: Maps, model: NodeModel) -> None:
        self._service = service
        self._maps = maps
        self._model = model

    @property
    def is_held_back(self) -> bool:
        """Not all that the model has heard is in force."""
        return bool(self._maps.no_room) or any(self._model.closed.values())

    async def write(self, *, is_whole: bool) -> list[LocalPod]:
        """Returns the pods of which something may be other than before. `is_whole`: the model knows all that there is;
        else it is only said of pods that they are there."""
        changed = self._model.settle()
        if is_whole:
            if self._model.policy.open_what_fits():
                changed += self._model.settle()
            await self._maps.write(self._model.tables, self._model.judged.again)
            while self._close():  # each time of more: nothing is opened in between
                changed += self._model.settle()
                await self._maps.write(self._model.tables, self._model.judged.again)
            self._maps.serve(self._model.services.looked_for)
        else:
            await self._maps.write((self._model.endpoints.table,))
        self._tell()
        return list(dict.fromkeys(changed))

    def _close(self) -> bool:
        missing = self._maps.missing.get(POLICY, {})
        closed = self._model.policy.close(missing, is_full=errno.ENOMEM not in missing.values())
        return self._model.services.shut(self._maps.missing.get(RANGES, ())) or closed

    def _tell(self) -> None:
        missing = [f"{name}: {why}" for name, why in sorted(self._maps.no_room.items())]
        self._service.check("room", not missing, "; ".join(missing))
        is_any = any(self._model.closed.values())
        closed = sorted(
            f"{each.direction} of {pod.namespace}/{pod.name} is denied: {each.why}"
            for pod in (dict.fromkeys(self._model.pods.values()) if is_any else ())
            for each in self._model.closed_of(pod.addresses[0])
        )
        more = [f"and {len(closed) - NAMED} more"] if len(closed) > NAMED else []
        self._service.check("policies", not closed, "; ".join(closed[:NAMED] + more))
