"""Connected sockets, wherever their program is started: it does as it is told."""

from __future__ import annotations

import json
from subprocess import Popen
from typing import Any

PORT = 7
PROGRAM = """
import errno, json, socket, sys
family, kind = {4: socket.AF_INET, 6: socket.AF_INET6}[int(sys.argv[1])], getattr(socket, sys.argv[2])
known = {}
def connect(name, address):
    known[name] = socket.socket(family, kind)
    known[name].settimeout(10)
    known[name].connect((address, 7))
    return "connected"
def connect_again(name, address):
    known[name].connect((address, 7))
    return "connected"
def ask(name):
    known[name].send(b"who\\n")
    return known[name].recv(2048).decode()
def send_to(name, address):
    known[name] = socket.socket(family, kind)
    known[name].settimeout(10)
    known[name].sendto(b"who\\n", (address, 7))
    return known[name].recv(2048).decode()
def wait(name):
    return known[name].recv(2048).decode()
def state(name):
    return [known[name].getpeername()[0], known[name].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        found = globals()[verb](*arguments)
    except TimeoutError:
        found = "nothing came"
    except OSError as problem:
        found = errno.errorcode[problem.errno]
    print(json.dumps(found), flush=True)
"""


def command(family: int, kind: str = "SOCK_DGRAM") -> list[str]:
    """`kind`: as the module `socket` calls it."""
    return ["/usr/bin/python3", "-c", PROGRAM, str(family), kind]


class Connections:
    """Sockets by a name, each connected to port 7 of an address. An answer is what came, or the error's name."""

    def __init__(self, process: Popen[str]) -> None:
        """`process`: of `command`, with pipes."""
        self.process = process

    def connect(self, name: str, address: str) -> str:
        return str(self._do("connect", name, address))

    def connect_again(self, name: str, address: str) -> str:
        """The same socket to another address, as UDP may."""
        return str(self._do("connect_again", name, address))

    def ask(self, name: str) -> str:
        return str(self._do("ask", name))

    def send_to(self, name: str, address: str) -> str:
        """By a new socket that is not connected."""
        return str(self._do("send_to", name, address))

    def begin_to_wait(self, name: str) -> None:
        """Until something comes to the socket: `waited` returns it."""
        self._say("wait", name)

    def waited(self) -> str:
        return str(self._heard())

    def state(self, name: str) -> Any:
        """To whom the socket believes to speak, and its pending error."""
        return self._do("state", name)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _do(self, *words: str) -> Any:
        self._say(*words)
        return self._heard()

    def _say(self, *words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def _heard(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())
