"""A service that cannot start says what to do in one line; one that fails says where."""

from __future__ import annotations

import json

import pytest

from bus.service import BadSettings, CannotStart, failed
from bus.telemetry import JsonFormatter


@pytest.mark.parametrize("problem", [CannotStart("load the module geneve"), BadSettings("load the module geneve")])
def test_what_a_person_has_to_do_is_told_without_a_traceback(
    problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    told = logged(problem, caplog)
    assert told["why"] == "load the module geneve"
    assert "Traceback" not in json.dumps(told)


def test_a_mishap_is_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    told = logged(KeyError("a"), caplog)
    assert told["why"] == "KeyError('a')"
    assert "Traceback" in json.dumps(told)


def logged(problem: Exception, caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """The one line that is logged of a problem that was raised."""
    try:
        raise problem
    except Exception as raised:  # noqa: BLE001  # whatever the test gave
        failed("dataplane", raised)
    [record] = caplog.records
    found: dict[str, str] = json.loads(JsonFormatter().format(record))
    return found
