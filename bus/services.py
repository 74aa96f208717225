"""Every service, a row each: who there is, where it runs, and what it may do on the bus.

From a row follow the service's questions about its health, its users and their rights (bus/accounts.py), its process in
a lab (lab/programs.py), and that `plexus status` and `plexus wait` ask how it is. What it says is in bus/subjects.py: a
service with a `State` there has a log of its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from bus.subjects import DECIDERS, L2_RENEW, OWNERS, POD_STATUS, Request, health_of

CONTROL = "control"  # the instance of a service that is one per cluster


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service. Its name is that of its folder, of its log, and of its questions: `req.<name>.<verb>`."""

    name: str
    is_on_nodes: bool = False  # a process on each node, which writes only the keys that bear the node's name
    is_root: bool = False  # nothing on the bus causes what it says: its log's sequences are revisions (bus/revision.py)
    makes_logs: bool = False  # makes the logs of the others, too, when they are missing
    asks: tuple[
        Request[Any, Any], ...
    ] = ()  # questions that it may ask, beside those for reading; on a node, of its own
    program: str = ""  # `python -m services.<program>`; "": its name
    switch: str = ""  # the chart's key that turns it on and off; "": it is always there
    is_on: bool = True  # where nobody turns it
    user: str = ""  # on a node, what its user is called before the node's name; "": its name

    @property
    def module(self) -> str:
        """What Python calls its program."""
        return f"services.{self.program or self.name}"

    def runs_with(self, settings: Mapping[str, Any]) -> bool:
        """By the chart's keys, as far as they are known."""
        return bool(settings.get(self.switch, self.is_on))

    @property
    def has_log(self) -> bool:
        """It says something that lasts."""
        return self.name in OWNERS

    def user_on(self, node: str) -> str:
        """The user name of this service's process on a node, and the name of its account."""
        return f"{self.user or self.name}-{node}"


SERVICES = (
    Service(name="resources", is_root=True, makes_logs=True),
    Service(name="identity"),
    Service(name="ipam"),
    Service(name="lb"),
    Service(name="policy"),
    Service(name="l2announce"),
    Service(name="dataplane", is_on_nodes=True, is_root=True, asks=(POD_STATUS, L2_RENEW), user="node"),
    Service(name="hubble", is_on_nodes=True, asks=(DECIDERS,), switch="hubble.enabled"),
    Service(name="relay", program="hubble.relay", switch="hubble.relay.enabled", is_on=False),
)

BY_NAME = {each.name: each for each in SERVICES}
CONTROL_SERVICES = tuple(each.name for each in SERVICES if not each.is_on_nodes)
NODE_SERVICES = tuple(each.name for each in SERVICES if each.is_on_nodes)
ROOTS = tuple(each.name for each in SERVICES if each.is_root)
MANY_WRITERS = frozenset(NODE_SERVICES)  # logs without one owner: each node writes its own keys

HEALTH = {each.name: health_of(each.name) for each in SERVICES}
"""How a service is. The last token is the node's name, or `CONTROL`."""


def instances(nodes: Iterable[str] = (), settings: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """(service, instance) of every process of a cluster: the control services, then those of each node.

    Args:
        settings: the cluster's, by the chart's keys, as far as they are known.
    """
    there = [each for each in SERVICES if each.runs_with(settings or {})]
    found = [(each.name, CONTROL) for each in there if not each.is_on_nodes]
    return found + [(each.name, node) for node in nodes for each in there if each.is_on_nodes]
