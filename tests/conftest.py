"""Fixtures that several test files share."""

import functools
import os
from collections import Counter
from pathlib import Path

from tests.helpers.paths import GOLDEN

# Most of the suite is compiling. What LLVM does beyond the plainest code changes no result, and costs a sixth of the
# time. Processes that tests start inherit it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import pytest

from uvos_jax.weights import convert


def _traced_once(expected_variables):
    """Tracing a network for its shapes takes seconds, and gives the same every time."""
    traced = functools.cache(expected_variables)

    @functools.wraps(expected_variables)
    def copy(model):
        return jax.tree.map(lambda shape: shape, traced(model))

    return copy


# Before any other module takes the function from this one by its name.
convert.expected_variables = _traced_once(convert.expected_variables)


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests, however short


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: with ``--dist loadfile`` one at the end would run alone."""
    tests = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))


@pytest.fixture
def golden() -> Path:
    """The folder of reference tensors made by the published PyTorch code."""
    return GOLDEN


@pytest.fixture
def real_data() -> Path:
    """A folder of real videos, which is too large to live beside the tests."""
    folder = os.environ.get("UVOS_TEST_DATA")
    if not folder:
        pytest.skip("set UVOS_TEST_DATA to a folder with davis2016/ and gold-fish/ to run this test")
    return Path(folder)


@pytest.fixture
def torch():
    """PyTorch, seeded; its absence skips the test unless UVOS_REQUIRE_TORCH=1 makes that a failure."""
    if os.environ.get("UVOS_REQUIRE_TORCH") == "1":
        import torch as module
    else:
        module = pytest.importorskip("torch")
    module.set_num_threads(2)
    module.manual_seed(0)
    return module
