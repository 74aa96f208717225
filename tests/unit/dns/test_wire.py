"""DNS messages: the quick way reads what dnspython reads, and what neither can read is nothing."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dns import wire
from services.dns.wire import Found, Question, addresses, answers, question_of, refusal

LABELS = st.text("abcXYZ019-_", min_size=1, max_size=20)
NAMES = st.lists(LABELS, min_size=1, max_size=6).map(".".join)
TYPES = st.sampled_from(["A", "AAAA", "TXT", "SRV", "HTTPS", "PTR", "ANY"])


def asked(name: str, kind: str = "A", **options: bool | int) -> bytes:
    return dns.message.make_query(name, kind, **options).to_wire()  # type: ignore[arg-type]  # options of any kind


def question(name: str, kind: str = "A") -> Question:
    found = question_of(asked(name, kind))
    assert found is not None
    return found


def answered(message: bytes, *records: str) -> bytes:
    response = dns.message.make_response(dns.message.from_wire(message))
    for each in records:
        name, ttl, kind, data = each.split()
        target = f"{data}." if kind == "CNAME" else data
        response.answer.append(dns.rrset.from_text(f"{name}.", int(ttl), "IN", kind, target))
    return response.to_wire()


@given(NAMES, TYPES, st.booleans())
def test_a_question_is_read_as_dnspython_reads_it(name: str, kind: str, has_edns: bool) -> None:
    message = asked(name, kind, use_edns=0 if has_edns else False)
    found = question_of(message)
    assert found is not None
    assert found == wire._slow_question(message)
    assert found.name == name.lower()
    assert dns.rdatatype.to_text(dns.rdatatype.RdataType(found.type)) == kind
    assert found.has_edns is has_edns


@given(st.binary(max_size=80))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    question_of(data)
    for head in (b"\0\1\1\0\0\1\0\0\0\0\0\0", b"\0\1\1\0\0\1\0\0\0\0\0\1", b"\0\1\x81\x80\0\1\0\2\0\0\0\0"):
        question_of(head + data)
        known = question("a.b")
        answers(head + data, known)
        addresses(head + known.section + data, known)


@given(st.data())
def test_a_question_that_was_changed_anywhere_is_read_by_both_alike(data: st.DataObject) -> None:
    message = bytearray(asked(data.draw(NAMES), use_edns=0))
    at = data.draw(st.integers(2, len(message) - 1))
    message[at] = data.draw(st.integers(0, 255))
    found = question_of(bytes(message))
    assert found is None or found == wire._slow_question(bytes(message))


@pytest.mark.parametrize(
    "change",
    [
        lambda message: message[:11],
        lambda message: message[:-1],
        lambda message: message + b"x",
        lambda message: message[:2] + b"\x81" + message[3:],  # an answer
        lambda message: message[:2] + b"\x29" + message[3:],  # UPDATE
        lambda message: message[:5] + b"\2" + message[6:],  # two questions, it says
        lambda message: message[:5] + b"\0" + message[6:],
        lambda message: message[:12] + b"\xc0\x0c" + message[12:],  # a name that points at itself
    ],
)
def test_what_is_no_question_is_none(change: object) -> None:
    assert callable(change)
    assert question_of(change(asked("a.example.com", use_edns=False))) is None


def test_labels_with_dots_in_them_are_no_names() -> None:
    message = dns.message.make_query(dns.name.Name([b"a.b", b"c", b""]), "A").to_wire()
    found = question_of(message)
    assert found is not None and found.name is None


def test_an_answer_is_one_to_this_question() -> None:
    message = asked("a.example.com")
    known = question("a.example.com")
    assert answers(answered(message), known)
    assert answers(answered(asked("A.Example.COM")), known)
    assert not answers(answered(asked("b.example.com")), known)
    assert not answers(answered(asked("a.example.com", "AAAA")), known)
    assert not answers(message, known)
    assert not answers(b"", known)


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ((), []),
        (("a.b 60 A 192.0.2.1", "a.b 60 A 192.0.2.2"), [Found("192.0.2.1", 60), Found("192.0.2.2", 60)]),
        (("A.B 5 AAAA 2001:db8::1",), [Found("2001:db8::1", 5)]),
        (("a.b 60 CNAME c.d", "c.d 9 CNAME e.f", "e.f 30 A 192.0.2.1"), [Found("192.0.2.1", 9)]),
        (("c.d 30 A 192.0.2.1",), []),
        (("a.b 60 CNAME c.d", "e.f 30 A 192.0.2.1"), []),
        (("a.b 60 CNAME a.b",), []),
        (("a.b 60 TXT x", "a.b 7 A 192.0.2.1"), [Found("192.0.2.1", 7)]),
        (("a.b 60 AAAA ::ffff:192.0.2.1",), []),
    ],
)
def test_addresses_are_those_of_the_name_along_its_aliases(records: tuple[str, ...], found: list[Found]) -> None:
    message = answered(asked("a.b"), *records)
    assert addresses(message, question("a.b")) == found


RECORDS = st.tuples(NAMES, st.sampled_from(["A 192.0.2.1", "AAAA 2001:db8::5", "CNAME"]), NAMES)


@given(st.lists(RECORDS, max_size=6, unique_by=lambda each: each[0].lower()), NAMES)
def test_answers_are_read_as_dnspython_reads_them(records: list[tuple[str, str, str]], name: str) -> None:
    lines = [f"{owner} 60 {kind} {alias if kind == 'CNAME' else ''}" for owner, kind, alias in records]
    message = answered(asked(name), *lines)
    quick = wire._records(message, 12 + len(question(name).section))
    slow = wire._slow_records(message)
    assert quick is not None and slow is not None
    assert sorted(quick) == sorted(slow)


@pytest.mark.parametrize("rcode", [wire.REFUSED, wire.NXDOMAIN])
@pytest.mark.parametrize("edns", [False, 0])
def test_a_refusal_is_read_by_others(rcode: int, edns: bool | int) -> None:
    message = asked("a.example.com", use_edns=edns)
    read = dns.message.from_wire(refusal(message, question_of(message), rcode))
    sent = dns.message.from_wire(message)
    assert sent.is_response(read)
    assert read.rcode() == rcode
    assert read.flags & dns.flags.RD
    assert (read.edns >= 0) == (edns is not False)
    assert dns.message.from_wire(refusal(message, None, rcode)).rcode() == rcode
