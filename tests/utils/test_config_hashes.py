import json

import pytest

from tests.config_hashes import ROOT, all_hashes, config_files, hashes_of
from utils.config.load import load_config

GOLDEN = json.loads((ROOT / "tests" / "golden" / "config_hashes.json").read_text())


@pytest.fixture(scope="module")
def found():
    return all_hashes()


def test_every_committed_config_has_a_known_hash(found):
    assert {path for path in config_files() if path.startswith("configs/")} <= set(GOLDEN)
    assert set(found) == set(GOLDEN)


@pytest.mark.parametrize("path", GOLDEN)
def test_hashes_of_a_config_have_not_changed(path, found):
    """New keys do not change the hashes of configs that do not use them, so results stay comparable."""
    assert found[path] == GOLDEN[path]


def test_a_new_key_that_is_used_changes_the_hashes_of_its_cells_only():
    path = "configs/chaos_mr.yaml"
    hashes = hashes_of(load_config(ROOT / path, ["finetuning.augmentation.noise=0.1"]))
    differing = {name for name, value in hashes.items() if value != GOLDEN[path][name]}
    assert differing and differing == {name for name in hashes if name.startswith("cell ")}
