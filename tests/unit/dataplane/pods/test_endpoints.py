"""Which sandbox has which link and address."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.pods.endpoints import Endpoint, Endpoints


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
    endpoints.add(sandbox())
    assert endpoints.get("c1") == endpoints.of_pod("default", "web") == sandbox()
    assert endpoints.get("c2") is None
    assert endpoints.of_pod("other", "web") is None
    assert len(endpoints) == 1


def test_added_again_it_is_the_same_one() -> None:
    endpoints = Endpoints()
    endpoints.add(sandbox())
    changed = msgspec.structs.replace(sandbox(), uid="u")
    endpoints.add(changed)
    assert endpoints.all() == [changed]


def test_the_newest_sandbox_speaks_for_the_pod_as_long_as_it_is_there() -> None:
    endpoints = Endpoints()
    for name, created in (("c2", 2), ("c1", 1), ("c3", 3)):
        endpoints.add(sandbox(name, created=created))
    assert [each.container_id for each in endpoints.all_of_pod("default", "web")] == ["c3", "c2", "c1"]
    endpoints.add(sandbox("c1", created=1))
    assert endpoints.of_pod("default", "web") == sandbox("c3", created=3)
    endpoints.remove("c3")
    assert endpoints.of_pod("default", "web") == sandbox("c2", created=2)
    assert endpoints.get("c1") is not None


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
    after.restore(Endpoint.from_record(each.to_record()) for each in reversed(before.all()))
    assert after.all() == before.all()
    assert after.next_created() == 4


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
def test_every_endpoint_has_its_pod_and_a_pod_its_newest_endpoint(steps: list[tuple[bool, str, int]]) -> None:
    endpoints = Endpoints()
    held: dict[str, Endpoint] = {}  # by sandbox
    for add, pod, number in steps:
        container_id = f"{pod}{number}"
        if add:
            held[container_id] = sandbox(container_id, pod, created=endpoints.next_created())
            endpoints.add(held[container_id])
        else:
            assert endpoints.remove(container_id) == held.pop(container_id, None)
        assert endpoints.all() == sorted(held.values(), key=lambda each: each.created)
        for each in "abc":
            of_pod = [one for one in held.values() if one.pod == each]
            assert endpoints.of_pod("default", each) == max(of_pod, key=lambda one: one.created, default=None)


def test_a_sandbox_that_is_another_pods_now_is_not_found_by_the_first() -> None:
    endpoints = Endpoints()
    endpoints.add(sandbox("c1", "web"))
    endpoints.add(sandbox("c1", "db"))
    assert endpoints.of_pod("default", "web") is None
    assert endpoints.remove("c1") == sandbox("c1", "db")
    assert endpoints.of_pod("default", "db") is None
    assert endpoints.remove("c1") is None
