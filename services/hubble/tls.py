"""Who may ask an observer over the network: who has a certificate of the same authority."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from bus.service import BadSettings


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files."""

    authority: str
    certificate: str
    key: str

    @staticmethod
    def of(authority: str, certificate: str, key: str) -> Files:
        """Raises: BadSettings: one is not given."""
        if not (authority and certificate and key):
            raise BadSettings(
                "PLEXUS_HUBBLE_TLS is true: set PLEXUS_HUBBLE_TLS_CA, _CERT and _KEY; or, where everybody on the "
                "network may see all flows, PLEXUS_HUBBLE_TLS=false"
            )
        return Files(authority, certificate, key)

    def server(self) -> ssl.SSLContext:
        """Raises: BadSettings."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        """Raises: BadSettings."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)  # which verifies, and checks the name

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        try:
            context.load_verify_locations(self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ValueError) as problem:  # ssl.SSLError is an OSError
            files = f"{self.authority}, {self.certificate}, {self.key}"
            raise BadSettings(f"PLEXUS_HUBBLE_TLS_CA, _CERT, _KEY ({files}): {problem}") from None
        return context


def place(variable: str, address: str) -> tuple[str | None, int]:
    """Host (None: every address) and port of "host:port" or ":port". Raises: BadSettings."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadSettings(f'{variable} is "host:port" or ":port", not {address!r}')
    return host.strip("[]") or None, int(port)
