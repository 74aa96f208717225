"""What a later version gave away is not given again: the allocating services under a bus that holds such a value."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Network

from bus import labels
from bus.codec import encode
from bus.control import Model, run_control
from bus.messages import Message
from bus.messages.identity import Identity
from bus.messages.ipam import Block
from bus.messages.resources import Namespace, Node, Pod
from bus.revision import Revision
from bus.subjects import BLOCK, IDENTITY, NAMESPACE, NODE, POD
from bus.testing import Hub
from services.identity.model import IdentityModel
from services.ipam.model import BlockAllocation, Pools
from tests.bus.unread import NewerBlock, NewerIdentity

POOL = [IPv4Network("10.0.0.0/28")]  # two blocks of eight addresses
POD_MESSAGE = Pod(namespace="default", name="web", uid="1", labels={"app": "web"})
DEFAULT = Namespace(name="default")


@asynccontextmanager
async def running(hub: Hub, model: Model) -> AsyncIterator[None]:
    task = asyncio.create_task(run_control(hub.bus(), model))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not so():
            await asyncio.sleep(0.005)


async def test_a_number_that_a_later_version_holds_stays_its_own_and_the_next_one_is_taken() -> None:
    hub = Hub()
    wanted = labels.number_of(labels.labels_text(labels.canonical_labels(POD_MESSAGE, DEFAULT)))
    theirs = IDENTITY.of(str(wanted))
    hub.put(theirs, NewerIdentity(number=wanted))
    hub.put(NAMESPACE.of("default"), DEFAULT)
    hub.put(POD.of("default", "web"), POD_MESSAGE)
    hub.log("ipam").revision = {"resources": 2, "dataplane": 0}
    async with running(hub, IdentityModel()):
        await until(lambda: list(hub.states("identity")) == [IDENTITY.of(str(wanted + 1))])
        await until(lambda: hub.log("identity").revision == {"resources": 2, "dataplane": 0})
        assert hub.log("identity").entries[theirs].body == encode(NewerIdentity(number=wanted))
    async with running(hub, IdentityModel()):  # another takes over: what it cannot read is not taken back either
        await until(lambda: bool(hub.log("identity").readers))
        await asyncio.sleep(0.05)
        assert hub.log("identity").entries[theirs].body == encode(NewerIdentity(number=wanted))


async def test_a_block_that_a_later_version_holds_stays_its_own_until_it_is_given_back() -> None:
    hub = Hub()
    pools = Pools(POOL, 29)
    cidrs = [pools.block(number) for number in range(pools.count)]
    for cidr in cidrs:
        hub.put(BLOCK.of(cidr), NewerBlock(cidr=cidr))
    hub.put(NODE.of("n"), Node(name="n", addresses=["192.0.2.1"]))
    model = BlockAllocation(pools)
    async with running(hub, model):
        await until(lambda: model.short == ["n (IPv4)"])
        assert [hub.log("ipam").entries[BLOCK.of(cidr)].body for cidr in cidrs] == [
            encode(NewerBlock(cidr=cidr)) for cidr in cidrs
        ]
        hub.delete(BLOCK.of(cidrs[1]))
        wanted: dict[str, Message] = {BLOCK.of(cidrs[1]): Block(cidr=cidrs[1], node="n")}
        await until(lambda: hub.states("ipam") == wanted)
        assert model.short == []


async def test_a_block_that_can_be_read_again_is_its_holders() -> None:
    hub = Hub()
    pools = Pools(POOL, 28)  # one block
    cidr = pools.block(0)
    hub.put(BLOCK.of(cidr), NewerBlock(cidr=cidr))
    hub.put(NODE.of("n"), Node(name="n", addresses=["192.0.2.1"]))
    model = BlockAllocation(pools)
    async with running(hub, model):
        await until(lambda: model.short == ["n (IPv4)"])
        hub.put(BLOCK.of(cidr), Block(cidr=cidr, node="n"))
        await until(lambda: model.short == [])
        hub.delete(BLOCK.of(cidr))
        await until(lambda: hub.states("ipam") == {BLOCK.of(cidr): Block(cidr=cidr, node="n")})


async def test_a_key_that_makes_no_sense_is_no_trouble_any_more_once_it_is_gone() -> None:
    """One whose body is of another key, one whose body is no message, and one that is no text."""
    hub, told = Hub(), dict[str, str]()

    class Report:
        def check(self, name: str, ok: bool, detail: str = "") -> None:
            told[name] = detail

        def report(self, *, ready: bool, active: bool, revision: Revision) -> None:
            told["active"] = str(active)

    task = asyncio.create_task(run_control(hub.bus(), IdentityModel(), report=Report()))
    keys = [IDENTITY.of("abc"), IDENTITY.of("300"), f"{POD.head}.default.%FF", f"{POD.head}.%FF.a"]
    try:
        await until(
            lambda: told.get("active") == "True" and hub.log("identity").last > 0
        )  # what it begins with is done
        hub.put(keys[0], Identity(number=256, labels={}))
        await until(lambda: keys[0] in told.get("inputs", ""))
        hub.put_bytes(keys[1], b"garbage")
        for key in keys[2:]:
            hub.put(key, POD_MESSAGE)
        hub.put(POD.of("default", "web"), POD_MESSAGE)
        for key in keys:
            hub.delete(key)
        await until(lambda: told["inputs"] == "")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
