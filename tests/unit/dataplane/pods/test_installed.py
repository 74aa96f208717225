"""The CNI executable and its configuration on a host: there whole or not at all, and never one without the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.dataplane.pods import cni
from services.dataplane.pods.installed import CONFIGURATION, EXECUTABLE, conflist, install, uninstall


def places(folder: Path) -> tuple[Path, Path, Path]:
    executable = folder / "built"
    executable.write_bytes(b"first")
    return executable, folder / "bin", folder / "net.d"


def test_it_is_installed_once_and_anew_when_it_is_another(tmp_path: Path) -> None:
    executable, programs, configurations = places(tmp_path)
    assert len(install(executable, programs, configurations)) == 2
    assert os.access(programs / EXECUTABLE, os.X_OK)
    assert install(executable, programs, configurations) == []
    executable.write_bytes(b"second")
    with (programs / EXECUTABLE).open("rb") as running:
        assert install(executable, programs, configurations) == [str(programs / EXECUTABLE)]
        assert running.read() == b"first", "what runs goes on as it was"
    assert (programs / EXECUTABLE).read_bytes() == b"second"
    assert {each.name for each in (*programs.iterdir(), *configurations.iterdir())} == {EXECUTABLE, CONFIGURATION}


def test_what_a_death_left_half_written_is_no_obstacle(tmp_path: Path) -> None:
    executable, programs, configurations = places(tmp_path)
    for folder, name in ((programs, EXECUTABLE), (configurations, CONFIGURATION)):
        folder.mkdir()
        (folder / f".{name}.new").write_text("ha")
    install(executable, programs, configurations)
    assert json.loads((configurations / CONFIGURATION).read_text()) == conflist()
    assert [each.name for each in programs.iterdir()] == [EXECUTABLE]


def test_the_executable_is_there_before_a_configuration_names_it(tmp_path: Path) -> None:
    executable, programs, configurations = places(tmp_path)
    configurations.write_text("in the way")
    with pytest.raises(OSError):
        install(executable, programs, configurations)
    assert (programs / EXECUTABLE).exists()
    configurations.unlink()
    programs = tmp_path / "other"
    programs.write_text("in the way")
    with pytest.raises(OSError):
        install(executable, programs, configurations)
    assert not configurations.exists()


def test_uninstalling_takes_ours_and_nothing_else(tmp_path: Path) -> None:
    executable, programs, configurations = places(tmp_path)
    install(executable, programs, configurations)
    (programs / "bridge").write_text("theirs")
    (configurations / "10-theirs.conflist").write_text("{}")
    assert len(uninstall(programs, configurations)) == 2
    assert uninstall(programs, configurations) == []
    assert [each.name for each in (*programs.iterdir(), *configurations.iterdir())] == ["bridge", "10-theirs.conflist"]


def test_the_configuration_is_one_that_the_node_takes_and_asks_for_status() -> None:
    found = conflist(["portmap"])
    assert found["cniVersion"] == "1.1.0" == cni.VERSIONS[-1]
    assert [each["type"] for each in found["plugins"]] == ["plexus-cni", "portmap"]
    ours = {"cniVersion": found["cniVersion"], "name": found["name"], **found["plugins"][0]}
    request, _ = cni.parse({"CNI_COMMAND": "STATUS"}, json.dumps(ours).encode(), None)
    assert isinstance(request, cni.Status)
    assert min(CONFIGURATION, "10-kindnet.conflist", "06-x.conflist") == CONFIGURATION


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    executable, programs, configurations = places(tmp_path)
    programs.write_text("a file")
    command = [sys.executable, "-m", "services.dataplane.pods.installed", "install", "--executable", str(executable)]
    done = subprocess.run(
        [*command, "--programs", str(programs), "--configurations", str(configurations)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n"), "writable" in done.stderr) == (1, 1, True)


def test_the_executable_is_static_and_small() -> None:
    built = Path(__file__).resolve().parents[4] / "build" / EXECUTABLE
    assert built.stat().st_size < 1_000_000
    assert b"PT_INTERP" not in built.read_bytes() and b"/lib64/ld-linux" not in built.read_bytes()
