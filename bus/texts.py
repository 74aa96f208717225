"""Texts that somebody else wrote: whether they are names, of a length that a person reads, and of characters that are
seen. Pure."""

from __future__ import annotations

import re

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# Controls (C0, DEL, C1), what changes the direction of what follows, line and paragraph separators, lone surrogates.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with all that a terminal would obey, or hide, as JSON writes it: "\\u001b". A line stays one."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def is_subdomain(text: str) -> bool:
    """DNS-1123 labels with dots between, 253 characters at most: what a node or a namespaced thing may be called."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def shortened(text: str, most: int) -> str:
    """`text`; of a longer one its beginning and its end, with how much is left out between, `most` characters at most.

    Both ends stay, because a message tells at its beginning what is wrong, and at its end what to do.
    """
    if len(text) <= most:
        return text
    gap = f" ...({len(text)} characters)... "
    kept = max(0, most - len(gap))
    return text[: kept - kept // 2] + gap + text[len(text) - kept // 2 :]
