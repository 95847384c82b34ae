"""Progress output: rate and remaining time without compilation, on pipes and terminals."""

import re

import pytest

from uvos_jax import progress as module
from uvos_jax.progress import Meter, format_seconds, no_progress, progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rate_and_remaining_time_exclude_the_first_step():
    clock = Clock()
    meter = Meter(20, clock)
    assert meter.rate is None and meter.remaining is None
    clock.now += 60  # compilation
    meter.advance()
    assert meter.rate is None and meter.remaining is None
    for _ in range(4):
        clock.now += 2
        meter.advance()
    assert meter.rate == pytest.approx(0.5) and meter.remaining == pytest.approx(30) and meter.seconds == 68


def test_frames_of_the_first_chunk_count_as_one_step():
    clock = Clock()
    meter = Meter(16, clock)
    for _ in range(3):
        clock.now += 8
        for _ in range(4):
            clock.now += 0.01
            meter.advance()
    assert meter.rate == pytest.approx(8 / 16, rel=0.02) and meter.remaining == pytest.approx(8, rel=0.02)


def test_steps_of_an_earlier_process_count_as_done_but_not_in_the_rate():
    clock = Clock()
    meter = Meter(60, clock, initial=38)
    assert meter.done == 38 and meter.rate is None and meter.remaining is None
    clock.now += 60  # compilation
    for _ in range(3):
        clock.now += 2
        meter.advance()
    assert meter.done == 41 and meter.rate == pytest.approx(0.5) and meter.remaining == pytest.approx(38)


def test_no_remaining_time_at_the_end_or_without_a_total():
    clock = Clock()
    for total in (2, None):
        meter = Meter(total, clock)
        for _ in range(2):
            clock.now += 1
            meter.advance()
        assert meter.rate == 1 and meter.remaining is None


def test_pipes_get_progress_lines(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(module, "_BURST", 0.0)
    with progress("clip", 3) as advance:
        advance.status("compiling")
        for _ in range(2):
            advance()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "clip: compiling ..." and lines[1].startswith("clip: 1/3 frames in 0 s")
    assert re.fullmatch(r"clip: 2/3 frames in 0 s, \S+ frames/s, 0 s left", lines[2])
    assert re.fullmatch(r"clip: 2 frames in 0 s, \S+ frames/s", lines[3]) and len(lines) == 4


def test_resumed_jobs_show_the_steps_of_the_whole_job(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(module, "_BURST", 0.0)
    with progress("training", 43, "steps", initial=40) as advance:
        for _ in range(3):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 41/43 steps, 1 of them in 0 s" and len(lines) == 3
    assert re.fullmatch(r"training: 42/43 steps, 2 of them in 0 s, \S+ steps/s, 0 s left", lines[1])
    assert re.fullmatch(r"training: 43 steps, 3 of them in 0 s, \S+ steps/s", lines[2])
    with progress("training", 43, "steps", initial=40):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("total", "last"), [(2, "clip: 2 frames in"), (None, "clip: 2 frames in"),
                                             (1, "clip: 2 frames in"), (3, "clip: 2 frames in")])
def test_pipes_get_the_final_count_once(capsys, monkeypatch, total, last):
    monkeypatch.setattr(module, "_LINE_EVERY", 0.0)
    with progress("clip", total) as advance:
        advance()
        advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(last) and sum(line.startswith(last) for line in lines) == 1


def test_one_step_is_counted_in_the_singular(capsys):
    with progress("clip", 1, "sequences") as advance:
        advance()
    assert capsys.readouterr().err == "clip: 1 sequence in 0 s\n"


def test_terminals_get_a_progress_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    with progress("clip", 3) as advance:
        advance.status("compiling")
        for _ in range(3):
            advance()
    err = capsys.readouterr().err
    assert "3/3" in err and err.count("left") <= 1


@pytest.mark.parametrize("terminal", [True, False])
def test_logs_get_lines_beside_a_bar_and_without_display(capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    lines = []
    with progress("clip", 2, visible=terminal, log=lines.append) as advance:
        advance.status("compiling")
        advance(2)
    assert lines == ["clip: compiling ...", "clip: 2 frames in 0 s"]
    assert ("2/2" in capsys.readouterr().err) == terminal


def test_no_output_without_steps(capsys):
    with progress("clip", 3):
        pass
    assert capsys.readouterr() == ("", "")


def test_quiet_progress_counts_steps(capsys):
    with no_progress("clip", 2) as advance:
        advance.status("compiling")
        advance(2)
    assert advance.meter.done == 2 and capsys.readouterr() == ("", "")


def test_format_seconds():
    assert [format_seconds(seconds) for seconds in (0.4, 61, 3725)] == ["0:00", "1:01", "1:02:05"]
