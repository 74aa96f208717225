"""Programs that were compiled once, in this kernel: what is loaded, what is refused and how that is told, by whom."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.dataplane.kernel.program import Refused
from services.dataplane.load import install, loader, objects
from services.dataplane.load.build import CompileError
from services.dataplane.load.install import Wanted
from services.dataplane.load.loader import DatapathConfig, LoadError
from services.dataplane.load.objects import BUILT, HERE, SETS, Features, Object
from tests.bpf.conftest import BPFFS
from tests.bpf.datapath import NODE, SERVICES, SIZES

CONFIG = DatapathConfig(node_address=NODE, device_index=1, services=SERVICES, sizes=SIZES)
FILE = objects.file_name(CONFIG.features)
READS_ABOVE_THE_STACK = struct.pack("=BBhi", 0x79, 0xA0, 8, 0)  # r0 = *(u64 *)(r10 + 8)


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    found = BPFFS / f"plexus-test-objects-{os.getpid()}"
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of what was built, empty."""
    monkeypatch.setattr(objects, "BUILT", tmp_path / "built")
    (tmp_path / "built").mkdir()
    return tmp_path / "built"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Features]:
    """Sets that were compiled on the spot: by a copy, in no time."""
    found: list[Features] = []

    async def compiled(features: Features) -> bytes:
        found.append(features)
        return (BUILT / objects.file_name(features)).read_bytes()

    monkeypatch.setattr(loader, "compiled", compiled)
    return found


async def test_a_node_loads_what_was_built_and_compiles_nothing(
    pin_dir: Path, tmp_path: Path, compilations: list[Features]
) -> None:
    loaded = await loader.load(CONFIG, pin_dir, tmp_path)
    assert loaded.is_anew
    assert loaded.instructions["from_pod"] > 1000
    assert compilations == []
    assert not (tmp_path / "objects").exists()


async def test_what_was_not_built_is_compiled_once_and_kept(
    pin_dir: Path, tmp_path: Path, elsewhere: Path, compilations: list[Features]
) -> None:
    (await loader.load(CONFIG, pin_dir, tmp_path)).migration.finish()
    assert compilations == [CONFIG.features]
    assert (tmp_path / "objects" / FILE).read_bytes() == (BUILT / FILE).read_bytes()
    assert (await loader.load(dataclasses.replace(CONFIG, device_index=2), pin_dir, tmp_path)).is_anew
    assert compilations == [CONFIG.features]


@pytest.mark.parametrize("harm", ["cut short", "others may write it", "of other sources"])
async def test_a_file_that_is_not_to_be_trusted_is_not_loaded_and_not_lost(
    pin_dir: Path, tmp_path: Path, elsewhere: Path, compilations: list[Features], harm: str
) -> None:
    """Where it was built, and where it was kept."""
    whole = (BUILT / FILE).read_bytes()
    for folder in (elsewhere, tmp_path / "objects"):
        folder.mkdir(exist_ok=True)
        (folder / FILE).write_bytes(whole[:-1] if harm == "cut short" else whole)
        if harm == "of other sources":
            other = objects.of_bytes(whole)
            of_others = Object("another digest", other.compiler, other.btf, other.maps, other.programs)
            objects.write(folder / FILE, objects.as_bytes(of_others))
        if harm == "others may write it":
            (folder / FILE).chmod(0o666)
    harmed = (elsewhere / FILE).read_bytes()
    assert (await loader.load(CONFIG, pin_dir, tmp_path)).is_anew
    assert compilations == [CONFIG.features]
    assert (elsewhere / FILE).read_bytes() == harmed
    assert objects.read(tmp_path / "objects" / FILE).made_of == objects.made_of(CONFIG.features)


async def test_without_programs_and_without_a_compiler_the_text_says_what_to_do(
    pin_dir: Path, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_compiler(features: Features) -> bytes:
        raise CompileError("there is no bcc here")

    monkeypatch.setattr(loader, "compiled", no_compiler)
    with pytest.raises(LoadError, match=r"ipv4\.object were not built \(make setup\).*: there is no bcc here"):
        await loader.load(CONFIG, pin_dir, tmp_path)


def broken(made: Object, name: str, file: str) -> tuple[Object, str]:
    """An object whose program `name` reads what it may not, at its first line of `file`, and that line."""
    programs = []
    where = ""
    for each in made.programs:
        if each.name == name:
            lines = each.code(made.btf[each.unit], dict.fromkeys([used for _, used in each.maps], 0), CONSTANTS).lines
            assert lines is not None
            at = next(
                at for at, *_ in struct.iter_unpack("=IIII", each.lines) if at > 100 and lines.at(at).startswith(file)
            )
            where = lines.at(at)
            code = each.instructions
            harmed = code[: at * 8] + READS_ABOVE_THE_STACK + code[at * 8 + 8 :]
            each = objects.Program(name, each.unit, harmed, each.maps, each.constants, each.lines, each.function)
        programs.append(each)
    return Object(made.made_of, made.compiler, made.btf, made.maps, programs), where


CONSTANTS = {"SET_RETVAL": 1} | CONFIG.constants()


def test_what_the_verifier_refuses_is_named_by_file_and_line_and_replaces_nothing(
    pin_dir: Path, tmp_path: Path
) -> None:
    asyncio.run(loader.load(CONFIG, pin_dir, tmp_path))
    before = loader.identities(pin_dir, loader.generation(CONFIG))
    harmed, where = broken(objects.read(BUILT / FILE), "from_pod", "include/parse.h")
    with pytest.raises(Refused) as refusal:
        install.install(harmed, Wanted(CONSTANTS, SIZES, loader.generation(CONFIG)), pin_dir)
    first, *words = str(refusal.value).splitlines()
    assert first.startswith(f"from_pod at {where} (")
    assert any("invalid" in word for word in words)
    assert loader.identities(pin_dir, loader.generation(CONFIG)) == before


def test_what_does_not_compile_is_named_by_file_and_line(tmp_path: Path) -> None:
    shutil.copytree(HERE / "bpf", tmp_path / "bpf")
    header = tmp_path / "bpf/include/address.h"
    lines = header.read_text().splitlines()
    lines.insert(20, "this is no C")
    header.write_text("\n".join(lines))
    asked = (
        "import pathlib; from services.dataplane.load import compiler;"
        f" compiler.SOURCES = pathlib.Path({str(tmp_path / 'bpf')!r}); compiler.compile_set({dict(SETS[0])!r})"
    )
    tried = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=False)
    assert tried.returncode
    assert "include/address.h:21:" in tried.stderr


def test_who_loads_programs_has_no_compiler(pin_dir: Path, tmp_path: Path) -> None:
    asked = f"""
import asyncio, pathlib, sys
import services.dataplane.__main__
from services.dataplane.load import loader
config = loader.DatapathConfig(node_address={NODE!r}, device_index=1, sizes={SIZES!r})
assert asyncio.run(loader.load(config, pathlib.Path({str(pin_dir)!r}), pathlib.Path({str(tmp_path)!r}))).is_anew
print("bcc" in sys.modules, *sys.modules)
print(pathlib.Path("/proc/self/maps").read_text())
"""
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.startswith("False ")
    assert not [each for each in ("libbcc", "libclang", "libLLVM") if each in said]
