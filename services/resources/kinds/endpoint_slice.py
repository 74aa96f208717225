"""discovery.k8s.io/v1 EndpointSlice."""

from __future__ import annotations

from typing import Any

from bus.messages.resources import EndpointSlice
from bus.subjects import ENDPOINT_SLICE
from services.resources.kind import Form, Kind, Known


def manifest() -> Form:
    from services.resources.manifests import core, words

    return Form(core.SliceManifest, core.read_endpoint_slice, words.dns_subdomain)


def status(found: EndpointSlice, _: Known) -> dict[str, Any]:
    addresses = [address for endpoint in found.endpoints for address in endpoint.addresses]
    ports = [f"{port.port}/{port.protocol}" for port in found.ports]
    return {"plexus": {"service": found.service, "ports": ports, "addresses": addresses}}


KIND = Kind(
    name="EndpointSlice",
    api_version="discovery.k8s.io/v1",
    plural="endpointslices",
    state=ENDPOINT_SLICE,
    manifest=manifest,
    after=("Service",),
    columns={"SERVICE": "plexus.service", "PORTS": "plexus.ports", "ADDRESSES": "plexus.addresses"},
    status=status,
)
