"""All kinds, by what they are asked for."""

from __future__ import annotations

from services.resources.kinds import every

KINDS = every()
BY_NAME = {each.name: each for each in KINDS}
MAKERS = {each.name.lower(): each for each in KINDS if each.makes}
"""Of pods, by what `Pod.owner` begins with."""
