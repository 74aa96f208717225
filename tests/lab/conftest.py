"""A lab for each routing mode and choice of address families, one after the other, for the whole layer; a Kubernetes
namespace of its own for each test.

In a lab with both families a test's packets are of one of them, of IPv6 with a tunnel and of IPv4 without; tests of a
module that says EACH_FAMILY run once for each. What is marked `both_families` runs only where there are two: it takes
long, and nothing in it is of one family alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import state
from lab.plan import FAMILIES, Family
from tests.conftest import SHARED_LAB
from tests.lab.space import Space
from tests.labs import Lab

# What the tests provoke. Everything else that a node drops fails the run.
# The last is every pod's kernel, which tells routers what multicast groups it is in: there is no such router.
EXPECTED_DROPS = (
    "Policy denied",
    "Policy denied by denylist",
    "Invalid source ip",
    "Service backend not found",
    "Forbidden ICMPv6 message",
)

LEASES = {"leaseDuration": "3s", "leaseRenewDeadline": "1s", "leaseRetryPeriod": "200ms"}
LOCK = pytest.StashKey[int]()  # a descriptor of the file that is locked


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without root nothing here can run; say so instead of failing."""
    be_alone(config)
    for item in items:
        if SHARED_LAB.match(item.nodeid) and "lab" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid}: its parameters read as those of a shared lab, and it uses none")
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="labs need root: namespaces and BPF")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where several processes run the tests, the one that starts them collects nothing."""
    be_alone(session.config)


def be_alone(config: pytest.Config) -> None:
    """The labs' names are fixed, so that what a killed run left is found: two runs at once would take each other's.

    Held until this process ends.
    """
    if LOCK in config.stash or hasattr(config, "workerinput") or os.geteuid():
        return
    state.RUN.mkdir(parents=True, exist_ok=True)
    config.stash[LOCK] = os.open(state.RUN / ".tests", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(config.stash[LOCK], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pytest.exit("another run of tests/lab is at work on this machine; wait for its end", 1)


@dataclass(frozen=True)
class Cluster:
    """How a lab of the layer is set up."""

    mode: str
    families: tuple[Family, ...]

    @property
    def name(self) -> str:
        return f"test-{self.mode}{'' if len(self.families) > 1 else self.families[0]}"

    @property
    def one_family(self) -> tuple[Family, ...]:
        """Of both, IPv6 with a tunnel and IPv4 without."""
        return self.families[-1:] if self.mode == "tunnel" else self.families[:1]

    @property
    def values(self) -> dict[str, object]:
        """One of the labs has its bus over TLS, both ways. Those with both families have a relay of flows,
        and nodes announce."""
        tls = self.mode == "native" and self.families == (6,)
        values: dict[str, object] = {"routingMode": self.mode, "bus.tls.enabled": tls, "bus.tls.verifyClients": tls}
        if len(self.families) > 1:
            values |= {"l2announcements.enabled": True} | {
                f"l2announcements.{key}": time for key, time in LEASES.items()
            }
        values["hubble.relay.enabled"] = len(self.families) > 1
        return values | {f"ipv{each}.enabled": each in self.families for each in FAMILIES}


CLUSTERS = [Cluster(mode, families) for families in ((4,), (6,), (4, 6)) for mode in ("tunnel", "native")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`lab` and `family` come as pairs, a cluster's together, so that each cluster is made once."""
    if "lab" in metafunc.fixturenames:
        all_of_them = getattr(metafunc.module, "EACH_FAMILY", False)
        least = 2 if metafunc.definition.get_closest_marker("both_families") else 1
        clusters = [each for each in CLUSTERS if len(each.families) >= least]
        pairs = [(each, family) for each in clusters for family in (each.families if all_of_them else each.one_family)]
        ids = [f"{cluster.mode}{'-dual' * (len(cluster.families) > 1)}-v{family}" for cluster, family in pairs]
        cells = [pytest.param(*pair, id=name) for pair, name in zip(pairs, ids, strict=True)]
        metafunc.parametrize(("lab", "family"), cells, indirect=True, scope="session")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of three nodes that many tests share."""
    cluster: Cluster = request.param
    with Lab(cluster.name, values=cluster.values, expected_drops=EXPECTED_DROPS) as made:
        yield made


@pytest.fixture(scope="session")
def family(request: pytest.FixtureRequest) -> Family:
    """What the test's packets are."""
    chosen: Family = request.param
    return chosen


@pytest.fixture
def space(lab: Lab, family: Family, request: pytest.FixtureRequest) -> Iterator[Space]:
    """A fresh Kubernetes namespace, removed with all that is in it."""
    with fresh_space(lab, family, request.node.nodeid) as made:
        yield made


@contextmanager
def fresh_space(lab: Lab, family: Family, test: str) -> Iterator[Space]:
    """A Kubernetes namespace of `test`, by any name of it."""
    digest = format(abs(hash(test)) % 16**8, "08x")
    made = Space(lab, f"t-{digest}", family)
    manifest = f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {made.name}\n"
    lab.apply(manifest)
    yield made
    lab.delete(manifest)
