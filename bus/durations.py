"""Lengths of time as Kubernetes and Helm write them."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(sorted(_UNITS, key=len, reverse=True))})", re.ASCII)


def seconds_of(text: str) -> float:
    """Seconds of a duration as Go writes it: "2h13m20s", "1.5s", "300ms"; "0" alone needs no unit.

    Raises: ValueError: it is none, or negative; the text says what one looks like.
    Source: the documentation of Go's time.ParseDuration
    """
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f'{text!r} is no length of time like "10s" or "2h13m20s"')
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
