import pytest

from tests.bad_input.cohort import write_cohort
from tests.bad_input.harness import run


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder of a cohort and of its work dir after two steps."""
    folder = tmp_path_factory.mktemp("packed")
    config = write_cohort(folder)
    for step in ("generate_constraint_maps", "generate_h5_pretraining"):
        assert run(step, "--config", config).code == 0
    return folder
