"""A pod's life on a node, as events and actions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.endpoints import (
    Action,
    Created,
    DropPolicy,
    Endpoint,
    Endpoints,
    Erase,
    Event,
    IdentityKnown,
    Persist,
    PodGone,
    PolicyApplied,
    Program,
    Removed,
    Say,
    SecondInterface,
    Unprogram,
    Unsay,
    WantPolicy,
)


def sandbox(container_id: str = "c1", pod: str = "web", *, uid: str = "", ifname: str = "eth0") -> Endpoint:
    return Endpoint(
        container_id=container_id,
        ifname=ifname,
        namespace="default",
        pod=pod,
        uid=uid,
        address="10.0.1.2",
        gateway="10.0.1.1",
        mac="02:00:00:00:00:01",
        interface="lxc1",
        interface_index=7,
        interface_mac="02:00:00:00:00:02",
        mtu_bytes=1450,
        created=0,
    )


def knows(pod: str = "web", identity: int = 300, uid: str = "") -> IdentityKnown:
    return IdentityKnown("default", pod, identity, uid)


def kinds(actions: list[Action]) -> list[type[Action]]:
    return [type(action) for action in actions]


def state(endpoints: Endpoints, container_id: str = "c1") -> tuple[str, int, int]:
    endpoint = endpoints.get(container_id)
    assert endpoint is not None
    return endpoint.state, endpoint.identity, endpoint.policy_id


def ready() -> Endpoints:
    endpoints = Endpoints()
    for event in (Created(sandbox()), knows(), PolicyApplied(300, 5)):
        endpoints.handle(event)
    return endpoints


def test_a_pod_waits_for_its_identity_then_for_its_policy_and_is_denied_meanwhile() -> None:
    endpoints = Endpoints()
    assert kinds(endpoints.handle(Created(sandbox()))) == [Persist, Program, Say]
    assert state(endpoints) == ("waiting-for-identity", 0, 0)
    assert kinds(endpoints.handle(knows())) == [WantPolicy, Persist, Program, Say]
    assert state(endpoints) == ("waiting-for-policy", 300, 0)
    assert kinds(endpoints.handle(PolicyApplied(300, 5))) == [Persist, Program, Say]
    assert state(endpoints) == ("ready", 300, 5)


def test_an_identity_known_before_the_sandbox_is_used_at_once() -> None:
    endpoints = Endpoints()
    assert endpoints.handle(knows()) == []
    assert kinds(endpoints.handle(Created(sandbox()))) == [WantPolicy, Persist, Program, Say]
    assert state(endpoints) == ("waiting-for-policy", 300, 0)


def test_a_second_pod_of_the_same_identity_is_ready_at_once() -> None:
    endpoints = ready()
    endpoints.handle(knows("api"))
    assert WantPolicy not in kinds(endpoints.handle(Created(sandbox("c2", "api"))))
    assert state(endpoints, "c2") == ("ready", 300, 5)


def test_an_identity_of_another_pod_of_the_same_name_is_not_used() -> None:
    endpoints = Endpoints()
    endpoints.handle(knows(uid="old"))
    endpoints.handle(Created(sandbox(uid="new")))
    assert state(endpoints) == ("waiting-for-identity", 0, 0)
    endpoints.handle(knows(uid="new"))
    assert state(endpoints) == ("waiting-for-policy", 300, 0)


def test_a_changed_identity_keeps_the_old_policy_until_the_new_one_is_applied() -> None:
    endpoints = ready()
    actions = endpoints.handle(knows(identity=400))
    assert kinds(actions) == [WantPolicy, Persist, Program, Say]
    assert state(endpoints) == ("waiting-for-policy", 400, 5)
    assert DropPolicy(300) in endpoints.handle(PolicyApplied(400, 6))
    assert state(endpoints) == ("ready", 400, 6)


def test_the_same_news_twice_does_nothing() -> None:
    endpoints = ready()
    for event in (Created(sandbox()), knows(), PolicyApplied(300, 5)):
        assert endpoints.handle(event) == []
    assert state(endpoints) == ("ready", 300, 5)


def test_a_link_made_anew_is_written_again() -> None:
    endpoints = ready()
    again = msgspec.structs.replace(sandbox(), interface_index=9)
    assert kinds(endpoints.handle(Created(again))) == [Persist, Program, Say]
    assert state(endpoints) == ("ready", 300, 5)


def test_a_removed_pod_leaves_nothing_and_its_policy_goes_with_the_last_of_its_identity() -> None:
    endpoints = ready()
    endpoints.handle(knows("api"))
    endpoints.handle(Created(sandbox("c2", "api")))
    assert kinds(endpoints.handle(Removed("c1"))) == [Unprogram, Unsay, Erase]
    assert kinds(endpoints.handle(Removed("c2"))) == [Unprogram, Unsay, Erase, DropPolicy]
    assert endpoints.all() == []
    assert endpoints.handle(Removed("c2")) == []


def test_a_policy_applied_too_late_changes_nothing() -> None:
    endpoints = ready()
    endpoints.handle(Removed("c1"))
    assert endpoints.handle(PolicyApplied(300, 5)) == []


def test_a_newer_sandbox_replaces_the_older_and_the_late_removal_of_that_is_nothing() -> None:
    endpoints = ready()
    actions = endpoints.handle(Created(sandbox("c2")))
    assert kinds(actions)[:2] == [Unprogram, Erase]
    assert Unsay not in kinds(actions)
    assert endpoints.get("c1") is None
    assert endpoints.handle(Removed("c1")) == []
    assert endpoints.of_pod("default", "web") == endpoints.get("c2")


def test_a_second_interface_is_refused_and_changes_nothing() -> None:
    endpoints = ready()
    with pytest.raises(SecondInterface):
        endpoints.handle(Created(sandbox(ifname="net1")))
    assert state(endpoints) == ("ready", 300, 5)


def test_a_pod_that_is_gone_gives_its_identity_to_no_successor() -> None:
    endpoints = ready()
    endpoints.handle(PodGone("default", "web"))
    endpoints.handle(Created(sandbox("c2")))
    assert state(endpoints, "c2") == ("waiting-for-identity", 0, 0)


def test_a_restart_goes_on_where_it_was() -> None:
    before = ready()
    after = Endpoints()
    records = [endpoint.to_record() for endpoint in before.all()]
    actions = after.restore(map(Endpoint.from_record, records), policies_kept=True)
    assert kinds(actions) == [WantPolicy, Program, Say]
    assert after.all() == before.all()
    after.handle(knows(identity=400))
    assert DropPolicy(300) in after.handle(PolicyApplied(400, 6))


def test_after_a_reboot_everything_is_denied_until_its_policy_is_applied() -> None:
    after = Endpoints()
    after.restore(ready().all(), policies_kept=False)
    assert state(after) == ("waiting-for-policy", 300, 0)
    after.handle(PolicyApplied(300, 1))
    assert state(after) == ("ready", 300, 1)


def test_of_two_restored_sandboxes_of_one_pod_the_newer_stays() -> None:
    older = msgspec.structs.replace(sandbox("c1"), created=1)
    newer = msgspec.structs.replace(sandbox("c2"), created=2)
    endpoints = Endpoints()
    actions = endpoints.restore([newer, older], policies_kept=True)
    assert kinds(actions)[:2] == [Unprogram, Erase]
    assert endpoints.all() == [newer]


def test_a_damaged_record_names_its_field() -> None:
    record = sandbox().to_record() | {"interface_index": "seven"}
    with pytest.raises(ValueError, match="interface_index"):
        Endpoint.from_record(record)


PODS = st.sampled_from(["a", "b"])
IDENTITIES = st.sampled_from([300, 400])
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(lambda number, pod: Created(sandbox(f"{pod}{number}", pod)), st.integers(1, 3), PODS),
    st.builds(knows, PODS, IDENTITIES),
    st.builds(lambda pod: PodGone("default", pod), PODS),
    st.builds(lambda identity: PolicyApplied(identity, identity * 10), IDENTITIES),
    st.builds(lambda number, pod: Removed(f"{pod}{number}"), st.integers(1, 3), PODS),
)


@given(st.lists(EVENTS, max_size=40))
def test_what_was_told_adds_up_to_what_is(events: list[Event]) -> None:
    """Someone who only carries out actions ends with the same endpoints, and enforces no policy that was dropped."""
    endpoints = Endpoints()
    disk: dict[str, Endpoint] = {}
    said: dict[str, Endpoint] = {}
    policies: set[int] = set()
    for event in events:
        for action in endpoints.handle(event):
            match action:
                case Persist(endpoint):
                    disk[endpoint.container_id] = endpoint
                case Erase(endpoint):
                    del disk[endpoint.container_id]
                case Say(endpoint):
                    said[endpoint.pod] = endpoint
                case Unsay(_, pod):
                    del said[pod]
                case WantPolicy(identity):
                    assert identity not in policies
                    policies.add(identity)
                case DropPolicy(identity):
                    policies.remove(identity)
        now = {endpoint.container_id: endpoint for endpoint in endpoints.all()}
        assert disk == now
        assert said == {endpoint.pod: endpoint for endpoint in now.values()}
        for endpoint in now.values():
            assert (endpoint.state == "ready") == (endpoint.policy_id == endpoint.identity * 10 != 0)
            assert not endpoint.policy_id or endpoint.policy_id // 10 in policies
            assert not endpoint.identity or endpoint.identity in policies
