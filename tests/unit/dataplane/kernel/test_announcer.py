"""What a node says unasked of an address that it announces, byte by byte."""

from __future__ import annotations

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from services.dataplane.kernel.announcer import announcement, group_of

MAC = "02:00:00:00:00:02"


def frame(address: str) -> bytes:
    return announcement(address, bytes.fromhex(MAC.replace(":", "")))


def test_of_an_ipv4_address_a_gratuitous_arp_is_said_to_all() -> None:
    said = Ether(frame("192.0.2.9"))
    assert (said.src, said.dst) == (MAC, "ff:ff:ff:ff:ff:ff")
    assert (said[ARP].op, said[ARP].psrc, said[ARP].pdst, said[ARP].hwsrc) == (1, "192.0.2.9", "192.0.2.9", MAC)
    assert len(frame("192.0.2.9")) == 42


def test_of_an_ipv6_address_an_unsolicited_advertisement_is_said_to_all_nodes() -> None:
    raw = frame("2001:db8::9")
    said = Ether(raw)
    assert (said.src, said.dst) == (MAC, "33:33:00:00:00:01")
    assert (said[IPv6].src, said[IPv6].dst, said[IPv6].hlim) == ("2001:db8::9", "ff02::1", 255)
    told = said[ICMPv6ND_NA]
    assert (told.tgt, told.R, told.S, told.O) == ("2001:db8::9", 0, 0, 1)
    assert said[ICMPv6NDOptDstLLAddr].lladdr == MAC
    right = said.copy()
    del right[ICMPv6ND_NA].cksum
    assert bytes(right) == raw


def test_who_asks_for_an_address_asks_the_group_of_its_last_three_bytes() -> None:
    assert group_of("2001:db8::1234:5678").hex() == "ff0200000000000000000001ff345678"
