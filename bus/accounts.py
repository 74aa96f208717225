"""Who may say what: one user per service and per node, with the subjects that are its own.

A service writes its own log and hands it out; a node writes only the keys that bear its name. Everyone may read. What
this does not hold back: a user may name any subject as the reply to a question, so it can have the server or a service
send *their* words to a subject of its choice (never its own words); see docs/threat-model.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from bus.link import inbox_of
from bus.server import User
from bus.subjects import JOURNAL, LEASES, OWNERS, VOUCHED, delta_of, escape, lease_of, log_of, snapshot_of, stream_of

_READ_API = ("STREAM.INFO", "CONSUMER.CREATE", "CONSUMER.INFO", "CONSUMER.DELETE", "STREAM.MSG.GET")
_TOKENS = {
    "STREAM.INFO": "",
    "CONSUMER.CREATE": ".>",
    "CONSUMER.INFO": ".*",
    "CONSUMER.DELETE": ".*",
    "STREAM.MSG.GET": "",
}
OPERATOR = "operator"  # the `plexus` command and whoever starts the cluster: everything


def service_user(owner: str, password: str) -> User:
    """The user of the control service that owns `owner`'s log."""
    publish = [
        *_reading(),
        *(f"$JS.API.STREAM.CREATE.{stream}" for stream in (*map(stream_of, OWNERS), LEASES, JOURNAL)),
        f"$JS.API.STREAM.MSG.GET.{LEASES}",
        f"$JS.API.STREAM.INFO.{LEASES}",
        f"$JS.API.STREAM.INFO.{JOURNAL}",
        f"$JS.API.STREAM.MSG.GET.{JOURNAL}",
        log_of(owner),
        f"evt.{owner}.>",
        delta_of(owner),
        lease_of(owner),
        "req.>",
    ]
    subscribe = [f"{inbox_of(owner)}.>", "delta.*", "evt.>", f"req.{owner}.>", lease_of(owner)]
    return User(owner, password, publish, subscribe)


def node_name(node: str) -> str:
    """The user name of a node's dataplane."""
    return f"node-{node}"


def node_user(node: str, password: str) -> User:
    """The user of one node: its own endpoints, its own events, questions that a node has."""
    own = escape(node)
    publish = [
        *_reading(),
        f"state.dataplane.*.{own}.>",
        VOUCHED["dataplane"].of(node),
        f"evt.dataplane.*.{own}",
        f"evt.dataplane.*.{own}.>",
        *(snapshot_of(owner) for owner in OWNERS),
        "req.resources.podstatus",
    ]
    subscribe = [f"{inbox_of(node_name(node))}.>", "delta.*", f"req.dataplane.*.{own}"]
    return User(node_name(node), password, publish, subscribe)


def users(nodes: Iterable[str], passwords: Mapping[str, str]) -> list[User]:
    """Everyone of a cluster. `passwords`: by user name, as `new_passwords` makes them.

    Raises: KeyError: one is missing.
    """
    services = [service_user(owner, passwords[owner]) for owner in OWNERS if owner != "dataplane"]
    on_nodes = [node_user(node, passwords[node_name(node)]) for node in nodes]
    return [User(OPERATOR, passwords[OPERATOR]), *services, *on_nodes]


def new_passwords(nodes: Iterable[str]) -> dict[str, str]:
    """A fresh password for each user of a cluster."""
    names = [OPERATOR, *(owner for owner in OWNERS if owner != "dataplane"), *map(node_name, nodes)]
    return {name: secrets.token_urlsafe(24) for name in names}


def _reading() -> list[str]:
    """What reading the logs takes: JetStream's API for them, and flow control."""
    calls = [f"$JS.API.{call}.{stream_of(owner)}{_TOKENS[call]}" for owner in OWNERS for call in _READ_API]
    return [*calls, "$JS.FC.>"]
