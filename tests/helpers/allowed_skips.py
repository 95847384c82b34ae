"""Skips that continuous integration accepts, with their reasons; any other skip fails it.

The list applies where the environment has ``UVOS_STRICT_SKIPS=1`` or ``CI=true``.
"""

import os
import re

# (pattern of the test's id, pattern of the reason, why the skip is accepted)
ALLOWED = [
    (r".*", r"could not import 'torch'", "live PyTorch is compared in a second run, which must not skip"),
    (r".*", r"set UVOS_TEST_DATA to a folder", "the real videos are too large for the repository"),
    (r".*", r"root may (read everything|write into read-only folders)", "permissions do not bind root"),
    (r"tests/data/test_tfds_builders\.py", r"Not a test\.", "a method of TensorFlow's test base class"),
    (r"tests/video/test_streams\.py", r"needs terminals|there is no /dev/full", "no POSIX terminals or devices"),
]


def strict() -> bool:
    """Whether this run accepts only the skips of the list."""
    return os.environ.get("UVOS_STRICT_SKIPS") == "1" or os.environ.get("CI", "").lower() == "true"


def unexpected(reports) -> list[str]:
    """Returns ``test id: reason`` of every skip that is not on the list; none unless the run is strict."""
    if not strict():
        return []
    skips = []
    for report in reports:
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(re.match(test, report.nodeid) and re.search(text, reason) for test, text, _ in ALLOWED):
            skips.append(f"{report.nodeid}: {reason}")
    return skips
