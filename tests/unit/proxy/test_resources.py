"""Slots become resources."""

from __future__ import annotations

import re

import pytest

from services.proxy.api import envoy_pb2 as envoy
from services.proxy.resources import LISTENERS, ROUTES, resources, server_name_regex
from services.proxy.slots import HeaderMatch, HTTPRule, ServerName, Slot, problem

SLOT = Slot(port=10001, direction="ingress", http=(HTTPRule(name="a", path="/a"),))


def test_the_same_slots_are_the_same_bytes_in_any_order() -> None:
    other = Slot(
        port=10002, direction="egress", tls=(ServerName(name="n", pattern="*.a"), ServerName(name="m", pattern="b"))
    )
    assert resources([SLOT, other]) == resources([other, SLOT])


def test_changed_rules_change_the_routes_and_not_the_listener() -> None:
    changed = Slot(port=10001, direction="ingress", http=(HTTPRule(name="a", path="/b"),))
    before, after = resources([SLOT]), resources([changed])
    assert before[LISTENERS] == after[LISTENERS]
    assert before[ROUTES] != after[ROUTES]


def test_a_listener_has_a_socket_for_each_family_that_the_node_has() -> None:
    for has_ipv6, sockets in ((True, ["127.0.0.1", "::1"]), (False, ["127.0.0.1"])):
        made = envoy.Listener.FromString(resources([SLOT], has_ipv6=has_ipv6)[LISTENERS][SLOT.name].body)
        addresses = [made.address, *(each.address for each in made.additional_addresses)]
        assert [each.socket_address.address for each in addresses] == sockets
        assert {each.socket_address.port_value for each in addresses} == {SLOT.port}


def test_the_last_routes_deny_whatever_comes() -> None:
    for slot in (SLOT, Slot(port=10001, direction="egress", http=())):
        made = envoy.RouteConfiguration.FromString(resources([slot])[ROUTES][slot.name].body)
        *_, buffered, denied, connects = made.virtual_hosts[0].routes
        assert {each.direct_response.status for each in (buffered, denied, connects)} == {403}
        assert denied.match == envoy.RouteMatch(prefix="")
        assert connects.match.HasField("connect_matcher")


def test_connections_of_each_direction_bear_a_mark_of_their_own() -> None:
    found = []
    for direction in ("ingress", "egress"):
        slot = Slot(port=10001, direction=direction, http=())
        made = envoy.Listener.FromString(resources([slot])[LISTENERS][slot.name].body)
        assert made.transparent.value
        source = next(each for each in made.listener_filters if each.name == "original_src")
        found.append(envoy.OriginalSrc.FromString(source.typed_config.value).mark)
    assert found == [0xA00, 0xB00]


@pytest.mark.parametrize(
    ("pattern", "name", "is_matched"),
    [
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("*.b", "a.b", True),
        ("*.b", ".b", False),
        ("*.b", "a.a.b", False),
        ("**.b", "a.a.b", True),
        ("**.b", "b", False),
        ("A.B", "a.b", True),
        ("a*.b", "a.b", True),
        ("a*c.b", "abc.b", True),
        ("*", "a", True),
        ("*", "a.b", False),
    ],
)
def test_patterns_of_server_names(pattern: str, name: str, is_matched: bool) -> None:
    assert (re.fullmatch(server_name_regex(pattern), name) is not None) is is_matched


def test_what_cannot_be_a_slot_is_told() -> None:
    headers = tuple(HeaderMatch(name=f"x-{each}", mismatch="ADD") for each in range(6))
    assert problem(SLOT) is None
    assert "port 80" in (problem(Slot(port=80, direction="ingress", http=())) or "")
    assert "one kind" in (problem(Slot(port=10001, direction="ingress")) or "")
    assert "one kind" in (problem(Slot(port=10001, direction="ingress", http=(), tls=())) or "")
    many = Slot(port=10001, direction="ingress", http=(HTTPRule(name="rule", headers=headers),))
    assert "rule: at most 5" in (problem(many) or "")
