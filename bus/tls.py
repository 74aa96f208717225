"""The bus over TLS: who the server is, and, if it asks for that, who the client is. PEM files, read when one connects.

A client that was given an authority speaks TLS from the first byte and nothing else: what a stranger says in between
cannot talk it out of that. It takes the server for the bus if that has a certificate of the authority for the host that
the URL names. User and password are asked for all the same.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from bus.interface import BusError

_ANOTHER_HOST = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_REASONS = {
    "WRONG_VERSION_NUMBER": "it speaks without: take PLEXUS_BUS_TLS_CA away, or give the bus a certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it asks for a certificate: set PLEXUS_BUS_TLS_CERT and PLEXUS_BUS_TLS_KEY",
    "TLSV1_ALERT_UNKNOWN_CA": "the certificate in PLEXUS_BUS_TLS_CERT is of an authority that it does not know",
}


class Unusable(BusError):
    """These files make no TLS; the text says which and why."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client needs. `certificate` and `key`: where the server asks clients for theirs."""

    authority: str
    certificate: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """Raises: Unusable."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ValueError) as problem:  # ssl.SSLError is an OSError
            files = ", ".join(filter(None, (self.authority, self.certificate, self.key)))
            raise Unusable(f"TLS with {files}: {problem}") from None
        return context


def client_tls(url: str, authority: str, certificate: str, key: str) -> ClientTls | None:
    """From settings, "" for what is not set; None: the bus speaks in the clear. Raises: Unusable: part of it is."""
    if not authority and url.startswith("tls:"):
        raise Unusable(f"{url} is to be TLS: set PLEXUS_BUS_TLS_CA to the authority of the bus's certificate")
    if not authority and (certificate or key):
        raise Unusable("PLEXUS_BUS_TLS_CA is not set: without it there is no TLS, and a certificate is of no use")
    if bool(certificate) != bool(key):
        raise Unusable("PLEXUS_BUS_TLS_CERT and PLEXUS_BUS_TLS_KEY go together")
    return ClientTls(authority, certificate, key) if authority else None


def advice(problem: ssl.SSLError) -> str:
    """Why there is no TLS with the bus, and what to do."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        if problem.verify_code in _ANOTHER_HOST:
            return f"its certificate does not name the host in PLEXUS_BUS_URL ({problem.verify_message})"
        return f"its certificate is not one that PLEXUS_BUS_TLS_CA vouches for ({problem.verify_message})"
    return _REASONS.get(problem.reason, f"check PLEXUS_BUS_TLS_CA, _CERT and _KEY ({problem})")
