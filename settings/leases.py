"""The three times of a lease of L2 announcements, which go together. Pure."""

from __future__ import annotations


def lease_problem(duration: float, renew: float, retry: float) -> str:
    """What is wrong with them, all in seconds; "": nothing. By the names of their variables."""
    if not retry < renew < duration:
        return (
            "PLEXUS_L2_LEASE_RETRY_PERIOD, PLEXUS_L2_LEASE_RENEW_DEADLINE, PLEXUS_L2_LEASE_DURATION: each has to be "
            f"less than the next, not {retry:g}, {renew:g} and {duration:g} seconds"
        )
    return ""
