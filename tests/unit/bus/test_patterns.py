"""Patterns of DNS names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.patterns import Patterns


@pytest.mark.parametrize(
    ("pattern", "name", "is_matched"),
    [
        ("*", "a.b.c", True),
        ("*", "", True),
        ("*", None, True),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("**.example.com", "a.b.example.com", True),
        ("**.example.com", "example.com", False),
        ("*.Example.com.", "a.example.com", True),
        ("a*.example.com", "abc.example.com", True),
        ("a*.example.com", "xabc.example.com", False),
        ("a.*.com", "a.b.com", True),
        ("a.*.com", "a.b.c.com", False),
        ("example.com", "example.com", True),
        ("example.com", "exampleXcom", False),
        ("*.example.com", None, False),
    ],
)
def test_patterns(pattern: str, name: str | None, is_matched: bool) -> None:
    assert Patterns(patterns=[pattern]).has(name) is is_matched
    assert Patterns(patterns=["other.org", pattern]).has(name) is is_matched


def test_names_are_whole_and_whatever_their_case() -> None:
    patterns = Patterns(names=["A.Example.com."])
    assert patterns.has("a.example.com")
    assert not patterns.has("b.a.example.com")
    assert not patterns.has(None)
    assert not Patterns().has("a")


LABELS = st.text("ab*", min_size=1, max_size=6)
NAMES = st.lists(st.text("ab", min_size=1, max_size=8), max_size=4)


@given(
    st.booleans(), st.lists(LABELS, min_size=1, max_size=3), st.lists(st.text("ab", min_size=1, max_size=8), max_size=4)
)
def test_a_pattern_has_what_its_regular_expression_has(is_deep: bool, labels: list[str], name: list[str]) -> None:
    pattern = ".".join(labels)
    if pattern == "*" and not is_deep:
        return
    regex = r"\.".join(each.replace("*", "[ab]*") for each in labels)
    regex = r"(?:[ab]+\.)+" + regex if is_deep else regex
    found = Patterns(patterns=[f"**.{pattern}" if is_deep else pattern]).has(".".join(name))
    assert found == (re.fullmatch(regex, ".".join(name)) is not None)


def test_a_name_that_was_chosen_to_take_long_does_not() -> None:
    assert not Patterns(patterns=["*a" * 30 + "*b.example.com"]).has("a" * 63 + ".example.com")
