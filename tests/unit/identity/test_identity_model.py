"""Label sets and their numbers, addresses and their owners."""

from __future__ import annotations

import time

import msgspec

from bus import labels
from bus.control import Claim, Say, Unsay
from bus.messages import Message
from bus.messages.dataplane import Endpoint
from bus.messages.identity import AddressIdentity, Identity
from bus.messages.ipam import Block
from bus.messages.resources import ContainerPort, Namespace, Node, Pod
from bus.subjects import ADDRESS, BLOCK, ENDPOINT, IDENTITY, NAMESPACE, NODE, POD
from services.identity.model import (
    BOUND_ELSEWHERE,
    CLAIMED_TWICE,
    INIT,
    NODE_ADDRESS,
    NOT_AN_ADDRESS,
    OUTSIDE_BLOCK,
    REMOTE_NODE,
    IdentityModel,
)


class Running:
    """A model with the log that its claims and sayings go to; `log` may be shared, as between two replicas."""

    def __init__(self, log: dict[str, Message] | None = None) -> None:
        self.reports: list[tuple[str, dict[str, str]]] = []
        self.model = IdentityModel(lambda reason, facts: self.reports.append((reason, facts)))
        self.log: dict[str, Message] = {} if log is None else log
        self.writes = 0
        for subject, message in self.log.items():
            if IDENTITY.has(subject):
                self.model.put(subject, message)

    def hear(self, *messages: Message) -> None:
        for message in messages:
            self.model.put(subject_of(message), message)

    def forget(self, *messages: Message) -> None:
        for message in messages:
            self.model.delete(subject_of(message))

    def settle(self) -> None:
        """Act until nothing is left to do."""
        while True:
            claimed = False
            for action in list(self.model.act()):
                match action:
                    case Claim(subject, message):
                        claimed = True
                        self.writes += subject not in self.log
                        self.model.put(subject, self.log.setdefault(subject, message))
                    case Say(subject, message):
                        self.writes += self.log.get(subject) != message
                        self.log[subject] = message
                    case Unsay(subject):
                        self.writes += 1
                        del self.log[subject]
            if not claimed:
                return

    def prune(self) -> None:
        for subject in self.log.keys() - set(self.model.said()):
            del self.log[subject]
            self.model.delete(subject) if IDENTITY.has(subject) else None

    def address(self, address: str) -> AddressIdentity | None:
        found = self.log.get(ADDRESS.of(address))
        assert found is None or isinstance(found, AddressIdentity)
        return found

    def numbers(self) -> dict[str, int]:
        """Label set as text -> number."""
        return {
            labels.labels_text(each.labels): each.number for each in self.log.values() if isinstance(each, Identity)
        }


def subject_of(message: Message) -> str:
    match message:
        case Pod():
            return POD.of(message.namespace, message.name)
        case Namespace():
            return NAMESPACE.of(message.name)
        case Node():
            return NODE.of(message.name)
        case Endpoint():
            return ENDPOINT.of(message.node, message.namespace, message.pod)
        case Block():
            return BLOCK.of(message.cidr)
        case Identity():
            return IDENTITY.of(str(message.number))
    raise AssertionError(message)


DEFAULT = Namespace(name="default")
NODES = (Node(name="one", addresses=["192.0.2.1"]), Node(name="two", addresses=["192.0.2.2", "198.51.100.2"]))
BLOCKS = (Block(cidr="10.0.1.0/24", node="one"), Block(cidr="10.0.2.0/24", node="two"))


def pod(name: str = "web", node: str = "one", uid: str = "1", host: bool = False, **given: str) -> Pod:
    return Pod(namespace="default", name=name, uid=uid, node=node, labels=given, host_network=host)


def endpoint(address: str, name: str = "web", node: str = "one", uid: str = "1", identity: int = 0) -> Endpoint:
    return Endpoint(
        node=node,
        namespace="default",
        pod=name,
        uid=uid,
        address=address,
        mac="02:00:00:00:00:01",
        interface="veth1",
        interface_index=7,
        identity=identity,
        state="ready",
    )


def cluster(log: dict[str, Message] | None = None) -> Running:
    running = Running(log)
    running.hear(DEFAULT, *NODES, *BLOCKS)
    running.settle()
    return running


def text_of(each: Pod, namespace: Namespace = DEFAULT) -> str:
    return labels.labels_text(labels.canonical_labels(each, namespace))


def number_of(each: Pod, namespace: Namespace = DEFAULT) -> int:
    return labels.number_of(text_of(each, namespace))


# numbers


def test_a_pod_has_its_number_before_it_has_an_address() -> None:
    running = cluster()
    running.hear(pod(node="", app="web"))
    running.settle()
    assert running.numbers() == {text_of(pod(app="web")): number_of(pod(app="web"))}


def test_pods_of_the_same_labels_share_a_number() -> None:
    running = cluster()
    running.hear(pod("a", app="web"), pod("b", node="two", app="web"))
    running.settle()
    assert len(running.numbers()) == 1


def test_the_numbers_are_the_same_after_the_whole_log_was_lost() -> None:
    pods = [pod(f"p{number}", app=f"app-{number}") for number in range(50)]
    first, second = cluster(), cluster()
    first.hear(*pods)
    second.hear(*reversed(pods))
    first.settle()
    second.settle()
    assert first.numbers() == second.numbers()
    assert len(set(first.numbers().values())) == 50


def test_a_lost_race_takes_the_next_number() -> None:
    wanted = number_of(pod(app="web"))
    other = Identity(number=wanted, labels={"k8s:app": "other"})
    running = cluster()
    running.log[IDENTITY.of(str(wanted))] = other  # another replica's, not heard of yet
    running.hear(pod(app="web"))
    running.settle()
    assert running.numbers()[text_of(pod(app="web"))] == wanted + 1
    assert running.log[IDENTITY.of(str(wanted))] == other


def test_a_claim_that_cannot_be_carried_out_is_not_made_over_and_over() -> None:
    running = cluster()
    running.hear(pod(app="web"))
    assert len(list(running.model.act())) == 1
    assert not list(running.model.act())
    running.model.delete(IDENTITY.of(str(number_of(pod(app="web")))))
    running.hear(pod("b", app="other"))
    assert len(list(running.model.act())) == 1


def test_a_number_that_was_taken_from_a_pod_is_claimed_again() -> None:
    running = cluster()
    running.hear(pod(app="web"))
    running.settle()
    gone = running.log.pop(IDENTITY.of(str(number_of(pod(app="web")))))
    running.forget(gone)
    running.settle()
    assert IDENTITY.of(str(number_of(pod(app="web")))) in running.log


def test_two_replicas_that_both_believe_to_be_active_give_no_number_twice() -> None:
    log: dict[str, Message] = {}
    pods = [pod(f"p{number}", app=f"app-{number}") for number in range(30)]
    one, two = cluster(log), cluster(log)
    one.hear(*pods[:20])
    two.hear(*pods[10:])
    for claim_one, claim_two in zip(list(one.model.act()), list(two.model.act()), strict=False):
        for running, action in ((one, claim_one), (two, claim_two)):
            assert isinstance(action, Claim)
            running.model.put(action.subject, log.setdefault(action.subject, action.message))
    one.settle()
    two.settle()
    assert len(one.numbers()) == 30
    assert len(set(one.numbers().values())) == 30


def test_new_namespace_labels_give_its_pods_new_identities() -> None:
    running = cluster()
    running.hear(pod(app="web"), endpoint("10.0.1.5"))
    running.settle()
    assert running.address("10.0.1.5") is not None
    renamed = Namespace(name="default", labels={"team": "a"})
    running.hear(renamed)
    running.settle()
    found = running.address("10.0.1.5")
    assert found is not None
    assert found.identity == number_of(pod(app="web"), renamed) != number_of(pod(app="web"))


def test_a_pod_whose_namespace_was_never_heard_has_no_number_yet() -> None:
    running = Running()
    running.hear(pod(app="web"))
    running.settle()
    assert not running.log
    running.hear(DEFAULT)
    running.settle()
    assert len(running.numbers()) == 1


def test_a_pod_of_the_same_name_never_inherits_the_identity_of_the_one_before() -> None:
    running = cluster()
    running.hear(pod(app="admin"), endpoint("10.0.1.5"))
    running.settle()
    running.forget(DEFAULT)
    running.hear(pod(uid="2", app="guest"), endpoint("10.0.1.5", uid="2"))
    running.settle()
    found = running.address("10.0.1.5")
    assert found is not None
    assert found.identity == INIT


def test_an_unused_number_stays_while_the_service_runs_and_goes_when_one_starts() -> None:
    running = cluster()
    running.hear(pod("a", app="old"), pod("b", app="new"))
    running.settle()
    running.forget(pod("a", app="old"))
    running.settle()
    assert len(running.numbers()) == 2
    restarted = cluster(running.log)
    restarted.hear(pod("b", app="new"))
    restarted.settle()
    restarted.prune()
    assert set(restarted.numbers()) == {text_of(pod(app="new"))}


def test_a_number_that_a_nodes_endpoint_still_has_outlives_its_pod() -> None:
    running = cluster()
    running.hear(pod(app="web"))
    running.settle()
    restarted = cluster(running.log)
    restarted.hear(endpoint("10.0.1.5", identity=number_of(pod(app="web"))))
    restarted.settle()
    restarted.prune()
    assert len(restarted.numbers()) == 1


def test_a_pod_in_the_hosts_network_has_no_identity_of_its_own() -> None:
    running = cluster()
    running.hear(pod(host=True, app="agent"))
    running.settle()
    assert not running.numbers()


# addresses


def test_an_address_says_what_its_pod_calls_its_ports_and_nothing_of_another_pod_of_that_name() -> None:
    running = cluster()
    ports = [ContainerPort(name="web", port=8001), ContainerPort(port=9)]
    running.hear(msgspec.structs.replace(pod(app="web"), ports=ports), endpoint("10.0.1.7"))
    running.settle()
    found = running.address("10.0.1.7")
    assert found is not None and found.ports == ports[:1]
    running.hear(msgspec.structs.replace(pod(app="web", uid="2"), ports=ports))
    running.settle()
    found = running.address("10.0.1.7")
    assert found is not None and (found.identity, found.ports) == (INIT, [])


def test_an_address_is_its_pods_identity_node_and_way() -> None:
    running = cluster()
    running.hear(pod(node="two", app="web"), endpoint("10.0.2.7", node="two"))
    running.settle()
    assert running.address("10.0.2.7") == AddressIdentity(
        address="10.0.2.7",
        identity=number_of(pod(app="web")),
        node="two",
        node_address="192.0.2.2",
        pod="default/web",
    )


def test_every_address_of_a_node_is_a_remote_node() -> None:
    running = cluster()
    found = running.address("198.51.100.2")
    assert found == AddressIdentity(address="198.51.100.2", identity=REMOTE_NODE, node="two", node_address="192.0.2.2")
    running.forget(NODES[1])
    running.settle()
    assert running.address("198.51.100.2") is None
    assert running.address("192.0.2.1") is not None


def test_an_address_goes_with_its_endpoint_and_moves_with_it() -> None:
    running = cluster()
    running.hear(pod(app="web"), endpoint("10.0.1.5"))
    running.settle()
    running.hear(endpoint("10.0.1.6"))
    running.settle()
    assert running.address("10.0.1.5") is None
    assert running.address("10.0.1.6") is not None
    running.forget(endpoint("10.0.1.6"))
    running.settle()
    assert running.address("10.0.1.6") is None


def test_a_pods_address_is_init_and_never_the_world_while_its_pod_is_not_certain() -> None:
    running = cluster()
    for before in ([], [pod(uid="another", app="web")], [pod(node="", app="web")]):
        running.hear(*before, endpoint("10.0.1.5"))
        running.settle()
        found = running.address("10.0.1.5")
        assert found is not None
        assert found.identity == INIT
    running.hear(pod(app="web"))
    running.settle()
    found = running.address("10.0.1.5")
    assert found is not None
    assert found.identity == number_of(pod(app="web"))


def refused(running: Running, address: str) -> list[str]:
    return sorted(running.model.refused.get(address, {}).values())


def test_a_node_cannot_take_an_address_outside_its_blocks() -> None:
    running = cluster()
    running.hear(pod("victim", node="two"), endpoint("10.0.2.7", "victim", "two"), pod("thief"))
    running.settle()
    before = running.address("10.0.2.7")
    running.hear(endpoint("10.0.2.7", "thief", "one"))
    running.settle()
    assert running.address("10.0.2.7") == before
    assert refused(running, "10.0.2.7") == [OUTSIDE_BLOCK]
    assert running.reports == [(OUTSIDE_BLOCK, {"address": "10.0.2.7", "node": "one", "pod": "default/thief"})]
    assert running.model.refusals[OUTSIDE_BLOCK] == 1


def test_a_node_cannot_take_the_identity_of_a_pod_that_is_bound_to_another() -> None:
    running = cluster()
    running.hear(pod("victim", node="two", app="admin"), endpoint("10.0.1.9", "victim", "one"))
    running.settle()
    assert running.address("10.0.1.9") is None
    assert refused(running, "10.0.1.9") == [BOUND_ELSEWHERE]


def test_a_node_cannot_take_the_address_of_a_node() -> None:
    running = cluster()
    running.hear(Block(cidr="192.0.2.0/24", node="one"), pod(), endpoint("192.0.2.2"))
    running.settle()
    found = running.address("192.0.2.2")
    assert found is not None
    assert found.identity == REMOTE_NODE
    assert refused(running, "192.0.2.2") == [NODE_ADDRESS]


def test_an_address_that_two_claim_rightly_is_nobodys_until_one_lets_go() -> None:
    running = cluster()
    running.hear(Block(cidr="10.0.0.0/16", node="two"))  # overlaps the block of node one
    running.hear(pod("a"), pod("b", node="two"), endpoint("10.0.1.5", "a"), endpoint("10.0.1.5", "b", "two"))
    running.settle()
    assert running.address("10.0.1.5") is None
    assert refused(running, "10.0.1.5") == [CLAIMED_TWICE, CLAIMED_TWICE]
    running.forget(endpoint("10.0.1.5", "b", "two"))
    running.settle()
    found = running.address("10.0.1.5")
    assert found is not None
    assert found.pod == "default/a"
    assert not running.model.refused


def test_a_nodes_address_that_two_nodes_have_is_nobodys() -> None:
    running = cluster()
    running.hear(Node(name="three", addresses=["192.0.2.1"]))
    running.settle()
    assert running.address("192.0.2.1") is None
    assert refused(running, "192.0.2.1") == [CLAIMED_TWICE, CLAIMED_TWICE]


def test_what_is_no_address_or_no_block_is_refused_and_breaks_nothing() -> None:
    running = cluster()
    running.hear(Block(cidr="nonsense", node="one"), pod(), endpoint("10.0.1.300"))
    running.settle()
    assert refused(running, "10.0.1.300") == [NOT_AN_ADDRESS]
    running.forget(Block(cidr="nonsense", node="one"), endpoint("10.0.1.300"))
    running.model.delete(IDENTITY.of("nonsense"))
    running.settle()
    assert not running.model.refused


def test_a_refused_address_is_published_once_its_node_holds_the_block() -> None:
    running = cluster()
    running.hear(pod(), endpoint("10.0.3.5"))
    running.settle()
    assert refused(running, "10.0.3.5") == [OUTSIDE_BLOCK]
    running.hear(Block(cidr="10.0.3.0/24", node="one"))
    running.settle()
    assert running.address("10.0.3.5") is not None
    running.forget(Block(cidr="10.0.3.0/24", node="one"))
    running.settle()
    assert running.address("10.0.3.5") is None


def test_hearing_the_same_again_says_nothing_and_reports_nothing() -> None:
    running = cluster()
    everything = (pod(), endpoint("10.0.1.5"), pod("thief", node="two"), endpoint("10.0.1.6", "thief", "two"))
    running.hear(*everything)
    running.settle()
    writes, reports = running.writes, len(running.reports)
    running.hear(DEFAULT, *NODES, *BLOCKS, *everything)
    running.settle()
    assert (running.writes, len(running.reports)) == (writes, reports)


def test_what_is_said_is_what_the_log_holds() -> None:
    running = cluster()
    running.hear(pod("a"), pod("b", node="two", app="x"), endpoint("10.0.1.5", "a"), endpoint("10.0.2.5", "b", "two"))
    running.settle()
    assert set(running.model.said()) == set(running.log)


def test_one_more_pod_among_ten_thousand_is_a_matter_of_milliseconds() -> None:
    running = cluster()
    running.hear(Block(cidr="10.128.0.0/9", node="one"))
    for number in range(10_000):
        name = f"p{number}"
        running.hear(pod(name, app=f"app-{number}"), endpoint(f"10.128.{number // 250}.{number % 250}", name))
    running.settle()
    started = time.perf_counter()
    running.hear(pod("new", app="new"), endpoint("10.129.0.1", "new"))
    running.settle()
    assert time.perf_counter() - started < 0.05
    assert running.address("10.129.0.1") is not None


# -- two families

DUAL = (
    Node(name="one", addresses=["192.0.2.1", "2001:db8::1"]),
    Node(name="two", addresses=["2001:DB8:0::2", "192.0.2.2"]),
    Node(name="four", addresses=["192.0.2.4"]),
)
DUAL_BLOCKS = (
    Block(cidr="10.0.1.0/24", node="one"),
    Block(cidr="fd00:1::/64", node="one"),
    Block(cidr="fd00:4::/64", node="four"),
)


def dual() -> Running:
    running = Running()
    running.hear(DEFAULT, *DUAL, *DUAL_BLOCKS)
    running.settle()
    return running


def of_both(four: str, six: str, name: str = "web", node: str = "one") -> Endpoint:
    return msgspec.structs.replace(endpoint(four, name, node), addresses=[four, six])


def test_a_pod_has_one_identity_at_each_of_its_addresses() -> None:
    running = dual()
    running.hear(pod(app="web"), of_both("10.0.1.5", "FD00:1:0::5"))
    running.settle()
    four, six = running.address("10.0.1.5"), running.address("fd00:1::5")
    assert four is not None and six is not None and four.pod == six.pod == "default/web"
    assert four.identity == six.identity == number_of(pod(app="web"))


def test_the_way_to_an_address_is_its_nodes_address_of_the_same_family() -> None:
    running = dual()
    running.hear(pod(), of_both("10.0.1.5", "fd00:1::5"), pod("web4", "four"), endpoint("fd00:4::5", "web4", "four"))
    running.settle()
    ways = {
        "10.0.1.5": "192.0.2.1",
        "fd00:1::5": "2001:db8::1",
        "fd00:4::5": "192.0.2.4",  # the node has no IPv6 address of its own
        "192.0.2.2": "192.0.2.2",
        "2001:db8::2": "2001:db8::2",
    }
    found = {address: said.node_address for address in ways if (said := running.address(address)) is not None}
    assert found == ways


def test_an_address_that_a_pod_loses_is_nobodys_and_the_other_stays() -> None:
    running = dual()
    running.hear(pod(), of_both("10.0.1.5", "fd00:1::5"))
    running.settle()
    running.hear(endpoint("10.0.1.5"))
    running.settle()
    assert running.address("fd00:1::5") is None and running.address("10.0.1.5") is not None
    running.forget(endpoint("10.0.1.5"))
    running.settle()
    assert running.address("10.0.1.5") is None


def test_each_address_of_a_pod_is_believed_or_refused_by_itself() -> None:
    running = dual()
    running.hear(pod(), of_both("10.0.1.5", "fd00:4::5"), pod("mapped"), endpoint("::ffff:10.0.1.6", "mapped"))
    running.hear(pod("zone"), endpoint("fd00:1::7%eth0", "zone"), pod("node"), endpoint("2001:db8::2", "node"))
    running.settle()
    assert running.address("10.0.1.5") is not None
    assert running.address("fd00:4::5") is None and running.address("10.0.1.6") is None
    assert running.model.refusals == {OUTSIDE_BLOCK: 1, NOT_AN_ADDRESS: 2, NODE_ADDRESS: 1}


def test_one_ipv6_address_claimed_in_two_spellings_is_claimed_twice() -> None:
    running = dual()
    running.hear(pod("a"), endpoint("fd00:1::5", "a"), pod("b"), endpoint("FD00:1:0:0::5", "b"))
    running.settle()
    assert running.address("fd00:1::5") is None
    assert running.model.refusals == {CLAIMED_TWICE: 2}
