"""The bus is told of this node's endpoints: each as it is now, and then our word that these are all.

A burst on one pod is one message. Before all has been heard once nothing is said: until then it is not known what the
bus holds. What it holds of this node is heard back, and said again where it is not so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from bus import subjects
from bus.interface import Bus, BusError, Family
from bus.messages import dataplane as messages
from bus.messages.log import Vouched
from bus.telemetry import logger
from services.dataplane.model import NodeModel
from services.dataplane.part import LocalPod
from services.dataplane.pods.endpoints import Endpoint, Endpoints

log = logger(__name__)

OWNER = subjects.ENDPOINT.owner
RETRY_SECONDS = 1.0  # until what the bus did not take is said again


class Publish:
    """Of one node.

    Args:
        next_word: a number for the node to vouch with, higher than any before.
    """

    def __init__(
        self, bus: Bus, node: str, endpoints: Endpoints, model: NodeModel, next_word: Callable[[], Awaitable[int]]
    ) -> None:
        self._bus = bus
        self._node = node
        self._endpoints = endpoints
        self._model = model
        self._next_word = next_word
        self.held: dict[str, messages.Endpoint] = {}
        """By subject: what the bus holds of this node."""
        self._due: set[str] = set()  # subjects
        self._owes_word = True  # that the bus holds all of this node's endpoints, and no others
        self._news = asyncio.Event()
        self._begun = asyncio.Event()

    @property
    def family(self) -> Family:
        """What the bus holds of this node, to be heard."""
        return subjects.ENDPOINT, (self._node,)

    def hear(self, subject: str, message: object) -> None:
        """The bus holds this of an endpoint here; other than what is so, it is said again."""
        if isinstance(message, messages.Endpoint):
            self.held[subject] = message
        else:
            self.held.pop(subject, None)
        self._compare(subject)

    def begin(self) -> None:
        """All was heard once."""
        self._due.update(self.held)
        self._say_all()
        self._begun.set()

    def changed(self, pods: Iterable[LocalPod]) -> None:
        """Something of them may be other than before."""
        for pod in pods:
            if pod.namespace:
                self._compare(subjects.ENDPOINT.of(self._node, pod.namespace, pod.name))

    def forget(self, endpoint: Endpoint) -> None:
        """Its pod has no endpoint any more, or another: say so, if it is known whose it is."""
        if endpoint.namespace:
            self._mark(self._subject(endpoint))

    async def run(self) -> None:
        """Say what is due, for ever."""
        await self._begun.wait()
        while True:
            await self._news.wait()
            self._news.clear()
            due, self._due = self._due, set()
            await asyncio.gather(*map(self._say, due))
            if self._owes_word and not self._due:
                await self._vouch()

    async def say_again(self) -> None:
        """The log of endpoints has lost something, or is an older one: it gets what is so, and then our word for it.
        Whoever hears it goes on with what was said before, until then."""
        if not self._begun.is_set():
            return
        log.warning("the log of endpoints has lost something: saying this node's again")
        self.held = {}
        async for batch in self._bus.watch_state(self.family):
            for change in batch.changes:
                self.hear(change.subject, change.message)
            if batch.synced:
                break
        self._owes_word = True
        self._say_all()

    def _say_all(self) -> None:
        for endpoint in self._endpoints.all():
            self.forget(endpoint)
        self._news.set()  # without any there is a word to say, too

    def _compare(self, subject: str) -> None:
        if self._wanted(subject) != self.held.get(subject):
            self._mark(subject)

    def _mark(self, subject: str) -> None:
        self._due.add(subject)
        self._news.set()

    def _subject(self, endpoint: Endpoint) -> str:
        return subjects.ENDPOINT.of(self._node, endpoint.namespace, endpoint.pod)

    def _wanted(self, subject: str) -> messages.Endpoint | None:
        _, namespace, pod = subjects.ENDPOINT.parse(subject)
        endpoint = self._endpoints.of_pod(namespace, pod)
        if endpoint is None:
            return None
        return messages.Endpoint(
            node=self._node,
            namespace=endpoint.namespace,
            pod=endpoint.pod,
            uid=endpoint.uid,
            address=endpoint.address,
            addresses=list(endpoint.addresses),
            mac=endpoint.mac,
            interface=endpoint.interface,
            interface_index=endpoint.interface_index,
            identity=self._model.identity_of(endpoint.address),
            state=self._model.state_of(endpoint.address),
            closed=list(self._model.closed_of(endpoint.address)),
        )

    async def _say(self, subject: str) -> None:
        wanted = self._wanted(subject)
        if wanted == self.held.get(subject):
            return
        try:
            if wanted is None:
                await self._bus.delete_state(subject)
                self.held.pop(subject, None)
            else:
                await self._bus.publish_state(subject, wanted)
                self.held[subject] = wanted
        except BusError as problem:
            log.warning("endpoint not told, trying again", subject=subject, why=str(problem))
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._mark, subject)

    async def _vouch(self) -> None:
        """The bus holds all of this node's endpoints, and no others."""
        missing = [each for each in self._endpoints.all() if self._subject(each) not in self.held]
        if missing:
            return  # those that failed are tried again
        word = Vouched(writer=self._node, number=await self._next_word())
        self._owes_word = False
        try:
            await self._bus.publish_state(subjects.VOUCHED[OWNER].of(self._node), word)
        except BusError as problem:
            self._owes_word = True
            log.warning("endpoints are not vouched for, trying again", why=str(problem))
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._news.set)
