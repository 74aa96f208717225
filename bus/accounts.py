"""Who may say what: a user for each row of bus/services.py, with the subjects that are its own.
docs/threat-model.md has it as a table.

A control service writes its own log and hands it out. A node's is in an account of its own and speaks through a few
openings (`node_user`): it writes only the keys that bear its name, it reads, and whatever it names as the reply to a
question is a subject of its own account. For permissions do not bind replies: the server sends what it answers, an
acknowledgement or stored bytes, to whatever subject the question names, another's log or a lease among them.

Nobody but the operator may make consumers: the subject that one delivers to is not checked against its maker's
permissions. Logs are read by direct gets (bus/reader.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from bus.link import inbox_of
from bus.server import Tenant, User
from bus.services import SERVICES, Service
from bus.subjects import (
    JOURNAL,
    LEASES,
    OWNERS,
    READING,
    VOUCHED,
    delta_of,
    escape,
    info_of,
    last_of,
    lease_of,
    log_of,
    read_of,
    snapshot_of,
    stored_of,
    stream_of,
    word_of,
)

OPERATOR = "operator"  # the `plexus` command and whoever starts the cluster: everything
CONTROL = tuple(each for each in SERVICES if not each.is_on_nodes)
ON_NODES = tuple(each for each in SERVICES if each.is_on_nodes)
OWNED = tuple(each.name for each in CONTROL if each.has_log)  # logs that a service hands out
WRITTEN_BY_NODES = tuple(each.name for each in ON_NODES if each.has_log)  # logs that no service owns


def control_user(service: Service, password: str) -> User:
    """The user of a control service."""
    name = service.name
    own = [name] if service.has_log else []
    streams = [*map(stream_of, (*own, *WRITTEN_BY_NODES)), LEASES, JOURNAL] if own else []
    if service.makes_logs:
        streams += [stream_of(other) for other in OWNED if other != name]
    publish = [
        *(
            mapped(call(stream))
            for stream in (*map(stream_of, OWNERS), JOURNAL)
            for call in (read_of, last_of, info_of)
        ),
        *(mapped(call(LEASES)) for call in (last_of, info_of)),
        *(f"$JS.API.DIRECT.GET.{JOURNAL}.{VOUCHED[other].of(other)}" for other in OWNED),
        *(f"$JS.API.STREAM.CREATE.{stream}" for stream in streams),
        *map(log_of, own),
        f"evt.{name}.>",
        *map(delta_of, own),
        lease_of(name),
        *map(snapshot_of, OWNED),
        *(request.all() for request in service.asks),
    ]
    subscribe = [
        f"{inbox_of(name)}.>",
        "delta.*",
        "evt.>",
        f"req.{name}.>",
        lease_of(name),
        *(stored_of(log_of(each)) for each in OWNERS),
    ]
    return User(name, password, publish, subscribe)


def mapped(reading: str) -> str:
    """What the server makes of a subject for reading, in the cluster's own account, before it looks at permissions."""
    call, _, stream = reading.rpartition(".")
    return READING[f"{call}.*"].replace("$1", stream)


def node_user(service: Service, node: str, password: str) -> Tenant:
    """A service of one node: its own keys, its own events, questions that a node has."""
    own, name, user = escape(node), service.name, service.user_on(node)
    keys = [f"state.{name}.*.{own}.>", VOUCHED[name].of(node)] if service.has_log else []
    asks = [
        *keys,
        f"evt.{name}.*.{own}",
        f"evt.{name}.*.{own}.>",
        *(call(stream_of(owner)) for owner in OWNERS for call in (read_of, last_of, info_of)),
        *(ask(owner) for owner in OWNED for ask in (word_of, snapshot_of)),
        *(request.of(node) for request in service.asks),
    ]
    hears = [*map(delta_of, OWNED), *(stored_of(log_of(owner)) for owner in OWNERS)]
    answers = [f"req.{name}.*.{own}"]
    subscribe = [f"{inbox_of(user)}.>", *hears, *answers]
    return Tenant(User(user, password, asks, subscribe), asks, hears, answers)


def users(passwords: Mapping[str, str]) -> list[User]:
    """Everyone of the cluster's own account. `passwords`: by user name, as `new_passwords` makes them.

    Raises: KeyError: one is missing.
    """
    return [User(OPERATOR, passwords[OPERATOR]), *(control_user(each, passwords[each.name]) for each in CONTROL)]


def tenants(nodes: Iterable[str], passwords: Mapping[str, str]) -> list[Tenant]:
    """The services of a cluster's nodes. Raises: KeyError: a password is missing."""
    return [node_user(each, node, passwords[each.user_on(node)]) for node in nodes for each in ON_NODES]


def new_passwords(nodes: Iterable[str]) -> dict[str, str]:
    """A fresh password for each user of a cluster."""
    names = [OPERATOR, *(each.name for each in CONTROL), *(each.user_on(node) for node in nodes for each in ON_NODES)]
    return {name: secrets.token_urlsafe(24) for name in names}
