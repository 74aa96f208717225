"""What an observer is told, by environment variables: the rows of settings/rows.py that "hubble" reads, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bus.service import BadSettings
from settings.read import default, read


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A field for each row, by the name of its variable."""

    node: str
    pin_dir: Path = default("PLEXUS_PIN_DIR", "hubble")
    hubble_socket: Path = default("PLEXUS_HUBBLE_SOCKET", "hubble")
    hubble_event_buffer_capacity: int = default("PLEXUS_HUBBLE_EVENT_BUFFER_CAPACITY", "hubble")

    @staticmethod
    def of(environment: Mapping[str, str]) -> Settings:
        """Raises: BadSettings."""
        given = read(environment, "hubble")
        if not given.get("node"):
            raise BadSettings("PLEXUS_NODE must name this node, as its Node resource does")
        return Settings(**given)
