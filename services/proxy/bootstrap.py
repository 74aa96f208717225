"""How an Envoy is started: what it is told before it hears xDS, and its command line. Pure."""

from __future__ import annotations

import json
from pathlib import Path

XDS = "xds"  # the cluster that is `services/proxy`
DRAIN_SECONDS = 5  # what a listener that changes or goes still serves to those it has


def bootstrap(node: str, directory: Path) -> str:
    """As JSON. All its sockets are files in the directory."""
    grpc = {
        "envoy_grpc": {
            "cluster_name": XDS,
            # When `services/proxy` is back it is asked at once, not after up to 30 s.
            "retry_policy": {"retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"}},
        }
    }
    http2 = {"connection_keepalive": {"interval": "5s", "timeout": "5s"}}
    return json.dumps(
        {
            "node": {"id": node, "cluster": "plexus"},
            "admin": {"address": {"pipe": {"path": str(directory / "admin.sock"), "mode": 0o600}}},
            "dynamic_resources": {
                "ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [grpc]},
                "cds_config": {"ads": {}, "resource_api_version": "V3"},
                "lds_config": {"ads": {}, "resource_api_version": "V3"},
            },
            "static_resources": {
                "clusters": [
                    {
                        "name": XDS,
                        "type": "STATIC",
                        "connect_timeout": "1s",
                        "typed_extension_protocol_options": {
                            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                                "explicit_http_config": {"http2_protocol_options": http2},
                            }
                        },
                        "load_assignment": {
                            "cluster_name": XDS,
                            "endpoints": [
                                {
                                    "lb_endpoints": [
                                        {"endpoint": {"address": {"pipe": {"path": str(socket_of(directory))}}}}
                                    ]
                                }
                            ],
                        },
                    }
                ]
            },
            "layered_runtime": {
                "layers": [{"name": "static", "static_layer": {"re2.max_program_size.error_level": 100000}}]
            },
        },
        indent=1,
    )


def socket_of(directory: Path) -> Path:
    """Where `services/proxy` listens for its Envoy."""
    return directory / "xds.sock"


def command(program: str, directory: Path, *, concurrency: int) -> list[str]:
    """The command line of the Envoy of this directory; it is known again by it."""
    return [
        program,
        *("--config-path", str(directory / "bootstrap.json")),
        *("--concurrency", str(concurrency)),
        *("--log-path", str(directory / "envoy.log"), "--log-level", "warning"),
        *("--drain-time-s", str(DRAIN_SECONDS), "--drain-strategy", "immediate"),
        "--disable-hot-restart",
        "--reject-unknown-dynamic-fields",
    ]
