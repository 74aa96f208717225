"""A node that starts while the bus is away goes by what it heard last; the kernel and the bus are in memory."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus import subjects
from bus.interface import Batch, Change
from bus.labels import canonical_labels
from bus.late import LateBus
from bus.messages import Message
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import LabelSelector, Namespace, Pod, Requirement
from bus.service import Service, Settings
from services.dataplane.keep import recall
from services.dataplane.keep.recall import Recall
from services.dataplane.kernel import maps as kernel_maps
from services.dataplane.node import Node
from services.dataplane.pods.verbs import NodePods
from services.dataplane.settings import NodeSettings
from services.dataplane.shapes.order import Owed
from services.dataplane.shapes.table import Table
from services.dataplane.store import statefile
from services.dataplane.store.journal import Journal
from tests.unit.dataplane.fake_kernel import MemoryHooks, MemoryLinks, MemoryMaps
from tests.unit.dataplane.test_node import DEVICE, HERE, PROGRAMS, THERE, WEB, Machine, until

REMOTE = "10.0.1.7"


class Computer(Machine):
    """A machine with a disk for what was heard, whose bus comes when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.file = folder / "heard.state"
        self.ahead = folder / "pins" / "ahead"
        self.late: LateBus

    def reboot(self) -> None:
        """The kernel forgets everything."""
        self.maps, self.links = MemoryMaps(), MemoryLinks()
        self.hooks = MemoryHooks(self.links)
        shutil.rmtree(self.ahead.parent, ignore_errors=True)

    def bus_returns(self) -> None:
        self.late.arrived(self.hub.bus())

    @asynccontextmanager
    async def without_bus(self) -> AsyncIterator[Node]:
        journal = Journal.open(self.folder / "endpoints.journal", durable=False)
        self.late = LateBus()
        service = Service("dataplane", Settings(instance=HERE), self.late)
        settings = NodeSettings(node=HERE, routing_mode="native")
        kept = Recall(self.file, self.ahead)
        node = Node(settings, service, DEVICE, self.links, self.hooks, self.maps, journal, PROGRAMS, 1500, kept)
        await node.restore()
        self.node, self.pods = node, NodePods(node)
        tasks = [asyncio.ensure_future(each) for each in (node.hear(), node.publish.run(), node.recall(), node.keep())]
        try:
            yield node
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert ended is None or isinstance(ended, asyncio.CancelledError), ended
            await journal.close()

    @asynccontextmanager
    async def with_bus(self) -> AsyncIterator[Node]:
        async with self.without_bus() as node:
            self.bus_returns()
            await until(lambda: node.is_synced)
            yield node

    def deny(self) -> None:
        for subject, message in denial().items():
            self.hub.put(subject, message)

    def say_remote(self, address: str = REMOTE) -> None:
        self.hub.put(subjects.ADDRESS.of(address), remote(address))


def denial() -> dict[str, Message]:
    """No pod of the namespace is to be reached."""
    wanted = Requirement(key="k8s:io.kubernetes.pod.namespace", operator="In", values=["default"])
    selector = Selector(id="all", selector=LabelSelector(requirements=[wanted]), members=[WEB])
    rules = PolicyRules(
        kind="NetworkPolicy", namespace="default", name="deny", subject="all", deny_ingress_by_default=True
    )
    return {subjects.SELECTOR.of("all"): selector, subjects.RULES.of("NetworkPolicy", "default", "deny"): rules}


def remote(address: str) -> AddressIdentity:
    return AddressIdentity(address=address, identity=WEB, node=THERE, node_address="192.0.2.2", pod="default/far")


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    monkeypatch.setattr(recall, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(recall, "WRITE_SECONDS", 0.01)
    made = Computer(tmp_path)
    made.populate()
    return made


def said(subject: str, message: Message) -> Change:
    return Change(subject, message, sequence=1, caused_at=0.0, trace={})


async def on_disk(computer: Computer) -> None:
    await until(lambda: computer.file.exists() and not computer.ahead.exists())


async def test_booted_without_a_bus_pods_addresses_and_policies_are_as_they_were_heard_last(computer: Computer) -> None:
    computer.deny()
    computer.say_remote()
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    async with computer.without_bus() as node:
        await until(lambda: node.service.is_ready)
        address = await computer.add()
        await until(lambda: (entry := computer.entry(address)) and (entry.identity, entry.flags) == (WEB, 1))
        assert computer.who(REMOTE) == (WEB, "192.0.2.2")
        assert "10.0.1.0/24" in computer.links.routes
        assert not node.is_synced


async def test_a_pod_that_the_disk_does_not_know_stays_closed(computer: Computer) -> None:
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    async with computer.without_bus() as node:
        await until(lambda: computer.who("10.0.1.0", 24))
        address = await computer.add(pod="stranger")
        await node.write()
        found = computer.entry(address)
        assert found is not None and (found.policy, found.flags) == (0, 3)


async def test_half_of_what_the_bus_says_opens_nothing(computer: Computer) -> None:
    """The pod and its labels are heard again before the policies for them: whole is what counts."""
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    async with computer.without_bus() as node:
        await until(lambda: computer.who("10.0.1.0", 24))
        address = await computer.add(pod="late")
        pod = Pod(namespace="default", name="late", uid="u", labels={"app": "late"}, node=HERE)
        labels = canonical_labels(pod, Namespace(name="default"))
        changes = [
            said(subjects.NAMESPACE.of("default"), Namespace(name="default")),
            said(subjects.POD.of("default", "late"), pod),
            said(subjects.IDENTITY.of("4711"), Identity(number=4711, labels=labels)),
        ]
        await node.hear_batch(Batch(changes, synced=False))
        await node.write()
        found = computer.entry(address)
        assert found is not None and (found.policy, found.flags) == (0, 3)
        await node.hear_batch(Batch([], synced=True))  # and no policy is for it
        assert (found := computer.entry(address)) is not None and (found.identity, found.flags) == (4711, 0)


async def test_a_large_first_sync_lets_others_have_their_turns_and_half_of_it_opens_nothing(computer: Computer) -> None:
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    async with computer.without_bus() as node:
        await until(lambda: computer.who("10.0.1.0", 24))
        address = await computer.add(pod="late")
        pod = Pod(namespace="default", name="late", uid="u", labels={"app": "late"}, node=HERE)
        labels = canonical_labels(pod, Namespace(name="default"))
        names = [f"10.0.{1 + number // 256}.{number % 256}" for number in range(3000)]
        changes = [
            said(subjects.NAMESPACE.of("default"), Namespace(name="default")),
            said(subjects.POD.of("default", "late"), pod),
            said(subjects.IDENTITY.of("4711"), Identity(number=4711, labels=labels)),
            *(said(subjects.ADDRESS.of(name), remote(name)) for name in names),
            *(said(subject, message) for subject, message in denial().items()),
        ]
        hearing = asyncio.ensure_future(node.hear_batch(Batch(changes, synced=True)))
        writing, known = asyncio.ensure_future(node.write()), set()
        while not hearing.done():
            known.add(len(node.model.network.addresses))
            if writing.done():
                writing = asyncio.ensure_future(node.write())
            await asyncio.sleep(0)
            found = computer.entry(address)
            assert found is not None and found.flags, "it was open"
        await asyncio.gather(hearing, writing)
        assert len(known) > 5
        assert (found := computer.entry(address)) is not None and (found.identity, found.flags) == (4711, 1)


async def test_what_makes_no_sense_does_not_take_away_what_the_disk_knew(computer: Computer) -> None:
    computer.say_remote()
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    async with computer.without_bus() as node:
        await until(lambda: computer.who(REMOTE))
        senseless = AddressIdentity(
            address=REMOTE, identity=-1, node=THERE, node_address="192.0.2.2", pod="default/far"
        )
        await node.hear_batch(Batch([said(subjects.ADDRESS.of(REMOTE), senseless)], synced=True))
        assert node.model.network.addresses[REMOTE].identity == WEB


async def test_what_makes_no_sense_leaves_on_the_disk_what_was_good_before(computer: Computer) -> None:
    computer.say_remote()
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    before = statefile.parse(computer.file.read_bytes())[0][subjects.ADDRESS.of(REMOTE)]
    async with computer.without_bus() as node:
        await until(lambda: computer.who(REMOTE))
        await node.hear_batch(
            Batch(
                [
                    said(
                        subjects.ADDRESS.of(REMOTE),
                        AddressIdentity(address=REMOTE, identity=-1, node=THERE, node_address="192.0.2.2", pod="x/y"),
                    )
                ],
                synced=True,
            )
        )
        await on_disk(computer)
    assert statefile.parse(computer.file.read_bytes())[0] == {subjects.ADDRESS.of(REMOTE): before}


async def test_with_the_bus_back_what_only_the_disk_knew_is_gone_and_what_is_new_is_there(computer: Computer) -> None:
    computer.say_remote()
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    computer.hub.delete(subjects.ADDRESS.of(REMOTE))
    computer.say_remote("10.0.1.8")
    async with computer.without_bus() as node:
        await until(lambda: computer.who(REMOTE))
        computer.bus_returns()
        await until(lambda: node.is_synced)
        await until(lambda: computer.who(REMOTE) is None and computer.who("10.0.1.8") is not None)
        await on_disk(computer)
    state, _ = statefile.parse(computer.file.read_bytes())
    assert subjects.ADDRESS.of(REMOTE) not in state
    assert subjects.ADDRESS.of("10.0.1.8") in state


async def test_the_bus_that_returns_while_the_disks_state_is_being_written_has_the_last_word(
    computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    computer.say_remote()
    async with computer.with_bus():
        await on_disk(computer)
    computer.reboot()
    computer.hub.delete(subjects.ADDRESS.of(REMOTE))
    begun, go_on = threading.Event(), threading.Event()
    written = kernel_maps.Maps._write

    def slowly(maps: kernel_maps.Maps, owed: list[Owed], endpoints: Table | None) -> None:
        if any(table.name == "ipcache" for table, _, _ in owed):
            begun.set()
            go_on.wait(10)
        written(maps, owed, endpoints)

    monkeypatch.setattr(kernel_maps, "INLINE_ENTRIES", 0)
    monkeypatch.setattr(kernel_maps.Maps, "_write", slowly)
    async with computer.without_bus() as node:
        await until(begun.is_set)
        computer.bus_returns()
        await asyncio.sleep(0.1)
        go_on.set()
        await until(lambda: node.is_synced)
        await node.write()
        assert REMOTE not in node.model.network.addresses
        assert computer.who(REMOTE) is None


async def test_each_change_and_each_deletion_reaches_the_disk(computer: Computer) -> None:
    async with computer.with_bus():
        await on_disk(computer)
        computer.say_remote()
        await until(computer.ahead.exists)
        await on_disk(computer)
        assert subjects.ADDRESS.of(REMOTE) in statefile.parse(computer.file.read_bytes())[0]
        computer.hub.delete(subjects.ADDRESS.of(REMOTE))
        await until(lambda: computer.who(REMOTE) is None)
        await on_disk(computer)
        assert subjects.ADDRESS.of(REMOTE) not in statefile.parse(computer.file.read_bytes())[0]


async def test_the_mark_that_goes_with_the_pins_comes_back_while_something_is_not_on_the_disk(tmp_path: Path) -> None:
    kept = Recall(tmp_path / "heard.state", tmp_path / "pins" / "ahead")
    kept.keep_mark()
    assert not (tmp_path / "pins").exists()
    kept.heard(subjects.NAMESPACE.of("default"), Namespace(name="default"))
    shutil.rmtree(tmp_path / "pins")
    kept.keep_mark()
    assert (tmp_path / "pins" / "ahead").exists()


async def test_maps_that_are_ahead_of_the_disk_are_not_taken_back(computer: Computer) -> None:
    async with computer.with_bus():
        await on_disk(computer)
        address = await computer.add()
        await until(lambda: (entry := computer.entry(address)) and entry.flags == 0)
    computer.ahead.mkdir()  # as it is within the second after a change that was heard
    before = dict(computer.maps.memory["endpoints"].entries)
    async with computer.without_bus() as node:
        await asyncio.sleep(0.2)
        assert not node.is_synced
        assert computer.maps.memory["endpoints"].entries == before
        new = await computer.add("c2", pod="other")
        found = computer.entry(new)
        assert found is not None and (found.policy, found.flags) == (0, 3)


@pytest.mark.parametrize("marks", ["there", "gone with the pins"])
async def test_an_older_file_that_was_put_back_is_not_believed_and_what_the_maps_hold_stays(
    computer: Computer, marks: str
) -> None:
    computer.say_remote()
    async with computer.with_bus():
        await until(lambda: computer.who(REMOTE))
        await on_disk(computer)
        older = computer.file.read_bytes()
        address = await computer.add()
        await until(lambda: (entry := computer.entry(address)) and entry.flags == 0)
        computer.hub.delete(subjects.ADDRESS.of(REMOTE))
        await until(lambda: computer.who(REMOTE) is None)
        await on_disk(computer)
    newer = computer.file.read_bytes()
    computer.file.write_bytes(older)
    if marks != "there":
        shutil.rmtree(computer.ahead.parent)
        computer.maps.were_new = False
    before = dict(computer.maps.memory["ipcache"].entries)
    async with computer.without_bus() as node:
        await asyncio.sleep(0.2)
        assert not node.is_whole and computer.maps.memory["ipcache"].entries == before
    if marks == "there":
        computer.file.write_bytes(newer)
        async with computer.without_bus() as node:
            await until(lambda: node.is_whole)
    computer.file.write_bytes(older)
    computer.reboot()  # nothing is at hand to compare with
    async with computer.without_bus() as node:
        await until(lambda: node.is_whole)
        assert computer.who(REMOTE) is not None


async def test_the_mark_of_what_was_written_comes_back_with_the_pins(computer: Computer) -> None:
    kept = heard_anew(computer, "a")
    await kept.write()
    older = computer.file.read_bytes()
    kept.heard(subjects.NAMESPACE.of("b"), Namespace(name="b"))
    await kept.write()
    shutil.rmtree(computer.ahead.parent)
    kept.keep_mark()
    assert len(await Recall(computer.file, computer.ahead).load(is_kernel_new=False) or {}) == 2
    computer.file.write_bytes(older)
    assert await Recall(computer.file, computer.ahead).load() is None


@pytest.mark.parametrize("damage", ["flipped", "not ours", "undecodable", "another's"])
async def test_a_file_that_cannot_be_used_leaves_pods_closed_until_the_bus_is_back(
    computer: Computer, damage: str
) -> None:
    async with computer.with_bus():
        await on_disk(computer)
    state, _ = statefile.parse(computer.file.read_bytes())
    pod = subjects.POD.of("default", "web")
    if damage == "flipped":
        data = bytearray(computer.file.read_bytes())
        data[len(data) // 4] ^= 1
        computer.file.write_bytes(bytes(data) + b"".join(statefile.frames([], 2)))
    elif damage == "not ours":
        computer.file.write_bytes(b"\x00" * 1000)
    elif damage == "undecodable":
        statefile.replace(computer.file, statefile.first_state(state | {pod: b"\x92\x01\x01"}))
    else:
        statefile.replace(computer.file, statefile.first_state(state | {subjects.POD.of("default", "x"): state[pod]}))
    computer.reboot()
    async with computer.without_bus() as node:
        await asyncio.sleep(0.2)
        assert computer.who("10.0.1.0", 24) is None
        address = await computer.add()
        found = computer.entry(address)
        assert found is not None and (found.policy, found.flags) == (0, 3)
        computer.bus_returns()
        await until(lambda: node.is_synced)
        await until(lambda: (entry := computer.entry(address)) and (entry.identity, entry.flags) == (WEB, 0))


async def nothing() -> dict[str, Message]:
    return {}


@pytest.mark.parametrize("harm", ["removed", "cut", "another", "with its directory"])
async def test_a_file_that_is_harmed_under_a_running_node_is_whole_again(
    computer: Computer, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(recall, "LOOK_SECONDS", 0.05)
    computer.deny()
    computer.file = computer.folder / "heard" / "heard.state"
    computer.file.parent.mkdir()
    async with computer.with_bus() as node:
        await on_disk(computer)
        before, _ = statefile.parse(computer.file.read_bytes())
        if harm == "removed":
            computer.file.unlink()
        elif harm == "cut":
            os.truncate(computer.file, 40)
        elif harm == "another":
            statefile.replace(computer.file, statefile.first_state({}))
        else:
            shutil.rmtree(computer.file.parent)
        await until(lambda: computer.file.exists() and b"eny" in computer.file.read_bytes())
        assert statefile.parse(computer.file.read_bytes())[0] == before
        computer.say_remote()
        await until(lambda: REMOTE.encode() in computer.file.read_bytes())
        await on_disk(computer)
        state, _ = statefile.parse(computer.file.read_bytes())
        assert state.keys() == before.keys() | {subjects.ADDRESS.of(REMOTE)}
        assert all(each.ok for each in node.service.health().checks if each.name == "state")


async def test_a_disk_that_takes_nothing_is_told_and_tried_again(
    computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with computer.with_bus() as node:
        await on_disk(computer)
        with monkeypatch.context() as patched:

            def full(*_: object) -> tuple[int, int]:
                raise OSError(28, "No space left on device")

            patched.setattr(statefile, "append", full)
            computer.say_remote()
            await until(lambda: any(not each.ok for each in node.service.health().checks))
            assert computer.ahead.exists()
        await on_disk(computer)
        await until(lambda: all(each.ok for each in node.service.health().checks))
    assert subjects.ADDRESS.of(REMOTE) in statefile.parse(computer.file.read_bytes())[0]


async def test_the_file_does_not_grow_for_ever(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "COMPACT_BYTES", 2000)
    async with computer.with_bus() as node:
        await on_disk(computer)
        for number in range(100):
            pod = Pod(namespace="default", name="web", uid="u", node=HERE, labels={"n": str(number)})
            computer.hub.put(subjects.POD.of("default", "web"), pod)
            await asyncio.sleep(0.005)
        await on_disk(computer)
        assert computer.file.stat().st_size < 8000
        assert node.is_synced
    assert b"99" in statefile.parse(computer.file.read_bytes())[0][subjects.POD.of("default", "web")]


def heard_anew(computer: Computer, *names: str) -> Recall:
    """What a process holds that has heard so many namespaces."""
    kept = Recall(computer.file, computer.ahead)
    for name in names:
        kept.heard(subjects.NAMESPACE.of(name), Namespace(name=name))
    kept.synced()
    return kept


def no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)


@pytest.mark.parametrize("is_writing", [False, True])
async def test_a_disk_that_cannot_be_marked_holds_nothing_from_there_on(
    computer: Computer, monkeypatch: pytest.MonkeyPatch, is_writing: bool
) -> None:
    """A part of the state would be believed as if it were all: pods would open for want of their policies."""
    kept = heard_anew(computer, "a", "b")
    await kept.write()
    assert len(await Recall(computer.file, computer.ahead).load() or {}) == 2
    if is_writing:
        kept.heard(subjects.NAMESPACE.of("c"), Namespace(name="c"))
    writing = asyncio.ensure_future(kept.write())
    await asyncio.sleep(0)
    with monkeypatch.context() as patched:
        no_mark(patched)
        kept.heard(subjects.NAMESPACE.of("d"), Namespace(name="d"))
    await writing
    kept.heard(subjects.NAMESPACE.of("e"), Namespace(name="e"))
    await kept.write()
    assert not computer.file.exists()
    assert await Recall(computer.file, computer.ahead).load() is None
    kept = heard_anew(computer, "a", "b", "d", "e")  # another process
    await kept.write()
    assert len(await Recall(computer.file, computer.ahead).load() or {}) == 4


async def test_an_outdated_state_that_does_not_go_is_told_and_tried_again(
    computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    kept = heard_anew(computer, "a")
    await kept.write()
    service = Service("dataplane", Settings(instance=HERE), LateBus())
    keeping = asyncio.ensure_future(kept.run(service, nothing))
    with monkeypatch.context() as patched:
        no_mark(patched)
        patched.setattr(Path, "unlink", read_only)
        kept.heard(subjects.NAMESPACE.of("b"), Namespace(name="b"))
        await until(lambda: any("still there: remove it" in each.detail for each in service.health().checks))
    await until(lambda: any("cannot be made" in each.detail for each in service.health().checks))
    assert not computer.file.exists()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
