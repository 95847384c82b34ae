"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def golden() -> Path:
    """The folder of reference tensors made by the published PyTorch code."""
    return Path(__file__).parent / "golden"


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
