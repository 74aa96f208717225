"""Texts that somebody else wrote, within a length that a person reads. Pure."""

from __future__ import annotations


def shortened(text: str, most: int) -> str:
    """`text`; of a longer one its beginning and its end, with how much is left out between, `most` characters at most.

    Both ends stay, because a message tells at its beginning what is wrong, and at its end what to do.
    """
    if len(text) <= most:
        return text
    gap = f" ...({len(text)} characters)... "
    kept = max(0, most - len(gap))
    return text[: kept - kept // 2] + gap + text[len(text) - kept // 2 :]
