"""A lab's certificates, made on the spot with openssl. For the bus: an authority, the server's, and one for each user.
For flows: an authority of their own, one for each node's observer, and the relay's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from bus.server import Tls
from bus.tls import ClientTls
from lab.errors import LabError
from services.hubble.peers import server_name

DAYS = 365
AUTHORITY = "authority"
SERVER = "bus"
RELAY = "relay"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make(folder: Path, addresses: Iterable[IPv4Address | IPv6Address], users: Iterable[str]) -> None:
    """All of them, in `folder`, which is for root's eyes. Raises LabError: there is no openssl, or it refuses.

    Args:
        addresses: where clients find the bus.
        users: of the bus; each certificate is named like its user.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    _authority(folder)
    names = ",".join(f"IP:{address}" for address in (*addresses, IPv4Address("127.0.0.1")))
    _sign(folder, SERVER, f"subjectAltName={names}", "extendedKeyUsage=serverAuth")
    for user in users:
        _sign(folder, user, "extendedKeyUsage=clientAuth")


def make_for_hubble(folder: Path, nodes: Iterable[str]) -> None:
    """An authority, a certificate for each node's observer, and the relay's, by their names. Raises LabError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    _authority(folder)
    for node in nodes:
        _sign(folder, node, f"subjectAltName=DNS:{server_name(node)}", "extendedKeyUsage=serverAuth")
    _sign(folder, RELAY, "extendedKeyUsage=clientAuth")


def of_hubble(folder: Path, holder: str) -> dict[str, str]:
    """The files of a node's observer, or of the relay."""
    return {
        "CA": str(_file(folder, AUTHORITY, "crt")),
        "CERT": str(_file(folder, holder, "crt")),
        "KEY": str(_file(folder, holder, "key")),
    }


def server(folder: Path, *, verify: bool) -> Tls:
    return Tls(_file(folder, SERVER, "crt"), _file(folder, SERVER, "key"), _file(folder, AUTHORITY, "crt"), verify)


def client(folder: Path, user: str, *, verify: bool) -> ClientTls:
    """What `user` connects with; its own certificate only where the server asks for it."""
    authority = str(_file(folder, AUTHORITY, "crt"))
    if not verify:
        return ClientTls(authority)
    return ClientTls(authority, str(_file(folder, user, "crt")), str(_file(folder, user, "key")))


def _authority(folder: Path) -> None:
    _sign(folder, AUTHORITY, "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign", own=True)


def _sign(folder: Path, name: str, *extensions: str, own: bool = False) -> None:
    by = () if own else ("-CA", _file(folder, AUTHORITY, "crt"), "-CAkey", _file(folder, AUTHORITY, "key"))
    command = [
        *("openssl", "req", "-x509", *_KEY, "-days", str(DAYS), "-subj", f"/O=plexus lab/CN={name}"[:64], *by),
        *("-keyout", _file(folder, name, "key"), "-out", _file(folder, name, "crt")),
        *(part for extension in extensions for part in ("-addext", extension)),
    ]
    if not own:
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise LabError(
            "bus.tls, hubble.tls: openssl is not on this machine, and a lab's certificates are made with it"
        ) from None
    except subprocess.CalledProcessError as error:
        raise LabError(f"openssl made no certificate for {name}: {error.stderr.strip()[-300:]}") from None


def _file(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{kind}"
