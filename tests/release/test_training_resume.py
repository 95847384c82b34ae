"""Training killed ten times: the full form of the check in tests/training/test_resume.py."""

from tests.training.test_resume import check_killed_run, compiled, tiny  # noqa: F401


def test_run_killed_ten_times_is_bit_identical(tmp_path, compiled):  # noqa: F811
    check_killed_run(tmp_path, compiled, steps=100, kills=10)
