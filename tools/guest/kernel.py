"""Debian's kernel, taken out of its package, and the initramfs that leads from it to this machine's files.

Everything lies in build/guest, made once: `kernel/` is the package's own tree (vmlinuz, modules), `initramfs` a cpio
archive with init.c and the modules that it loads.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = CHECKOUT / "build/guest"
KERNEL = BUILD / "kernel"

QEMU = "qemu-system-x86_64"
# Debian's package by program: what the guest needs of this machine beyond `make setup`.
PACKAGES = {QEMU: "qemu-system-x86", "depmod": "kmod"}
NEWEST = "linux-image-amd64"  # the package that depends on the newest kernel's
SERIES = "6.1."  # Debian 12's: the oldest kernel that the programs are tried on

# What init.c loads, each after what it needs.
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
# The parts of the package that a network of namespaces can need; the rest (sound, graphics, ...) stays packed.
PARTS = (
    "./boot/vmlinuz-*",
    "./lib/modules/*/modules.*",
    *(
        f"./lib/modules/*/kernel/{part}"
        for part in ("arch", "crypto", "lib", "net", "fs/9p", "fs/fscache", "fs/netfs", "fs/overlayfs", "fs/fuse",
                     "drivers/block", "drivers/char", "drivers/net", "drivers/virtio")
    ),
)  # fmt: skip


class GuestFailed(Exception):
    """There is no guest; the text says why and what to do."""


class NoPackage(GuestFailed):
    """apt-get does not find or get one: this machine has no way to it."""


@dataclass(frozen=True)
class Kernel:
    """What is booted. `release` is what uname -r says in it."""

    release: str
    image: Path
    initramfs: Path

    @property
    def modules(self) -> Path:
        return KERNEL / "lib/modules"


def kernel() -> Kernel:
    """The kernel that `fetch` left. Raises: GuestFailed: something is missing."""
    found = missing()
    if found:
        raise GuestFailed(f"{', '.join(found)} missing: run 'make guest-setup' (as root)")
    image = next(KERNEL.glob("boot/vmlinuz-*"))
    return Kernel(image.name.removeprefix("vmlinuz-"), image, BUILD / "initramfs")


def missing() -> list[str]:
    """What `fetch` would have to bring, in words."""
    found = [f"{name} (package {package})" for name, package in PACKAGES.items() if not _which(name)]
    if not any(KERNEL.glob("boot/vmlinuz-*")) or not (BUILD / "initramfs").exists():
        found.append(f"Debian's kernel in {BUILD.relative_to(CHECKOUT)}")
    return found


def fetch() -> None:
    """Have qemu and the kernel. What is there stays: remove build/guest for a newer kernel. Needs root and a Debian 12.

    Raises: NoPackage.
    """
    wanted = sorted(package for name, package in PACKAGES.items() if not _which(name))
    if wanted:
        _say(f"Debian packages: {' '.join(wanted)}")
        _apt("install", "-y", "--no-install-recommends", *wanted)
    if not any(KERNEL.glob("boot/vmlinuz-*")):
        _unpack(_package())
    _write_initramfs(next(KERNEL.glob("boot/vmlinuz-*")).name.removeprefix("vmlinuz-"))


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _say(text: str) -> None:
    print(f"guest: {text}", flush=True)


def _apt(*arguments: str, folder: Path = CHECKOUT) -> None:
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    if not _which("apt-get"):
        raise NoPackage("there is no apt-get: the guest's packages are those of Debian 12")
    done = subprocess.run(
        ["apt-get", *options, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NoPackage(f"'apt-get {' '.join(arguments)}' failed; is this root, with a way to Debian?\n{done.stdout}")


def _package() -> str:
    """The name of the newest kernel's package, such as linux-image-6.1.0-56-amd64."""
    seen = subprocess.run(["apt-cache", "depends", NEWEST], capture_output=True, text=True, check=False).stdout
    for line in seen.splitlines():
        name = line.strip().removeprefix("Depends: ")
        if name.startswith(f"linux-image-{SERIES}"):
            return name
    raise NoPackage(
        f"apt knows no linux-image-{SERIES}*: this needs Debian 12's package lists (run 'apt-get update' first)"
    )


def _unpack(package: str) -> None:
    """The wanted parts of a kernel's package into `KERNEL`, in one step."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        folder = Path(scratch)
        _say(f"kernel: {package} (70 MB)")
        _apt("download", package, folder=folder)
        archive = next(folder.glob("*.deb"))
        tree = folder / "tree"
        tree.mkdir()
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as source:
            subprocess.run(["tar", "-x", "-C", tree, "--wildcards", *PARTS], stdin=source.stdout, check=True)
        release = next(tree.glob("boot/vmlinuz-*")).name.removeprefix("vmlinuz-")
        subprocess.run([str(_which("depmod")), "-b", tree, release], check=True)
        shutil.rmtree(KERNEL, ignore_errors=True)
        tree.rename(KERNEL)


def _write_initramfs(release: str) -> None:
    target = BUILD / "initramfs"
    if target.exists() and target.stat().st_mtime > (HERE / "init.c").stat().st_mtime:
        return
    program = BUILD / "init"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, HERE / "init.c"], check=True)
    paths = _in_order(release)
    entries: list[tuple[str, int, bytes]] = [
        (name, stat.S_IFDIR | 0o755, b"") for name in ("dev", "proc", "lower", "upper", "root")
    ]
    entries.append(("init", stat.S_IFREG | 0o755, program.read_bytes()))
    entries += [(path.name, stat.S_IFREG | 0o644, path.read_bytes()) for path in paths]
    entries.append(("modules", stat.S_IFREG | 0o644, "".join(f"/{path.name}\n" for path in paths).encode()))
    fresh = target.with_suffix(".new")
    fresh.write_bytes(cpio(entries))
    fresh.rename(target)


def _in_order(release: str) -> list[Path]:
    """`BOOT_MODULES` with what each needs before it."""
    found: list[Path] = []
    for name in BOOT_MODULES:
        seen = subprocess.run(
            [str(_which("modprobe")), "-d", KERNEL, "-S", release, "--show-depends", name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for line in seen.stdout.splitlines():
            word = line.split()
            if word[0] == "insmod" and Path(word[1]) not in found:
                found.append(Path(word[1]))
    return found


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """(name, mode, content) as an archive that the kernel unpacks.

    Source: kernel Documentation/driver-api/early-userspace/buffer-format.rst
    """
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(f"{field:08x}".encode() for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)
