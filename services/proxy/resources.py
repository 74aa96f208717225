"""Slots -> Envoy's resources: a listener for each, routes for each of HTTP, and the two clusters. Pure.

A listener does not depend on its slot's HTTP rules, so these change behind it, also for connections that are there.

Paths are normalized before rules see them: "." and "..", double slashes, `%2e`; one with an escaped slash or backslash
is answered by a redirect to the same without, for whoever serves it might take it for a slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from services.proxy.api import envoy_pb2 as envoy
from services.proxy.packing import known_as, packed
from services.proxy.routes import BUFFER, BUFFER_BYTES, CLUSTER, DENIED, route_configuration
from services.proxy.slots import ServerName, Slot

TLS_CLUSTER = "tls"
MARKS = {"ingress": 0xA00, "egress": 0xB00}
"""On what Envoy's own connections send: so the programs know which policy was asked already."""

FIRST_OWN_PORT, LAST_OWN_PORT = 14336, 29999
"""Of Envoy's calls, which bear a pod's address and must not meet the pod's own. It holds only as far as it is within
the node's net.ipv4.ip_local_port_range, which therefore has to begin at 10240."""

LOOPBACK, LOOPBACK6 = "127.0.0.1", "::1"
IPPROTO_IP, IP_LOCAL_PORT_RANGE = 0, 51  # linux/in.h
CONNECT_SECONDS = 130.0  # longer than a pod's own connect() takes: it is refused when the other end is, not by us
TLS_HELLO_SECONDS = 15.0
UNLIMITED = 2**32 - 1
IDLE_UPSTREAM_SECONDS = 5.0
MAX_HEADERS_KB = 96  # of a request

Kind = str
CLUSTERS: Kind = "envoy.config.cluster.v3.Cluster"
LISTENERS: Kind = "envoy.config.listener.v3.Listener"
ROUTES: Kind = "envoy.config.route.v3.RouteConfiguration"
ORDER = (CLUSTERS, LISTENERS, ROUTES)
"""What refers to another comes after it, but for routes, which are asked for by the listener that wants them."""


class Item(NamedTuple):
    """A resource, as Envoy gets it."""

    version: str  # a hash of its bytes
    body: bytes


Resources = dict[Kind, dict[str, Item]]


def item(message: Message) -> Item:
    body = message.SerializeToString(deterministic=True)
    return Item(sha256(body).hexdigest()[:16], body)


def resources(slots: Iterable[Slot], *, has_ipv6: bool = True) -> Resources:
    """All that Envoy is to have for these, which have no problems (slots.problem). `has_ipv6`: the node's kernel."""
    found: Resources = {CLUSTERS: dict(_clusters()), LISTENERS: {}, ROUTES: {}}
    for slot in slots:
        found[LISTENERS][slot.name], routes = _of(slot, has_ipv6)
        if routes is not None:
            found[ROUTES][slot.name] = routes
    return found


@lru_cache(maxsize=1)
def _clusters() -> dict[str, Item]:
    return {each.name: item(each) for each in clusters()}


@lru_cache(maxsize=4096)  # slots that did not change cost nothing again
def _of(slot: Slot, has_ipv6: bool) -> tuple[Item, Item | None]:
    """Its listener, and its routes."""
    routes = None if slot.http is None else item(route_configuration(slot.name, slot.http))
    return item(listener(slot, has_ipv6)), routes


def closed_routes(name: str) -> Item:
    """Routes that deny all, where what is wanted was refused and nothing good is known."""
    return item(route_configuration(name, ()))


def listener(slot: Slot, has_ipv6: bool) -> envoy.Listener:
    made = envoy.Listener(
        name=slot.name,
        address=_address(LOOPBACK, slot.port),
        transparent=BoolValue(value=True),
        enable_reuse_port=BoolValue(value=False),  # one socket, which the kernel's map of sockets holds
        traffic_direction=envoy.Listener.INBOUND if slot.direction == "ingress" else envoy.Listener.OUTBOUND,
        listener_filters=[
            _listener_filter("original_dst", envoy.OriginalDst()),
            _listener_filter("original_src", envoy.OriginalSrc(mark=MARKS[slot.direction])),
        ],
    )
    if has_ipv6:  # a socket of its own: one for both would call IPv4 onward by IPv6
        made.additional_addresses.add(address=_address(LOOPBACK6, slot.port))
    chain = made.filter_chains.add(name=slot.name)
    if slot.http is not None:
        chain.filters.append(_filter("http", _http(slot.name)))
    else:
        made.listener_filters.append(_listener_filter("tls_inspector", envoy.TlsInspector()))
        made.listener_filters_timeout.CopyFrom(_seconds(TLS_HELLO_SECONDS))
        chain.filters.append(_filter("rbac", _server_names(slot.tls or ())))
        proxied = envoy.TcpProxy(stat_prefix="tls", cluster=TLS_CLUSTER)
        proxied.idle_timeout.SetInParent()  # 0: none
        chain.filters.append(_filter("tcp", proxied))
    return made


def clusters() -> list[envoy.Cluster]:
    """Where the connection was going. Of HTTP, by the protocol that the pod speaks."""
    options = envoy.UpstreamHttpOptions(
        common_http_protocol_options=envoy.HttpProtocolOptions(idle_timeout=_seconds(IDLE_UPSTREAM_SECONDS)),
        use_downstream_protocol_config=envoy.UpstreamHttpOptions.UseDownstreamHttpConfig(
            http_protocol_options=_http1(), http2_protocol_options=envoy.Http2ProtocolOptions(allow_connect=True)
        ),
    )
    http, tls = _onward(CLUSTER), _onward(TLS_CLUSTER)
    http.typed_extension_protocol_options[known_as(options)].CopyFrom(packed(options))
    return [http, tls]


def _onward(name: str) -> envoy.Cluster:
    made = envoy.Cluster(
        name=name,
        type=envoy.Cluster.ORIGINAL_DST,
        lb_policy=envoy.Cluster.CLUSTER_PROVIDED,
        connect_timeout=_seconds(CONNECT_SECONDS),
    )
    most = UInt32Value(value=UNLIMITED)
    made.circuit_breakers.thresholds.add(max_connections=most, max_pending_requests=most, max_requests=most)
    made.upstream_bind_config.socket_options.add(
        description="ports of its own",
        level=IPPROTO_IP,
        name=IP_LOCAL_PORT_RANGE,
        int_value=LAST_OWN_PORT << 16 | FIRST_OWN_PORT,
    )
    return made


def _http(routes: str) -> envoy.HttpConnectionManager:
    made = envoy.HttpConnectionManager(
        codec_type=envoy.HttpConnectionManager.AUTO,
        stat_prefix="http",
        http_protocol_options=_http1(),
        http2_protocol_options=envoy.Http2ProtocolOptions(allow_connect=True),
        normalize_path=BoolValue(value=True),
        merge_slashes=True,
        path_with_escaped_slashes_action=envoy.HttpConnectionManager.UNESCAPE_AND_REDIRECT,
        server_header_transformation=envoy.HttpConnectionManager.PASS_THROUGH,
        generate_request_id=BoolValue(value=False),
        preserve_external_request_id=True,
        use_remote_address=BoolValue(value=False),
        skip_xff_append=True,
        proxy_100_continue=True,
        max_request_headers_kb=UInt32Value(value=MAX_HEADERS_KB),
    )
    source = envoy.ConfigSource(ads=envoy.AggregatedConfigSource(), resource_api_version=envoy.ConfigSource.V3)
    made.rds.CopyFrom(envoy.Rds(config_source=source, route_config_name=routes))
    made.stream_idle_timeout.SetInParent()  # 0: none
    for protocol in ("websocket", "CONNECT"):
        made.upgrade_configs.add(upgrade_type=protocol)
    buffer = envoy.Buffer(max_request_bytes=UInt32Value(value=BUFFER_BYTES))
    made.http_filters.add(name=BUFFER, typed_config=packed(buffer), disabled=True)  # routes that deny enable it
    too_long = made.local_reply_config.mappers.add(
        status_code=UInt32Value(value=403), body=envoy.DataSource(inline_string=DENIED)
    )
    too_long.filter.status_code_filter.comparison.value.CopyFrom(
        envoy.RuntimeUInt32(default_value=413, runtime_key="plexus.too_long")
    )
    router = envoy.Router(suppress_envoy_headers=True)
    made.http_filters.add(name="router", typed_config=packed(router))
    return made


def _http1() -> envoy.Http1ProtocolOptions:
    return envoy.Http1ProtocolOptions(
        allow_absolute_url=BoolValue(value=True),
        accept_http_10=True,
        default_host_for_http_10="unknown",
        enable_trailers=True,
        allow_custom_methods=True,
    )


def _server_names(names: Iterable[ServerName]) -> envoy.RBAC:
    """Who asks for none of these is cut off before a byte goes on."""
    rules = envoy.RBACRules(action=envoy.RBACRules.ALLOW)
    for each in names:
        policy = rules.policies[each.name]
        if not policy.principals:
            policy.principals.add(any=True)
        matcher = envoy.StringMatcher(safe_regex=envoy.RegexMatcher(regex=server_name_regex(each.pattern)))
        policy.permissions.add(requested_server_name=matcher)
    return envoy.RBAC(rules=rules, stat_prefix="tls")


def server_name_regex(pattern: str) -> str:
    """Of a name in lower case, as Envoy reads it."""
    front, rest = ("", pattern.lower())
    if rest.startswith("**."):
        front, rest = r"([-a-z0-9_]+\.)+", rest[3:]
    labels = [
        "[-a-z0-9_]+" if label == "*" else "[-a-z0-9_]*".join(map(re.escape, label.split("*")))
        for label in rest.split(".")
    ]
    return front + r"\.".join(labels)


def _address(host: str, port: int) -> envoy.Address:
    return envoy.Address(socket_address=envoy.SocketAddress(address=host, port_value=port))


def _filter(name: str, config: Message) -> envoy.Filter:
    return envoy.Filter(name=name, typed_config=packed(config))


def _listener_filter(name: str, config: Message) -> envoy.ListenerFilter:
    return envoy.ListenerFilter(name=name, typed_config=packed(config))


def _seconds(number: float) -> Duration:
    return Duration(seconds=int(number), nanos=int(number % 1 * 1e9))
