"""Messages of Envoy's API as they travel in others. Pure."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from services.proxy.api import envoy_pb2 as envoy


def known_as(message: Message) -> str:
    """Its name in Envoy's API."""
    name: str = message.DESCRIPTOR.GetOptions().Extensions[envoy.known_as]  # type: ignore[index]  # its stub is too wide
    return name


def packed(message: Message) -> Any:
    return Any(type_url=f"type.googleapis.com/{known_as(message)}", value=message.SerializeToString(deterministic=True))
