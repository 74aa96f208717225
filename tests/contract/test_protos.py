"""The Python of .proto files is what the compiler writes out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import protos


@pytest.mark.parametrize("api", protos.APIS, ids=str)
def test_what_is_committed_is_what_the_compiler_writes(api: Path, tmp_path: Path) -> None:
    protos.compile_to(tmp_path, api)
    written = sorted((tmp_path / api).iterdir())
    assert written
    for anew in written:
        assert (protos.ROOT / api / anew.name).read_text() == anew.read_text(), f"{anew.name}: run `make protos`"
