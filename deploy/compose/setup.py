"""Makes a secret for control services, one for nodes, and everybody's password of these. Again: it changes nothing."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

from bus.serve import Secrets

PLACE = Path("/etc/plexus")


def main(nodes: list[str]) -> None:
    folder = PLACE / "bus"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("control", "nodes"):
        file = folder / name
        if not file.exists():
            file.write_text(secrets.token_urlsafe(36))
    for user, password in Secrets.of(folder).passwords(nodes).items():
        account = PLACE / "accounts" / user
        account.mkdir(parents=True, exist_ok=True)
        (account / "password").write_text(password)


if __name__ == "__main__":
    main(sys.argv[1:])
