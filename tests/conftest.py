"""Shared fixtures and pytest hooks."""

import contextlib
import gc
import os
import signal
from collections import Counter
from pathlib import Path

from tests.helpers import allowed_skips, compilation

os.environ.update(compilation.environment())  # before JAX is imported, which reads it

import pytest

from tests.helpers.paths import GOLDEN

compilation.write_from_this_process()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # shells ignore it in background jobs, but tests send it
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would start with the files with most tests, however short
    if not hasattr(config, "workerinput"):
        compilation.drop_old_programs()


def pytest_collection_finish():
    """Excludes imported objects from garbage collection, which otherwise takes a quarter of the tracing time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(items):
    """Runs files with slow tests first: with ``--dist loadfile``, a slow file at the end would run alone."""
    tests = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))


def pytest_terminal_summary(terminalreporter):
    if unexpected := allowed_skips.unexpected(terminalreporter.stats.get("skipped", ())):
        terminalreporter.section("skipped without being in tests/helpers/allowed_skips.py", red=True)
        for line in unexpected:
            terminalreporter.line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and exitstatus == pytest.ExitCode.OK and allowed_skips.unexpected(reporter.stats.get("skipped", ())):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def golden() -> Path:
    """The folder of reference tensors computed by the published PyTorch code."""
    return GOLDEN


@pytest.fixture
def real_data() -> Path:
    """The folder of real videos, which are too large for the repository."""
    folder = os.environ.get("UVOS_TEST_DATA")
    if not folder:
        pytest.skip("set UVOS_TEST_DATA to a folder with davis2016/ and gold-fish/ to run this test")
    return Path(folder)


@pytest.fixture(scope="module")
def compiled_programs(tmp_path_factory):
    """A folder that keeps the compiled programs of a module's tests, which start the same few repeatedly."""
    from tests.helpers.tiny_system import compiled_once

    folder = tmp_path_factory.mktemp("compiled")
    with compiled_once(folder):
        yield folder


@pytest.fixture
def tiny_model(monkeypatch):
    """Registers the model ``tiny``."""
    from tests.helpers.tiny_system import ROW
    from uvos_jax.models import SYSTEMS

    monkeypatch.setitem(SYSTEMS, "tiny", ROW)


@pytest.fixture
def torch():
    """PyTorch, seeded; without it the test is skipped, or fails if UVOS_REQUIRE_TORCH=1."""
    if os.environ.get("UVOS_REQUIRE_TORCH") == "1":
        import torch as module
    else:
        module = pytest.importorskip("torch")
    module.set_num_threads(2)
    module.manual_seed(0)
    return module
