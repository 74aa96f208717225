"""Gathers what the image is built from into build/image: `python -m tools.image` (make image runs it, then docker).

Programs for the kernel were compiled by `make setup`: who builds an image need not have the rights for that. Python
packages come along as files, by the versions and hashes of requirements.lock, but only those that run: the build itself
asks no package index. What is gathered is a function of the checkout.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = ROOT / "build/image"
PACKAGES = ("bus", "cli", "lab", "services", "settings")
BUILT = ("build/plexus-cni", "build/programs")
FILES = ("pyproject.toml", "LICENSE", "requirements.lock")


def needed(package: str) -> set[str]:
    """It and all that it runs on, as installed here."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            asked = requires(name) or []
        except PackageNotFoundError:
            continue  # not of this platform
        found.add(name)
        wanted = (
            each for each in map(Requirement, asked) if each.marker is None or each.marker.evaluate({"extra": ""})
        )
        waiting += [each.name for each in wanted]
    return found


def locked(names: Iterable[str], lock: str) -> str:
    """The lines of a lock for these packages. Raises: KeyError: one is not in it."""
    blocks: dict[str, str] = {}
    for block in re.findall(r"^[^\s#].*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL):
        blocks[canonicalize_name(block.split("==")[0].strip())] = block
    return "".join(blocks[name] for name in sorted(names))


def gather(context: Path = CONTEXT) -> None:
    """Raises: OSError, CalledProcessError."""
    fresh = context.with_name(context.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    code = fresh / "plexus"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILT:
        there = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        there(ROOT / name, code / name)
    for name in FILES:
        shutil.copy2(ROOT / name, code / name)
    for name in ("Dockerfile", "unpack.py"):
        shutil.copy2(ROOT / "deploy/images" / name, fresh / name)
    run = fresh / "run.lock"
    run.write_text(locked(needed("plexus") - {"plexus"}, (ROOT / "requirements.lock").read_text()))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps")
    subprocess.run([*pip, "--require-hashes", "--dest", str(fresh / "wheels"), "-r", str(run)], check=True)
    shutil.rmtree(context, ignore_errors=True)
    fresh.rename(context)


if __name__ == "__main__":
    gather()
