"""Reading a log itself: everything, then what comes, through restarts of the server, without asking its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from bus.interface import BusAway, Refused
from bus.journal import last_word
from bus.link import Link
from bus.log import RESUME_SECONDS, RETRY_SECONDS, Log, LogAbsent, LogInfo, log_config, make_stream
from bus.reader import Missed, Reader
from bus.subjects import log_of
from bus.telemetry import count, logger
from bus.view import View
from bus.wire import Entry

log = logger(__name__)

LOOK_SECONDS = 0.5  # how often to look whether the log grew by what is not for us


class Sink(Protocol):
    """Whoever reads: hears what changed; the view says how far that reaches and whether it is complete."""

    def __call__(self, news: list[Entry], /) -> None: ...


class Lost(Missed):
    """The log has less than we were told of it."""

    def __init__(self) -> None:
        super().__init__("the log has lost messages")


async def follow(
    link: Link,
    source: Log,
    view: View,
    sink: Sink,
    *,
    began: Callable[[], None] = lambda: None,
    is_whole: Callable[[LogInfo], bool] = lambda _: True,
) -> None:
    """Read the log into `view` for ever, passing on to `sink` what is news.

    Resumes where `view` stands when the log is still the same, else reads everything and finds what is gone. `began` is
    called before a full reading of another log, or of one that went back or lost messages. `is_whole` is what the
    reader itself knows of that.
    """
    left_at = 0.0  # loop time when we last knew that nothing was missing; the first reading cannot resume by it
    if view.complete:
        left_at = asyncio.get_running_loop().time()
    has_lost = False
    while True:
        try:
            async with Reader.open(source, view.reads) as reader:
                info = await source.info(view.few_keys)
                if view.is_first:
                    view.expect(await last_word(link, source.owner))
                start = await _start(source, view, info, left_at, began, is_whole, has_lost)
                has_lost = False
                try:
                    await _read(reader, source, view, info, start, sink, is_whole)
                finally:
                    if view.complete:
                        left_at = asyncio.get_running_loop().time()
        except Lost as problem:
            has_lost = True
            log.debug("reading the log anew", owner=source.owner, why=str(problem))
            continue
        except LogAbsent:
            source.saw(view.position)
            await make_stream(link, log_config(source.owner))
        except Missed as problem:
            count("bus_reader_missed", owner=source.owner)
            log.debug("reading the log again from where it was", owner=source.owner, why=str(problem))
            continue
        except (BusAway, Refused) as problem:  # rights may be being written anew
            log.debug("log not readable yet", owner=source.owner, why=str(problem))
        await link.connected()
        await asyncio.sleep(RETRY_SECONDS)


async def _start(
    source: Log,
    view: View,
    info: LogInfo,
    left_at: float,
    began: Callable[[], None],
    is_whole: Callable[[LogInfo], bool],
    has_lost: bool,
) -> int:
    """The sequence to read from. Begins a full reading when `view` cannot go on from where it is."""
    recent = asyncio.get_running_loop().time() - left_at < RESUME_SECONDS
    went_back = not (_is_same(view, info) and is_whole(info))
    if view.position == info.last:  # else what is not read yet may explain what is missing
        has_lost = has_lost or view.lost(info.first) or _lacks(view, info)
    has_lost = has_lost or (not went_back and not await _has_what_we_know(source, view, recent))
    same = not (went_back or has_lost)
    if same:
        view.confirm()
    if same and recent and view.complete:
        return view.position + 1
    if not same:
        began()
        if view.log:
            count("bus_log_replaced")
            log.warning(
                "a log is not the one that was read before, or has lost messages: what was known holds until it is "
                "vouched for",
                owner=source.owner,
                log=info.log,
                last=info.last,
            )
    view.begin(info.log, went_back=went_back, has_lost=has_lost)
    return 1


def _is_same(view: View, info: LogInfo) -> bool:
    return view.log == info.log and info.last >= view.position


def _lacks(view: View, info: LogInfo) -> bool:
    """A key that we know is not there, nor anything later of it. One that was deleted is, for an hour.

    To be asked when everything up to `info.last` was read: a key may have been written again since we heard of it.
    """
    return view.complete and info.keys is not None and view.misses(info.keys, info.last)


async def _has_what_we_know(source: Log, view: View, recent: bool) -> bool:
    """A log that went back and has grown again since looks as if it had only grown: the key that we heard last tells.

    After a long time the server has forgotten deletions, and a key that is not there says nothing.
    """
    subject, sequence = view.probe()
    if sequence <= 0:
        return True
    entry = await source.last(subject)
    return not recent if entry is None else entry.sequence == sequence or entry.sequence > view.position


async def _read(
    reader: Reader,
    source: Log,
    view: View,
    info: LogInfo,
    start: int,
    sink: Sink,
    is_whole: Callable[[LogInfo], bool] = lambda _: True,
) -> None:
    """From sequence `start` on, until the reading has to begin anew. Raises: Missed, BusAway."""
    now = asyncio.get_running_loop().time
    full = not view.complete
    reached = start - 1  # all that is wanted was read up to here
    first = 0  # the log's first sequence when it was found to have everything
    rest = reader.patterns if view.few_keys else [log_of(source.owner)]  # to be asked for once it was read in full
    is_alone = len(rest) == 1  # its answer is in order; several are each of another moment
    is_added = False
    unsure: LogInfo | None = info  # the log at the last look, if it was not compared with what we know yet
    looked = now()
    while True:
        if full or is_added or info.last > reached:
            patterns = reader.patterns if full else rest
            start, reached = reached + 1, max(reached, info.last)
            together: list[Entry] = []  # a node's own keys, which are few
            for pattern in patterns:
                async for entries, last in reader.all_of(pattern, start):
                    reached = max(reached, last) if len(patterns) == 1 else reached
                    if full:
                        for entry in entries:
                            view.record(entry)  # which tells nothing of it before the end
                    elif is_alone:
                        # In one step, without an await: whoever asks how far the view reaches has its changes too.
                        sink([change for entry in entries for change in view.record(entry)])
                    else:
                        together += entries
            if full:  # what is not in it is gone, if it is this very log that has answered
                await _look(source, view)
                news = view.finish(reached)
            else:
                news = [change for entry in sorted(together, key=_sequence) for change in view.record(entry)]
            view.position = reached  # of several patterns, what is later comes again
            sink(news)
            full = False
        if unsure is not None and reached >= unsure.last:
            is_less = (view.complete and unsure.first > first and view.lost(unsure.first)) or _lacks(view, unsure)
            if is_less or not is_whole(unsure):
                raise Lost
            first, unsure = unsure.first, None
            view.confirm()
        is_added = await reader.more(looked + LOOK_SECONDS)
        if not (is_added and is_alone) or now() >= looked + LOOK_SECONDS:
            info = unsure = await _look(source, view)
            looked = now()


def _sequence(entry: Entry) -> int:
    return entry.sequence


async def _look(source: Log, view: View) -> LogInfo:
    """The log as it is now. Raises: BusAway; Missed: it is another log."""
    try:
        info = await source.info(view.few_keys)
    except LogAbsent:
        raise Missed("the log is gone") from None
    if not _is_same(view, info):
        raise Missed("the log is another one")
    return info
