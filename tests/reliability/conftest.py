"""A finished work dir for tests to spoil or to repeat."""

import pytest

from tests.bad_input.cohort import write_cohort
from tests.bad_input.harness import run
from tests.reliability.cohort import FIRST_FOUR


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a cohort and of its work dir after four steps."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_cohort(folder)
    for step in FIRST_FOUR:
        outcome = run(step, "--config", config)
        assert outcome.code == 0, outcome.said
    return folder
