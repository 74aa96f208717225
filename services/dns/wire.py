"""DNS messages. Pure.

Of each kind the common form is read here: one question, as resolvers' clients send it; answers of addresses and
aliases. Whatever has another form is read by dnspython, which takes six times as long. Nothing is believed: a message
that neither can read is None.

Source: RFC 1035 section 4.1, RFC 3596 (AAAA), RFC 6891 (EDNS).
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.rdatatype

A, CNAME, AAAA, OPT, IN = 1, 5, 28, 41, 1
REFUSED, NXDOMAIN, SERVFAIL, FORMERR = 5, 3, 2, 1
HEADER = 12
MOST_BYTES = 65535
MOST_ALIASES = 16  # in a chain
MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address in an IPv6 one: no packet may bear it

_HEAD = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_LABEL = re.compile(rb"[-A-Za-z0-9_]+")
_OPT_OF_OURS = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"  # root, OPT, 1232 bytes, nothing extended


class Question(NamedTuple):
    """`section`: the question as it stands in the message, which an answer repeats."""

    name: str | None  # see bus/patterns.py
    type: int
    section: bytes
    has_edns: bool


class Found(NamedTuple):
    """An address that an answer gives to the name that was asked for. It holds for this many seconds."""

    address: str
    ttl: int


def question_of(message: bytes) -> Question | None:
    """What is asked; None: nothing that can be judged, such as two questions, or something else than a question."""
    if len(message) < HEADER or len(message) > MOST_BYTES:
        return None
    _, flags, questions, answers, authorities, additional = _HEAD.unpack_from(message)
    if flags & 0xF800 or questions != 1:  # an answer, or another operation
        return None
    if answers or authorities or additional > 1:
        return _slow_question(message)
    found = _name_at(message, HEADER)
    if found is None:
        return _slow_question(message)
    name, at = found
    if at + 4 > len(message):
        return None
    kind, cls = struct.unpack_from("!HH", message, at)
    at += 4
    if cls != IN:
        return _slow_question(message)
    rest = message[at:]
    if additional == 0 and not rest:
        return Question(name, kind, message[HEADER:at], False)
    is_edns = additional == 1 and rest[:3] == b"\0\0\x29" and len(rest) >= 11
    if is_edns and len(rest) == 11 + int.from_bytes(rest[9:11], "big"):
        return Question(name, kind, message[HEADER:at], True)
    return _slow_question(message)


def _name_at(message: bytes, at: int) -> tuple[str, int] | None:
    """A name without pointers, and where it ends; None: it is no such name of common characters."""
    labels: list[str] = []
    end = min(len(message), at + 255)
    while at < end:
        size = message[at]
        if size == 0:
            return ".".join(labels).lower(), at + 1
        label = message[at + 1 : at + 1 + size]
        if size > 63 or len(label) != size or _LABEL.fullmatch(label) is None:
            return None
        labels.append(label.decode("ascii"))
        at += 1 + size
    return None


def _slow_question(message: bytes) -> Question | None:
    try:
        read = dns.message.from_wire(message, ignore_trailing=False, question_only=False)
    except (dns.exception.DNSException, ValueError, struct.error):
        return None
    if len(read.question) != 1 or read.opcode() != dns.opcode.QUERY or read.flags & dns.flags.QR:
        return None
    (asked,) = read.question
    end = _end_of_name(message, HEADER)
    if asked.rdclass != dns.rdataclass.IN or end is None:
        return None
    return Question(_text(asked.name), int(asked.rdtype), message[HEADER : end + 4], read.edns >= 0)


def _end_of_name(message: bytes, at: int) -> int | None:
    """Of a name without pointers."""
    while at < len(message):
        size = message[at]
        if size == 0:
            return at + 1
        if size > 63:
            return None
        at += 1 + size
    return None


def _text(name: dns.name.Name) -> str | None:
    labels = [label for label in name.labels if label]
    if all(_LABEL.fullmatch(label) for label in labels):
        return b".".join(labels).decode("ascii").lower()
    return None


def answers(message: bytes, question: Question) -> bool:
    """It is an answer to this question: its id is another's business. Letters may have changed their case."""
    if len(message) < HEADER or not message[2] & 0x80:
        return False
    section = message[HEADER : HEADER + len(question.section)]
    if section == question.section:
        return True
    if message[4:6] == b"\0\0":  # servers that cannot read a question repeat none
        return message[3] & 0xF in (FORMERR, SERVFAIL, REFUSED, 4)
    return section.lower() == question.section.lower()


def addresses(message: bytes, question: Question) -> list[Found] | None:
    """What the answer says of the name that was asked for, along its aliases. None: it cannot be read."""
    if question.name is None:
        return []
    try:
        records = _records(message, HEADER + len(question.section))
    except (IndexError, struct.error, UnicodeDecodeError, ValueError):
        records = None
    if records is None:
        records = _slow_records(message)
    return None if records is None else _along(records, question.name)


class _Record(NamedTuple):
    owner: str
    ttl: int
    address: str  # "" of an alias
    alias: str


def _along(records: list[_Record], name: str) -> list[Found]:
    aliases = {each.owner: each for each in records if each.alias}
    ttl = 2**31 - 1
    for _ in range(MOST_ALIASES):
        alias = aliases.pop(name, None)
        if alias is None:
            break
        name, ttl = alias.alias, min(ttl, alias.ttl)
    return [Found(each.address, min(each.ttl, ttl)) for each in records if each.owner == name and each.address]


def _records(message: bytes, at: int) -> list[_Record] | None:
    """The answer section; None: it has a name that is not common. Raises: IndexError, struct.error, ValueError."""
    if message[4:6] != b"\0\1":
        return None
    found: list[_Record] = []
    names: dict[int, str] = {}
    for _ in range(int.from_bytes(message[6:8], "big")):
        owner, at = _compressed(message, at, names)
        kind, cls, ttl, size = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        data = message[at : at + size]
        if len(data) != size:
            raise ValueError("a record is cut off")
        ttl = 0 if ttl & 0x80000000 else ttl  # RFC 2181 section 8
        if cls == IN and kind == A and size == 4:
            found.append(_Record(owner, ttl, ".".join(map(str, data)), ""))
        elif cls == IN and kind == AAAA and size == 16 and not data.startswith(MAPPED):
            found.append(_Record(owner, ttl, str(IPv6Address(data)), ""))
        elif cls == IN and kind == CNAME:
            found.append(_Record(owner, ttl, "", _compressed(message, at, names)[0]))
        at += size
    return found


def _compressed(message: bytes, at: int, names: dict[int, str]) -> tuple[str, int]:
    """A name that may point back (RFC 1035 section 4.1.4), and where it ends."""
    start, labels, end, jumps = at, [], 0, 0
    while (size := message[at]) != 0:
        if size >= 0xC0:
            end = end or at + 2
            to = (size & 0x3F) << 8 | message[at + 1]
            jumps += 1
            if to >= at or jumps > 32:
                raise ValueError("a pointer that leads on")
            if to in names:
                labels.append(names[to])
                break
            at = to
            continue
        label = message[at + 1 : at + 1 + size]
        if size > 63 or len(label) != size or _LABEL.fullmatch(label) is None:
            raise ValueError("not a common name")
        labels.append(label.decode("ascii").lower())
        at += 1 + size
    name = ".".join(label for label in labels if label)
    names[start] = name
    return name, end or at + 1


def _slow_records(message: bytes) -> list[_Record] | None:
    try:
        read = dns.message.from_wire(message, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError, struct.error):
        return None
    found: list[_Record] = []
    for each in read.answer:
        owner = _text(each.name)
        if owner is None or each.rdclass != dns.rdataclass.IN:
            continue
        for data in each:
            if each.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                address = ip_address(data.address)
                if not address.packed.startswith(MAPPED):
                    found.append(_Record(owner, each.ttl, str(address), ""))
            elif each.rdtype == dns.rdatatype.CNAME and (alias := _text(data.target)) is not None:
                found.append(_Record(owner, each.ttl, "", alias))
    return found


def refusal(message: bytes, question: Question | None, rcode: int) -> bytes:
    """The answer of somebody who does not answer: the id and question of `message` (12 bytes or more), no records."""
    flags = 0x8080 | (message[2] << 8 & 0x7900) | rcode  # an answer, recursion available; the operation and RD as asked
    if question is None:
        return message[:2] + struct.pack("!HHHHH", flags, 0, 0, 0, 0)
    edns = _OPT_OF_OURS if question.has_edns else b""
    return message[:2] + struct.pack("!HHHHH", flags, 1, 0, 0, bool(edns)) + question.section + edns
