"""A host on the nodes' LAN that asks again and again who has an address, and everybody who answers each question.

Each question bears a source address of its own, to which the answer goes: so it is known which answers are to one
question, which all nodes get at the same moment.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lab import execute, names
from tests.labs import Lab

EVERY_SECONDS = 0.004

_PROGRAM = r"""
import json, select, socket, struct, sys, time

every, addresses = float(sys.argv[1]), sys.argv[2:]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
wire.bind(("eth0", 0))
mac = wire.getsockname()[4]


def sums(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp(number, address):
    sender = bytes([198, 18]) + number.to_bytes(4, "big")[2:]
    body = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, mac, sender, bytes(6), socket.inet_aton(address))
    return b"\xff" * 6 + mac + b"\x08\x06" + body


def solicitation(number, address):
    target = socket.inet_pton(socket.AF_INET6, address)
    sender = socket.inet_pton(socket.AF_INET6, "fd00:dead::")[:12] + number.to_bytes(4, "big")
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + target[13:]
    said = struct.pack("!BBHI16sBB6s", 135, 0, 0, 0, target, 1, 1, mac)
    check = sums(sender + group + struct.pack("!II", len(said), 58) + said)
    said = said[:2] + check.to_bytes(2, "big") + said[4:]
    head = struct.pack("!IHBB", 6 << 28, len(said), 58, 255) + sender + group
    return b"\x33\x33" + group[12:] + mac + b"\x86\xdd" + head + said


def read(frame):
    '''(address, number of the question or -1 for what nobody asked, MAC) of an answer.'''
    if frame[12:14] == b"\x08\x06":
        operation, at, sender, _, target = struct.unpack("!H6s4s6s4s", frame[20:42])
        if operation == 1 and sender == target:
            return socket.inet_ntoa(sender), -1, at
        if operation == 2 and target[:2] == bytes([198, 18]):
            return socket.inet_ntoa(sender), int.from_bytes(target[2:], "big"), at
    elif frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 136:
        address, to = socket.inet_ntop(socket.AF_INET6, frame[62:78]), frame[38:54]
        number = -1 if to[0] == 0xFF else int.from_bytes(to[12:], "big")
        return address, number, frame[80:86]
    return None


number, due = 0, time.monotonic()
while True:
    left = due - time.monotonic()
    if left <= 0:
        number = (number + 1) % 65536
        for address in addresses:
            wire.send((solicitation if ":" in address else arp)(number, address))
            print(json.dumps([time.monotonic(), address, number, ""]), flush=True)
        due += every
        continue
    if select.select([wire], [], [], left)[0]:
        frame, (_, _, kind, _, _) = wire.recvfrom(2000)
        found = read(frame) if kind != socket.PACKET_OUTGOING else None
        if found and found[0] in addresses:
            print(json.dumps([time.monotonic(), found[0], found[1], found[2].hex(":")]), flush=True)
"""


@dataclass
class Heard:
    """Of one address."""

    asked: int = 0
    answered: int = 0
    now: str = ""  # the MAC address in the last answer
    last: float = 0.0  # when that came, by time.monotonic()
    told: list[str] = field(default_factory=list)  # MAC addresses that were told without a question
    by: dict[int, set[str]] = field(default_factory=dict)  # of each question who answered it, if anybody did
    twice: list[tuple[int, set[str]]] = field(default_factory=list)  # questions that several answered


class Neighbours:
    """Asks for `addresses` as long as the block lasts."""

    def __init__(self, lab: Lab, *addresses: str) -> None:
        self._lab = lab
        self.heard = {address: Heard() for address in addresses}

    def __enter__(self) -> Neighbours:
        place = execute.own_host(self._lab.record, names.LAN)
        command = execute.command(place, ["python3", "-c", _PROGRAM, str(EVERY_SECONDS), *self.heard])
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reading.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return
            at, address, number, mac = json.loads(line)
            heard = self.heard[address]
            if not mac:
                heard.asked += 1
                heard.by.pop((number - 30_000) % 65_536, None)  # numbers come again
            elif number < 0:
                heard.told.append(mac)
            else:
                heard.answered += 1
                heard.now, heard.last = mac, at
                who = heard.by.setdefault(number, set())
                who.add(mac)
                if len(who) > 1:
                    heard.twice.append((number, who))

    def who(self, address: str, seconds: float = 0.5) -> str:
        """The MAC address of who answers; "": nobody has for so long."""
        heard = self.heard[address]
        return heard.now if heard.now and time.monotonic() - heard.last < seconds else ""

    def until_another(self, address: str, than: str) -> str:
        """Who answers, when that is somebody else."""
        return self.until(address, lambda mac: mac not in ("", than))

    def until(self, address: str, so: Callable[[str], bool], seconds: float = 20.0) -> str:
        """Who answers, when that is so. Raises AssertionError: it never is."""
        deadline = time.monotonic() + seconds
        while not so(found := self.who(address)):
            assert time.monotonic() < deadline, f"{found or 'nobody'} answers for {address}"
            time.sleep(0.01)
        return found
