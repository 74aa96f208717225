"""Which sandbox has which link and address."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.endpoints import Endpoint, Endpoints


def sandbox(container_id: str = "c1", pod: str = "web", *, created: int = 1) -> Endpoint:
    return Endpoint(
        container_id=container_id,
        ifname="eth0",
        namespace="default",
        pod=pod,
        address="10.0.1.2",
        gateway="10.0.1.1",
        mac="02:00:00:00:00:01",
        interface="lxc1",
        interface_index=7,
        interface_mac="02:00:00:00:00:02",
        mtu_bytes=1450,
        created=created,
    )


def test_an_endpoint_is_found_by_its_sandbox_and_by_its_pod() -> None:
    endpoints = Endpoints()
    assert endpoints.add(sandbox()) is None
    assert endpoints.get("c1") == endpoints.of_pod("default", "web") == sandbox()
    assert endpoints.get("c2") is None
    assert endpoints.of_pod("other", "web") is None
    assert len(endpoints) == 1


def test_added_again_it_is_the_same_one() -> None:
    endpoints = Endpoints()
    endpoints.add(sandbox())
    changed = msgspec.structs.replace(sandbox(), uid="u")
    assert endpoints.add(changed) is None
    assert endpoints.all() == [changed]


def test_a_newer_sandbox_of_the_pod_takes_its_place() -> None:
    endpoints = Endpoints()
    endpoints.add(sandbox("c1", created=1))
    assert endpoints.add(sandbox("c2", created=2)) == sandbox("c1", created=1)
    assert endpoints.get("c1") is None
    assert endpoints.of_pod("default", "web") == sandbox("c2", created=2)
    assert endpoints.remove("c1") is None, "its DEL may come late"
    assert endpoints.of_pod("default", "web") == sandbox("c2", created=2)


def test_what_is_removed_is_forgotten() -> None:
    endpoints = Endpoints()
    endpoints.add(sandbox())
    assert endpoints.remove("c1") == sandbox()
    assert endpoints.remove("c1") is None
    assert endpoints.of_pod("default", "web") is None
    assert endpoints.all() == []


def test_a_restart_goes_on_where_it_was() -> None:
    before = Endpoints()
    for name in ("a", "b", "c"):
        before.add(sandbox(name, name, created=before.next_created()))
    after = Endpoints()
    assert after.restore(Endpoint.from_record(each.to_record()) for each in reversed(before.all())) == []
    assert after.all() == before.all()
    assert after.next_created() == 4


def test_of_two_restored_sandboxes_of_one_pod_the_newer_stays() -> None:
    older, newer = sandbox("c1", created=1), sandbox("c2", created=2)
    endpoints = Endpoints()
    assert endpoints.restore([newer, older]) == [older]
    assert endpoints.all() == [newer]


@pytest.mark.parametrize(
    ("change", "names"),
    [({"interface_index": "seven"}, "interface_index"), ({"address": None}, "address"), ({"created": 1.5}, "created")],
)
def test_a_damaged_record_names_its_field(change: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Endpoint.from_record(sandbox().to_record() | change)


@pytest.mark.parametrize("record", [None, [], "x", {}])
def test_what_is_no_record_is_a_value_error(record: object) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        Endpoint.from_record(record)


def test_a_record_of_a_later_version_with_more_fields_is_read() -> None:
    assert Endpoint.from_record(sandbox().to_record() | {"later": 1}) == sandbox()


STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(1, 3)), max_size=40)


@given(STEPS)
def test_a_pod_has_one_endpoint_and_every_endpoint_has_its_pod(steps: list[tuple[bool, str, int]]) -> None:
    endpoints = Endpoints()
    held: dict[str, str] = {}  # pod -> sandbox
    for add, pod, number in steps:
        container_id = f"{pod}{number}"
        if add:
            older = endpoints.add(sandbox(container_id, pod, created=endpoints.next_created()))
            before = held.get(pod)
            assert (older.container_id if older else None) == (before if before != container_id else None)
            held[pod] = container_id
        else:
            removed = endpoints.remove(container_id)
            assert (removed is not None) == (held.get(pod) == container_id)
            if removed:
                del held[pod]
        assert {each.pod: each.container_id for each in endpoints.all()} == held
        for each in "abc":
            found = endpoints.of_pod("default", each)
            assert (found.container_id if found else None) == held.get(each)


def test_a_sandbox_that_is_another_pods_now_is_not_found_by_the_first() -> None:
    endpoints = Endpoints()
    endpoints.add(sandbox("c1", "web"))
    endpoints.add(sandbox("c1", "db"))
    assert endpoints.of_pod("default", "web") is None
    assert endpoints.remove("c1") == sandbox("c1", "db")
    assert endpoints.of_pod("default", "db") is None
    assert endpoints.remove("c1") is None
