"""How a long command tells what it does: a line for each step, a display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from bus.texts import visible
from cli.output import duration


class Teller:
    """Steps, and what there is to say within them. Use as a context manager; the display is gone afterwards."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._steps = steps
        self._begun = 0
        self._held: list[Text] = []  # said within a step, shown below its line when it is done
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps)

    def __enter__(self) -> Teller:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Tell that a step begins, and, when it is done, how long it took."""
        self._begun += 1
        started = time.monotonic()
        number = f"{self._begun}/{self._steps}"
        self._progress.update(self._task, description=title)
        if not self._console.is_terminal:
            self._console.print(Text(f"{number}  {title}"))
        yield
        took = duration(time.monotonic() - started)
        self._progress.advance(self._task)
        if not self._console.is_terminal:
            self.say(f"done in {took}")
            return
        self._console.print(Text.assemble(("✓ ", "green"), (title, "bold"), (f"  {took}", "dim")))
        for text in self._held:
            self._console.print(text)
        self._held.clear()

    def hint(self, text: str) -> None:
        """What the step waits for now; seen on a terminal only, and not for long."""
        self._progress.update(self._task, description=text)

    def say(self, text: str) -> None:
        """Lines that belong to the step."""
        for line in map(visible, text.splitlines()):
            if self._console.is_terminal:
                self._held.append(Text(f"  {line}"))
            else:
                self._console.print(Text(f"     {line}"))
