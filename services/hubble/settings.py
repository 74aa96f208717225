"""What observers and the relay are told, by environment variables: their rows of settings/rows.py, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bus.service import BadSettings
from services.hubble.peers import PORT
from services.hubble.tls import Files, place
from settings.read import default, read


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How observers are asked over the network; the observer's half and the relay's."""

    hubble_listen_address: str = default("PLEXUS_HUBBLE_LISTEN_ADDRESS", "hubble")
    hubble_tls: bool = default("PLEXUS_HUBBLE_TLS", "hubble")
    hubble_tls_ca: str = default("PLEXUS_HUBBLE_TLS_CA", "hubble")
    hubble_tls_cert: str = default("PLEXUS_HUBBLE_TLS_CERT", "hubble")
    hubble_tls_key: str = default("PLEXUS_HUBBLE_TLS_KEY", "hubble")

    @property
    def place(self) -> tuple[str | None, int]:
        """Raises: BadSettings."""
        return place("PLEXUS_HUBBLE_LISTEN_ADDRESS", self.hubble_listen_address or f":{PORT}")

    @property
    def files(self) -> Files | None:
        """None: in the clear. Raises: BadSettings."""
        return Files.of(self.hubble_tls_ca, self.hubble_tls_cert, self.hubble_tls_key) if self.hubble_tls else None


@dataclass(frozen=True, kw_only=True)
class Settings(Asked):
    """Of an observer. A field for each row, by the name of its variable."""

    node: str
    routing_mode: str = default("PLEXUS_ROUTING_MODE", "hubble")
    pin_dir: Path = default("PLEXUS_PIN_DIR", "hubble")
    hubble_socket: Path = default("PLEXUS_HUBBLE_SOCKET", "hubble")
    hubble_event_buffer_capacity: int = default("PLEXUS_HUBBLE_EVENT_BUFFER_CAPACITY", "hubble")

    @staticmethod
    def of(environment: Mapping[str, str]) -> Settings:
        """Raises: BadSettings."""
        given = read(environment, "hubble")
        if not given.get("node"):
            raise BadSettings("PLEXUS_NODE is not set: it is the name of the node that this runs on")
        found = Settings(**given)
        if found.hubble_listen_address:
            _check(found)
        return found


@dataclass(frozen=True, kw_only=True)
class RelaySettings(Asked):
    """Of the relay."""

    relay_listen_address: str = default("PLEXUS_RELAY_LISTEN_ADDRESS", "relay")

    @staticmethod
    def of(environment: Mapping[str, str]) -> RelaySettings:
        """Raises: BadSettings."""
        found = RelaySettings(**read(environment, "relay"))
        _check(found)
        place("PLEXUS_RELAY_LISTEN_ADDRESS", found.relay_listen_address)
        return found


def _check(asked: Asked) -> None:
    """Raises: BadSettings."""
    _ = asked.place
    if asked.files is not None:
        asked.files.client()
