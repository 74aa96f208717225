"""cilium.io CiliumLoadBalancerIPPool."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bus.messages.ipam import PoolUse
from bus.messages.resources import LoadBalancerPool
from bus.subjects import LOAD_BALANCER_POOL, POOL_USE
from services.resources.kind import Form, Kind, Known, Object, Told, Values, at

if TYPE_CHECKING:
    from services.resources.manifests.meta import Resource


def manifest() -> Form:
    from services.resources.manifests import load_balancer_pool, words

    return Form(load_balancer_pool.PoolManifest, load_balancer_pool.read_pool, words.dns_subdomain)


def status(pool: LoadBalancerPool, known: Known) -> dict[str, Any]:
    use = known.of(POOL_USE).get((pool.name,))
    if use is None:  # ipam has not heard of it yet
        return {"plexus": {"disabled": pool.disabled}}
    return {
        "status": {"conditions": conditions(use)},
        "plexus": {
            "disabled": pool.disabled,
            "conflict": use.conflict,
            "total": int(use.total),
            "used": int(use.used),
            "available": int(use.available),
        },
    }


def conditions(use: PoolUse) -> list[dict[str, Any]]:
    conflict = {
        "type": "cilium.io/PoolConflict",
        "status": "True" if use.conflict else "False",
        "reason": "cidr_overlap" if use.conflict else "resolved",
        "message": use.conflict,
    }
    counts = (("IPsTotal", use.total), ("IPsAvailable", use.available), ("IPsUsed", use.used))
    return [
        conflict,
        *(
            {"type": f"cilium.io/{name}", "status": "Unknown", "reason": "noreason", "message": number}
            for name, number in counts
        ),
    ]


def told(pool: LoadBalancerPool, known: Values, _: Object) -> dict[str, Any] | None:
    use = known.of(POOL_USE).get((pool.name,))
    return {"conditions": conditions(use)} if use is not None else None


def from_api(pool: LoadBalancerPool, found: Object, _: Resource) -> LoadBalancerPool:
    """Its place among pools is when the API server made it, to the second; of two of one second the names decide."""
    try:
        made = datetime.fromisoformat(str(at("metadata.creationTimestamp")(found)))
    except ValueError:
        return pool
    return replace(pool, place=max(0, int(made.timestamp())))


KIND = Kind(
    name="CiliumLoadBalancerIPPool",
    api_version="cilium.io/v2",
    older_versions=("cilium.io/v2alpha1",),
    plural="ciliumloadbalancerippools",
    short=("ippools", "ippool", "lbippool", "lbippools"),
    state=LOAD_BALANCER_POOL,
    manifest=manifest,
    is_namespaced=False,
    before=("Service",),
    columns={
        "DISABLED": "plexus.disabled",
        "CONFLICT": "plexus.conflict",
        "USED": "plexus.used",
        "AVAILABLE": "plexus.available",
    },
    status=status,
    from_api=from_api,
    told=Told(families=(POOL_USE,), concerns=lambda use: [("", use.name)], status=told),
    draws_on=(POOL_USE,),
)
