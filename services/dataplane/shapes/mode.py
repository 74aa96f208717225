"""How policies are enforced on a node. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """How policies are enforced on this node.

    With `audit` nothing is denied: what would be has an entry that allows it, and whose cookie says so. So programs do
    nothing that they do not do anyway, and each connection is judged again when the mode ends.
    """

    enforcement: str = "default"  # where policies select; "always": everywhere; "never": nowhere
    audit: bool = False


DEFAULT_MODE = Mode()
