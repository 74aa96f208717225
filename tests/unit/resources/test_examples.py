"""The examples that the documents and the demonstration use are taken as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.resources.manifests.document import read_document
from services.resources.manifests.meta import Resource
from tests.unit.resources.manifests import documents

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_taken(path: Path) -> None:
    for document in documents(path.read_text()):
        assert isinstance(read_document(document), Resource)
