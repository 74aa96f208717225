"""Writes the Python of .proto files (`*_pb2.py` and `*_pb2.pyi`) beside them (`make protos`).

What is written is committed: a checkout needs no compiler, and a test compares both.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APIS = (Path("services/hubble/api"), Path("services/proxy/api"))


def compile_to(directory: Path, api: Path, *, stubs: bool = True) -> None:
    """Raises: RuntimeError: a file does not compile; the reason stands on stderr."""
    import grpc_tools
    from grpc_tools import protoc

    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / api).glob("*.proto"))
    known = Path(grpc_tools.__file__).parent / "_proto"
    outputs = [f"--python_out={directory}", *([f"--pyi_out={directory}"] if stubs else [])]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{known}", *outputs, *files]):
        raise RuntimeError("a .proto file does not compile")


if __name__ == "__main__":
    try:
        for each in APIS:
            compile_to(ROOT, each)
    except RuntimeError as problem:
        sys.exit(str(problem))
