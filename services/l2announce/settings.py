"""What can be set: the rows of settings/rows.py that "l2announce" reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from bus.service import BadSettings
from settings.leases import lease_problem
from settings.read import default, read


@dataclass(frozen=True, kw_only=True)
class L2Settings:
    """Seconds."""

    l2_lease_duration: float = default("PLEXUS_L2_LEASE_DURATION")
    l2_lease_renew_deadline: float = default("PLEXUS_L2_LEASE_RENEW_DEADLINE")
    l2_lease_retry_period: float = default("PLEXUS_L2_LEASE_RETRY_PERIOD")

    @staticmethod
    def of(environment: Mapping[str, str] = os.environ) -> L2Settings:
        """Raises: BadSettings."""
        settings = L2Settings(**read(environment, "l2announce"))
        problem = lease_problem(
            settings.l2_lease_duration, settings.l2_lease_renew_deadline, settings.l2_lease_retry_period
        )
        if problem:
            raise BadSettings(problem)
        return settings
