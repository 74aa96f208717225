"""HTTP rules -> Envoy's routes: one for each rule that allows, and at the end one that denies. Pure.

Envoy takes the first route that fits. Sources: Envoy's documentation, "HTTP route components"; RFC 9110 section 9.3.6
(CONNECT has no path). `OPTIONS *` gets 404 from Envoy itself, whatever the rules.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.wrappers_pb2 import UInt32Value

from services.proxy.api import envoy_pb2 as envoy
from services.proxy.packing import packed
from services.proxy.slots import HeaderMatch, HTTPRule

DENIED = "Access denied\n"
CLUSTER = "http"
DENIES = "denied"  # the name of the last routes
MISMATCHED = "mismatch"  # behind a rule's name: it let a request through that has not a header with LOG
HIDDEN_DOTS = r"[^?]*/\.{1,2};.*"
"""A segment that is "." or ".." to servers that cut parameters off, and to others is not."""

_SPECIAL = re.compile(r"[][\\^$.|?*+(){}]")

BUFFER = "buffer"  # the HTTP filter that holds a request until its body is there
BUFFER_BYTES = 64 * 1024


def route_configuration(name: str, rules: Sequence[HTTPRule]) -> envoy.RouteConfiguration:
    host = envoy.VirtualHost(name="any", domains=["*"])
    if rules:
        hidden = envoy.RouteMatch(prefix="/", headers=[_matches(":path", HIDDEN_DOTS)])
        host.routes.append(_denial(hidden))
    for rule in rules:
        host.routes.extend(_routes(rule))
    host.routes.extend(_denials())
    return envoy.RouteConfiguration(name=name, virtual_hosts=[host])


def _denials() -> Iterator[envoy.Route]:
    """A connection lives on after an answer when its request has come whole. So bodies of a known length, which their
    client is going to send whatever it hears, are taken first, and let go."""
    buffered = _denial(envoy.RouteMatch(prefix=""))
    for header, is_there in (("content-length", True), ("expect", False), ("upgrade", False)):
        buffered.match.headers.add(name=header, present_match=True, invert_match=not is_there)
    limit = envoy.BufferPerRoute(buffer=envoy.Buffer(max_request_bytes=UInt32Value(value=BUFFER_BYTES)))
    buffered.typed_per_filter_config[BUFFER].CopyFrom(packed(limit))
    yield buffered
    yield _denial(envoy.RouteMatch(prefix=""))
    yield _denial(_connects())


def _denial(match: envoy.RouteMatch) -> envoy.Route:
    response = envoy.DirectResponseAction(status=403, body=envoy.DataSource(inline_string=DENIED))
    return envoy.Route(name=DENIES, match=match, direct_response=response)


def _routes(rule: HTTPRule) -> Iterator[envoy.Route]:
    """Those of a combination where more matches come first, so that no route has to say what does not match."""
    branching = [match for match in rule.headers if match.branches]
    for outcome in itertools.product((True, False), repeat=len(branching)):
        found = [match for match, is_there in zip(branching, outcome, strict=True) if is_there]
        missing = [match for match, is_there in zip(branching, outcome, strict=True) if not is_there]
        yield _route(rule, envoy.RouteMatch(prefix="/"), found, missing)
        if not rule.path:
            yield _route(rule, _connects(), found, missing)


def _route(
    rule: HTTPRule, match: envoy.RouteMatch, found: Iterable[HeaderMatch], missing: Iterable[HeaderMatch]
) -> envoy.Route:
    beginning = literal_beginning(rule.path)
    if beginning not in ("/", rule.path):  # of what Envoy asks about a route it asks headers first, in this order
        match.headers.add(name=":path", string_match=envoy.StringMatcher(prefix=beginning))
    for header, regex in ((":method", rule.method), (":path", rule.path), (":authority", rule.host)):
        if regex:
            match.headers.append(_matches(header, regex))
    denying = [each for each in rule.headers if each.mismatch == "DENY"]
    match.headers.extend(_has(each) for each in itertools.chain(denying, found))
    route = envoy.Route(name=rule.name, match=match, route=envoy.RouteAction(cluster=CLUSTER))
    route.route.timeout.SetInParent()  # 0: none, for long answers
    for each in rule.headers:
        if each.mismatch == "REPLACE":
            route.request_headers_to_add.append(_set(each, envoy.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD))
    for each in missing:
        if each.mismatch == "ADD":
            route.request_headers_to_add.append(_set(each, envoy.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD))
        elif each.mismatch == "DELETE":
            route.request_headers_to_remove.append(each.name)
        else:
            route.name = f"{rule.name} {MISMATCHED}"
    return route


def _connects() -> envoy.RouteMatch:
    return envoy.RouteMatch(connect_matcher=envoy.RouteMatch.ConnectMatcher())


def literal_beginning(regex: str) -> str:
    """What every path begins with that the regular expression has; at least "/", as all paths do. Asked before the
    expression, it spares most of these."""
    text = regex.removeprefix("^")
    if "|" in text or not text.startswith("/"):
        return "/"
    special = _SPECIAL.search(text)
    if special is None:
        return text
    end = special.start() - (special[0] in "*?{+")  # those are about the character before
    return text[:end] or "/"


def _matches(name: str, regex: str) -> envoy.HeaderMatcher:
    if _SPECIAL.search(regex) is None:
        matcher = envoy.StringMatcher(exact=regex)
    else:
        matcher = envoy.StringMatcher(safe_regex=envoy.RegexMatcher(regex=regex))
    return envoy.HeaderMatcher(name=name, string_match=matcher)


def _has(match: HeaderMatch) -> envoy.HeaderMatcher:
    if match.value is None:
        return envoy.HeaderMatcher(name=match.name, present_match=True)
    return envoy.HeaderMatcher(name=match.name, string_match=envoy.StringMatcher(exact=match.value))


def _set(match: HeaderMatch, action: envoy.HeaderValueOption.HeaderAppendAction) -> envoy.HeaderValueOption:
    return envoy.HeaderValueOption(
        header=envoy.HeaderValue(key=match.name, value=match.value or ""), append_action=action
    )
