"""What an API server has to allow `resources` to do: the rules of its ClusterRole, made of the rows of kinds. Pure.

Nothing is asked beside this: tests refuse whatever these rules do not allow.
"""

from __future__ import annotations

from typing import Any

from services.resources.kubernetes.mirror import WATCHED

READ = ("get", "list", "watch")


def rules() -> list[dict[str, Any]]:
    """As a ClusterRole has them: by API group what is read, then what is written."""
    read: dict[str, list[str]] = {}
    told: dict[str, list[str]] = {}
    for kind in WATCHED:
        group = kind.api_version.rpartition("/")[0]
        read.setdefault(group, []).append(kind.plural)
        if kind.has_status:
            told.setdefault(group, []).append(f"{kind.plural}/status")
    return [
        *({"apiGroups": [group], "resources": sorted(plurals), "verbs": list(READ)} for group, plurals in read.items()),
        *({"apiGroups": [group], "resources": sorted(plurals), "verbs": ["patch"]} for group, plurals in told.items()),
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    ]
