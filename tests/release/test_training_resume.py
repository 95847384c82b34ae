"""Training killed ten times: the full form of the check in tests/training/test_resume.py."""

import pytest

from tests.training.test_resume import check_killed_run


@pytest.mark.usefixtures("tiny_model")
def test_run_killed_ten_times_is_bit_identical(tmp_path, compiled_programs):
    check_killed_run(tmp_path, compiled_programs, steps=100, kills=10)
