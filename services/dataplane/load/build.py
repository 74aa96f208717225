"""`python -m services.dataplane.load.build`: every set of programs into build/programs, as far as it is not there.

A set is compiled anew when the C, the headers or what compiles it and how changed. `make setup` runs this, and whoever
builds an image; a node needs it only for what was not built (loader.py). Needs what compiler.py needs.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from services.dataplane.batch import answered
from services.dataplane.load import compiler, objects
from services.dataplane.load.objects import BUILT, HERE, SETS, Damaged, Features

_LINES = 40  # of the compiler's last words


class CompileError(Exception):
    """A set could not be compiled; the text ends with the compiler's words."""


async def compiled(features: Features) -> bytes:
    """An object, as its file holds it, by a process of its own, which takes the compiler's memory with it: 115 MB.

    Raises: CompileError.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", compiler.__name__,
        cwd=HERE.parents[1],
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    request = json.dumps({"parent": os.getpid(), "features": dict(features)})
    out, err = await answered(child, request.encode())
    if child.returncode:
        words = err.decode(errors="replace").strip().splitlines()
        raise CompileError("\n".join(words[-_LINES:]))
    return out


async def build() -> list[str]:
    """The files that were written. Two at once are safe: the later one waits. Raises: CompileError. OSError."""
    with _locked():
        missing = [features for features in SETS if not is_built(features)]
        slots = asyncio.Semaphore(os.cpu_count() or 1)

        async def make(features: Features) -> None:
            async with slots:
                objects.write(BUILT / objects.file_name(features), await compiled(features))

        found = await asyncio.gather(*map(make, missing), return_exceptions=True)  # no compiler is left running
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return [objects.file_name(features) for features in missing]


def is_built(features: Features) -> bool:
    """From the sources that are here, by the compiler that is here, if one is."""
    try:
        found = objects.read(BUILT / objects.file_name(features))
    except (OSError, Damaged):
        return False
    return found.made_of == objects.made_of(features) and compiler.version() in ("", found.compiler)


@contextmanager
def _locked() -> Iterator[None]:
    BUILT.mkdir(parents=True, exist_ok=True)
    directory = os.open(BUILT, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def main() -> None:
    try:
        made = asyncio.run(build())
    except (CompileError, OSError) as problem:
        sys.exit(f"the programs for the kernel were not built: {problem}")
    if made:
        print(f"setup: programs for the kernel: {', '.join(made)} in build/programs")


if __name__ == "__main__":
    main()
