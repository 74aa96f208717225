"""tools/guest, as far as no guest is needed: what it says when something is missing, and the archive it boots from."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tools.guest import boot, kernel


def test_what_is_missing_is_named_with_its_package_and_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "PACKAGES", {"no-such-program": "its-package"})
    monkeypatch.setattr(kernel, "KERNEL", tmp_path / "kernel")
    with pytest.raises(kernel.GuestFailed, match=r"no-such-program \(package its-package\), .*make guest-setup"):
        boot.run(["true"], timeout_seconds=1, memory_megabytes=1)


def test_a_package_that_cannot_be_had_is_told_apart_from_every_other_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "apt-get"
    command.write_text("#!/bin/sh\necho Unable to locate package\nexit 100\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(kernel, "PACKAGES", {"no-such-program": "its-package"})
    with pytest.raises(kernel.NoPackage, match="Unable to locate package"):
        kernel.fetch()


def test_a_guest_that_ends_before_its_command_is_told_with_its_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "kernel", lambda: kernel.Kernel("6.1", tmp_path, tmp_path))
    monkeypatch.setattr(boot, "BUILD", tmp_path)
    monkeypatch.setattr(boot, "_qemu", lambda _, shared, __: ["sh", "-c", f"echo panicked >{shared}/console; exit 3"])
    with pytest.raises(kernel.GuestFailed, match=r"qemu: 3.*\npanicked"):
        boot.run(["true"], timeout_seconds=10, memory_megabytes=1)


def test_the_commands_exit_status_is_the_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "kernel", lambda: kernel.Kernel("6.1", tmp_path, tmp_path))
    monkeypatch.setattr(boot, "BUILD", tmp_path)
    # what stands for the machine runs the very script that the guest would
    plays = "sh {0}/command; echo $? >{0}/status"
    monkeypatch.setattr(boot, "_qemu", lambda _, shared, __: ["sh", "-c", plays.format(shared)])
    monkeypatch.setenv("PLEXUS_SAID", "two words")
    assert (
        boot.run(["sh", "-c", '[ "$PLEXUS_SAID" = "two words" ] && exit 7'], timeout_seconds=10, memory_megabytes=1)
        == 7
    )
    assert boot.run(["sleep", "2"], timeout_seconds=0.2, memory_megabytes=1) == boot.TIMED_OUT
    assert not list(tmp_path.glob("run-*"))


def test_the_archive_holds_each_file_where_the_kernel_looks_for_it() -> None:
    archive = kernel.cpio([("root", stat.S_IFDIR | 0o755, b""), ("init", stat.S_IFREG | 0o755, b"12345")])
    found, at = {}, 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + (110 + fields[11] + 3) // 4 * 4
        found[name] = (fields[1], archive[start : start + fields[6]])
        at = start + (fields[6] + 3) // 4 * 4
    assert found == {"root": (0o40755, b""), "init": (0o100755, b"12345"), "TRAILER!!!": (0, b"")}
