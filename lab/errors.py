"""How the lab says that it could not."""

from __future__ import annotations


class LabError(Exception):
    """Refused or failed; the text is for people and says what to do."""
