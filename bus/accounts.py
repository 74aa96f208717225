"""Who may say what: one user per service and per node, with the subjects that are its own. docs/threat-model.md has it
as a table.

A control service writes its own log and hands it out. A node is in an account of its own and speaks through a few
openings (`node`): it writes only the keys that bear its name, it reads, and whatever it names as the reply to a
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
from bus.subjects import (
    JOURNAL,
    LEASES,
    OWNERS,
    POD_STATUS,
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
MANY = "dataplane"  # the log of the nodes, which no service owns
CONTROL = tuple(owner for owner in OWNERS if owner != MANY)


def service_user(owner: str, password: str) -> User:
    """The user of the control service that owns `owner`'s log."""
    streams = [stream_of(owner), stream_of(MANY), LEASES, JOURNAL]
    if owner == "resources":
        streams += [stream_of(other) for other in CONTROL if other != owner]
    publish = [
        *(
            mapped(call(stream))
            for stream in (*map(stream_of, OWNERS), JOURNAL)
            for call in (read_of, last_of, info_of)
        ),
        *(mapped(call(LEASES)) for call in (last_of, info_of)),
        *(f"$JS.API.DIRECT.GET.{JOURNAL}.{VOUCHED[other].of(other)}" for other in CONTROL),
        *(f"$JS.API.STREAM.CREATE.{stream}" for stream in streams),
        log_of(owner),
        f"evt.{owner}.>",
        delta_of(owner),
        lease_of(owner),
        *(snapshot_of(other) for other in CONTROL),
    ]
    subscribe = [
        f"{inbox_of(owner)}.>",
        "delta.*",
        "evt.>",
        f"req.{owner}.>",
        lease_of(owner),
        *(stored_of(log_of(each)) for each in OWNERS),
    ]
    return User(owner, password, publish, subscribe)


def mapped(reading: str) -> str:
    """What the server makes of a subject for reading, in the cluster's own account, before it looks at permissions."""
    call, _, stream = reading.rpartition(".")
    return READING[f"{call}.*"].replace("$1", stream)


def node_name(node: str) -> str:
    """The user name of a node's dataplane, and the name of its account."""
    return f"node-{node}"


def node(name: str, password: str) -> Tenant:
    """One node: its own endpoints, its own events, questions that a node has."""
    own = escape(name)
    asks = [
        f"state.{MANY}.*.{own}.>",
        VOUCHED[MANY].of(name),
        f"evt.{MANY}.*.{own}",
        f"evt.{MANY}.*.{own}.>",
        *(call(stream_of(owner)) for owner in OWNERS for call in (read_of, last_of, info_of)),
        *(ask(owner) for owner in CONTROL for ask in (word_of, snapshot_of)),
        POD_STATUS.of(name),
    ]
    hears = [*(delta_of(owner) for owner in CONTROL), *(stored_of(log_of(owner)) for owner in OWNERS)]
    answers = [f"req.{MANY}.*.{own}"]
    subscribe = [f"{inbox_of(node_name(name))}.>", *hears, *answers]
    return Tenant(User(node_name(name), password, asks, subscribe), asks, hears, answers)


def users(passwords: Mapping[str, str]) -> list[User]:
    """Everyone of the cluster's own account. `passwords`: by user name, as `new_passwords` makes them.

    Raises: KeyError: one is missing.
    """
    return [User(OPERATOR, passwords[OPERATOR]), *(service_user(owner, passwords[owner]) for owner in CONTROL)]


def tenants(nodes: Iterable[str], passwords: Mapping[str, str]) -> list[Tenant]:
    """The nodes of a cluster. Raises: KeyError: a password is missing."""
    return [node(name, passwords[node_name(name)]) for name in nodes]


def new_passwords(nodes: Iterable[str]) -> dict[str, str]:
    """A fresh password for each user of a cluster."""
    names = [OPERATOR, *CONTROL, *map(node_name, nodes)]
    return {name: secrets.token_urlsafe(24) for name in names}
