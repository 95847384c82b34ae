"""Segmentation killed six times: the full form of the check in tests/inference/test_resume.py."""

from tests.inference.test_resume import check_killed_run


def test_run_killed_six_times_writes_the_same_files(tmp_path):
    check_killed_run(tmp_path, (False, False, True) * 2)
