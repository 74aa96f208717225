"""What the journal said is on disk is there after any crash, and nothing else."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.telemetry import counted
from services.dataplane.store import journal as module
from services.dataplane.store.journal import Journal, JournalError
from services.dataplane.store.records import record


async def reopened(path: Path) -> dict[str, object]:
    journal = Journal.open(path)
    try:
        return journal.items()
    finally:
        await journal.close()


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "endpoints"
    journal = Journal.open(path)
    await journal.put("endpoint/c1", {"address": "10.0.1.2", "index": 7, "labels": [1, 2.5, None, b"raw"]})
    await journal.put("endpoint/c2", "old")
    await journal.put("endpoint/c2", "new")
    await journal.put("router", "10.0.1.1")
    await journal.delete("router")
    await journal.delete("never there")
    await journal.close()
    journal = Journal.open(path)
    assert journal.get("endpoint/c1") == {"address": "10.0.1.2", "index": 7, "labels": [1, 2.5, None, b"raw"]}
    assert journal.get("router") is None
    assert journal.items("endpoint/").keys() == {"endpoint/c1", "endpoint/c2"}
    assert journal.get("endpoint/c2") == "new"
    await journal.close()


async def test_a_none_is_a_value_and_not_a_deletion(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    await journal.put("key", None)
    await journal.close()
    assert await reopened(tmp_path / "j") == {"key": None}


async def test_a_file_cut_anywhere_gives_the_records_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path)
    ends = []
    for number in range(4):
        await journal.put(f"key{number}", "x" * number)
        ends.append(path.stat().st_size)
    await journal.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        expected = sum(1 for end in ends if end <= cut)
        assert len(await reopened(path)) == expected
    path.write_bytes(whole[: ends[1] + 3])
    journal = Journal.open(path)
    await journal.put("later", 1)  # follows the last whole record, not half of one
    await journal.close()
    assert await reopened(path) == {"key0": "", "key1": "x", "later": 1}


async def test_zeros_or_noise_at_the_end_are_cut_off(tmp_path: Path) -> None:
    for number, tail in enumerate((b"\0" * 4096, os.urandom(4096), b"\xdd\xff\xff\xff\xff", b"\xc1")):
        path = tmp_path / f"j{number}"
        journal = Journal.open(path)
        await journal.put("key", "value")
        await journal.close()
        with path.open("ab") as file:
            file.write(tail)
        assert await reopened(path) == {"key": "value"}
        assert await reopened(path) == {"key": "value"}


async def test_a_flipped_bit_ends_the_reading_before_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path)
    await journal.put("first", 1)
    end = path.stat().st_size
    await journal.put("second", "some text")
    await journal.close()
    damaged = bytearray(path.read_bytes())
    damaged[end + 12] ^= 1
    path.write_bytes(damaged)
    assert await reopened(path) == {"first": 1}


def damages(whole: bytes, at: int) -> Iterator[bytes]:
    """The file with its byte `at` flipped, turned over and zeroed; and what is left when it is cut there."""
    for byte in {whole[at] ^ 0x01, whole[at] ^ 0x80, whole[at] ^ 0xFF, 0} - {whole[at]}:
        yield whole[:at] + bytes([byte]) + whole[at + 1 :]
    yield whole[:at] + bytes(len(whole) - at)


async def test_whatever_byte_is_damaged_every_other_record_counts_and_the_damage_is_told(tmp_path: Path) -> None:
    """Not the value that is damaged: an older one of its key may be in its place, or none."""
    path = tmp_path / "j"
    changes = [("key0", ""), ("key1", 1), ("key0", "x" * 300), ("key2", [b"raw"]), ("key1", None), ("key3", {"a": 1})]
    journal = Journal.open(path)
    await journal.mended()
    assert not journal.is_damaged
    ends = [path.stat().st_size]
    for key, value in changes:
        await (journal.delete(key) if value is None else journal.put(key, value))
        ends.append(path.stat().st_size)
    await journal.close()
    whole = path.read_bytes()

    async def check(content: bytes, lost: range) -> None:
        path.write_bytes(content)
        expected: dict[str, object] = {}
        for number, (key, value) in enumerate(changes):
            if number not in lost and value is None:
                expected.pop(key, None)
            elif number not in lost:
                expected[key] = value
        for _ in range(2):  # after another start too
            journal = Journal.open(path, durable=False)
            assert (journal.items(), journal.is_damaged) == (expected, True)
            await journal.put("later", 1)
            await journal.close()
            expected["later"] = 1

    for at in range(len(whole)):
        hit = sum(1 for end in ends if end <= at) - 1  # -1: the header
        *changed, zeroed = damages(whole, at)
        for content in changed:
            await check(content, range(hit, hit + 1))
        await check(zeroed, range(hit, len(changes)))
        if at not in ends:
            await check(whole[:at], range(max(hit, 0), len(changes)))


async def test_a_journal_that_begins_anew_says_that_something_may_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "j"
    noise = b"#!/bin/sh\necho not a journal at all\n" * 4
    for content in (None, b"", noise, bytes(4096)):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        for _ in range(2):
            journal = Journal.open(path)
            assert journal.is_damaged and journal.items() == {}
            await journal.close()
        if content:
            assert path.with_name("j.damaged").read_bytes() == content
        journal = Journal.open(path)
        await journal.mended()
        await journal.close()
        journal = Journal.open(path)
        assert not journal.is_damaged
        await journal.close()


async def test_a_file_that_is_removed_or_replaced_is_written_anew_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "state" / "j"
    journal = Journal.open(path)
    await journal.mended()

    def replace() -> None:
        path.rename(path.with_name("moved"))
        path.write_bytes(b"")

    for number, harm in enumerate((path.unlink, lambda: shutil.rmtree(path.parent), replace)):
        await journal.put("before", number)
        harm()
        await journal.put("after", number)
        copy = tmp_path / f"copy{number}"
        copy.write_bytes(path.read_bytes())
        assert await reopened(copy) == {"before": number, "after": number}
        harm()
        assert await journal.check() == ""
        assert (await reopened(path.with_name("other"))) == {}
        copy.write_bytes(path.read_bytes())
        assert await reopened(copy) == {"before": number, "after": number}
    await journal.close()


async def test_without_a_directory_it_says_so_and_goes_on_when_there_is_one(tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("in the way")
    journal = Journal.open(blocked / "j")
    assert journal.problem and journal.is_damaged
    with pytest.raises(OSError, match="state"):
        await journal.put("key", 1)
    assert journal.items() == {}
    assert await journal.check()
    blocked.unlink()
    assert await journal.check() == ""
    await journal.put("key", 1)
    await journal.close()
    assert await reopened(blocked / "j") == {"key": 1}


async def test_that_something_was_lost_is_known_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path)
    for number in range(3):
        await journal.put(f"key{number}", "some text")
    await journal.close()
    path.write_bytes(path.read_bytes().replace(b"key1", b"kex1"))
    monkeypatch.setattr(module, "COMPACT_BYTES", 0)
    monkeypatch.setattr(module, "COMPACT_RATIO", 0)
    for _ in range(2):  # each time in a file of its own
        before = path.stat().st_ino
        journal = Journal.open(path)
        assert journal.is_damaged
        await journal.put("key2", "another text")
        await journal.close()
        assert path.stat().st_ino != before
    journal = Journal.open(path)
    await journal.mended()
    assert not journal.is_damaged
    await journal.close()
    journal = Journal.open(path)
    assert not journal.is_damaged
    assert journal.items() == {"key0": "some text", "key2": "another text"}
    await journal.close()


async def test_another_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    content = record(msgpack.packb("plexus journal 2")) + b"something"
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="move"):
        Journal.open(path)
    assert path.read_bytes() == content


async def test_a_journal_of_an_earlier_version_is_read_and_goes_on(tmp_path: Path) -> None:
    """It has numbers and lengths in as few bytes as they need."""
    path, long = tmp_path / "j", "x" * 70_000
    bodies = [msgpack.packb(each) for each in ("plexus journal 1", ["a", 1], ["b", "x" * 300], ["c", long], ["a"])]
    path.write_bytes(b"".join(msgpack.packb([zlib.crc32(body), body]) for body in bodies))
    journal = Journal.open(path)
    assert not journal.is_damaged
    await journal.put("d", 2)
    await journal.close()
    assert await reopened(path) == {"b": "x" * 300, "c": long, "d": 2}


async def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    with pytest.raises(JournalError, match="in use"):
        Journal.open(tmp_path / "j")
    await journal.close()


async def test_writes_that_wait_share_a_flush(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j")
    before = counted("journal_writes")
    await asyncio.gather(*(journal.put(f"key{number}", number) for number in range(50)))
    assert counted("journal_writes") - before <= 3
    assert len(journal.items()) == 50
    await journal.close()


async def test_a_full_disk_fails_the_write_and_the_journal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path)
    await journal.put("key", "old")
    half = module._write_all

    def fail(fd: int, data: bytes) -> None:
        half(fd, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_all", fail)
        with pytest.raises(OSError, match="No space"):
            await journal.put("key", "new")
    assert journal.get("key") == "old"
    assert "No space" in journal.problem
    assert await journal.check() == "", "there is room again"
    await journal.put("other", 1)
    await journal.close()
    assert await reopened(path) == {"key": "old", "other": 1}


async def test_outdated_records_are_compacted_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", 4096)
    path = tmp_path / "j"
    journal = Journal.open(path)
    for number in range(400):
        await journal.put(f"key{number % 5}", "x" * 50 + str(number))
    assert path.stat().st_size < 8192
    with pytest.raises(JournalError):
        Journal.open(path)  # the new file is locked as well
    await journal.put("last", True)
    before = journal.items()
    await journal.close()
    assert await reopened(path) == before
    assert len(before) == 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=4), st.none() | st.integers(-(2**63), 2**63) | st.text(max_size=20)), max_size=30
    )
)
def test_it_is_a_dictionary(tmp_path: Path, changes: list[tuple[str, int | str | None]]) -> None:
    async def run() -> None:
        path = tmp_path / "dictionary"
        path.unlink(missing_ok=True)
        journal = Journal.open(path, durable=False)
        expected: dict[str, object] = {}
        for key, value in changes:
            if value is None:
                await journal.delete(key)
                expected.pop(key, None)
            else:
                await journal.put(key, value)
                expected[key] = value
        assert journal.items() == expected
        await journal.close()
        assert await reopened(path) == expected

    asyncio.run(run())


WRITER = """
import asyncio, sys
from pathlib import Path
from services.dataplane.store import journal as module
module.COMPACT_BYTES = 2048

async def main():
    journal = module.Journal.open(Path(sys.argv[1]))
    number = 0
    while True:
        await asyncio.gather(*(journal.put(f"key{place}", number) for place in range(8)))
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


async def test_a_killed_writer_loses_nothing_that_it_was_told_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline())]
            time.sleep(0.05)
            writer.send_signal(signal.SIGKILL)
            told += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
        values = await reopened(path)
        assert len(values) == 8
        assert all(isinstance(value, int) and value >= told[-1] for value in values.values())
