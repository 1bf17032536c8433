"""300 cases of the fuzzer; `make fuzz` does 5,000. A failure says how to see its case again."""

import sys

import pytest

from tests.fuzz.run import GOOD, describe, fuzz

CASES = 300


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
@pytest.mark.timeout(3000)
def test_damaged_files_are_read_or_refused():
    answers = list(fuzz(range(CASES)))
    assert not [describe(answer) for answer in answers if answer["outcome"] not in GOOD]
    refused = sum(answer["outcome"] == "refused" for answer in answers)
    assert refused > CASES / 3  # the damage is seen: a fuzzer that damaged nothing would pass
