"""Kinds and sizes of maps, and other numbers that C and Python share: read from bpf/include, their one source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INCLUDE = Path(__file__).parents[1] / "bpf/include"

ASIDE = "_before"  # ends the name of a map that is set aside while another takes its place

# Source: enum bpf_map_type
MAP_TYPES = {"hash": 1, "array": 2, "prog": 3, "percpu_array": 6, "lru_hash": 9, "lpm_trie": 11, "ringbuf": 27}

_NUMBER = re.compile(r"^#define (\w+) \(?(\d+)(?: << (\d+)\))?(?: /\*.*)?$", re.MULTILINE)
_CONSTANT = re.compile(r"^#define (\w+) CONSTANT\((\d+)\)", re.MULTILINE)
_MAP = re.compile(r'^MAP\(\s*"(\w+)",\s*[\w ]+,\s*[\w ]+,\s*(\w+),\s*(\w+),\s*(?:"(\w+)"|OF_GENERATION),', re.MULTILINE)
_STEP = re.compile(r"^\tSTEP_(\w+) = (\d+),", re.MULTILINE)
_BUFFER = re.compile(r'^BUFFER\((\w+), (\w+), "(\w+)"\)', re.MULTILINE)


FILES = ("limits.h", "types.h", "identities.h", "policy.h", "steps.h")
"""Those that define numbers."""


@dataclass(frozen=True, slots=True)
class DeclaredMap:
    """What maps.h says of a map. `size`: the name of a number, or a number. `file`: where it is pinned, below maps/."""

    type: int
    size: str
    file: str


@cache
def _numbers() -> dict[str, int]:
    text = "".join((INCLUDE / name).read_text() for name in FILES)
    return {name: int(number) << int(shift or 0) for name, number, shift in _NUMBER.findall(text)}


def limit(name: str) -> int:
    """A number that one of `FILES` defines. Raises: KeyError: none does."""
    return _numbers()[name]


@cache
def declared_maps() -> dict[str, DeclaredMap]:
    """Every map, by name, but those of a generation."""
    text = (INCLUDE / "maps.h").read_text()
    buffers = {name: DeclaredMap(MAP_TYPES["ringbuf"], size, file) for name, size, file in _BUFFER.findall(text)}
    return _maps(text) | buffers


@cache
def maps_of_generation() -> dict[str, DeclaredMap]:
    """Those that each generation of programs has for itself, by name; where, kernel/steps.py says."""
    return _maps((INCLUDE / "steps.h").read_text())


def _maps(text: str) -> dict[str, DeclaredMap]:
    return {name: DeclaredMap(MAP_TYPES[kind], size, file) for kind, name, size, file in _MAP.findall(text)}


@cache
def constants() -> dict[str, int]:
    """Every constant of the loaded programs (constants.h), by name: its number."""
    return {name: int(number) for name, number in _CONSTANT.findall((INCLUDE / "constants.h").read_text())}


@cache
def steps() -> dict[str, int]:
    """Every step (steps.h), by the name of its function: its slot in the array."""
    text = (INCLUDE / "steps.h").read_text()
    return {name.lower(): int(slot) for name, slot in _STEP.findall(text)}


def map_path(pin_dir: Path, name: str) -> Path:
    """Where the map is pinned. A changed layout has another file, so that what is there is never misread."""
    return pin_dir / "maps" / declared_maps()[name].file
