"""The two pinned maps that the observer reads: bpf(2) as far as that goes. Needs CAP_BPF, or to be root.

Source: kernel include/uapi/linux/bpf.h (union bpf_attr, struct bpf_map_info). The dataplane makes the maps.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import NamedTuple

_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_MAP_LOOKUP, _OBJ_GET, _OBJ_GET_INFO = 1, 7, 15
_ATTR_BYTES = 128
_libc = ctypes.CDLL(None, use_errno=True)


def open_pinned(path: Path) -> int:
    """A file descriptor of what is pinned at `path`; the caller closes it. Raises: OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _call(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))


class Info(NamedTuple):
    number: int  # of the map, while this kernel runs: no other ever has it
    max_entries: int  # of a ring buffer: its bytes


def info(fd: int) -> Info:
    """Raises: OSError."""
    found = ctypes.create_string_buffer(256)
    _call(_OBJ_GET_INFO, struct.pack("=IIQ", fd, len(found), ctypes.addressof(found)))
    _, number, _, _, max_entries = struct.unpack_from("=IIIII", found.raw)
    return Info(number, max_entries)


def of_every_cpu(fd: int, key: int, value_bytes: int) -> bytes:
    """An entry of a per-CPU array: the values one after another; `value_bytes` is a multiple of 8. Raises: OSError."""
    wanted = ctypes.create_string_buffer(struct.pack("=I", key))
    value = ctypes.create_string_buffer(value_bytes * _possible_cpus())
    attr = struct.pack("=I4xQQQ", fd, ctypes.addressof(wanted), ctypes.addressof(value), 0)
    _call(_MAP_LOOKUP, attr)
    return value.raw


def _possible_cpus() -> int:
    """Source: /sys/devices/system/cpu/possible ("0-3")."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def _call(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, _ATTR_BYTES)
    result: int = _libc.syscall(_SYSCALL_BPF, command, ctypes.byref(buffer), _ATTR_BYTES)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
