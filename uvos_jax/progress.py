"""Progress of long jobs on standard error: a live bar in a terminal, a line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_LINE_EVERY = 10.0  # seconds


class _Lines:
    """Progress for logs, notebooks and pipes, where a bar cannot be drawn over itself."""

    def __init__(self, what: str, total: int | None, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._done, self._started = 0, time.monotonic()
        self._next_line = self._started + _LINE_EVERY
        self._at_first = 0, self._started  # steps and time when the first ones were done, which may have waited

    def __call__(self, count: int = 1) -> None:
        self._done += count
        if not self._at_first[0]:
            self._at_first = self._done, time.monotonic()
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY
            of = f"/{self._total}" if self._total else ""
            since = self._done - self._at_first[0], time.monotonic() - self._at_first[1]
            known = self._total and self._done < self._total and min(since) > 0
            left = f", {(self._total - self._done) * since[1] / since[0]:.0f} s left" if known else ""
            self._say(of, left)

    def end(self) -> None:
        """The last line; the number of steps may have turned out to be another, and nothing is left."""
        if self._done:
            self._say("", "")

    def _say(self, of: str, left: str) -> None:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = f"{self._done / elapsed:.3g} {self._unit}/s"
        print(f"{self._what}: {self._done}{of} {self._unit} in {elapsed:.0f} s, {rate}{left}", file=sys.stderr,
              flush=True)


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: str = "frames", first: str = "") -> Iterator[Callable[..., None]]:
    """Yields a function ``advance(count=1)`` that shows count, rate and time left.

    Args:
      what: is being done.
      total: number of steps, or None if unknown; the true number may turn out to be another.
      unit: what is counted.
      first: what the first step waits for, shown until it is done.
    """
    if not sys.stderr.isatty():
        lines = _Lines(what, total, unit)
        if first:
            print(f"{what}: {first} ...", file=sys.stderr, flush=True)
        yield lines
        lines.end()
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
        task = bar.add_task(f"{what} ({first})" if first else what, total=total, rate="")
        started = time.monotonic()

        def advance(count: int = 1) -> None:
            done = bar.tasks[task].completed + count
            per_second = f"{done / (time.monotonic() - started):.3g} {unit}/s"
            bar.update(task, description=what, completed=done, rate=per_second)

        yield advance
        if total and bar.tasks[task].completed:
            bar.update(task, total=bar.tasks[task].completed)
