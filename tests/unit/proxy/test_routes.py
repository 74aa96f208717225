"""What Envoy is asked before a regular expression is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.routes import literal_beginning


@pytest.mark.parametrize(
    ("regex", "beginning"),
    [
        ("", "/"),
        ("/public/.*", "/public/"),
        ("/v1/items", "/v1/items"),
        ("^/v1/items$", "/v1/items"),
        ("/v1/items?", "/v1/item"),
        ("/ab*", "/a"),
        ("/ab{0}", "/a"),
        ("/ab+", "/a"),
        ("/*", "/"),
        ("/a|/b", "/"),
        ("/a(b|c)", "/"),
        ("(?i)/a", "/"),
        ("/a(?i)b", "/a"),
        (".*", "/"),
        (r"/a\.b", "/a"),
        ("/a[bc]", "/a"),
    ],
)
def test_the_beginning_is_what_is_said_without_doubt(regex: str, beginning: str) -> None:
    assert literal_beginning(regex) == beginning


PIECES = st.sampled_from(
    ["/", "a", "b", ".", "*", "+", "?", "|", "(a|b)", "[ab]", "{0}", "{1,2}", r"\\.", "^", "$", "(", ")"]
)


@given(st.lists(PIECES, max_size=8).map("".join), st.text("/ab.", max_size=6))
def test_no_path_that_a_rule_has_begins_otherwise(regex: str, rest: str) -> None:
    path = f"/{rest}"
    try:
        is_matched = re.fullmatch(regex, path) is not None
    except re.error:
        return
    if is_matched and regex:
        assert path.startswith(literal_beginning(regex))
