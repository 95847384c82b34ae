"""The survey helper of the fuzz tests detects every kind of defect."""

import os
import signal
import time

import numpy as np
import pytest

from tests.helpers.fuzz import survey
from uvos_jax.errors import UserError


def _wicked_case(seed, folder):
    """Seeds 2 to 9 each cause one defect that a survey must detect."""
    if seed == 1:
        raise UserError("It is of no use.")
    if seed == 2:
        raise UserError("Two\nlines.")
    if seed == 3:
        raise RecursionError("deep")
    if seed == 4:
        np.ones(2**25)  # 256 MiB
    if seed == 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    if seed == 6:
        print("hello")
    if seed == 7:
        os.write(2, b"a word of a C library")
    begun = time.process_time()
    while seed == 8 and time.process_time() < begun + 3.5:
        pass
    if seed == 9:
        time.sleep(1000)


@pytest.mark.slow
def test_survey_detects_every_kind_of_defect(monkeypatch):
    monkeypatch.setattr("tests.helpers.fuzz._PATIENCE", 12)
    monkeypatch.delenv("UVOS_FUZZ", raising=False)
    result = survey(_wicked_case, 12, cpu_seconds=3, mebibytes=128, workers=2)
    assert (result.taken, result.refused) == (3, 1)  # 0, 10 and 11, which come after the crash and the hang
    seen = dict(defect.removeprefix("seed ").split(": ", 1) for defect in result.defects)
    words = {"2": "no single sentence", "3": "RecursionError: deep", "4": "MiB of memory", "5": "died with -11",
             "6": "hello", "7": "a word of a C library", "8": "processor time", "9": "hung"}
    assert seen.keys() == words.keys()
    assert [seed for seed, word in words.items() if word not in seen[seed]] == []
