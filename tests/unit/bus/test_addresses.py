"""Addresses have one form each, and what is not one is told apart."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.addresses import all_of, family, of_family, order, parse, parse_network, plain, with_port
from bus.messages.resources import PodStatus
from bus.subjects import ADDRESS, BLOCK, CLUSTER_ADDRESS

SIX = st.ip_addresses(v=6).filter(lambda address: address not in IPv6Network("::ffff:0:0/96"))
ANY = st.one_of(st.ip_addresses(v=4), SIX)


@pytest.mark.parametrize("text", ["fd00::1", "FD00::1", "fd00:0:0:0:0:0:0:1", "fd00:0000::0001"])
def test_every_spelling_of_an_address_has_one_form(text: str) -> None:
    assert plain(text) == "fd00::1"


@given(ANY)
def test_an_address_is_read_from_any_of_its_spellings(address: IPv4Address | IPv6Address) -> None:
    for text in (address.exploded, address.compressed, address.exploded.upper()):
        assert parse(text) == address and plain(text) == str(address)
        assert family(ip_address(text)) == ("IPv4" if address.version == 4 else "IPv6")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "zzz",
            "10.0.0",
            "010.0.0.1",
            "10.0.0.1/32",
            "fe80::1%eth0",
            "fe80::1%",
            "::ffff:10.0.0.1",
            "::ffff:a00:1",
        ),
        *("[fd00::1]", "fd00::1/128", ":::", "1::2::3", "fd00::g", "٣::1", " fd00::1", "fd00::1\n"),
    ],
)
def test_what_is_no_address_stays_as_it_is(text: str) -> None:
    assert parse(text) is None and plain(text) == text


@pytest.mark.parametrize("text", ["fd00::1/64", "::ffff:10.0.0.0/104", "fd00::%a/64", "fd00::/129", "fd00::/-1", "x/1"])
def test_what_is_no_block_is_none(text: str) -> None:
    assert parse_network(text) is None


def test_a_message_of_an_older_writer_has_its_one_address() -> None:
    told = PodStatus(namespace="n", name="p", uid="", phase="Running", ready=True, address="10.0.0.1")
    assert all_of(told) == ["10.0.0.1"]
    newer = replace(told, addresses=["10.0.0.1", "FD00::1"])
    assert all_of(newer) == ["10.0.0.1", "fd00::1"]
    assert [of_family(all_of(newer), "IPv6"), of_family(all_of(told), "IPv6")] == ["fd00::1", None]


def test_addresses_are_in_the_order_of_their_numbers_ipv4_first() -> None:
    texts = ["fd00::a", "10.0.0.10", "fd00::9", "zzz", "10.0.0.9"]
    assert sorted(texts, key=order) == ["zzz", "10.0.0.9", "10.0.0.10", "fd00::9", "fd00::a"]


def test_an_ipv6_address_with_a_port_stands_in_brackets() -> None:
    assert (with_port("10.0.0.1", 80), with_port("fd00::1", 80)) == ("10.0.0.1:80", "[fd00::1]:80")


@given(ANY, st.integers(0, 32))
def test_an_address_or_block_is_one_token_of_a_subject_and_reads_back(
    address: IPv4Address | IPv6Address, length: int
) -> None:
    for state, text in ((ADDRESS, str(address)), (CLUSTER_ADDRESS, str(address)), (BLOCK, f"{address}/{length}")):
        subject = state.of(text)
        assert subject.count(".") == state.head.count(".") + 1
        assert subject.isascii() and not set(subject) & set(" *>\t\r\n")
        assert state.parse(subject) == (text,)
