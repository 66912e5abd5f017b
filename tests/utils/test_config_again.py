"""A config written by the suite loads as the same config."""

import pytest
import yaml

from tests.cohort import write_cohort
from tests.config_hashes import ROOT, hashes_of
from utils.checks import InputError
from utils.config.load import load_config
from utils.runs import open_run

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/**/*.yaml"))
WRITTEN = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("results/*/config.yaml"))


def written(folder, config):
    with open_run(folder, config.plain(), config.seed):
        return folder / "resolved_config.yaml"


@pytest.mark.parametrize("path", CONFIGS)
def test_a_resolved_config_loads_again(path, tmp_path):
    config = load_config(ROOT / path)
    again = load_config(written(tmp_path, config))
    assert again == config
    assert hashes_of(again) == hashes_of(config)
    assert again.plain() == config.plain()


@pytest.mark.parametrize("path", WRITTEN)
def test_a_config_beside_results_loads(path):
    """Earlier versions wrote them, with slices.percentiles beside constraint_maps."""
    assert load_config(ROOT / path).percentiles()


def test_percentiles_other_than_the_defaults_come_back(tmp_path):
    for key in ("constraint_maps.percentiles=[2, 98]", "constraint_maps=null"):
        changes = [key] if "null" not in key else [key, "slices.percentiles=[2, 98]"]
        config = load_config(write_cohort(tmp_path), changes)
        again = load_config(written(tmp_path / "run", config))
        assert again.percentiles() == (2, 98)
        assert hashes_of(again) == hashes_of(config)


def test_percentiles_said_twice_must_agree(tmp_path):
    config = write_cohort(tmp_path)
    said = load_config(config, ["constraint_maps.percentiles=[2, 98]", "slices.percentiles=[2, 98]"])
    assert hashes_of(said) == hashes_of(load_config(config, ["constraint_maps.percentiles=[2, 98]"]))
    with pytest.raises(InputError, match="constraint_maps.percentiles holds for both"):
        load_config(config, ["constraint_maps.percentiles=[2, 98]", "slices.percentiles=[3, 98]"])


def test_names_in_any_script_come_back(tmp_path):
    names = {"train": ["Jos\u00e9", "\u738b"], "val": ["A$^$B"], "test": ["'quoted' \"twice\""]}
    content = yaml.safe_load(write_cohort(tmp_path).read_text())
    content["data"]["splits"] = names
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    config = load_config(tmp_path / "named.yaml")
    assert load_config(written(tmp_path / "run", config)) == config
    assert config.plain()["data"]["splits"] == names
