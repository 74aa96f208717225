"""cilium.io/v2 CiliumClusterwideNetworkPolicy."""

from __future__ import annotations

from bus.subjects import POLICY
from services.resources.kind import Form, Kind
from services.resources.kinds.network_policy import COLUMNS, DRAWS_ON, status


def manifest() -> Form:
    from services.resources.manifests import cilium_policy, cilium_schema, words

    return Form(cilium_schema.CiliumClusterwideNetworkPolicy, cilium_policy.read_cilium_policy, words.dns_subdomain)


KIND = Kind(
    name="CiliumClusterwideNetworkPolicy",
    api_version="cilium.io/v2",
    plural="ciliumclusterwidenetworkpolicies",
    short=("ccnp",),
    state=POLICY,
    manifest=manifest,
    is_namespaced=False,
    before=("Pod",),
    columns=COLUMNS,
    status=status,
    draws_on=DRAWS_ON,
    asks_nodes=True,
    has_conditions=True,
)
