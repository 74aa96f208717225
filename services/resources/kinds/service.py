"""v1 Service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bus.addresses import by_family, with_port
from bus.messages.ipam import AddressRequest, ServiceAddress
from bus.messages.lb import LoadBalancedService
from bus.messages.resources import Service
from bus.subjects import ADDRESS_REQUEST, CLUSTER_ADDRESS, FRONTEND, NODE_PORT, SERVICE, SERVICE_ADDRESS
from services.resources.kind import Form, Kind, Known, Object, Told, Values, at

if TYPE_CHECKING:
    from services.resources.manifests.meta import Resource

SATISFIED = "cilium.io/IPAMRequestSatisfied"  # a condition's type


def manifest() -> Form:
    from services.resources.manifests import core, words

    return Form(core.ServiceManifest, core.read_service, words.service_name)


def status(service: Service, known: Known) -> dict[str, Any]:
    made = known.of(FRONTEND).get((service.namespace, service.name))
    frontends = [
        {
            "address": each.address,
            "port": each.port,
            "protocol": each.protocol,
            "backends": [{"address": one.address, "port": one.port, "node": one.node} for one in each.backends],
        }
        for each in (made.frontends if made else [])
    ]
    plexus = {"frontends": frontends, "exposures": exposures_of(made)}
    if service.type == "ExternalName":
        named = {"type": service.type, "externalName": service.external_name}
        return {"spec": named, "status": {"loadBalancer": {}}, "plexus": plexus}
    spec: dict[str, Any] = {"type": service.type, "clusterIP": next(iter(service.cluster_addresses), "None")}
    spec["clusterIPs"] = service.cluster_addresses or ["None"]
    spec["ipFamilies"] = service.ip_families or ["IPv4"]
    spec["ipFamilyPolicy"] = service.ip_family_policy
    if any(port.node_port for port in service.ports):
        spec["ports"] = [
            {**written, "nodePort": port.node_port}
            for written, port in zip(service.manifest.get("spec", {}).get("ports", ()), service.ports, strict=False)
        ]
    if service.health_check_port:
        spec["healthCheckNodePort"] = service.health_check_port
    return {"spec": spec, "status": _load_balancer_status(service, known), "plexus": plexus}


def _load_balancer_status(service: Service, known: Known) -> dict[str, Any]:
    given = _given(service, known)
    if given is None:
        return {"loadBalancer": {}}
    addresses, condition = given
    ingress = {"ingress": [{"ip": each} for each in addresses]} if addresses else {}
    return {"loadBalancer": ingress, "conditions": [condition]}


def _given(service: Service, known: Values) -> tuple[list[str], dict[str, Any]] | None:
    """Its addresses, and whether these are all; None: another load balancer's, or ipam has not heard of it yet."""
    own = (service.namespace, service.name)
    request = known.of(ADDRESS_REQUEST).get(own)
    if service.load_balancer is None or request is None:
        return None
    held = known.of(SERVICE_ADDRESS)
    holders = {each: held[each,].services if (each,) in held else [] for each in request.addresses}
    given = [each for each in request.addresses if own in ((one.namespace, one.name) for one in holders[each])]
    return given, {
        "type": SATISFIED,
        "status": "True" if request.satisfied else "False",
        "reason": request.reason,
        "message": request.detail,
    }


def told(service: Service, known: Values, status: Object) -> dict[str, Any] | None:
    """The condition tells what is ours: of a Service that is a LoadBalancer no more, what we wrote goes."""
    given = _given(service, known)
    if given is not None:
        addresses, condition = given
        return {"loadBalancer": {"ingress": [{"ip": each} for each in addresses] or None}, "conditions": [condition]}
    if service.load_balancer is None and any(each.get("type") == SATISFIED for each in status.get("conditions") or ()):
        return {"loadBalancer": {"ingress": None}, "conditions": [{"type": SATISFIED, "status": None}]}
    return None


def concerns(value: AddressRequest | ServiceAddress) -> list[tuple[str, str]]:
    if isinstance(value, AddressRequest):
        return [(value.namespace, value.name)]
    return [(each.namespace, each.name) for each in value.services]


def exposures_of(made: LoadBalancedService | None) -> list[dict[str, Any]]:
    """Where it is reached from outside; without an address: at every node."""
    return [
        {
            "kind": each.kind,
            **({"address": each.address} if each.address else {"family": each.family}),
            "port": each.port,
            "protocol": each.protocol,
        }
        for each in (made.exposures if made else [])
    ]


def address_of(found: Object) -> Any:
    return at("spec.clusterIPs")(found) or at("spec.externalName")(found)


def outside_addresses(found: Object) -> Any:
    """Of a LoadBalancer; "pending" and why, while it has not all that it asks for."""
    if at("spec.type")(found) != "LoadBalancer":
        return []
    given = [each["ip"] for each in at("status.loadBalancer.ingress")(found) or []]
    missing = [each for each in at("status.conditions")(found) or [] if each["type"] == SATISFIED]
    return given + [f"pending: {each['reason']}" for each in missing if each["status"] == "False"]


def ports_of(found: Object) -> list[str]:
    """ "80/TCP" of each port, "80:30080/TCP" of one that has a node port."""
    ports = at("spec.ports")(found)
    return [
        ":".join(str(port[each]) for each in ("port", "nodePort") if port.get(each)) + f"/{port.get('protocol', 'TCP')}"
        for port in (ports if isinstance(ports, Sequence) else [])
    ]


def backends_of(found: Object) -> list[str]:
    """Every "address:port" behind it, once."""
    frontends = at("plexus.frontends")(found) or []
    return list(dict.fromkeys(with_port(one["address"], one["port"]) for each in frontends for one in each["backends"]))


def from_api(service: Service, _: Object, resource: Resource) -> Service:
    """Its addresses are what the API server gave it. Its backends are what Kubernetes' own controller says in
    EndpointSlices, of which that knows more than labels tell, so it selects nothing itself."""
    from services.resources.manifests.words import address as wrong_address

    asked = [each for each in resource.asked_addresses if wrong_address(each) is None]  # "None" is none
    families = service.ip_families or list(by_family(asked))
    return replace(service, cluster_addresses=list(by_family(asked).values()), ip_families=families, selector={})


KIND = Kind(
    name="Service",
    api_version="v1",
    plural="services",
    short=("svc",),
    state=SERVICE,
    manifest=manifest,
    holds=(CLUSTER_ADDRESS, NODE_PORT),
    columns={
        "TYPE": "spec.type",
        "ADDRESS": address_of,
        "OUTSIDE": outside_addresses,
        "PORTS": ports_of,
        "BACKENDS": backends_of,
    },
    status=status,
    from_api=from_api,
    told=Told(families=(ADDRESS_REQUEST, SERVICE_ADDRESS), concerns=concerns, status=told),
    draws_on=(FRONTEND, SERVICE_ADDRESS, ADDRESS_REQUEST),
)
