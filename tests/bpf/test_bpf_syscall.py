"""Maps of each kind, filled and read through the kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from services.dataplane.kernel import bpf
from services.dataplane.kernel.bpf import Map, call

MAP_CREATE = 0
HASH, ARRAY, PERCPU_ARRAY, LRU_HASH, LPM_TRIE = 1, 2, 6, 9, 11
NO_PREALLOC = 1

Make = Callable[..., Map]


@pytest.fixture
def make() -> Iterator[Make]:
    """make(type, entries, key_bytes=4) -> a map with values of 8 bytes."""
    made: list[Map] = []

    def one(kind: int, entries: int, key_bytes: int = 4) -> Map:
        flags = NO_PREALLOC if kind in (HASH, LPM_TRIE) else 0
        made.append(Map(call(MAP_CREATE, struct.pack("=IIIII", kind, key_bytes, 8, entries, flags))))
        return made[-1]

    yield one
    for each in made:
        each.close()


def numbered(count: int) -> dict[bytes, bytes]:
    return {number.to_bytes(4, "little"): (number + 1).to_bytes(8, "little") for number in range(count)}


def prefixes(count: int) -> dict[bytes, bytes]:
    """Of 32 and of 24 bits, one in the other."""
    return {
        struct.pack("=I", bits) + (number << (32 - bits)).to_bytes(4, "big"): (number * 64 + bits).to_bytes(8, "little")
        for number in range(count // 2)
        for bits in (24, 32)
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The commands that were given to the kernel."""
    seen: list[int] = []
    call = bpf._call_with

    def counted(command: int, buffer: object) -> int:
        seen.append(command)
        return call(command, buffer)  # type: ignore[arg-type]

    monkeypatch.setattr(bpf, "_call_with", counted)
    return seen


@pytest.mark.parametrize("kind", [HASH, LRU_HASH])
@pytest.mark.parametrize("count", [0, 1, 4096, 20_000])
def test_a_hash_is_read_whole_and_in_few_calls(make: Make, calls: list[int], kind: int, count: int) -> None:
    wanted = numbered(count)
    found = make(kind, 65536)
    assert found.set_many(wanted.items()) == count
    calls.clear()
    assert dict(found.items()) == wanted
    assert len(calls) <= 2 + count // 2048


@pytest.mark.parametrize("count", [0, 2, 4096, 20_000])
def test_a_trie_is_read_whole_and_in_few_calls(make: Make, calls: list[int], count: int) -> None:
    wanted = prefixes(count)
    found = make(LPM_TRIE, 65536, 8)
    assert found.set_many(wanted.items()) == count
    calls.clear()
    assert dict(found.items()) == wanted
    assert len(calls) <= 2 + count // 2048


def test_arrays_are_read_whole(make: Make) -> None:
    array = make(ARRAY, 5000)
    assert array.set_many(numbered(5000).items()) == 5000
    assert dict(array.items()) == numbered(5000)
    per_cpu = make(PERCPU_ARRAY, 3)
    values = {key: value * bpf.possible_cpus() for key, value in numbered(3).items()}
    assert per_cpu.set_many(values.items()) == 3
    assert dict(per_cpu.items()) == values


@pytest.mark.parametrize("kind", [HASH, LPM_TRIE])
def test_a_kernel_without_batches_is_asked_key_by_key(make: Make, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    wanted = prefixes(500)
    found = make(kind, 1000, 8)
    found.set_many(wanted.items())
    monkeypatch.setattr(bpf, "MAP_LOOKUP_BATCH", 9999)  # EINVAL, as of a command that a kernel does not know
    assert dict(found.items()) == wanted


def test_a_walk_key_by_key_goes_on_behind_any_key(make: Make) -> None:
    found = make(LPM_TRIE, 1000, 8)
    found.set_many(prefixes(100).items())
    order = list(found.items())
    assert list(found._walk(order[41][0])) == order[42:]


def test_many_keys_in_one_bucket_are_read_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Map, "BATCH", 1)
    found = make(HASH, 1000)
    found.set_many(numbered(900).items())
    assert dict(found.items()) == numbered(900)


def test_what_was_written_of_too_many_entries_are_the_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the caller, who owes the rest, would owe the wrong ones."""
    monkeypatch.setattr(Map, "BATCH", 4)
    found = make(HASH, 6)
    old = (0).to_bytes(4, "little")
    found.set(old, bytes(8))
    entries = {**{(number + 10).to_bytes(4, "little"): bytes([1] * 8) for number in range(8)}, old: bytes([9] * 8)}
    written = found.set_many(entries.items())
    assert written == 5
    assert found.get(old) == bytes(8), "behind the first that found no room nothing is written"
    assert dict(found.items()) == {old: bytes(8), **dict(list(entries.items())[:5])}
