"""Numbers of protocols: they are said once, and are IANA's."""

from __future__ import annotations

import socket
from typing import get_args

import pytest

from bus.messages.resources import Protocol
from services.dataplane.shapes import protocols


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ICMP", socket.IPPROTO_ICMP),
        ("TCP", socket.IPPROTO_TCP),
        ("UDP", socket.IPPROTO_UDP),
        ("ICMPv6", socket.IPPROTO_ICMPV6),
        ("SCTP", socket.IPPROTO_SCTP),
    ],
)
def test_a_name_and_its_number_are_each_others(name: str, number: int) -> None:
    assert (protocols.name_of(number), protocols.numbers_of(name)) == (name, (number,))


def test_every_word_that_a_rule_may_say_has_numbers() -> None:
    assert {word for word in get_args(Protocol) if not protocols.numbers_of(word)} == set()


def test_any_means_those_that_have_ports() -> None:
    assert protocols.numbers_of("ANY") == (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP)


def test_what_has_no_name_is_shown_as_its_number_and_none_is_any() -> None:
    assert (protocols.name_of(47), protocols.name_of(0)) == ("47", "any")
