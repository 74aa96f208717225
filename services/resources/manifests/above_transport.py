"""What rules of a CiliumNetworkPolicy say of layer 7 and of TLS: read in full, so that a misspelt or senseless one is
told at once; and refused, for it is not done yet. Pure.

Sources: Cilium's documentation, "Layer 7 policies", "DNS based" and "TLS SNI"; RFC 9110 section 5 (field names).
"""

from __future__ import annotations

import re

from services.resources.manifests.cilium_schema import DNSRule, HTTPRule, L7Rules, PortRule
from services.resources.manifests.strict import Problems, joined, nearest

MISMATCHES = ("LOG", "ADD", "DELETE", "REPLACE")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME = re.compile(r"[-a-zA-Z0-9_.]+")
_PATTERN = re.compile(r"[-a-zA-Z0-9_.*]+")


def refuse_above_transport(rule: PortRule, path: str, problems: Problems, instead: str) -> None:
    """`rules: {}` asks for nothing and is taken.

    Args:
        instead: what to write for now.
    """
    if rule.rules is not None:
        _refuse_rules(rule.rules, joined(path, "rules"), problems, instead)
    for at, name in enumerate(rule.server_names):
        if _PATTERN.fullmatch(name) is None:
            problems.add(f"{path}.serverNames[{at}]", f'"{name}" is not a server name, nor a pattern of one')
    later = {
        "serverNames": rule.server_names,
        "terminatingTLS": rule.terminating_tls,
        "originatingTLS": rule.originating_tls,
        "listener": rule.listener,
    }
    for field, value in later.items():
        if value or isinstance(value, dict):
            problems.add(joined(path, field), f"is not supported yet; {instead}")


def check_dns(rule: DNSRule, path: str, problems: Problems) -> None:
    """A rule for names, or a peer by its name."""
    if bool(rule.match_name) == bool(rule.match_pattern):
        problems.add(path, "must have one of matchName and matchPattern")
    if rule.match_name and _NAME.fullmatch(rule.match_name) is None:
        hint = "; patterns go into matchPattern" if "*" in rule.match_name else ""
        problems.add(joined(path, "matchName"), f'"{rule.match_name}" is not a DNS name{hint}')
    if rule.match_pattern and _PATTERN.fullmatch(rule.match_pattern) is None:
        problems.add(joined(path, "matchPattern"), f'"{rule.match_pattern}" is not a pattern of DNS names')


def _refuse_rules(rules: L7Rules, path: str, problems: Problems, instead: str) -> None:
    lists = {"http": rules.http, "dns": rules.dns, "kafka": rules.kafka, "l7": rules.l7}
    given = [field for field, entries in lists.items() if entries is not None]
    for field in given[:1]:
        problems.add(joined(path, field), f"L7 rules ({field}) are not supported yet; {instead}")
    for field in given[1:]:
        problems.add(joined(path, field), f"stands beside {given[0]}; a port speaks one protocol")
    if rules.l7proto:
        problems.add(joined(path, "l7proto"), f"L7 rules are not supported yet; {instead}")
    for at, http in enumerate(rules.http or ()):
        _check_http(http, f"{path}.http[{at}]", problems)
    for at, dns in enumerate(rules.dns or ()):
        check_dns(dns, f"{path}.dns[{at}]", problems)


def _check_http(rule: HTTPRule, path: str, problems: Problems) -> None:
    for at, header in enumerate(rule.headers):
        _check_field_name(header.partition(":")[0].partition(" ")[0], f"{path}.headers[{at}]", problems)
    for at, match in enumerate(rule.header_matches):
        where = f"{path}.headerMatches[{at}]"
        _check_field_name(match.name, joined(where, "name"), problems)
        if match.mismatch and match.mismatch not in MISMATCHES:
            hint = nearest(match.mismatch, MISMATCHES)
            problems.add(joined(where, "mismatch"), f'"{match.mismatch}" is none of {", ".join(MISMATCHES)}{hint}')


def _check_field_name(name: str, path: str, problems: Problems) -> None:
    if _FIELD_NAME.fullmatch(name) is None:
        problems.add(path, f'"{name}" is not the name of a header')
