"""Seeded damage to files and values, and child processes that read it.

``UVOS_FUZZ=10`` makes every survey try ten times as many seeds.
"""

import contextlib
import copy
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uvos_jax.errors import UserError

# Of an input's own work, whatever else the machine does meanwhile.
CPU_SECONDS = 5
MEBIBYTES = 600
# What stops a child that neither works nor answers, and one that asks for all the memory there is.
_PATIENCE = 120
_ADDRESS_SPACE = 12 * 2**30
# Where pytest itself runs in several processes, one child leaves the cores to them and is started and warmed up once.
_WORKERS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
_READY, _FINISHED = -1, -2  # in place of a seed


class Survey(NamedTuple):
    """What became of some inputs.

    Attributes:
        taken: How many were read to the end.
        refused: How many ended in one sentence for the user.
        defects: A text for each of the others, with its seed.
    """

    taken: int
    refused: int
    defects: list[str]


def survey(check: Callable[[int, Path], None], count: int, *, cpu_seconds: float = CPU_SECONDS,
           mebibytes: int = MEBIBYTES, workers: int = _WORKERS, noise: str | None = None) -> Survey:
    """Lets code meet many inputs, in child processes of which any may crash or hang.

    A defect is: any exception but a ``UserError`` of one line; a file that ``check`` leaves beside those it says it
    makes (see :func:`left_behind`); text on the process's own stdout or stderr; too much time or memory; a dead child.

    Args:
        check: Of the top level of a module. It makes the input of a seed, in a folder that is empty and its own, and
            has the library read it; it raises AssertionError for what it does not like.
        count: Number of seeds, before ``UVOS_FUZZ``.
        cpu_seconds: Longest time on processors for one input.
        mebibytes: Most memory that one input may add to the process, at its peak.
        workers: Processes.
        noise: Lines on the terminal that begin as this expression says are no defect.
    """
    seeds = list(range(count * int(os.environ.get("UVOS_FUZZ", "1"))))
    waiting = [seeds[part::workers] for part in range(workers)]
    taken, refused, defects = 0, 0, []
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as exit_stack:
        children = {}

        def start(mine):
            if mine:
                child = _Child(check, mine, Path(root), cpu_seconds, mebibytes, noise)
                exit_stack.callback(child.end)
                children[child.connection] = child

        for mine in waiting:
            start(mine)
        while children:
            for connection in wait(list(children), 1):
                child = children[connection]
                try:
                    seed, defect, was_refused = connection.recv()
                except EOFError:
                    seed, defect, was_refused = child.seeds[0], child.epitaph(), False
                    del children[connection]
                    start(child.seeds[1:])
                if seed == _FINISHED:
                    del children[connection]
                    continue
                child.done(seed)
                if seed == _READY:
                    continue
                if defect:
                    defects.append(f"seed {seed}: {defect}")
                refused += was_refused
                taken += not was_refused and not defect
            for child in [child for child in children.values() if child.silent() > _PATIENCE]:
                child.end()  # its connection then closes, which is told above
    return Survey(taken, refused, defects)


class _Child:
    """A process that works off seeds."""

    def __init__(self, *arguments):
        self.seeds = list(arguments[1])
        self.connection, theirs = multiprocessing.Pipe(duplex=False)
        # Started afresh: a fork of a process with threads, as JAX has them, may hang.
        self._process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, *arguments))
        self._process.start()
        theirs.close()
        self._heard = None  # imports may take long on a busy machine

    def done(self, seed):
        if self.seeds and self.seeds[0] == seed:
            self.seeds.pop(0)
        self._heard = time.monotonic()

    def silent(self):
        return time.monotonic() - self._heard if self._heard else 0

    def end(self):
        self._process.kill()

    def epitaph(self):
        self._process.join()
        hung = self.silent() > _PATIENCE
        return f"hung for {_PATIENCE} s" if hung else f"the process died with {self._process.exitcode}"


def _work(connection, check, seeds, root, cpu_seconds, mebibytes, noise):
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said = tempfile.TemporaryFile()  # noqa: SIM115 - to the end of the process
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    connection.send((_READY, "", False))
    warm = False
    for seed in seeds:
        folder = root / f"{check.__name__}-{seed}"
        folder.mkdir()
        begun, before = time.process_time(), _reset_peak()
        defect, refused = _outcome(check, seed, folder)
        if warm and not defect:  # the first input pays for imports and compilation
            seconds, grown = time.process_time() - begun, (_peak() - before) / 2**20
            if seconds > cpu_seconds:
                defect = f"took {seconds:.1f} s of processor time"
            elif grown > mebibytes:
                defect = f"took {grown:.0f} MiB of memory"
        warm = True
        defect = defect or _said(said, noise)
        shutil.rmtree(folder)
        connection.send((seed, defect, refused and not defect))
    connection.send((_FINISHED, "", False))


def _outcome(check, seed, folder):
    """``(defect or "", whether the input was refused)``."""
    try:
        check(seed, folder)
    except UserError as error:
        return not_a_sentence(error), True
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-4:]
        places = " < ".join(f"{Path(entry.filename).name}:{entry.lineno}" for entry in reversed(last))
        return f"{type(error).__name__}: {str(error)[:300]} ({places})", False
    return "", False


def not_a_sentence(error: UserError) -> str:
    """Says what is wrong with the text of an error, or nothing."""
    text = str(error)
    if not text.endswith((".", "?")) or len(text) > 10_000 or len(text.splitlines()) != 1:
        return f"no single sentence: {text[:300]!r}"
    return ""


def _said(said, noise):
    """What the process wrote to its streams since the last time, such as a warning, or a word of a C library."""
    sys.stdout.flush()
    sys.stderr.flush()
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    said.seek(0)
    said.truncate()
    unexpected = [line for line in lines if line.strip() and not (noise and re.match(noise, line))]
    return f"wrote to the terminal: {' | '.join(unexpected)[:3000]}" if unexpected else ""


def _reset_peak():
    """Starts a new measurement of the peak memory; returns the memory in use, bytes. Linux only, else 0."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak():
    return _status("VmHWM")


def _status(name):
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def left_behind(folder: Path, *expected: str) -> list[str]:
    """Names of the files and folders in ``folder`` that are none of the expected ones, hidden ones included."""
    return sorted(path.name for path in folder.iterdir() if path.name not in expected)


def command(*arguments: object) -> int:
    """Runs the command line in this process: it must exit with 0, 1 or 2, and with 2 say why in one line.

    Returns:
        The exit code.

    Raises:
        UserError: With the line that it said, where it exits with 2.
        AssertionError: It says more or less than that.
    """
    from uvos_jax.cli import main

    said, before = io.StringIO(), sys.argv
    sys.argv = ["uvos", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        if end.code == 2:
            lines = said.getvalue().splitlines()  # progress, perhaps, and the error
            assert lines and lines[-1].startswith("Error: ") and "Traceback" not in said.getvalue(), said.getvalue()
            raise UserError(lines[-1]) from None
        assert end.code in (0, 1, None), end.code
        return end.code or 0
    finally:
        sys.argv = before
    return 0


def damaged(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """Returns ``data`` with one to three kinds of damage; ``other`` is a file to splice in."""
    for _ in range(int(rng.integers(1, 4))):
        data = _DAMAGES[int(rng.integers(len(_DAMAGES)))](data or b"\0", rng, other)
    return data


def _place(data, rng):
    """A place in the file; half of them near its beginning or end, where formats keep what matters."""
    where = rng.random()
    near = min(256, len(data))
    if where < 0.35:
        return int(rng.integers(near))
    return len(data) - 1 - int(rng.integers(near)) if where < 0.5 else int(rng.integers(len(data)))


def _block(data, rng):
    start = _place(data, rng)
    return start, start + 1 + int(rng.integers(min(len(data), 2 ** int(rng.integers(1, 14)))))


def _flip(data, rng, other):
    changed = bytearray(data)
    for _ in range(2 ** int(rng.integers(6))):
        changed[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _truncate(data, rng, other):
    return data[:_place(data, rng)]


def _remove(data, rng, other):
    start, end = _block(data, rng)
    return data[:start] + data[end:]


def _repeat(data, rng, other):
    start, end = _block(data, rng)
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def _zero(data, rng, other):
    start, end = _block(data, rng)
    return data[:start] + bytes(len(data[start:end])) + data[end:]


def _noise(data, rng, other):
    start, end = _block(data, rng)
    return data[:start] + rng.bytes(len(data[start:end])) + data[end:]


def _number(data, rng, other):
    """An extreme number in place of what may be a size or an offset."""
    width = int(rng.choice([1, 2, 4, 8]))
    top = 256**width - 1
    value = int(rng.choice(np.array([0, 1, 2, top, top // 2, top // 2 + 1, min(100_000, top)], object)))
    start = _place(data, rng)
    return data[:start] + value.to_bytes(width, str(rng.choice(["big", "little"]))) + data[start + width:]


def _splice(data, rng, other):
    """The head of another file on this one, or the other way round."""
    first, second = (data, other) if rng.random() < 0.5 else (other, data)
    return first[:_place(first or b"\0", rng)] + second[_place(second or b"\0", rng):]


_DAMAGES = (_flip, _truncate, _remove, _repeat, _zero, _noise, _number, _splice)

# What nobody expects at the place of a value.
ODD = (None, True, False, 0, -1, 1, 2, 255, 65_536, 10**9, 2**31, 2**63, 10**12, 10**30, 0.5, -0.0, 1e-320, 1e308,
       float("inf"), float("-inf"), float("nan"), "", " ", "\0", "\n", "x" * 5000, "\ud800", "é日", "../..", "/", "1",
       "null", "1e5", [], {}, [[]], {"a": {}}, [None], [0] * 3, [10**9] * 2, {"name": []}, [{}] * 3)


def restructured(value: Any, rng: np.random.Generator, odd: Sequence[Any] = ODD) -> Any:
    """Returns a copy of nested dicts and lists with one or two changes: types, keys, numbers, order, depth."""
    root = [copy.deepcopy(value)]
    for _ in range(1 + int(rng.random() < 0.3)):
        # Long lists, such as of frames, are many places of one kind: a container is chosen first, then a place in it.
        containers = [container for container in _containers(root) if container]
        container = containers[int(rng.integers(len(containers)))]
        keys = list(container) if isinstance(container, dict) else range(len(container))
        key = keys[int(rng.integers(len(keys)))]
        _change(container, key, rng, odd, containers)
    return root[0]


def _containers(value):
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def _change(container, key, rng, odd, containers):
    old, kind = container[key], int(rng.integers(10))
    if kind == 0 and len(container) > 1:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(old))
    elif kind == 1:
        container[f"{key}x"] = container.pop(key)
    elif kind == 2:
        container[key] = [old] if rng.random() < 0.5 else {"a": old}
    elif kind == 3 and isinstance(old, int | float):
        container[key] = old * int(rng.choice([-1, 0, 2, 1000, 10**6])) + int(rng.integers(-1, 2))
    elif kind == 3:
        container[key] = str(old)[:1000]
    elif kind == 4:  # something that stands elsewhere
        other = containers[int(rng.integers(len(containers)))]
        container[key] = copy.deepcopy(other)
    elif kind == 5 and isinstance(old, str) and old:
        place = int(rng.integers(len(old)))
        container[key] = old[:place] + str(rng.choice(["", "\0", "ÿ", "0" * 99, "-", "[", "o"])) + old[place + 1:]
    else:
        container[key] = copy.deepcopy(odd[int(rng.integers(len(odd)))])


def json_bytes(value: Any, rng: np.random.Generator) -> bytes:
    """Returns a value as JSON, three times in ten as text that is damaged besides."""
    text = json.dumps(value)
    kind = int(rng.integers(24))
    if kind == 0:
        return text.encode(str(rng.choice(["utf-16", "utf-8-sig", "utf-32"])))
    if kind == 1:
        return text.encode() + bytes([0xC3, 0x28])
    if kind == 2:  # a key that is there twice
        return text.replace("{", '{"id": 1, "videos": [], "keys": {}, ', 1).encode()
    if kind == 3:
        depth = int(rng.choice([500, 990, 100_000]))
        return text.replace(": ", ": " + "[" * depth + "]" * depth + ', "b": ', 1).encode()
    if kind == 4:
        return text.replace("1", "1" * 5000, 1).encode()
    if kind == 5:
        return text.replace("1", "1e400", 1).encode()
    return damaged(text.encode(), rng, b"[NaN, -Infinity]") if kind == 6 else text.encode()
