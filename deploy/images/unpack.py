"""Installs wheels where no pip is: a wheel is a zip file of what is installed (PEP 427). `unpack.py WHEELS PLACE`."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


def unpack(wheel: Path, place: Path) -> None:
    """Its packages come to lie in `place`, its programs in `place`/bin."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(place)
    data = place / f"{'-'.join(wheel.name.split('-')[:2])}.data"
    for each in data.glob("*lib/*"):
        each.rename(place / each.name)
    programs = place / "bin"
    for each in data.glob("scripts/*"):
        programs.mkdir(exist_ok=True)
        each.chmod(0o755)
        each.rename(programs / each.name)


if __name__ == "__main__":
    for found in sorted(Path(sys.argv[1]).glob("*.whl")):
        unpack(found, Path(sys.argv[2]))
