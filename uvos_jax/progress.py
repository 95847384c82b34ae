"""Progress of long jobs on standard error: a bar in terminals and notebooks, a line every ten seconds elsewhere.

Rate and remaining time come from one meter, which leaves out compilation: its clock starts after the first step.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from uvos_jax.errors import pluralize

_LINE_EVERY = 10.0  # seconds
# Frames of one chunk finish together. Steps this close to the first belong to it, so that they do not count as fast.
_BURST = 0.5  # seconds
_Display = tuple[Callable[[], None], Callable[[str], None]]  # updates the count; shows a status


class Meter:
    """Counts steps; the one source of rate and remaining time.

    Attributes:
        done: Number of finished steps, including ``initial``.
        total: Expected number of steps, or None if unknown.
        initial: Number of steps that an earlier process finished. Rate and remaining time exclude them.
    """

    def __init__(self, total: int | None = None, clock: Callable[[], float] = time.monotonic, initial: int = 0):
        """Starts at ``initial`` steps.

        Args:
            total: Expected number of steps, including ``initial``.
            clock: Returns the time in seconds.
            initial: Number of steps that an earlier process finished.
        """
        self.done, self.total, self.initial = initial, total, initial
        self._clock = clock
        self._started = clock()
        self._first: float | None = None  # time of the first step
        self._base = initial, self._started  # steps and time from which the rate is measured
        self._latest = self._started

    def advance(self, count: int = 1) -> None:
        """Adds finished steps."""
        self.done += count
        self._latest = self._clock()
        if self._first is None:
            self._first = self._latest
        if self._latest - self._first <= _BURST:
            self._base = self.done, self._latest

    @property
    def seconds(self) -> float:
        """Seconds since the start, compilation included."""
        return self._clock() - self._started

    @property
    def rate(self) -> float | None:
        """Steps per second without the first step, which compiles; None while there are too few."""
        steps, seconds = self.done - self._base[0], self._latest - self._base[1]
        return steps / seconds if steps > 0 and seconds > 0 else None

    @property
    def remaining(self) -> float | None:
        """Estimated seconds until ``total`` is reached, or None if unknown."""
        if not self.total or self.done >= self.total or self.rate is None:
            return None
        return (self.total - self.done) / self.rate


class Advance:
    """Function that advances a meter and shows it; yielded by ``progress``.

    Attributes:
        meter: Counts the steps.
        status: Function that displays what the next step waits for, such as "compiling", until it is done.
    """

    def __init__(self, meter: Meter, show: Callable[[], None] = lambda: None,
                 show_status: Callable[[str], None] = lambda text: None):
        """Combines the two.

        Args:
            meter: Counts.
            show: Updates the display; called after each step.
            show_status: Displays a text until the next step.
        """
        self.meter = meter
        self.status = show_status
        self._show = show

    def __call__(self, count: int = 1) -> None:
        """Adds ``count`` finished steps."""
        self.meter.advance(count)
        self._show()


@contextlib.contextmanager
def progress(what: str, total: int | None = None, unit: str = "frames", initial: int = 0, *, visible: bool = True,
             log: Callable[[str], None] | None = None) -> Iterator[Advance]:
    """Shows the progress of a job: count, rate and remaining time.

    Args:
        what: Name of the job.
        total: Number of steps, or None if unknown; the actual number may differ.
        unit: What is counted, plural.
        initial: Number of steps that an earlier process finished; ``total`` includes them.
        visible: Whether standard error shows the progress.
        log: Called with each progress line, also where standard error shows a bar or nothing.

    Yields:
        A function ``advance(count=1)``; see ``Advance``.
    """
    meter = Meter(total, initial=initial)
    displays = []
    if visible:
        displays.append(_bar if sys.stderr.isatty() or _in_notebook() else partial(_lines, write=_print))
    if log:
        displays.append(partial(_lines, write=log))
    with contextlib.ExitStack() as stack:
        shown = [stack.enter_context(display(meter, what, unit)) for display in displays]

        def update() -> None:
            for update_one, _ in shown:
                update_one()

        def status(text: str) -> None:
            for _, show_status in shown:
                show_status(text)

        yield Advance(meter, update, status)


@contextlib.contextmanager
def no_progress(what: str = "", total: int | None = None, unit: str = "", initial: int = 0) -> Iterator[Advance]:
    """Counts as ``progress`` does and shows nothing."""
    yield Advance(Meter(total, initial=initial))


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _lines(meter: Meter, what: str, unit: str, write: Callable[[str], None]) -> Iterator[_Display]:
    """Lines for logs and pipes, where a bar cannot be redrawn."""
    next_line = time.monotonic() + _LINE_EVERY

    last_count = ""

    def write_count(count: str, remaining: str = "") -> None:
        nonlocal last_count
        last_count = count
        rate = f", {meter.rate:.3g} {unit}/s" if meter.rate else ""
        finished = f"{count}, {meter.done - meter.initial} of them" if meter.initial else count
        write(f"{what}: {finished} in {meter.seconds:.0f} s{rate}{remaining}")

    def count() -> str:
        return pluralize(meter.done, unit.removesuffix("s"))

    def update() -> None:
        nonlocal next_line
        if time.monotonic() >= next_line and meter.done != meter.total:  # the last line follows below
            next_line = time.monotonic() + _LINE_EVERY
            remaining = meter.remaining
            # The number of frames that a file states may be too small.
            write_count(f"{meter.done}/{meter.total} {unit}" if meter.total and meter.done < meter.total else count(),
                        "" if remaining is None else f", {remaining:.0f} s left")

    def status(text: str) -> None:
        write(f"{what}: {text} ...")

    yield update, status
    if meter.done > meter.initial and last_count != count():
        write_count(count())


@contextlib.contextmanager
def _bar(meter: Meter, what: str, unit: str) -> Iterator[_Display]:
    """A bar that Rich redraws, in terminals and notebooks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[rate]}", markup=False), TimeElapsedColumn(),
               TextColumn("{task.fields[remaining]}", markup=False))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=meter.total, completed=meter.done, rate="", remaining="")

        def update() -> None:
            rate, remaining = meter.rate, meter.remaining
            bar.update(task, description=what, completed=meter.done,
                       rate=f"{rate:.3g} {unit}/s" if rate else "",
                       remaining="" if remaining is None else f"{format_seconds(remaining)} left")

        def status(text: str) -> None:
            bar.update(task, description=f"{what} ({text})")

        yield update, status
        if meter.total and meter.done > meter.initial:  # the number of frames that a file states may be wrong
            bar.update(task, total=meter.done, remaining="")


def format_seconds(seconds: float) -> str:
    """Formats a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook whose front end can redraw a bar."""
    import importlib.util

    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return getattr(get_shell(), "kernel", None) is not None and importlib.util.find_spec("ipywidgets") is not None
