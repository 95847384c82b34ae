"""Progress of long jobs on standard error: a live bar in a terminal, a line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator

_LINE_EVERY = 10.0  # seconds


class _Lines:
    """Progress for logs, notebooks and pipes, where a bar cannot be drawn over itself."""

    def __init__(self, what: str, total: int | None, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._done, self._started = 0, time.monotonic()
        self._next_line = self._started + _LINE_EVERY

    def __call__(self, count: int = 1) -> None:
        self._done += count
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY
            self.line()

    def line(self) -> None:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / elapsed
        of = f"/{self._total}" if self._total else ""
        known = self._total and 0 < self._done < self._total
        left = f", {(self._total - self._done) / rate:.0f} s left" if known else ""
        print(f"{self._what}: {self._done}{of} {self._unit} in {elapsed:.0f} s, {rate:.3g} {self._unit}/s{left}",
              file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: str = "frames") -> Iterator[_Lines]:
    """Yields a function ``advance(count=1)`` that shows count, rate and time left.

    Args:
      what: is being done.
      total: number of steps, or None if unknown; the true number may turn out to be another.
      unit: what is counted.
    """
    if not sys.stderr.isatty():
        lines = _Lines(what, total, unit)
        yield lines
        lines.line()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    rate = TextColumn("{task.fields[rate]}")
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(),
                  TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
                  console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")
        started = time.monotonic()

        def advance(count: int = 1) -> None:
            done = bar.tasks[task].completed + count
            bar.update(task, completed=done, rate=f"{done / (time.monotonic() - started):.3g} {unit}/s")

        yield advance
