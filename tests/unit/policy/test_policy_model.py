"""Policies become rules that name selectors: what is said, in which order, and how little of it."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from bus import labels
from bus.codec import LIMIT_BYTES, TooLarge, encode
from bus.control import Action, Say, Unsay
from bus.messages import Message
from bus.messages.identity import Identity
from bus.messages.policy import PolicyRules, Selector
from bus.messages.resources import (
    CIDRGroup,
    ContainerPort,
    EndpointSlice,
    LabelSelector,
    Namespace,
    Peer,
    Pod,
    Policy,
    PortRange,
    Requirement,
    Rule,
    Service,
)
from bus.subjects import CIDR_GROUP, ENDPOINT_SLICE, IDENTITY, NAMESPACE, POD, POLICY, RULES, SELECTOR, SERVICE
from services.policy.model import NOT_TAKEN, PolicyModel

DEFAULT = Namespace(name="default")


def need(key: str, *values: str) -> LabelSelector:
    return LabelSelector(requirements=[Requirement(key=f"k8s:{key}", operator="In", values=list(values))])


def ingress(*peers: LabelSelector, ports: Iterable[PortRange] = ()) -> Rule:
    return Rule(direction="ingress", peers=[Peer(selector=each) for each in peers], ports=list(ports))


def policy(*rules: Rule, name: str = "rule1", subject: LabelSelector | None = None) -> Policy:
    return Policy(
        kind="CiliumNetworkPolicy",
        namespace="default",
        name=name,
        subject=need("org", "empire") if subject is None else subject,
        rules=list(rules),
        deny_ingress_by_default=True,
    )


def pod(name: str, *ports: ContainerPort, host: bool = False, **given: str) -> Pod:
    return Pod(namespace="default", name=name, uid=name, labels=given, ports=list(ports), host_network=host)


def identity(number: int, each: Pod) -> Identity:
    return Identity(number=number, labels=labels.canonical_labels(each, DEFAULT))


def subject_of(message: Message) -> str:
    match message:
        case Policy():
            return POLICY.of(message.kind, message.namespace, message.name)
        case Identity():
            return IDENTITY.of(str(message.number))
        case Pod():
            return POD.of(message.namespace, message.name)
        case Namespace():
            return NAMESPACE.of(message.name)
        case CIDRGroup():
            return CIDR_GROUP.of(message.name)
        case Service():
            return SERVICE.of(message.namespace, message.name)
        case EndpointSlice():
            return ENDPOINT_SLICE.of(message.namespace, message.name)
    raise AssertionError(message)


class Running:
    """A model and what it has said, in order."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, str]] = []
        self.model = PolicyModel(lambda reason, policy: self.reports.append((reason, policy)))
        self.log: dict[str, Message] = {}

    def hear(self, *messages: Message) -> list[Action]:
        for message in messages:
            self.model.put(subject_of(message), message)
        return self.act()

    def forget(self, *messages: Message) -> list[Action]:
        for message in messages:
            self.model.delete(subject_of(message))
        return self.act()

    def act(self) -> list[Action]:
        done: list[Action] = []
        while stage := list(self.model.act()):
            self.carry_out(stage)
            done += stage
        assert set(self.model.said()) == set(self.log)
        return done

    def carry_out(self, stage: list[Action]) -> None:
        for action in stage:
            match action:
                case Say(subject, message):
                    assert self.log.get(subject) != message, "said twice"
                    self.log[subject] = message
                case Unsay(subject):
                    del self.log[subject]
            self.check_references()

    def check_references(self) -> None:
        """At every moment, whatever rules name has been said."""
        for message in self.log.values():
            if isinstance(message, PolicyRules):
                assert SELECTOR.of(message.subject) in self.log
                for rule in (*message.rules, *message.denies):
                    assert all(SELECTOR.of(key) in self.log for key in rule.selectors)
                    assert not rule.subject or SELECTOR.of(rule.subject) in self.log

    def rules(self, name: str = "rule1") -> PolicyRules:
        found = self.log[RULES.of("CiliumNetworkPolicy", "default", name)]
        assert isinstance(found, PolicyRules)
        return found

    def members(self, selector: LabelSelector) -> list[int]:
        return self.members_of(labels.selector_id(selector))

    def members_of(self, key: str) -> list[int]:
        found = self.log[SELECTOR.of(key)]
        assert isinstance(found, Selector)
        return found.members


EMPIRE, SHIPS, REBELS = need("org", "empire"), need("app", "tiefighter", "destroyer"), need("org", "alliance")


def test_a_rule_names_its_selectors_and_they_name_their_members() -> None:
    running = Running()
    running.hear(
        identity(1000, pod("deathstar", org="empire", app="deathstar")),
        identity(2000, pod("tiefighter", org="empire", app="tiefighter")),
        identity(3000, pod("xwing", org="alliance", app="xwing")),
        policy(ingress(SHIPS, ports=[PortRange(protocol="TCP", port=80)])),
    )
    found = running.rules()
    assert found.subject == labels.selector_id(EMPIRE)
    assert found.deny_ingress_by_default
    assert not found.deny_egress_by_default
    assert [rule.selectors for rule in found.rules] == [[labels.selector_id(SHIPS)]]
    assert running.members(EMPIRE) == [1000, 2000]
    assert running.members(SHIPS) == [2000]


def test_a_new_identity_is_one_delta_for_each_selector_that_selects_it_and_no_rule_again() -> None:
    running = Running()
    running.hear(policy(ingress(SHIPS)), policy(ingress(REBELS), name="rule2"))
    actions = running.hear(identity(2000, pod("tiefighter", org="empire", app="tiefighter")))
    assert {action.subject for action in actions} == {
        SELECTOR.of(labels.selector_id(EMPIRE)),
        SELECTOR.of(labels.selector_id(SHIPS)),
    }
    assert running.hear(identity(2000, pod("tiefighter", org="empire", app="tiefighter"))) == []


def test_an_identity_that_is_gone_is_no_member() -> None:
    running = Running()
    ship = identity(2000, pod("tiefighter", app="tiefighter"))
    running.hear(policy(ingress(SHIPS)), ship)
    running.forget(ship, ship)
    assert running.members(SHIPS) == []


def test_a_selector_stays_as_long_as_a_policy_names_it() -> None:
    running = Running()
    one, two = policy(ingress(SHIPS)), policy(ingress(SHIPS), name="rule2")
    running.hear(one, two)
    assert running.forget(one) == [Unsay(RULES.of("CiliumNetworkPolicy", "default", "rule1"))]
    gone = [action.subject for action in running.forget(two)]
    assert gone[0] == RULES.of("CiliumNetworkPolicy", "default", "rule2")
    assert set(gone[1:]) == {SELECTOR.of(labels.selector_id(EMPIRE)), SELECTOR.of(labels.selector_id(SHIPS))}
    assert not running.log


def test_a_changed_policy_never_names_a_selector_that_is_not_there() -> None:
    running = Running()
    running.hear(policy(ingress(SHIPS)), policy(ingress(REBELS, SHIPS), name="rule2"))
    running.hear(policy(ingress(REBELS)))  # Running checks after each single action
    running.hear(policy(ingress(), subject=REBELS))
    running.hear(policy(ingress(SHIPS, SHIPS)))
    running.forget(policy(), policy(name="rule2"))
    assert not running.log


def test_no_rule_is_said_in_the_stage_in_which_its_selectors_are() -> None:
    """The writes of one stage may arrive in any order."""
    model = PolicyModel()
    model.put(subject_of(policy()), policy(ingress(SHIPS)))
    stages = [[type(action.message) for action in model.act() if isinstance(action, Say)] for _ in range(3)]
    assert stages == [[Selector, Selector], [PolicyRules], []]
    model.delete(subject_of(policy()))
    assert [[action.subject.split(".")[2] for action in model.act()] for _ in range(3)] == [
        ["rules"],
        ["selector", "selector"],
        [],
    ]


def test_a_selector_named_again_before_it_was_taken_back_stays() -> None:
    model = PolicyModel()
    model.put(subject_of(policy()), policy(ingress(SHIPS)))
    while list(model.act()):
        pass
    model.delete(subject_of(policy()))
    assert len(list(model.act())) == 1  # the rules; the selectors would be next
    again = policy(ingress(SHIPS), name="rule2")
    model.put(subject_of(again), again)
    assert [action.subject for action in model.act()] == [RULES.of("CiliumNetworkPolicy", "default", "rule2")]
    assert not list(model.act())


def test_selectors_that_say_the_same_are_one() -> None:
    running = Running()
    same = LabelSelector(requirements=[*reversed(SHIPS.requirements), *SHIPS.requirements])
    running.hear(policy(ingress(SHIPS)), policy(ingress(same), name="rule2"))
    assert sum(isinstance(message, Selector) for message in running.log.values()) == 2


@pytest.mark.parametrize(
    "selector",
    [
        LabelSelector(),
        LabelSelector(requirements=[Requirement(key="k8s:org", operator="NotIn", values=["alliance"])]),
        LabelSelector(requirements=[Requirement(key="k8s:nothing", operator="DoesNotExist")]),
        LabelSelector(requirements=[Requirement(key="k8s:app", operator="Exists")]),
        SHIPS,
    ],
)
def test_members_do_not_depend_on_who_came_first(selector: LabelSelector) -> None:
    ship = identity(2000, pod("tiefighter", org="empire", app="tiefighter"))
    before, after = Running(), Running()
    before.hear(ship)
    before.hear(policy(ingress(selector)))
    after.hear(policy(ingress(selector)))
    after.hear(ship)
    assert before.log == after.log
    assert before.members(selector) == [2000]


def test_a_section_without_peers_is_for_everyone_and_an_empty_list_of_peers_for_nobody() -> None:
    running = Running()
    running.hear(policy(Rule(direction="ingress", any_peer=True), Rule(direction="ingress")))
    everyone, nobody = running.rules().rules
    assert everyone.any_peer
    assert not (nobody.any_peer or nobody.selectors or nobody.entities)


# named ports

HTTP = PortRange(protocol="TCP", name="http")


def http(number: int) -> ContainerPort:
    return ContainerPort(name="http", port=number)


def test_an_ingress_port_name_is_each_subjects_own_number() -> None:
    running = Running()
    old, new = pod("old", http(80), org="empire", app="old"), pod("new", http(8080), org="empire", app="new")
    running.hear(DEFAULT, old, new, identity(1000, old), identity(1001, new), policy(ingress(SHIPS, ports=[HTTP])))
    assert [(rule.ports[0].port, running.members_of(rule.subject)) for rule in running.rules().rules] == [
        (80, [1000]),
        (8080, [1001]),
    ]
    assert all(rule.selectors == [labels.selector_id(SHIPS)] for rule in running.rules().rules)


def test_an_egress_port_name_is_each_peers_own_number() -> None:
    running = Running()
    old, new = pod("old", http(80), org="alliance", app="old"), pod("new", http(8080), org="alliance", app="new")
    rule = Rule(direction="egress", peers=[Peer(selector=REBELS)], ports=[HTTP])
    running.hear(DEFAULT, old, new, identity(1000, old), identity(1001, new), policy(rule))
    found = [(each.ports[0].port, *map(running.members_of, each.selectors)) for each in running.rules().rules]
    assert found == [(80, [1000]), (8080, [1001])]
    assert not any(each.entities or each.any_peer for each in running.rules().rules)


def test_a_port_name_that_nobody_has_opens_nothing() -> None:
    running = Running()
    running.hear(DEFAULT, policy(ingress(SHIPS, ports=[HTTP])))
    assert running.rules().rules == []
    assert running.rules().deny_ingress_by_default


def test_a_port_name_follows_the_pods_that_have_it() -> None:
    running = Running()
    star, second = pod("a", http(80), org="empire"), pod("b", http(81), org="empire")
    running.hear(DEFAULT, policy(ingress(SHIPS, ports=[HTTP])))
    running.hear(star)
    running.hear(identity(1000, star))
    assert [rule.ports[0].port for rule in running.rules().rules] == [80]
    running.hear(second)
    assert [rule.ports[0].port for rule in running.rules().rules] == [80, 81]
    running.forget(star)
    assert [rule.ports[0].port for rule in running.rules().rules] == [81]
    running.hear(pod("b", ContainerPort(name="http", port=81, protocol="UDP"), org="empire"))
    assert running.rules().rules == []
    running.forget(pod("b"), DEFAULT)
    assert running.rules().rules == []


def test_numbers_and_names_side_by_side_are_both_resolved() -> None:
    running = Running()
    star = pod("a", http(80), org="empire")
    ports = [HTTP, PortRange(protocol="TCP", port=443)]
    running.hear(DEFAULT, star, identity(1000, star), policy(ingress(SHIPS, ports=ports)))
    assert [[port.port for port in rule.ports] for rule in running.rules().rules] == [[443], [80]]


def test_another_pod_with_a_named_port_is_one_delta_and_no_rule_again() -> None:
    running = Running()
    one, two = pod("a", http(80), org="empire", app="a"), pod("b", http(80), org="empire", app="b")
    sections = [ingress(need("app", f"ship-{number}"), ports=[HTTP]) for number in range(3)]
    running.hear(DEFAULT, one, two, identity(1000, one), policy(*sections))
    (having,) = {rule.subject for rule in running.rules().rules}
    actions = running.hear(identity(1001, two))
    assert {action.subject for action in actions} == {SELECTOR.of(having), SELECTOR.of(labels.selector_id(EMPIRE))}
    assert running.members_of(having) == [1000, 1001]


def test_a_named_ports_selector_is_taken_back_after_the_last_rule_that_names_it() -> None:
    running = Running()
    star = pod("a", http(80), org="empire")
    one, two = policy(ingress(SHIPS, ports=[HTTP])), policy(ingress(REBELS, ports=[HTTP]), name="rule2")
    running.hear(DEFAULT, star, identity(1000, star), one, two)
    having = SELECTOR.of(running.rules().rules[0].subject)
    assert running.rules("rule2").rules[0].subject == running.rules().rules[0].subject
    running.forget(one)
    assert having in running.log
    running.forget(two)  # Running checks after each single action that what rules name is there
    assert not running.log


def test_an_egress_port_name_to_everyone_is_for_all_that_have_it() -> None:
    running = Running()
    one, two = pod("a", http(80), org="empire"), pod("b", http(80), org="alliance")
    running.hear(DEFAULT, one, two, policy(Rule(direction="egress", any_peer=True, ports=[HTTP])))
    running.hear(identity(1000, one), identity(1001, two))
    (rule,) = running.rules().rules
    assert not rule.any_peer
    assert list(map(running.members_of, rule.selectors)) == [[1000, 1001]]


def test_four_hundred_rules_for_a_named_port_of_three_hundred_identities_fit_a_message() -> None:
    running = Running()
    stars = [pod(f"star-{number}", http(80), org="empire", app=f"star-{number}") for number in range(300)]
    sections = [ingress(need("app", f"ship-{number}"), ports=[HTTP]) for number in range(400)]
    started = time.perf_counter()
    running.hear(DEFAULT, *stars, *(identity(300 + at, star) for at, star in enumerate(stars)), policy(*sections))
    assert time.perf_counter() - started < 2.0  # measured: 0.05 s; the bound is for busy machines
    assert len(running.rules().rules) == 400
    assert max(len(encode(message)) for message in running.log.values()) < LIMIT_BYTES // 8


# what the bus does not take


class Bus(Running):
    """Like the bus, it does not take what is over the limit."""

    def act(self) -> list[Action]:
        done: list[Action] = []
        while stage := list(self.model.act()):
            assert len(done) < 100, "it never comes to rest"
            self.carry_out(stage)
            done += stage
        assert set(self.model.said()) >= set(self.log)
        return done

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.refusals: list[str] = []

    def carry_out(self, stage: list[Action]) -> None:
        for action in stage:
            try:
                if isinstance(action, Say):
                    encode(action.message, limit=self.limit)
            except TooLarge as problem:
                self.refusals.append(action.subject)
                self.model.refused(action.subject, str(problem))
            else:
                match action:
                    case Say(subject, message):
                        self.log[subject] = message
                    case Unsay(subject):
                        self.log.pop(subject, None)


LARGE = [ingress(need("app", f"ship-{number}")) for number in range(40)]
RULE1 = RULES.of("CiliumNetworkPolicy", "default", "rule1")


def test_a_policy_that_is_too_large_for_the_bus_only_denies_until_it_is_changed() -> None:
    running = Bus(limit=1000)
    running.hear(policy(*LARGE), policy(ingress(SHIPS), name="rule2"))
    assert running.refusals == [RULE1]
    assert running.rules().rules == []
    assert running.rules().deny_ingress_by_default
    assert running.rules().subject == labels.selector_id(EMPIRE)
    assert list(running.model.failed) == [subject_of(policy())]
    assert running.reports == [(NOT_TAKEN, "CiliumNetworkPolicy/default/rule1")]
    assert len(running.rules("rule2").rules) == 1
    assert running.hear(policy(*LARGE)) == []
    running.hear(policy(ingress(SHIPS)))
    assert len(running.rules().rules) == 1
    assert not running.model.failed


def test_a_policy_that_grows_too_large_does_not_keep_its_old_rules() -> None:
    running = Bus(limit=1000)
    running.hear(policy(ingress(SHIPS)))
    running.hear(policy(*LARGE))
    assert running.rules().rules == []
    assert list(running.model.failed) == [subject_of(policy())]


def test_a_default_deny_that_is_refused_as_well_is_not_tried_for_ever() -> None:
    running = Bus(limit=0)
    running.hear(policy(ingress(SHIPS)))
    assert running.refusals.count(RULE1) <= 2
    assert list(running.model.failed) == [subject_of(policy())]
    assert RULE1 in set(running.model.said()), "what may be in the log is not taken back as a stray"


def test_a_selector_of_too_many_is_said_without_members_and_fails_only_the_policies_whose_rules_name_it() -> None:
    running = Bus(limit=300)
    crowd = [identity(70_000 + number, pod(f"a{number}", org="empire", app=f"a{number}")) for number in range(60)]
    running.hear(*crowd[:2], policy(ingress(SHIPS)), policy(ingress(EMPIRE), name="rule2", subject=SHIPS))
    assert len(running.rules("rule2").rules) == 1
    running.hear(*crowd[2:])
    assert running.refusals == [SELECTOR.of(labels.selector_id(EMPIRE))]
    assert running.members(EMPIRE) == []
    assert len(running.rules().rules) == 1, "who it governs, nodes judge by the labels"
    assert running.rules("rule2").rules == []
    assert list(running.model.failed) == [subject_of(policy(name="rule2"))]
    assert running.act() == []
    running.limit = LIMIT_BYTES
    running.hear(policy(ingress(EMPIRE, SHIPS), name="rule2", subject=SHIPS))
    assert len(running.members(EMPIRE)) == 60
    assert not running.model.failed


# what has no meaning

BROKEN = [
    Rule(direction="egress", peers=[Peer()]),
    Rule(direction="egress", peers=[Peer(entity="moon")]),
    Rule(direction="egress", any_peer=True, ports=[PortRange(protocol="TCP", port=70000)]),
    Rule(direction="egress", any_peer=True, ports=[PortRange(protocol="TCP", port=90, end_port=80)]),
    Rule(direction="egress", any_peer=True, ports=[PortRange(protocol="TCP", name="http", port=80)]),
    Rule(direction="egress", peers=[Peer(selector=need("app"))]),
    Rule(direction="egress", peers=[Peer(cidr="10.0.0.1/8")]),
    Rule(direction="egress", peers=[Peer(cidr="10.0.0.0/8", except_cidrs=["x"])]),
    Rule(direction="egress", peers=[Peer(cidr="10.0.0.0/8", entity="world")]),
    Rule(direction="egress", peers=[Peer(cidr="10.0.0.0/8", cidr_group="a")]),
    Rule(direction="egress", peers=[Peer(cidr_groups=need("app"))]),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_policy_that_does_not_compile_denies_what_it_is_about(broken: Rule) -> None:
    running = Running()
    running.hear(policy(ingress(SHIPS), broken))
    found = running.rules()
    assert found.rules == []
    assert found.subject == labels.selector_id(EMPIRE)
    assert found.deny_ingress_by_default
    assert found.deny_egress_by_default
    assert len(running.model.failed) == len(running.reports) == running.model.failures.total() == 1
    assert running.reports[0][1] == "CiliumNetworkPolicy/default/rule1"
    running.hear(policy(ingress(SHIPS)))
    assert not running.model.failed
    assert len(running.rules().rules) == 1


def test_a_policy_whose_subject_has_no_meaning_denies_its_whole_namespace() -> None:
    running = Running()
    running.hear(identity(1000, pod("a")), policy(ingress(SHIPS), subject=need("app")))
    found = running.log[SELECTOR.of(running.rules().subject)]
    assert isinstance(found, Selector)
    assert found.members == [1000]


# cost


def test_one_new_identity_among_ten_thousand_selectors_is_a_matter_of_milliseconds() -> None:
    running = PolicyModel()
    for number in range(5_000):
        where = Requirement(key=labels.NAMESPACE, operator="In", values=["default"])
        peers = LabelSelector(requirements=[where, *need("app", f"peer-{number}").requirements])
        subject = LabelSelector(requirements=[where, *need("app", f"app-{number}").requirements])
        written = policy(ingress(peers), name=f"rule-{number}", subject=subject)
        running.put(subject_of(written), written)
    assert [len(list(running.act())) for _ in range(3)] == [10_000, 5_000, 0]
    newcomer = identity(2000, pod("a", app="peer-7"))
    started = time.perf_counter()
    running.put(subject_of(newcomer), newcomer)
    actions = list(running.act())
    assert time.perf_counter() - started < 0.02  # measured: 0.1 ms; the bound is for busy machines
    assert len(actions) == 1
