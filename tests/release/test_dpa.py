"""Training traces of the rows of DPA's Table 1 that tests/models/test_dpa.py omits."""

import pytest

from tests.models.test_dpa import TABLE_1, check_training_trace


@pytest.mark.parametrize("row", sorted(set(TABLE_1) - {"I", "X"}))
def test_rows_of_table_1_can_be_traced_for_training(row):
    check_training_trace(row)
