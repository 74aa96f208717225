"""Add the bytes of message types that have none yet: `python -m tests.contract.make_golden`.

Bytes that are there stay: they are what older services wrote, and every later one must read them.
"""

from __future__ import annotations

import json
from pathlib import Path

from bus.codec import encode
from tests.contract.samples import message_types, name_of, sample

FILE = Path(__file__).parent / "golden.json"


def golden() -> dict[str, bytes]:
    """Message type -> its bytes as first written."""
    return {name: bytes.fromhex(text) for name, text in json.loads(FILE.read_text()).items()}


def main() -> None:
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    for kind in message_types():
        kept.setdefault(name_of(kind), encode(sample(kind)).hex())
    FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
