"""bpf(2), as far as this node needs it: maps, pins, links, test runs. No compiler, so it costs no memory to speak of.

bcc does the same and more, but importing it takes 65 MB; it lives in the compiler's process only (load/compiler.py).
Every function blocks for as long as the kernel takes (microseconds; milliseconds for large batches) and needs CAP_BPF
or CAP_SYS_ADMIN. Errors are OSError with the kernel's errno.

Source: kernel include/uapi/linux/bpf.h (union bpf_attr)
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]

MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = 1, 2, 3, 4
PROG_LOAD = 5
OBJ_PIN, OBJ_GET = 6, 7
PROG_TEST_RUN = 10
PROG_BY_ID, MAP_BY_ID = 13, 14
OBJ_GET_INFO = 15
PROG_QUERY = 16
MAP_TAKE = 21  # BPF_MAP_LOOKUP_AND_DELETE_ELEM; of hashes since kernel 5.14
MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH = 24, 26, 27
LINK_CREATE, LINK_UPDATE, LINK_BY_ID, LINK_NEXT_ID = 28, 29, 30, 31
ENABLE_STATS = 32
LINK_DETACH = 34
NOEXIST = 1  # BPF_NOEXIST
TCX_INGRESS, TCX_EGRESS = 46, 47  # enum bpf_attach_type
CGROUP_CONNECT4, CGROUP_SENDMSG4 = 10, 14
LINK_CGROUP, LINK_TCX = 3, 11  # enum bpf_link_type
FIRST = 1 << 3  # BPF_F_BEFORE, and nobody named: before all

UNNAMED = "_new"  # how a pin's name ends until it takes its place; this file system allows no dots

_ATTR_BYTES = 128
_CGROUP_SOCK_ADDR = 18  # enum bpf_prog_type
_SET_RETVAL = 187  # the number of bpf_set_retval
_NO_BATCH = (errno.EINVAL, 524)  # 524: ENOTSUPP, which has no name in user space
_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attr: bytes) -> int:
    """One system call: what it returns, a file descriptor mostly."""
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    return _call_with(command, buffer)


def _call_with(command: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(_SYSCALL_BPF, command, ctypes.byref(buffer), _ATTR_BYTES)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def possible_cpus() -> int:
    """How many CPUs a per-CPU value has room for. Source: /sys/devices/system/cpu/possible ("0-3")."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def open_pinned(path: Path) -> int:
    """A file descriptor of the map, program or link pinned at `path`; the caller closes it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return call(OBJ_GET, struct.pack("=QII", _address(name), 0, 0))


def pin(fd: int, path: Path) -> None:
    """Pin `fd` at `path`, replacing what is pinned there in one step."""
    fresh = path.with_name(path.name + UNNAMED)
    fresh.unlink(missing_ok=True)
    name = ctypes.create_string_buffer(os.fsencode(fresh))
    call(OBJ_PIN, struct.pack("=QII", _address(name), fd, 0))
    fresh.rename(path)


@dataclass(frozen=True, slots=True)
class MapInfo:
    type: int
    id: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    name: str = ""


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map. Source: struct bpf_map_info."""
    info = ctypes.create_string_buffer(256)
    call(OBJ_GET_INFO, struct.pack("=IIQ", fd, len(info), _address(info)))
    kind, number, key_bytes, value_bytes, entries, name = struct.unpack_from("=IIIII4x16s", info.raw)
    return MapInfo(kind, number, key_bytes, value_bytes, entries, name.rstrip(b"\0").decode(errors="replace"))


def identity(fd: int) -> str:
    """What no other map or program has: the kernel's type and number of it, and a map's sizes or a program's tag, which
    is a hash of its instructions. None of it changes as long as the object is there.

    Source: the first fields of struct bpf_map_info and struct bpf_prog_info
    """
    info = ctypes.create_string_buffer(256)
    call(OBJ_GET_INFO, struct.pack("=IIQ", fd, len(info), _address(info)))
    kind, number, rest = struct.unpack_from("=II8s", info.raw)
    return f"{kind} {number} {rest.hex()}"


def program_id(fd: int) -> int:
    """The kernel's number of a program. Source: struct bpf_prog_info."""
    info = ctypes.create_string_buffer(256)
    call(OBJ_GET_INFO, struct.pack("=IIQ", fd, len(info), _address(info)))
    return int(struct.unpack_from("=II", info.raw)[1])


def map_ids(program_fd: int) -> list[int]:
    """The kernel's numbers of the maps that a program uses. Source: struct bpf_prog_info."""
    ids = (ctypes.c_uint32 * 64)()  # the most that a program may use (MAX_USED_MAPS)
    info = ctypes.create_string_buffer(256)
    struct.pack_into("=IQ", info, 52, len(ids), ctypes.addressof(ids))
    call(OBJ_GET_INFO, struct.pack("=IIQ", program_fd, len(info), _address(info)))
    return list(ids[: struct.unpack_from("=I", info.raw, 52)[0]])


def program_by_id(number: int) -> int:
    """A file descriptor of the program with the kernel's number; the caller closes it."""
    return call(PROG_BY_ID, struct.pack("=I", number))


def map_by_id(number: int) -> int:
    """The same of a map."""
    return call(MAP_BY_ID, struct.pack("=I", number))


@contextmanager
def run_statistics() -> Iterator[None]:
    """While the block lasts the kernel counts runs of all programs and their time, which costs each run some 20 ns."""
    fd = call(ENABLE_STATS, struct.pack("=I", 0))  # BPF_STATS_RUN_TIME
    try:
        yield
    finally:
        os.close(fd)


def run_time(program_fd: int) -> tuple[int, int]:
    """A program's time in ns and its runs, as far as they were counted. Source: struct bpf_prog_info."""
    info = ctypes.create_string_buffer(256)
    call(OBJ_GET_INFO, struct.pack("=IIQ", program_fd, len(info), _address(info)))
    time, runs = struct.unpack_from("=QQ", info.raw, 192)
    return time, runs


class Map:
    """One map: keys and values are bytes of the sizes that the kernel states."""

    __slots__ = ("fd", "info", "value_bytes")

    PER_CPU = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH
    BATCH = 4096  # entries a system call; bounds how long one call holds the interpreter

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = map_info(fd)
        self.value_bytes = self.info.value_bytes
        if self.info.type in self.PER_CPU:
            self.value_bytes = (self.info.value_bytes + 7) // 8 * 8 * possible_cpus()

    @classmethod
    def open(cls, path: Path) -> Map:
        return cls(open_pinned(path))

    def close(self) -> None:
        os.close(self.fd)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, None when there is none. Per-CPU maps: all values, each padded to 8 bytes."""
        k = ctypes.create_string_buffer(key, self.info.key_bytes)
        value = ctypes.create_string_buffer(self.value_bytes)
        try:
            call(MAP_LOOKUP, struct.pack("=I4xQQQ", self.fd, _address(k), _address(value), 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Raises OSError E2BIG or ENOSPC when the map is full."""
        k = ctypes.create_string_buffer(key, self.info.key_bytes)
        v = ctypes.create_string_buffer(value, self.value_bytes)
        call(MAP_UPDATE, struct.pack("=I4xQQQ", self.fd, _address(k), _address(v), 0))

    def remove(self, key: bytes) -> bool:
        """Whether it was there."""
        k = ctypes.create_string_buffer(key, self.info.key_bytes)
        try:
            call(MAP_DELETE, struct.pack("=I4xQQQ", self.fd, _address(k), 0, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def add(self, key: bytes, value: bytes) -> bool:
        """Whether there was no entry yet; one that is there stays as it is. Raises OSError as `set`."""
        k = ctypes.create_string_buffer(key, self.info.key_bytes)
        v = ctypes.create_string_buffer(value, self.value_bytes)
        try:
            call(MAP_UPDATE, struct.pack("=I4xQQQ", self.fd, _address(k), _address(v), NOEXIST))
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True

    def take(self, key: bytes) -> bytes | None:
        """Remove an entry of a hash and return what it held in that moment; None when there was none."""
        k = ctypes.create_string_buffer(key, self.info.key_bytes)
        value = ctypes.create_string_buffer(self.value_bytes)
        try:
            call(MAP_TAKE, struct.pack("=I4xQQQ", self.fd, _address(k), _address(value), 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def set_many(self, entries: Iterable[tuple[bytes, bytes]]) -> int:
        """How many were written, from the first on: all, or those before the first that found no room."""
        written = 0
        for batch in _batches(entries, self.BATCH):
            done = self._set_batch(batch)
            written += done
            if done < len(batch):
                break
        return written

    def _set_batch(self, batch: Sequence[tuple[bytes, bytes]]) -> int:
        keys = ctypes.create_string_buffer(b"".join(key for key, _ in batch), len(batch) * self.info.key_bytes)
        values = ctypes.create_string_buffer(b"".join(value for _, value in batch), len(batch) * self.value_bytes)
        attr = ctypes.create_string_buffer(
            struct.pack("=QQQQIIQQ", 0, 0, _address(keys), _address(values), len(batch), self.fd, 0, 0), _ATTR_BYTES
        )
        try:
            _call_with(MAP_UPDATE_BATCH, attr)
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.ENOSPC):
                return int(struct.unpack_from("=I", attr.raw, 32)[0])
            raise
        return len(batch)

    def remove_many(self, keys: Iterable[bytes]) -> int:
        """How many of `keys` were there."""
        return sum(map(self.remove, keys))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, in no order. An entry written or removed meanwhile may be seen or not."""
        for number, keys, values in self.chunks():
            yield from zip(_cut(keys, self.info.key_bytes, number), _cut(values, self.value_bytes, number), strict=True)

    def chunks(self, size: int = BATCH) -> Iterator[tuple[int, bytes, bytes]]:
        """Every entry, as `items`, about `size` at a time: how many, their keys one after the other, their values."""
        size = min(size, self.info.max_entries)
        cursor = ctypes.create_string_buffer(max(4, self.info.key_bytes))  # of hashes a number, else the last key
        at = 0
        seen = 0
        while seen <= self.info.max_entries:  # a walk that starts again, as of a trie, ends all the same
            keys = ctypes.create_string_buffer(size * self.info.key_bytes)
            values = ctypes.create_string_buffer(size * self.value_bytes)
            parts = (at, _address(cursor), _address(keys), _address(values), size, self.fd, 0, 0)
            attr = ctypes.create_string_buffer(struct.pack("=QQQQIIQQ", *parts), _ATTR_BYTES)
            try:
                _call_with(MAP_LOOKUP_BATCH, attr)
                is_last = False
            except OSError as error:
                if error.errno == errno.ENOSPC:  # one bucket of a hash holds more than `size`
                    size *= 2
                    continue
                if error.errno in (errno.EAGAIN, errno.EINTR) or (not at and error.errno in _NO_BATCH):
                    for key, value in self._walk(cursor.raw[: self.info.key_bytes] if at else None):
                        yield 1, key, value
                    return
                if error.errno != errno.ENOENT:
                    raise
                is_last = True
            number = int(struct.unpack_from("=I", attr.raw, 32)[0])
            yield number, keys.raw, values.raw
            if is_last:
                return
            seen += number
            at = _address(cursor)

    def count_about(self, sample: int = BATCH) -> int:
        """How many entries a hash holds, from the share of its buckets in which the first `sample` are; exact when it
        holds no more. Source: kernel/bpf/hashtab.c: buckets are a power of two, the cursor is the next one's number.
        """
        size = min(sample, self.info.max_entries)
        cursor = ctypes.create_string_buffer(max(4, self.info.key_bytes))
        keys = ctypes.create_string_buffer(size * self.info.key_bytes)
        values = ctypes.create_string_buffer(size * self.value_bytes)
        parts = (0, _address(cursor), _address(keys), _address(values), size, self.fd, 0, 0)
        attr = ctypes.create_string_buffer(struct.pack("=QQQQIIQQ", *parts), _ATTR_BYTES)
        try:
            _call_with(MAP_LOOKUP_BATCH, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:  # the end: these are all
                return int(struct.unpack_from("=I", attr.raw, 32)[0])
            raise
        found = int(struct.unpack_from("=I", attr.raw, 32)[0])
        seen = int.from_bytes(cursor.raw[:4], "little")
        buckets = 1 << (self.info.max_entries - 1).bit_length()
        return min(self.info.max_entries, round(found * buckets / seen)) if seen else found

    def _walk(self, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """The entries behind the key `after`, one by one: for maps and kernels without look-ups in batches."""
        key = ctypes.create_string_buffer(after or b"", self.info.key_bytes)
        following = ctypes.create_string_buffer(self.info.key_bytes)
        seen = self.info.max_entries  # an entry removed meanwhile starts the walk again: never walk for ever
        at = 0 if after is None else _address(key)
        while seen >= 0:
            try:
                call(MAP_NEXT_KEY, struct.pack("=I4xQQ", self.fd, at, _address(following)))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            value = self.get(following.raw)
            if value is not None:
                yield following.raw, value
            key.raw = following.raw
            at = _address(key)
            seen -= 1


def _cut(raw: bytes, size: int, number: int) -> Iterator[bytes]:
    """The first `number` pieces of `size` bytes."""
    return (raw[start : start + size] for start in range(0, number * size, size))


def _batches(entries: Iterable[tuple[bytes, bytes]], size: int) -> Iterator[list[tuple[bytes, bytes]]]:
    batch: list[tuple[bytes, bytes]] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def attach_cgroup(program_fd: int, cgroup: Path, attach_type: int, pinned: Path) -> None:
    """Attach a program to a cgroup by a link pinned at `pinned`, or replace the program of the link that is there.

    A link whose cgroup was removed meanwhile is replaced by a new one.
    """
    if pinned.exists():
        link = open_pinned(pinned)
        try:
            if is_at_cgroup(link_info(link), cgroup, attach_type):
                replace_program(link, program_fd)
                return
        except OSError as error:
            if error.errno != errno.ENOLINK and error.errno != errno.EINVAL:
                raise
        finally:
            os.close(link)
        pinned.unlink()
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link = call(LINK_CREATE, struct.pack("=IIII", program_fd, directory, attach_type, 0))
    finally:
        os.close(directory)
    try:
        pin(link, pinned)
    finally:
        os.close(link)


def is_at_cgroup(link: LinkInfo, cgroup: Path, attach_type: int) -> bool:
    """Source: kernel cgroup.h: a cgroup's number is its directory's inode."""
    return (link.type, link.target, link.attach_type) == (LINK_CGROUP, cgroup.stat().st_ino, attach_type)


def attach_tcx(program_fd: int, ifindex: int, attach_type: int, pinned: Path) -> None:
    """Attach a program to a device by a link pinned at `pinned`, before all that are there. A pin that is there is
    replaced; its link goes, unless someone else holds it. Blocks until no CPU is in the old list: about 11 ms."""
    attr = struct.pack("=IIIIIIQ", program_fd, ifindex, attach_type, FIRST, 0, 0, 0)
    try:
        link = call(LINK_CREATE, attr)
    except OSError as error:
        if error.errno != errno.EEXIST:  # by a link that is pinned elsewhere, or held by somebody
            raise
        link = _tcx_link(program_id(program_fd), ifindex, attach_type)
    try:
        pin(link, pinned)
    finally:
        os.close(link)


def _tcx_link(program: int, ifindex: int, attach_type: int) -> int:
    """A file descriptor of the link by which the program is attached there. Raises: OSError EEXIST: there is none."""
    attr = ctypes.create_string_buffer(_ATTR_BYTES)
    while True:
        try:
            _call_with(LINK_NEXT_ID, attr)  # the number after the first field goes into the second
        except OSError as error:
            raise OSError(errno.EEXIST, "attached already, by no link") from error
        number = int(struct.unpack_from("=II", attr.raw)[1])
        struct.pack_into("=I", attr, 0, number)
        try:
            link = call(LINK_BY_ID, struct.pack("=I", number))
        except FileNotFoundError:  # gone just now
            continue
        found = link_info(link)
        if (found.type, found.program_id, found.target, found.attach_type) == (LINK_TCX, program, ifindex, attach_type):
            return link
        os.close(link)


def tcx_programs(ifindex: int, attach_type: int) -> list[int]:
    """The numbers of all programs at a tcx hook, in the order in which they run. Raises OSError EINVAL: no tcx here."""
    ids = (ctypes.c_uint32 * 64)()  # the most that a hook takes
    attr = ctypes.create_string_buffer(
        struct.pack("=IIIIQII", ifindex, attach_type, 0, 0, ctypes.addressof(ids), len(ids), 0), _ATTR_BYTES
    )
    _call_with(PROG_QUERY, attr)
    return list(ids[: int(struct.unpack_from("=I", attr.raw, 24)[0])])


def has_tcx() -> bool:
    """Whether this kernel has tcx, by asking it for the programs of the loopback device.

    Raises: OSError: it does not let us ask.
    """
    try:
        tcx_programs(1, TCX_INGRESS)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def has_set_retval() -> bool:
    """Whether a program at connect() and sendmsg() may say which error the caller gets (kernel 6.0), by asking the
    kernel to take such a program. Raises: OSError: it does not let us ask."""
    refuse = (
        (0xB7, 1, -errno.ECONNREFUSED),  # r1 = the error
        (0x85, 0, _SET_RETVAL),
        (0xB7, 0, 0),
        (0x95, 0, 0),  # return 0
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=BBhi", op, reg, 0, imm) for op, reg, imm in refuse))
    terms = ctypes.create_string_buffer(b"GPL")
    try:
        for attach_type in (CGROUP_CONNECT4, CGROUP_SENDMSG4):
            attr = struct.pack("=IIQQ", _CGROUP_SOCK_ADDR, len(refuse), _address(code), _address(terms))
            attr = struct.pack("=68sI", attr, attach_type)
            os.close(call(PROG_LOAD, attr))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def replace_program(link_fd: int, program_fd: int) -> None:
    """In a single step: each packet meets the old program or the new one."""
    call(LINK_UPDATE, struct.pack("=III", link_fd, program_fd, 0))


def detach_link(link_fd: int) -> None:
    """It stays an object, attached to nothing, for as long as someone holds it."""
    call(LINK_DETACH, struct.pack("=I", link_fd))


@dataclass(frozen=True, slots=True)
class LinkInfo:
    type: int  # LINK_CGROUP, LINK_TCX...
    id: int
    program_id: int
    target: int  # a tcx link's device, a cgroup link's cgroup; 0: it has lost it
    attach_type: int  # TCX_INGRESS, TCX_EGRESS, or of the hook in the cgroup


def link_info(fd: int) -> LinkInfo:
    """What the kernel says of a link to a cgroup or a device. Source: struct bpf_link_info."""
    info = ctypes.create_string_buffer(64)
    call(OBJ_GET_INFO, struct.pack("=IIQ", fd, len(info), _address(info)))
    kind, number, program = struct.unpack_from("=III", info.raw)
    target, attach_type = struct.unpack_from("=QI" if kind == LINK_CGROUP else "=II", info.raw, 16)
    return LinkInfo(kind, number, program, target, attach_type)


def pinned_link(path: Path) -> LinkInfo | None:
    """The link pinned at `path`; None when nothing is."""
    try:
        fd = open_pinned(path)
    except FileNotFoundError:
        return None
    try:
        return link_info(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """What a program did to a packet. `duration_ns` is the mean of the repeats."""

    result: int
    packet: bytes
    duration_ns: int


def run_program(program_fd: int, packet: bytes, *, repeat: int = 1, context: bytes = b"", flags: int = 0) -> ProgramRun:
    """Run a tc program on `packet` (Ethernet first). `context`: a struct __sk_buff to start from (ifindex at byte 40).

    Source: kernel Documentation/bpf/bpf_prog_run.rst
    """
    data = ctypes.create_string_buffer(packet, len(packet))
    out = ctypes.create_string_buffer(len(packet) + 256)
    ctx = ctypes.create_string_buffer(context, len(context)) if context else None
    attr = ctypes.create_string_buffer(
        struct.pack(
            "=IIIIQQIIIIQQI",
            program_fd,
            0,
            len(packet),
            len(out),
            _address(data),
            _address(out),
            repeat,
            0,
            len(context),
            0,
            _address(ctx) if ctx else 0,
            0,
            flags,
        ),
        _ATTR_BYTES,
    )
    _call_with(PROG_TEST_RUN, attr)
    _, result, _, size = struct.unpack_from("=IIII", attr.raw)
    duration = struct.unpack_from("=I", attr.raw, 36)[0]
    return ProgramRun(result, out.raw[:size], duration)
