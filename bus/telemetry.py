"""Structured logs, counters and trace context: what every part of the bus reports with.

A log line is a constant message with facts in fields: `log.info("address assigned", pod=..., address=...)`.
Counters are plain numbers here, so that counting costs no library; `bus/service.py` shows them to Prometheus.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

Labels = tuple[tuple[str, str], ...]

_counters: Counter[tuple[str, Labels]] = Counter()


def count(name: str, by: int = 1, /, **labels: str) -> None:
    """Add to the counter `name` (without prefix and without "_total"), told apart by `labels` (few values each)."""
    _counters[name, tuple(sorted(labels.items()))] += by


def counted(name: str, /, **labels: str) -> int:
    """The counter's value now; with fewer labels than it has, the sum over the others."""
    wanted = set(labels.items())
    return sum(value for (own, given), value in _counters.items() if own == name and wanted <= set(given))


def counters() -> Mapping[tuple[str, Labels], int]:
    """A copy of all counters: (name, labels) -> value."""
    return dict(_counters)


class FieldLog:
    """A logger whose lines are a constant message and named facts."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, /, **fields: object) -> None:
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, /, *, cause: BaseException | None = None, **fields: object) -> None:
        """A person is needed; the message says what to do. `cause` adds the stack."""
        self._write(logging.ERROR, message, fields, cause)

    def _write(
        self, level: int, message: str, fields: Mapping[str, object], cause: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, exc_info=cause, extra={"fields": fields})


def logger(name: str) -> FieldLog:
    """The log of one module: `log = logger(__name__)`."""
    return FieldLog(name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in getattr(record, "fields", {}).items() if name not in line}
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For people: time, level, message, then name=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logs(level: str, form: str) -> None:
    """Write logs to standard error. `level`: a name of logging; `form`: "json" or "text".

    Raises: ValueError: no such level or form.
    """
    formatter = {"json": JsonFormatter, "text": TextFormatter}.get(form)
    if formatter is None:
        raise ValueError(f'PLEXUS_LOG_FORMAT is "json" or "text", not "{form}"')
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # what it reports reaches us through its error callback


@dataclass(frozen=True, slots=True)
class Cause:
    """What led to the message that is being written: seconds since the epoch, and W3C trace headers."""

    at: float
    trace: Mapping[str, str]


_cause: ContextVar[Cause | None] = ContextVar("cause", default=None)


@contextmanager
def caused_by(at: float, trace: Mapping[str, str]) -> Iterator[None]:
    """All that is published inside carries this time and trace, unless a span of its own is active."""
    token = _cause.set(Cause(at, trace))
    try:
        yield
    finally:
        _cause.reset(token)


def new_trace() -> dict[str, str]:
    """Headers of a trace that begins here, by the W3C's form; whoever asks for a change begins one."""
    return {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}


def current_cause() -> Cause:
    """The cause to put into headers: the active span's trace, else the one of `caused_by`, else now and no trace."""
    cause = _cause.get() or Cause(time.time(), {})
    tracing = sys.modules.get("opentelemetry.trace")  # nobody traces when nobody has imported it
    if tracing is not None:
        context = tracing.get_current_span().get_span_context()
        if context.is_valid:
            parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
            return Cause(cause.at, {"traceparent": parent})
    return cause
